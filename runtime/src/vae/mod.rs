//! From latents to pixels, exactly or at a glance, and latents as files.

mod latents;
mod pixels;
mod preview;

pub use latents::{LatentsError, write_latents};
pub use pixels::to_picture;
pub use preview::LatentPreview;
