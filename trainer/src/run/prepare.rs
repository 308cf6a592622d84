//! Batches made ready ahead of time: encoded, and with everything drawn.

use std::sync::Arc;

use ndarray::{Array1, Array4, ArrayD, Axis};

use super::{PriorOptions, RunError, draws::Draws};
use crate::{
    data::{Ahead, BatchEncoder, BatchPlan, EncodedBatch, OfPlan, Sampler, Share, Skipped, Stream},
    gradient::Inputs,
    loss::Diffusion,
};

/// Batches that are made ahead of the one that is computed.
const AHEAD: usize = 2;

/// Tells the choice of prior pictures from those of other parts of a run.
const PRIOR_PURPOSE: u64 = 4;

/// A batch with everything drawn that is drawn.
pub(super) struct Prepared {
    pub plan: BatchPlan,
    pub skipped: Vec<Skipped>,
    pub clean: ArrayD<f32>,
    pub noise: ArrayD<f32>,
    pub noisy: ArrayD<f32>,
    pub times: Vec<usize>,
    pub inputs: Inputs,
    /// The factor on the loss of each picture.
    pub importance: Vec<f64>,
}

/// How latents and noise are drawn.
pub(super) struct Recipe {
    pub seed: u64,
    pub latent_scale: f32,
    /// Whether the model is told sizes and ratios of pictures.
    pub size_conditions: bool,
    pub diffusion: Arc<Diffusion>,
    pub prior: Option<PriorOptions>,
    /// Workers that share a batch.
    pub workers: usize,
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
        Ahead::making(sampler, end_epoch, AHEAD, move |plan| {
            self.prepare(encoder.encode(self.with_prior(plan))?)
        })
    }

    /// The batch with as many prior pictures, if there are any. Which ones follows from its place alone, so
    /// that a run that goes on takes the same.
    fn with_prior(&self, mut plan: BatchPlan) -> BatchPlan {
        if let Some(PriorOptions { items, .. }) = &self.prior {
            let mut stream = Stream::new(self.seed, &[PRIOR_PURPOSE, plan.epoch, plan.batch]);
            // The places of all workers are drawn, and each takes its own.
            let own = plan.items.len();
            let all = (0..plan.share.first + own).map(|_| items.start + stream.below(items.len()));
            plan.items.extend(all.skip(plan.share.first));
        }
        plan
    }

    /// What makes the mean over the losses of all workers' pictures that over the whole batch, without those that fill
    /// up; of its own pictures and `weight` times that of the prior ones, if there are any.
    fn importance(&self, plan: &BatchPlan) -> Vec<f64> {
        let mut each = self.importance_of_prior(&plan.items);
        let kinds = 1 + usize::from(self.prior.is_some());
        let share = plan.items.len() / kinds;
        let Share { first, whole } = plan.share;
        let workers = self.workers as f64;
        for (k, importance) in each.iter_mut().enumerate() {
            *importance *= match first + k % share < whole {
                true => workers * share as f64 / whole as f64,
                false => 0.0,
            };
        }
        each
    }

    /// What makes the mean over a batch the mean over its own pictures and `weight` times that over the prior ones.
    fn importance_of_prior(&self, items: &[usize]) -> Vec<f64> {
        let Some(PriorOptions { items: prior, weight, .. }) = &self.prior else {
            return vec![1.0; items.len()];
        };
        // There are as many of one kind as of the other.
        let factor = |item: &usize| if prior.contains(item) { 2.0 * weight } else { 2.0 };
        items.iter().map(factor).collect()
    }

    /// The number that time, noise and latents of picture `k` of a batch follow from. A prior picture may come
    /// many times in an epoch, so there it is its place, by a number that no picture has.
    fn number(&self, plan: &BatchPlan, k: usize, item: usize) -> usize {
        match &self.prior {
            Some(PriorOptions { items, .. }) if items.contains(&item) => {
                let Share { first, whole } = plan.share;
                let own = plan.items.len() / 2;
                // The places of all workers' own pictures come before those of all prior ones.
                let place = if k < own { first + k } else { whole + first + k - own };
                items.end + plan.batch as usize * 2 * whole + place
            }
            _ => item,
        }
    }

    fn prepare(&self, encoded: EncodedBatch) -> Result<Prepared, RunError> {
        let EncodedBatch { plan, mean, log_variance, captions, mask, skipped, conditions } =
            encoded;
        let count = plan.items.len();
        let mut clean = Array4::zeros(mean.raw_dim());
        let mut noise = Array4::zeros(mean.raw_dim());
        let mut times = Vec::with_capacity(count);
        for (k, &item) in plan.items.iter().enumerate() {
            let number = self.number(&plan, k, item);
            let mut draws = Draws::new(self.seed, plan.epoch, number, self.diffusion.len());
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
            conditions: self.size_conditions.then(|| conditions.into_inputs()),
        };
        let importance = self.importance(&plan);
        Ok(Prepared { plan, skipped, clean, noise, noisy, times, inputs, importance })
    }
}

