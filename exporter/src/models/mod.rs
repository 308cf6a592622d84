//! The architectures, one file each, written with the graph builder.

mod kv_compression;
mod position;
#[cfg(test)]
pub(crate) mod tests;
pub mod text_encoder;
mod timestep;
pub mod transformer;
pub mod vae;
