//! PixArt-Σ checkpoints in, ONNX folders out.
//!
//! [`export_pipeline`] turns a diffusers model folder into a folder of ONNX graphs,
//! [`export_component`] one part of it. The path of an export, house by house:
//!
//! 1. [`checkpoint`] maps the files (safetensors, PyTorch, MindSpore) and checks their structure;
//! 2. [`naming`] reads `config.json`, compares it with the tensors and refuses what is not supported;
//! 3. [`models`] builds the graph with the typed builder of [`graph`], lowered for a [`profile`];
//! 4. [`precision`] rewrites it for 16, 8 or 4 bits, if asked to;
//! 5. [`naming::find`] checks every tensor that the graph reads, before anything is written;
//! 6. [`mod@write`] streams the weights, writes the graph and a manifest with hashes, and puts the
//!    complete folder in place in one step.
//!
//! Memory stays at about the size of a graph plus a few megabytes, whatever the model's size.

mod check;
pub mod checkpoint;
mod component;
pub mod convert;
mod error;
mod export;
pub mod graph;
pub mod inspect;
pub mod models;
pub mod naming;
mod options;
pub mod precision;
pub mod profile;
pub mod random;
mod source;
mod trainable;
pub mod write;

pub use check::{Staged, Twins, Verdict};
pub use component::{Component, UnknownComponent};
pub use error::ExportError;
pub use export::{
    export_component, export_component_checked, export_component_until, export_pipeline,
    export_pipeline_checked,
};
pub use naming::{KvSampling, Naming, VariantFlags};
pub use options::{ExportOptions, Exported, Progress};
pub use precision::{Int8Mode, Precision, PrecisionError, UnknownInt8Mode, UnknownPrecision};
pub use profile::Profile;
pub use source::PipelineSource;
pub use trainable::TrainableTransformer;
