//! One step of a model distilled by distribution matching (Yin et al., "One-step Diffusion with
//! Distribution Matching Distillation", 2024): x₀ = (x − σ ε)/α at one time, from plain noise.

use ndarray::ArrayD;

use super::{Level, NoiseSchedule, Prediction, Solver};
use crate::{noise::TorchGenerator, pipeline::Reference};

/// The time at which PixArt's DMD model was trained.
pub(super) const TIMESTEP: usize = 400;

/// The only step of such a model.
pub struct Dmd {
    timestep: f32,
    level: Level,
}

impl Dmd {
    /// The step at time 400. The reference decides the precision of the schedule alone.
    pub fn new(schedule: &NoiseSchedule, reference: Reference) -> Self {
        Self { timestep: TIMESTEP as f32, level: schedule.level(TIMESTEP, reference) }
    }
}

impl Solver for Dmd {
    fn timesteps(&self) -> &[f32] {
        std::slice::from_ref(&self.timestep)
    }

    /// The level at time 400, as the model sees it; the sample itself is plain noise.
    fn level(&self, index: usize) -> Level {
        assert_eq!(index, 0, "there is one step");
        self.level
    }

    fn step(
        &mut self,
        index: usize,
        sample: &mut ArrayD<f32>,
        prediction: &Prediction,
        _: &mut TorchGenerator,
    ) {
        *sample = prediction.picture(sample, self.level(index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::SchedulerConfig;

    #[test]
    fn the_step_is_the_known_one() {
        let schedule = NoiseSchedule::new(&SchedulerConfig::default());
        for reference in [Reference::Mindone, Reference::Diffusers] {
            let mut solver = Dmd::new(&schedule, reference);
            assert_eq!(solver.timesteps(), [400.0]);
            let mut sample = ArrayD::from_elem(vec![2], 0.7);
            let prediction = Prediction { noise: ArrayD::from_elem(vec![2], -0.3), variance: None };
            solver.step(0, &mut sample, &prediction, &mut TorchGenerator::new(0));
            // ᾱ at 400 is 0.193572.
            let expected = (0.7 + 0.3 * (1.0 - 0.193572f64).sqrt()) / 0.193572f64.sqrt();
            assert!((f64::from(sample[[1]]) / expected - 1.0).abs() < 2e-6);
        }
    }
}
