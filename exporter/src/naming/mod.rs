//! From a folder's `config.json` and tensor names to what the graphs need to know.

mod config;
mod error;
mod evidence;
mod fields;
mod names;
mod text_encoder;
mod transformer;
mod vae;
mod weights;

pub use config::{TextEncoderConfig, TransformerConfig, VaeConfig};
pub use error::{ConfigError, WeightProblem, WeightsError};
pub use weights::{FoundWeight, find};
