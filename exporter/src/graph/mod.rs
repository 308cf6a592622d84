//! A typed ONNX graph: the data ([`ir`]), its symbolic sizes ([`dim`]) and the builder.

pub mod dim;
pub mod ir;
