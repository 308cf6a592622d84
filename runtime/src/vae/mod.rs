//! From latents to pixels, and latents as files.

mod latents;
mod pixels;
pub mod tiles;

pub use latents::{LatentsError, write_latents};
pub use pixels::to_picture;
