//! From latents to pixels and back, and latents as files.

mod encode;
mod latents;
mod pixels;

pub use encode::{Posterior, from_picture};
pub use latents::{LatentsError, write_latents};
pub use pixels::to_picture;
