//! Ancestral sampling with learned variance: Nichol and Dhariwal, "Improved Denoising Diffusion
//! Probabilistic Models", 2021.
//!
//! With ᾱ where a step begins, ᾱ' where it leads and β = 1 − ᾱ/ᾱ':
//!
//! - mean μ = √ᾱ' β/(1−ᾱ) x₀ + √(1−β) (1−ᾱ')/(1−ᾱ) x
//! - ln variance = f ln β + (1−f) ln β̃, where β̃ = β (1−ᾱ')/(1−ᾱ) and f = (v+1)/2
//! - x ← μ + √variance z, and x ← μ in the last step
//!
//! diffusers' `DDPMScheduler` with `variance_type="learned_range"` and `clip_sample=False` takes the
//! same steps.

use ndarray::{ArrayD, Zip};

use super::{
    Level, NoiseSchedule, Prediction, Solver,
    solver::{noise_like, spread},
};
use crate::{noise::TorchGenerator, pipeline::Reference};

struct Step {
    level: Level,
    /// Factor of x₀ in the mean.
    picture: f64,
    /// Factor of x in the mean.
    keep: f64,
    /// ln β̃ and ln β; absent in the last step, which adds no noise.
    variance: Option<(f64, f64)>,
}

/// A run of ancestral sampling.
pub struct Iddpm {
    timesteps: Vec<f32>,
    steps: Vec<Step>,
}

impl Iddpm {
    /// `steps` steps, 2 to the schedule's length, at whole times spread evenly from T − 1 to 0. The
    /// reference decides the precision of the schedule alone.
    pub fn new(schedule: &NoiseSchedule, steps: usize, reference: Reference) -> Self {
        let times = spread(schedule.len() - 1, steps);
        let step = |i: usize| {
            let level = schedule.level(times[i], reference);
            let next = times.get(i + 1);
            let target = next.map_or(Level::CLEAN, |&t| schedule.level(t, reference));
            let ratio = (level.alpha / target.alpha).powi(2);
            let beta = 1.0 - ratio;
            let (noisy, cleaner) = (level.sigma.powi(2), target.sigma.powi(2));
            Step {
                level,
                picture: target.alpha * beta / noisy,
                keep: ratio.sqrt() * cleaner / noisy,
                variance: next.map(|_| ((beta * cleaner / noisy).ln(), beta.ln())),
            }
        };
        let timesteps = times.iter().map(|&t| t as f32).collect();
        Self { timesteps, steps: (0..steps).map(step).collect() }
    }
}

impl Solver for Iddpm {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn level(&self, index: usize) -> Level {
        self.steps[index].level
    }

    fn needs_variance(&self) -> bool {
        true
    }

    /// Draws noise in every step but the last.
    fn step(
        &mut self,
        index: usize,
        sample: &mut ArrayD<f32>,
        prediction: &Prediction,
        generator: &mut TorchGenerator,
    ) {
        let Step { level, picture, keep, variance } = self.steps[index];
        Zip::from(&mut *sample).and(&prediction.noise).for_each(|x, &noise| {
            let x0 = (f64::from(*x) - level.sigma * f64::from(noise)) / level.alpha;
            *x = (picture * x0 + keep * f64::from(*x)) as f32;
        });
        let Some((lower, upper)) = variance else { return };
        let z = noise_like(sample, generator);
        let v = prediction.variance.as_ref().expect("the variance that needs_variance asks for");
        Zip::from(sample).and(&z).and(v).for_each(|x, &z, &v| {
            let f = (f64::from(v) + 1.0) / 2.0;
            let deviation = (0.5 * (f * upper + (1.0 - f) * lower)).exp();
            *x = (f64::from(*x) + deviation * f64::from(z)) as f32;
        });
    }
}
