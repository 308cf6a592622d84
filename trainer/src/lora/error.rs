//! What can be wrong with a LoRA that is to be trained or saved.

use std::path::PathBuf;

use pixart_exporter::write::WriteError;

use crate::FileError;

/// A LoRA cannot be made, saved or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A setting is out of its range.
    #[error("{setting}: found {found}, expected {expected}")]
    Setting {
        /// The setting, as the command line names it.
        setting: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// No layer has the name of a target.
    #[error(
        "lora_targets: none of {targets:?} is a layer of the model, expected names or ends of names such \
         as to_q or ff.net.2; the model has {layers}"
    )]
    NoTarget {
        /// The targets.
        targets: Vec<String>,
        /// Some of the layers.
        layers: String,
    },
    /// A layer of a kind that has no LoRA.
    #[error(
        "lora_targets: {layer}.weight is f32{found:?}, expected a matrix or the kernel of a plain \
         convolution; leave it out"
    )]
    Layer {
        /// The layer.
        layer: String,
        /// The shape of its weight.
        found: Vec<usize>,
    },
    /// A file holds other factors than the LoRA has.
    #[error("{}: {name}: found {found}, expected {expected}; continue with the settings it was saved with", path.display())]
    Factors {
        /// The file.
        path: PathBuf,
        /// The factor.
        name: String,
        /// What the file has.
        found: String,
        /// What the LoRA has.
        expected: String,
    },
    /// A weight that the LoRA changes is not there, or of another shape.
    #[error(
        "{name}: found {found}, expected f32{expected:?}; use the model that the LoRA was made for"
    )]
    Weight {
        /// The weight.
        name: String,
        /// What is there.
        found: String,
        /// The shape it must have.
        expected: Vec<usize>,
    },
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] FileError),
}
