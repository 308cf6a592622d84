//! Tensor names and configurations of the known model families.

mod config;

pub use config::{TextEncoderConfig, TransformerConfig, VaeConfig};
