//! From a folder's `config.json` and tensor names to what the graphs need to know.

mod config;
mod error;
mod evidence;
mod fields;
mod names;
pub(crate) mod official;
mod scheme;
mod text_encoder;
mod transformer;
mod vae;
mod variant;
mod weights;

pub use config::{
    KvCompression, KvSampling, TextEncoderConfig, TransformerConfig, UnknownKvSampling, VaeConfig,
};
pub use error::{ConfigError, WeightProblem, WeightsError};
pub(crate) use names::is_droppable;
pub use scheme::{Naming, in_diffusers_names, in_stored_names};
pub use variant::{Family, VariantFlags};
pub use weights::{FoundWeight, find};
