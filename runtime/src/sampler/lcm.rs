//! The sampler of latent consistency models: Luo et al., "Latent Consistency Models", 2023.
//!
//! The model maps every time to the picture at once: d = c_out x₀ + c_skip x with
//! c_skip = σ_d²/(t_s² + σ_d²), c_out = t_s/√(t_s² + σ_d²), σ_d = ½ and t_s the time times ten. Each step
//! but the last adds new noise for the next time: x ← α' d + σ' z. The result is the last d.

use ndarray::{ArrayD, Zip};

use super::{Level, NoiseSchedule, Prediction, SchedulerConfig, Solver, solver::noise_like};
use crate::{noise::TorchGenerator, pipeline::Reference};

/// σ_d squared.
const DATA_VARIANCE: f64 = 0.25;

/// A run of a latent consistency model.
pub struct Lcm {
    timesteps: Vec<f32>,
    levels: Vec<Level>,
    /// What a time is multiplied with for the boundary scalings.
    scaling: f64,
}

impl Lcm {
    /// `steps` of the times the model was distilled at, 1 to their number. Those are
    /// `original_inference_steps` multiples of one distance, less one: 19, 39, …, 999.
    ///
    /// The official code goes down from the highest in strides of one length (4 steps: 999, 759, 519,
    /// 279), diffusers at positions spread evenly and rounded down (999, 759, 499, 259).
    pub fn new(
        schedule: &NoiseSchedule,
        config: &SchedulerConfig,
        steps: usize,
        reference: Reference,
    ) -> Self {
        let count = config.original_inference_steps;
        let distance = schedule.len() / count;
        let time = |i: usize| {
            let down = match reference {
                Reference::Mindone => i * (count / steps),
                Reference::Diffusers => i * count / steps,
            };
            (count - down) * distance - 1
        };
        let times: Vec<usize> = (0..steps).map(time).collect();
        Self {
            timesteps: times.iter().map(|&t| t as f32).collect(),
            levels: times.iter().map(|&t| schedule.level(t, reference)).collect(),
            scaling: config.timestep_scaling,
        }
    }
}

impl Solver for Lcm {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn level(&self, index: usize) -> Level {
        self.levels[index]
    }

    /// Draws noise in every step but the last.
    fn step(
        &mut self,
        index: usize,
        sample: &mut ArrayD<f32>,
        prediction: &Prediction,
        generator: &mut TorchGenerator,
    ) {
        let time = self.scaling * f64::from(self.timesteps[index]);
        let norm = time * time + DATA_VARIANCE;
        let (skip, out) = (DATA_VARIANCE / norm, time / norm.sqrt());
        let x0 = prediction.picture(sample, self.levels[index]);
        Zip::from(&mut *sample).and(&x0).for_each(|x, &x0| {
            *x = (out * f64::from(x0) + skip * f64::from(*x)) as f32;
        });
        let Some(next) = self.levels.get(index + 1) else { return };
        let z = noise_like(sample, generator);
        Zip::from(sample).and(&z).for_each(|x, &z| {
            *x = (next.alpha * f64::from(*x) + next.sigma * f64::from(z)) as f32;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_are_the_known_ones() {
        let config = SchedulerConfig::default();
        let schedule = NoiseSchedule::new(&config);
        let times =
            |steps, reference| Lcm::new(&schedule, &config, steps, reference).timesteps().to_vec();
        assert_eq!(times(1, Reference::Mindone), [999.]);
        assert_eq!(times(2, Reference::Mindone), [999., 499.]);
        assert_eq!(times(4, Reference::Mindone), [999., 759., 519., 279.]);
        assert_eq!(times(8, Reference::Mindone), [999., 879., 759., 639., 519., 399., 279., 159.]);
        assert_eq!(times(4, Reference::Diffusers), [999., 759., 499., 259.]);
        for reference in [Reference::Mindone, Reference::Diffusers] {
            assert_eq!(times(50, reference)[48..], [39., 19.]);
        }
    }
}
