//! Fine-tuning of PixArt-Σ: pictures and captions in, weights out.

pub mod ema;
pub mod optimizer;
pub mod scaler;
pub mod schedule;
mod session;
mod tensors;

pub use tensors::Tensors;
