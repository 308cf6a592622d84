//! Fine-tuning of PixArt-Σ: pictures and captions in, weights out.

pub mod gradient;
pub mod loss;
