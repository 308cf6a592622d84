//! Why an exported model could not be looked at.

use std::path::PathBuf;

use crate::engine::EngineError;

/// An exported model could not be verified; whether it is as it should be is not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// There is no exported component.
    #[error(
        "{}: found no exported component, expected a folder with a manifest.json, or one whose \
         folders have one; `pixart export` makes them",
        folder.display()
    )]
    NothingExported {
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// A file or folder cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A manifest that cannot be used.
    #[error("{}: {reason}; export the component again", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// A graph takes an input for which no random values are known.
    #[error("{}: input \"{input}\": {reason}", model.display())]
    Input {
        /// The `model.onnx`.
        model: PathBuf,
        /// Name of the input.
        input: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// Two graphs that should be the same component give different outputs.
    #[error("{}: found the output {found}, expected {expected}", model.display())]
    Output {
        /// The `model.onnx`.
        model: PathBuf,
        /// Name, type and shape.
        found: String,
        /// Those of the graph it is compared with.
        expected: String,
    },
    /// There is nothing to compare an engine with.
    #[error(
        "{}: there is no second engine to compare with, because tract cannot run it ({reason}); \
         `pixart engine install cpu` fetches ONNX Runtime",
        model.display()
    )]
    NoSecondEngine {
        /// The `model.onnx`.
        model: PathBuf,
        /// Why tract cannot run it.
        reason: String,
    },
    /// An engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}
