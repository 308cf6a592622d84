//! What denoising begins with.

use ndarray::ArrayD;

use super::Pipeline;
use crate::{noise::TorchGenerator, size::SizePlan};

impl Pipeline {
    /// The first latents of a picture: the noise of its generator, f32 [1, 4, height, width].
    pub(super) fn start(&self, generator: &mut TorchGenerator, size: &SizePlan) -> ArrayD<f32> {
        let channels = self.transformer().in_channels;
        let (height, width) = size.latent();
        let noise = generator.randn(channels * height * width);
        ArrayD::from_shape_vec(vec![1, channels, height, width], noise)
            .expect("as many values as the shape holds")
    }
}
