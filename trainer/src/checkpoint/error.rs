//! What can be wrong with a checkpoint of training.

use std::{io, path::PathBuf};

use pixart_exporter::write::WriteError;
use pixart_runtime::engine::EngineError;

use crate::{FileError, lora::AdapterError, optimizer::OptimizerError};

/// A checkpoint of training cannot be saved, found or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// There is no checkpoint.
    #[error(
        "{}: found no complete checkpoint of training, expected a folder with training.json, or one of \
         such folders{}", path.display(), incomplete_list(incomplete)
    )]
    None {
        /// The folder.
        path: PathBuf,
        /// Folders that look like checkpoints, and what is wrong with them.
        incomplete: Vec<(PathBuf, String)>,
    },
    /// A checkpoint is incomplete or damaged.
    #[error("{}: {problem}; use another checkpoint, or copy this one again", path.display())]
    Incomplete {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The checkpoint is one of another training.
    #[error("{}: found {found}, expected {expected}; continue with the settings it was saved with", path.display())]
    Other {
        /// The folder.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What is trained.
        expected: String,
    },
    /// A folder cannot be listed or removed.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] FileError),
    /// The LoRA in it cannot be written or is another one.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Values cannot be read from the device that holds them.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The optimizer's state or the average in it is another one.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
}

fn incomplete_list(incomplete: &[(PathBuf, String)]) -> String {
    let each = incomplete.iter().map(|(path, problem)| format!("; {}: {problem}", path.display()));
    each.collect()
}
