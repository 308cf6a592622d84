//! Prompt in, picture out: PixArt-Σ on ONNX Runtime or tract.

pub mod engine;
pub mod tensor;
