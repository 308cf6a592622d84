//! Batches made ready ahead of time, on a thread of their own.

use std::{
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use ndarray::{Array1, Array4, ArrayD, Axis};
use pixart_runtime::tensor::Tensor;

use super::{RunError, draws::Draws};
use crate::{
    data::{BatchEncoder, BatchPlan, EncodedBatch, Sampler, Skipped},
    gradient::Inputs,
    loss::Diffusion,
};

/// Batches that are made ahead of the one that is computed.
const AHEAD: usize = 2;

/// A batch with everything drawn that is drawn.
pub(super) struct Prepared {
    pub plan: BatchPlan,
    pub skipped: Vec<Skipped>,
    pub clean: ArrayD<f32>,
    pub noise: ArrayD<f32>,
    pub noisy: ArrayD<f32>,
    pub times: Vec<usize>,
    pub inputs: Inputs,
}

/// How latents and noise are drawn.
pub(super) struct Recipe {
    pub seed: u64,
    pub latent_scale: f32,
    pub diffusion: Arc<Diffusion>,
}

/// The batches to come.
pub(super) struct Ahead {
    batches: Option<mpsc::Receiver<Result<Prepared, RunError>>>,
    thread: Option<JoinHandle<()>>,
}

impl Ahead {
    /// Prepares the batches from where `sampler` is, to the end of the epoch before `end_epoch` if there is one.
    pub fn start(
        mut sampler: Sampler,
        mut encoder: Box<dyn BatchEncoder>,
        recipe: Recipe,
        end_epoch: Option<u64>,
    ) -> Self {
        let (sender, batches) = mpsc::sync_channel(AHEAD);
        let thread = thread::spawn(move || {
            while end_epoch.is_none_or(|end| sampler.position().epoch < end) {
                let encoded = encoder.encode(sampler.next_batch()).map_err(RunError::from);
                let batch = encoded.and_then(|encoded| recipe.prepare(encoded));
                let failed = batch.is_err();
                // Nobody waits for batches any more, or there are none.
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        });
        Self { batches: Some(batches), thread: Some(thread) }
    }

    pub fn next(&mut self) -> Result<Prepared, RunError> {
        let batch = self.batches.as_ref().map(mpsc::Receiver::recv);
        batch.ok_or(RunError::Stopped)?.map_err(|_| RunError::Stopped)?
    }
}

impl Drop for Ahead {
    /// Waits for the batch in the making: it may be on the engine, which must not go before it.
    fn drop(&mut self) {
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // What it panicked with, it has told.
            let _ = thread.join();
        }
    }
}

impl Recipe {
    fn prepare(&self, encoded: EncodedBatch) -> Result<Prepared, RunError> {
        let EncodedBatch { plan, mean, log_variance, captions, mask, skipped, .. } = encoded;
        let count = plan.items.len();
        let mut clean = Array4::zeros(mean.raw_dim());
        let mut noise = Array4::zeros(mean.raw_dim());
        let mut times = Vec::with_capacity(count);
        for (k, &item) in plan.items.iter().enumerate() {
            let mut draws = Draws::new(self.seed, plan.epoch, item, self.diffusion.len());
            let mean = mean.index_axis(Axis(0), k);
            let log_variance = log_variance.index_axis(Axis(0), k);
            let latents = draws.latents(mean, log_variance, self.latent_scale);
            noise.index_axis_mut(Axis(0), k).assign(&draws.noise(mean.dim()));
            clean.index_axis_mut(Axis(0), k).assign(&latents);
            times.push(draws.time());
        }
        let (clean, noise) = (clean.into_dyn(), noise.into_dyn());
        let noisy = self.diffusion.add_noise(&clean, &noise, &times)?;
        let timestep: Array1<f32> = times.iter().map(|&time| time as f32).collect();
        let inputs = Inputs {
            hidden_states: Tensor::F32(noisy.clone()),
            encoder_hidden_states: captions.into(),
            encoder_attention_mask: mask.into(),
            timestep: timestep.into(),
            conditions: None,
        };
        Ok(Prepared { plan, skipped, clean, noise, noisy, times, inputs })
    }
}
