//! PixArt-Σ checkpoints in, ONNX folders out.
//!
//! [`export_pipeline`] turns a diffusers model folder into a folder of ONNX graphs,
//! [`export_component`] one part of it. The path of an export, house by house:
//!
//! 1. [`checkpoint`] maps the files (safetensors, PyTorch, MindSpore) and checks their structure;
//! 2. [`naming`] reads `config.json`, compares it with the tensors and refuses what is not supported;
//! 3. [`models`] builds the graph with the typed builder of [`graph`], lowered for a [`profile`];
//! 4. [`naming::find`] checks every tensor that the graph reads, before anything is written;
//! 5. [`mod@write`] streams the weights, writes the graph and a manifest with hashes, and puts the
//!    complete folder in place in one step.
//!
//! Memory stays at about the size of a graph plus a few megabytes, whatever the model's size.

pub mod checkpoint;
mod component;
mod error;
mod export;
pub mod graph;
pub mod models;
pub mod naming;
mod options;
pub mod profile;
mod source;
pub mod write;

pub use component::{Component, UnknownComponent};
pub use error::ExportError;
pub use export::{export_component, export_pipeline};
pub use options::{ExportOptions, Exported, Precision, Progress, UnknownPrecision};
pub use profile::Profile;
pub use source::PipelineSource;
