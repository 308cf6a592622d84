//! From latents to pixels, exactly or at a glance, and back, and latents as files.

mod decode;
mod encode;
mod latents;
mod pixels;
mod preview;
pub mod tiles;

pub use decode::PictureDecoder;
pub use encode::{LOG_VARIANCE, PictureEncoder, Posterior, deviation, from_picture};
pub use latents::{LatentsError, write_latents};
pub use pixels::to_picture;
pub use preview::LatentPreview;
