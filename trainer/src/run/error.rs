//! Why a run cannot begin, or ends early.

use std::{fmt, path::PathBuf};

use pixart_exporter::ExportError;
use pixart_runtime::engine::EngineError;

use crate::{
    checkpoint::CheckpointError,
    data::{EncodeError, SamplerError, Stopped},
    gradient::TransformerError,
    lora::AdapterError,
    loss::LossError,
    optimizer::OptimizerError,
    ranks::{ExchangeError, Lost},
    scaler::ScalerError,
};

/// A run that cannot begin, or ends early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A setting is out of its range.
    #[error("{setting}: found {found}, expected {expected}")]
    Setting {
        /// The setting, as the command line names it.
        setting: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// A number is not finite.
    #[error(
        "step {step} (epoch {epoch}, batch {batch}): {what}; {}; {advice}",
        newest(saved.as_ref())
    )]
    NotFinite {
        /// The step that it belongs to, from 1.
        step: u64,
        /// The epoch, from 1.
        epoch: u64,
        /// The batch in the epoch, from 1.
        batch: u64,
        /// Which.
        what: NotFinite,
        /// The newest checkpoint.
        saved: Option<PathBuf>,
        /// What can be done.
        advice: &'static str,
    },
    /// What the run left in a checkpoint cannot be understood.
    #[error("{}: training.json: {field} {problem}; go on from another checkpoint", path.display())]
    State {
        /// The checkpoint.
        path: PathBuf,
        /// The field of `state`.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The checkpoint to begin with cannot be used.
    #[error(transparent)]
    Export(Box<ExportError>),
    /// The pictures cannot be dealt out.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// A batch cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A pass through the model fails.
    #[error(transparent)]
    Transformer(#[from] TransformerError),
    /// There is no loss.
    #[error(transparent)]
    Loss(#[from] LossError),
    /// A step fails, or a setting of the optimizer is out of its range.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// A setting of the loss scale is out of its range.
    #[error(transparent)]
    Scaler(#[from] ScalerError),
    /// A device has no room, or fails.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The LoRA cannot be made or read.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A checkpoint cannot be saved or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Who watches the run failed.
    #[error(transparent)]
    Watcher(Box<dyn std::error::Error + Send + Sync>),
    /// Several processes train together, and one of the others cannot go on.
    #[error("ended, because rank {rank} cannot go on: see its message; {}", newest(saved.as_ref()))]
    OtherRank {
        /// Its number.
        rank: usize,
        /// The newest checkpoint.
        saved: Option<PathBuf>,
    },
    /// Gradients or weights cannot be exchanged with other processes.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The other processes are gone.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// The thread that prepares batches is gone.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl From<ExportError> for RunError {
    fn from(error: ExportError) -> Self {
        Self::Export(Box::new(error))
    }
}

/// What is not finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NotFinite {
    /// The loss, with its value.
    Loss(f64),
    /// Some of the gradients.
    Gradients,
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loss(found) => write!(f, "the loss is {found}"),
            Self::Gradients => f.write_str("the gradients are not finite"),
        }
    }
}

fn newest(saved: Option<&PathBuf>) -> String {
    match saved {
        Some(path) => format!("the newest checkpoint is {}", path.display()),
        None => "no checkpoint was saved yet".to_owned(),
    }
}
