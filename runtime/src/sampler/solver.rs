//! What every solver has in common.

use ndarray::{ArrayD, Zip};

use super::Level;
use crate::noise::TorchGenerator;

/// What the model said about a sample at one time, guidance already applied.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// The noise ε, in the shape of the sample.
    pub noise: ArrayD<f32>,
    /// The variance channels v, in the same shape; −1 means the lower and 1 the upper bound of
    /// the step's variance. Absent where the model has none or the solver does not ask for them.
    pub variance: Option<ArrayD<f32>>,
}

impl Prediction {
    /// The picture x₀ = (x − σ ε)/α this noise implies.
    ///
    /// # Panics
    /// When the shapes differ.
    pub fn picture(&self, sample: &ArrayD<f32>, level: Level) -> ArrayD<f32> {
        let mut x0 = sample.clone();
        Zip::from(&mut x0).and(&self.noise).for_each(|x, &noise| {
            *x = ((f64::from(*x) - level.sigma * f64::from(noise)) / level.alpha) as f32;
        });
        x0
    }
}

/// A way from noise to a picture: times at which the model is asked, and a rule that moves the sample.
///
/// One solver serves one picture. Its steps are taken in order, each once; the first one taken may be any,
/// and one that would need the answers before it then does without them.
pub trait Solver: Send {
    /// The times given to the model, in training steps, whole or fractional; one for each step.
    fn timesteps(&self) -> &[f32];

    /// How much picture and noise the sample holds when step `index` begins.
    ///
    /// # Panics
    /// When there is no such step.
    fn level(&self, index: usize) -> Level;

    /// Whether [`step`](Self::step) needs the variance channels.
    fn needs_variance(&self) -> bool {
        false
    }

    /// Takes step `index` (from 0): moves `sample` by what the model predicted for it at
    /// [`timesteps`](Self::timesteps)`[index]`. `generator` is the picture's own, which its first noise
    /// came from; deterministic solvers leave it alone.
    ///
    /// # Panics
    /// When there is no such step, the shapes differ, or the variance is needed and absent.
    fn step(
        &mut self,
        index: usize,
        sample: &mut ArrayD<f32>,
        prediction: &Prediction,
        generator: &mut TorchGenerator,
    );
}

/// Standard normal noise in the shape of `sample`.
pub(super) fn noise_like(sample: &ArrayD<f32>, generator: &mut TorchGenerator) -> ArrayD<f32> {
    let values = generator.randn(sample.len());
    ArrayD::from_shape_vec(sample.raw_dim(), values).expect("as many values as the sample holds")
}

/// `count` whole times from 0 to `last`, spread evenly and rounded half to even, the highest first.
///
/// The respacing of the official code, and diffusers' "linspace" for DDIM and DDPM.
pub(super) fn spread(last: usize, count: usize) -> Vec<usize> {
    let spacing = last as f64 / (count - 1) as f64;
    (0..count).rev().map(|i| (i as f64 * spacing).round_ties_even() as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_times_are_the_known_ones() {
        let mut times = spread(999, 20);
        assert_eq!(times[16..], [158, 105, 53, 0]);
        assert_eq!(times[0], 999);
        times = spread(999, 100);
        times.reverse();
        assert_eq!(times[..12], [0, 10, 20, 30, 40, 50, 61, 71, 81, 91, 101, 111]);
        assert_eq!(times[96..], [969, 979, 989, 999]);
        assert_eq!(spread(999, 2), [999, 0]);
        assert_eq!(spread(999, 1000), (0..1000).rev().collect::<Vec<_>>());
    }
}
