//! Why an export failed.

use std::path::PathBuf;

use crate::Component;
use crate::checkpoint::CheckpointError;
use crate::graph::GraphError;
use crate::naming::{ConfigError, WeightsError};
use crate::precision::PrecisionError;
use crate::write::WriteError;

/// An export failed. Nothing was left behind, and an existing export was not touched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The source has no such folder or file.
    #[error("{}: not found; expected {expected}", path.display())]
    SourceNotFound {
        /// What was looked for.
        path: PathBuf,
        /// What should be there.
        expected: String,
    },
    /// The source is a single file, where a folder is needed.
    #[error(
        "{}: is a file; expected a diffusers pipeline folder, or its {component} folder with \
         config.json (only a transformer can be a single file)",
        path.display()
    )]
    SourceIsFile {
        /// The file.
        path: PathBuf,
        /// What was to be exported.
        component: Component,
    },
    /// A conversion cannot be written to this target.
    #[error("{}: {problem}", path.display())]
    BadTarget {
        /// The target.
        path: PathBuf,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// The component does not have the precision asked for.
    #[error(transparent)]
    Precision(#[from] PrecisionError),
    /// The checkpoint's files cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tensors are not those of the architecture.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The graph cannot be built for this configuration.
    #[error("{component}: {source}")]
    Graph {
        /// Which graph.
        component: Component,
        /// What is wrong, with the name of the node.
        source: GraphError,
    },
    /// The component was written, but the caller's check did not accept it.
    #[error("{component}: {source}; nothing was kept")]
    Refused {
        /// Which one.
        component: Component,
        /// What the check said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The output cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}
