//! Fine-tuning of PixArt-Σ: pictures and captions in, weights out.

pub mod data;
pub mod gradient;
pub mod loss;
pub mod optimizer;
mod session;

pub use session::SessionError;
