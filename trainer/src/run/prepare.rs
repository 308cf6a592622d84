//! Batches made ready ahead of time: encoded, and with everything drawn.

use std::sync::Arc;

use ndarray::{Array1, Array4, ArrayD, Axis};

use super::{RunError, draws::Draws};
use crate::{
    data::{Ahead, BatchEncoder, BatchPlan, EncodedBatch, OfPlan, Sampler, Skipped},
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
pub(super) type Prepares = Ahead<Prepared, RunError>;

impl OfPlan for Prepared {
    fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }
}

impl Recipe {
    /// Prepares the batches from where `sampler` is, to the end of the epoch before `end_epoch` if there is one.
    pub fn start(
        self,
        mut encoder: Box<dyn BatchEncoder>,
        sampler: Sampler,
        end_epoch: Option<u64>,
    ) -> Prepares {
        let end_epoch = end_epoch.unwrap_or(u64::MAX);
        Ahead::making(sampler, end_epoch, AHEAD, move |plan| self.prepare(encoder.encode(plan)?))
    }

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
            hidden_states: noisy.clone().into(),
            encoder_hidden_states: captions.into(),
            encoder_attention_mask: mask.into(),
            timestep: timestep.into(),
            conditions: None,
        };
        Ok(Prepared { plan, skipped, clean, noise, noisy, times, inputs })
    }
}