#[cfg(test)]
mod tests {
    use pixart_runtime::sampler::{NoiseSchedule, SchedulerConfig};

    use super::*;
    use crate::{data::Position, run::PriorPictures};

    fn recipe(prior: Option<PriorOptions>) -> Recipe {
        let diffusion = Arc::new(Diffusion::new(&NoiseSchedule::new(&SchedulerConfig::default())));
        let (latent_scale, size_conditions) = (1.0, false);
        Recipe { seed: 1, latent_scale, size_conditions, diffusion, prior, workers: 1 }
    }

    fn prior(items: std::ops::Range<usize>, weight: f64) -> Option<PriorOptions> {
        let pictures = PriorPictures::default();
        Some(PriorOptions { items, weight, fingerprint: String::new(), pictures })
    }

    fn plan(batch: u64) -> BatchPlan {
        let after = Position {
            epoch: 0,
            batch: batch + 1,
            seed: 1,
            batch_size: 3,
            world: 1,
            drop_last: false,
            data: String::new(),
            earlier: Vec::new(),
        };
        let share = Share { first: 0, whole: 3 };
        BatchPlan { epoch: 0, batch, bucket: 0, items: vec![4, 0, 2], share, after }
    }

    #[test]
    fn a_prior_picture_that_comes_again_gets_other_noise() {
        let recipe = recipe(prior(5..6, 1.0));
        let numbers = |batch| {
            let plan = recipe.with_prior(plan(batch));
            let all = plan.items.iter().enumerate();
            all.map(|(k, &item)| recipe.number(&plan, k, item)).collect::<Vec<_>>()
        };
        assert_eq!(numbers(0), [4, 0, 2, 9, 10, 11]);
        assert_eq!(numbers(1), [4, 0, 2, 15, 16, 17]);
    }

    #[test]
    fn a_batch_gets_as_many_prior_pictures_by_its_place() {
        let recipe_with = recipe(prior(5..25, 0.5));
        let items = |batch| recipe_with.with_prior(plan(batch)).items;
        assert_eq!(items(0)[..3], [4, 0, 2]);
        assert!(items(0).len() == 6 && items(0)[3..].iter().all(|item| (5..25).contains(item)));
        assert_eq!(items(0), items(0));
        assert_ne!(items(0)[3..], items(1)[3..]);
        assert_eq!(recipe(None).with_prior(plan(0)).items, [4, 0, 2]);
    }

    #[test]
    fn the_mean_of_a_batch_is_that_of_its_own_and_the_weighted_one_of_the_prior() {
        let recipe = recipe(prior(5..25, 0.5));
        let share = Share { first: 0, whole: 2 };
        let each = recipe.importance(&BatchPlan { items: vec![1, 2, 7, 8], share, ..plan(0) });
        assert_eq!(each, [2.0, 2.0, 1.0, 1.0]);
        let losses = [0.3, 0.9, 1.0, 7.0];
        let mean = each.iter().zip(losses).map(|(factor, loss)| factor * loss).sum::<f64>() / 4.0;
        assert!((mean - (0.6 + 0.5 * 4.0)).abs() < 1e-12);
    }

    #[test]
    fn what_fills_up_the_share_of_a_worker_does_not_count() {
        for prior in [None, prior(10..40, 0.5)] {
            let kinds = 1 + usize::from(prior.is_some());
            let loss = |item: usize| (item * item) as f64;
            // Five pictures in one batch, and the same ones shared by three workers, two each.
            let share = Share { first: 0, whole: 5 };
            let whole = BatchPlan { items: vec![4, 0, 2, 7, 9], share, ..plan(0) };
            let mean = |recipe: &Recipe, plan: BatchPlan| {
                let plan = recipe.with_prior(plan);
                let each = recipe.importance(&plan);
                let losses = plan.items.iter().zip(each).map(|(item, factor)| loss(*item) * factor);
                assert_eq!(plan.items.len() % kinds, 0);
                losses.sum::<f64>() / plan.items.len() as f64
            };
            let expected = mean(&recipe(prior.clone()), whole.clone());
            let recipe = Recipe { workers: 3, ..recipe(prior) };
            let of_worker = |(rank, items): (usize, [usize; 2])| {
                let share = Share { first: 2 * rank, whole: 5 };
                mean(&recipe, BatchPlan { items: items.to_vec(), share, ..whole.clone() })
            };
            let workers = [[4, 0], [2, 7], [9, 1]].into_iter().enumerate();
            let found = workers.map(of_worker).sum::<f64>() / 3.0;
            assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        }
    }
}
