//! PixArt-Σ checkpoints in, ONNX folders out.
pub mod graph;
pub mod models;
pub mod naming;
pub mod profile;
