//! DDIM without noise (η = 0): Song et al., "Denoising Diffusion Implicit Models", 2021, eq. 12.
//!
//! x ← α' x₀ + σ' ε, where α', σ' belong to the level the step leads to. The model is asked at whole
//! times spread evenly from T − 1 to 0.

use ndarray::{ArrayD, Zip};

use super::{Level, NoiseSchedule, Prediction, Solver, solver::spread};
use crate::{noise::TorchGenerator, pipeline::Reference};

/// A run of DDIM.
pub struct Ddim {
    timesteps: Vec<f32>,
    /// Where each step begins and where it leads.
    levels: Vec<(Level, Level)>,
}

impl Ddim {
    /// `steps` steps, 2 to the schedule's length. In the mindone reference a step leads to the level of
    /// the next time. In diffusers it leads T/`steps` (a whole number) further down, which is
    /// close to the next time but not always there; this is what its scheduler does with evenly
    /// spread times. Both end without noise.
    pub fn new(schedule: &NoiseSchedule, steps: usize, reference: Reference) -> Self {
        let times = spread(schedule.len() - 1, steps);
        let target = |i: usize| match reference {
            Reference::Mindone => times.get(i + 1).copied(),
            Reference::Diffusers => times[i].checked_sub(schedule.len() / steps),
        };
        let level = |t| schedule.level(t, reference);
        let levels =
            (0..steps).map(|i| (level(times[i]), target(i).map_or(Level::CLEAN, level))).collect();
        Self { timesteps: times.iter().map(|&t| t as f32).collect(), levels }
    }
}

impl Solver for Ddim {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn level(&self, index: usize) -> Level {
        self.levels[index].0
    }

    fn step(
        &mut self,
        index: usize,
        sample: &mut ArrayD<f32>,
        prediction: &Prediction,
        _: &mut TorchGenerator,
    ) {
        let (from, to) = self.levels[index];
        let keep = to.alpha / from.alpha;
        let push = to.sigma - keep * from.sigma;
        Zip::from(sample).and(&prediction.noise).for_each(|x, &noise| {
            *x = (keep * f64::from(*x) + push * f64::from(noise)) as f32;
        });
    }
}
