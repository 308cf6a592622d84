//! ONNX files on disk: the graph as protobuf, the weights beside it, a manifest with hashes.

mod component;
pub(crate) mod convert;
mod copy;
mod error;
mod hash;
pub(crate) mod layout;
mod manifest;
pub(crate) mod onnx;
mod pipe;
pub(crate) mod safetensors;
mod scratch;
mod space;
mod staged_file;
mod staging;

use prost::Message as _;

use crate::graph::ir::Graph;

pub(crate) use component::{ConfigFile, Content, write_bare, write_component, write_manifest};
pub use copy::write_text;
pub(crate) use copy::{copy_file, copy_plain_files, create_folder};
pub use error::WriteError;
pub use hash::FileRecord;
pub use safetensors::{Floats, write_floats};
pub use scratch::Scratch;
pub use space::free_space;
pub(crate) use staged_file::StagedFile;
pub use staging::{Kind, Staging, remove_all_abandoned, sync_folder};

/// A graph as the bytes of an ONNX file, its constants inside. It has no tensors of a checkpoint: see
/// [`GraphBuilder::weights_as_inputs`](crate::graph::GraphBuilder::weights_as_inputs).
///
/// # Errors
/// [`WriteError::Inconsistent`] when the graph reads tensors of a checkpoint.
pub fn to_bytes(graph: &Graph) -> Result<Vec<u8>, WriteError> {
    let count = graph.initializers.len();
    let model = onnx::model(graph, &vec![layout::Place::Inline; count], &mut vec![None; count])?;
    Ok(model.encode_to_vec())
}

/// Name of the graph's file.
pub const MODEL_FILE: &str = "model.onnx";
/// Name of the weights' file.
pub const DATA_FILE: &str = "model.onnx_data";
/// Name of the weights' file in a diffusers folder.
pub const DIFFUSERS_FILE: &str = "diffusion_pytorch_model.safetensors";
/// Every file of a converted diffusers folder.
pub(crate) const CHECKPOINT_FILES: [&str; 2] = [DIFFUSERS_FILE, "config.json"];
/// Every file of an exported component.
pub(crate) const COMPONENT_FILES: [&str; 4] =
    [MODEL_FILE, DATA_FILE, "config.json", "manifest.json"];
/// Folder inside a checkpoint of training that holds the averaged weights.
pub const TRAINING_AVERAGE: &str = "ema";
/// Every file of a checkpoint of training, of a whole model or of a LoRA.
pub(crate) const TRAINING_FILES: [&str; 7] = [
    DIFFUSERS_FILE,
    "config.json",
    "adapter_model.safetensors",
    "adapter_config.json",
    "pytorch_lora_weights.safetensors",
    "optimizer.safetensors",
    "training.json",
];
