//! What a run tells while it goes on.

use std::path::PathBuf;

use super::{Learner, NotFinite};
use crate::data::Skipped as Unreadable;

/// Something that happened.
#[non_exhaustive]
pub enum Event<'a> {
    /// It begins, or goes on.
    Began(Began),
    /// A step of the optimizer is done.
    Step(StepReport),
    /// A batch was left out.
    Skipped(SkippedBatch),
    /// A picture cannot be read any more; another one stands for it. Told once for each.
    Unreadable(Unreadable),
    /// An epoch is over. What is trained can be looked at, and used for predictions.
    Epoch(EpochReport, &'a mut Learner),
    /// A checkpoint was saved.
    Saved {
        /// Its folder.
        folder: PathBuf,
        /// The step.
        step: u64,
        /// Older checkpoints that were removed for it.
        removed: Vec<PathBuf>,
    },
    /// All steps are done and saved. What is trained can be looked at, and used for predictions.
    Ended(&'a mut Learner),
}

/// What is known when a run begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Began {
    /// Steps that were done before.
    pub step: u64,
    /// Epochs that were over before.
    pub epoch: u64,
    /// Steps in all, if no batch is left out.
    pub total_steps: u64,
    /// Batches in an epoch.
    pub batches_per_epoch: u64,
    /// Numbers that are trained.
    pub parameters: u64,
}

/// A step of the optimizer.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// The epoch of its last batch, from 1.
    pub epoch: u64,
    /// The mean of the losses of its batches.
    pub loss: f64,
    /// The learning rate it was done with.
    pub learning_rate: f64,
    /// The factor on the loss.
    pub loss_scale: f64,
    /// The norm of all gradients together, before they were shortened.
    pub gradient_norm: f64,
    /// Seconds since the step before, or since the run began.
    pub seconds: f64,
    /// Pictures in its batches.
    pub images: usize,
}

/// A batch that was left out.
#[derive(Clone, Debug, PartialEq)]
pub struct SkippedBatch {
    /// Steps done so far.
    pub step: u64,
    /// Its epoch, from 1.
    pub epoch: u64,
    /// Its number in the epoch, from 1.
    pub batch: u64,
    /// What was not finite.
    pub what: NotFinite,
    /// The loss scale from now on.
    pub loss_scale: f64,
}

/// An epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct EpochReport {
    /// Its number, from 1.
    pub epoch: u64,
    /// Steps done so far.
    pub step: u64,
    /// Whether the run is over with it.
    pub last: bool,
    /// The mean of the losses of its batches since the run began or went on; none if all were left out.
    pub loss: Option<f64>,
    /// Seconds since it, or the run, began.
    pub seconds: f64,
    /// Steps in this time.
    pub steps: u64,
}
