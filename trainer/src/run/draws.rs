//! What is drawn for a picture: its latents from the VAE's distribution, the noise, and the time.
//!
//! All of it follows from the seed, the epoch and the picture alone, as its caption does. Nothing has to be
//! saved to go on after an interruption, batches can be prepared ahead, and how pictures are dealt out to
//! several workers changes nothing of what is drawn.

use ndarray::{Array3, ArrayView3, Zip};
use pixart_runtime::{noise::TorchGenerator, vae::deviation};

use crate::data::Stream;

/// Tells these choices from those of other parts of a run.
const PURPOSE: u64 = 3;

/// What is drawn for one picture in one epoch.
pub(super) struct Draws {
    time: usize,
    generator: TorchGenerator,
}

impl Draws {
    /// `times` is the number of training steps of the noise schedule.
    pub fn new(seed: u64, epoch: u64, picture: usize, times: usize) -> Self {
        let mut stream = Stream::new(seed, &[PURPOSE, epoch, picture as u64]);
        let time = stream.below(times);
        // torch's generator takes 32 bits.
        let generator = TorchGenerator::new(stream.next() & u64::from(u32::MAX));
        Self { time, generator }
    }

    /// The training step, uniform.
    pub fn time(&self) -> usize {
        self.time
    }

    /// A sample of the VAE's distribution, times `scale`, in the shape of its mean. Comes before the noise.
    pub fn latents(
        &mut self,
        mean: ArrayView3<'_, f32>,
        log_variance: ArrayView3<'_, f32>,
        scale: f32,
    ) -> Array3<f32> {
        let mut latents = self.noise(mean.dim());
        Zip::from(&mut latents).and(mean).and(log_variance).for_each(|x, &mean, &log_variance| {
            *x = (mean + deviation(log_variance) * *x) * scale;
        });
        latents
    }

    /// Normal noise.
    pub fn noise(&mut self, shape: (usize, usize, usize)) -> Array3<f32> {
        let values = self.generator.randn(shape.0 * shape.1 * shape.2);
        Array3::from_shape_vec(shape, values).expect("as many values as the shape")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_uniform_and_belong_to_picture_and_epoch() {
        let time = |epoch, picture| Draws::new(1, epoch, picture, 1000).time();
        let mut tenths = [0; 10];
        for picture in 0..10_000 {
            tenths[time(0, picture) / 100] += 1;
        }
        // 1000 expected in each with a deviation of 30.
        assert!(tenths.iter().all(|count| (850..1150).contains(count)), "{tenths:?}");
        assert_eq!(time(2, 5), time(2, 5));
        let of_epochs: std::collections::BTreeSet<_> =
            (0..50).map(|epoch| time(epoch, 5)).collect();
        assert!(of_epochs.len() > 40);
    }

    #[test]
    fn latents_have_the_distribution_of_the_encoder() {
        let shape = (4, 64, 64);
        let mean = Array3::from_elem(shape, 2.0f32);
        let log_variance = Array3::from_elem(shape, 0.25f32.ln());
        let mut draws = Draws::new(1, 0, 0, 1000);
        let latents = draws.latents(mean.view(), log_variance.view(), 0.5);
        let count = latents.len() as f32;
        let found = latents.sum() / count;
        let deviation = (latents.mapv(|x| (x - found).powi(2)).sum() / count).sqrt();
        assert!(
            (found - 1.0).abs() < 0.01 && (deviation - 0.25).abs() < 0.005,
            "{found} {deviation}"
        );
        // A variance of zero leaves the mean.
        let none = Array3::from_elem(shape, f32::NEG_INFINITY);
        let latents = Draws::new(1, 0, 0, 1000).latents(mean.view(), none.view(), 1.0);
        assert!(latents.iter().all(|x| (x - 2.0).abs() < 1e-5));
        assert_ne!(
            draws.noise(shape),
            Draws::new(1, 0, 0, 1000).noise(shape),
            "noise comes second"
        );
    }
}
