//! The architectures, one file each, written with the graph builder.

mod position;
pub mod text_encoder;
mod timestep;
pub mod transformer;
pub mod vae;
