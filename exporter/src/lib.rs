//! PixArt-Σ checkpoints in, ONNX folders out.
