//! Fine-tuning of PixArt-Σ: pictures and captions in, weights out.

pub mod checkpoint;
pub mod ema;
mod files;
pub mod lora;
pub mod optimizer;
mod pieces;
pub mod scaler;
pub mod schedule;
mod tensors;

pub use files::FileError;
pub use tensors::{NamedWeights, Tensors};
