//! What a run counts between its checkpoints.

use std::{collections::BTreeSet, time::Instant};

use super::{EpochReport, Run, State};

/// What changes with every batch and is in no checkpoint.
pub(super) struct Progress {
    /// Epochs that are over.
    pub epoch: u64,
    /// The state that the newest checkpoint has.
    pub saved: Option<State>,
    /// A checkpoint is wanted.
    pub due: bool,
    /// Batches left out, in all and since the last one that was not.
    pub skipped: u64,
    pub in_a_row: u32,
    /// Pictures that cannot be read any more.
    pub unreadable: BTreeSet<usize>,
    /// Losses and pictures of the coming step.
    pub losses: Vec<f64>,
    pub images: usize,
    pub step_began: Instant,
    /// The same of the epoch.
    pub epoch_loss: (f64, u64),
    pub epoch_steps: u64,
    pub epoch_began: Instant,
}

impl Progress {
    pub fn new(run: &Run) -> Self {
        let now = Instant::now();
        Self {
            epoch: run.state.position.epoch,
            saved: run.saved.is_some().then(|| run.state.clone()),
            due: false,
            skipped: 0,
            in_a_row: 0,
            unreadable: BTreeSet::new(),
            losses: Vec::new(),
            images: 0,
            step_began: now,
            epoch_loss: (0.0, 0),
            epoch_steps: 0,
            epoch_began: now,
        }
    }

    pub fn learnt(&mut self, loss: f64, images: usize) {
        self.in_a_row = 0;
        self.losses.push(loss);
        self.images += images;
        self.epoch_loss.0 += loss;
        self.epoch_loss.1 += 1;
    }

    /// Loss, pictures and seconds of the step that is over.
    pub fn stepped(&mut self) -> (f64, usize, f64) {
        let loss = self.losses.iter().sum::<f64>() / self.losses.len() as f64;
        let seconds = self.step_began.elapsed().as_secs_f64();
        self.losses.clear();
        self.step_began = Instant::now();
        self.epoch_steps += 1;
        (loss, std::mem::take(&mut self.images), seconds)
    }

    pub fn epoch_report(&mut self, step: u64, last: bool) -> EpochReport {
        let (sum, count) = std::mem::take(&mut self.epoch_loss);
        let loss = (count > 0).then(|| sum / count as f64);
        let seconds = self.epoch_began.elapsed().as_secs_f64();
        self.epoch_began = Instant::now();
        let steps = std::mem::take(&mut self.epoch_steps);
        EpochReport { epoch: self.epoch, step, last, loss, seconds, steps }
    }
}
