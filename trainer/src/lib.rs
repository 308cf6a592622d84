//! Fine-tuning of PixArt-Σ: pictures and captions in, weights out.

pub mod checkpoint;
pub mod data;
pub mod ema;
mod files;
pub mod gradient;
pub mod log;
pub mod lora;
pub mod loss;
pub mod optimizer;
mod pieces;
pub mod ranks;
pub mod run;
pub mod scaler;
pub mod schedule;
mod session;
mod tensors;

pub use files::FileError;
pub use session::SessionError;
pub use tensors::{Tensors, Values, to_tensors, to_values};
