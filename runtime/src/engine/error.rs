//! What can go wrong between the program and an engine.

use std::path::PathBuf;

/// An engine could not be opened, or could not load or run a graph.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No engine of this name.
    #[error("there is no engine named \"{name}\"; choose auto, ort or tract")]
    UnknownEngine {
        /// What was asked for.
        name: String,
    },
    /// The graph file is missing or unreadable.
    #[error("cannot read the model {}: {source}", model.display())]
    ModelFile {
        /// The `model.onnx`.
        model: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An output has another element type than the caller needs.
    #[error("the output \"{output}\" holds {found} values, expected f32; export the model again")]
    OutputType {
        /// Name of the output.
        output: String,
        /// The element type found.
        found: String,
    },
}
