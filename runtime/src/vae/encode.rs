//! From a picture to the distribution of its latents.

use std::{path::Path, sync::Arc};

use image::RgbImage;
use ndarray::{Array4, ArrayD, Axis, Slice, Zip};

use super::tiles::{self, TilingOptions};
use crate::{
    engine::Engine,
    error::PipelineError,
    model_folder::{ComponentFolder, VaeEncoderArchitecture},
    noise::TorchGenerator,
    pipeline::LazyComponent,
};

/// The VAE's encoder, loaded when it is first needed.
pub struct PictureEncoder(LazyComponent<VaeEncoderArchitecture>);

impl PictureEncoder {
    /// Reads the manifest of an exported VAE encoder; the weights stay on disk.
    ///
    /// # Errors
    /// When the folder is missing, broken, of another version or of another component.
    pub fn open(engine: &Arc<dyn Engine>, folder: &Path) -> Result<Self, PipelineError> {
        Ok(Self(LazyComponent::open(engine, folder)?))
    }

    /// What the manifest says.
    pub fn folder(&self) -> &ComponentFolder<VaeEncoderArchitecture> {
        &self.0.folder
    }

    /// What the encoder makes of pictures, f32 [B, 3, height, width] in −1 to 1 with sides that are multiples
    /// of 8: f32 [B, 8, height / 8, width / 8], means before logarithms of variances, unscaled. `tell` gets a
    /// line where pictures go through it in tiles because memory is short.
    ///
    /// # Errors
    /// When the encoder cannot be loaded or fails, or gives another shape or what is not finite.
    pub fn moments(
        &mut self,
        pictures: ArrayD<f32>,
        tiling: &TilingOptions,
        tell: &mut dyn FnMut(&str),
    ) -> Result<ArrayD<f32>, PipelineError> {
        let encoder = &mut self.0;
        let (count, side) = (pictures.shape()[0], encoder.folder.architecture.scale_factor);
        let [height, width] =
            [pictures.shape()[2], pictures.shape()[3]].map(|pixels| pixels / side);
        let channels = 2 * encoder.folder.architecture.latent_channels;
        let input = ("sample", pictures);
        let scale = (1, side);
        let (moments, _) = tiles::run(encoder, input, "latent_parameters", scale, tiling, tell)?;
        encoder.check_shape(&moments, &[count, channels, height, width])?;
        encoder.check_finite(&moments, None)?;
        Ok(moments)
    }

    /// Frees the memory of the weights.
    pub fn unload(&mut self) {
        self.0.unload();
    }
}

/// Where the logarithm of a variance is cut off, as in diffusers' `DiagonalGaussianDistribution`.
pub const LOG_VARIANCE: (f32, f32) = (-30.0, 20.0);

/// The standard deviation that belongs to the logarithm of a variance, cut off at [`LOG_VARIANCE`].
pub fn deviation(log_variance: f32) -> f32 {
    (0.5 * log_variance.clamp(LOG_VARIANCE.0, LOG_VARIANCE.1)).exp()
}

/// What the VAE's encoder says about a picture: a normal distribution of every latent value, before
/// the multiplication by the VAE's scaling factor.
#[derive(Clone, Debug)]
pub struct Posterior {
    /// f32 [1, 4, height / 8, width / 8]
    pub mean: ArrayD<f32>,
    /// Standard deviations, in the same shape.
    pub deviation: ArrayD<f32>,
}

impl Posterior {
    /// Takes the encoder's output apart: f32 [1, 8, h, w], means before logarithms of variances. These are
    /// cut off at [`LOG_VARIANCE`].
    ///
    /// # Panics
    /// When there is no second dimension of an even length.
    pub fn new(parameters: &ArrayD<f32>) -> Self {
        let channels = parameters.shape()[1];
        assert!(channels.is_multiple_of(2), "means and variances, {channels} channels");
        let half = channels as isize / 2;
        let part = |slice| parameters.slice_axis(Axis(1), slice).to_owned();
        let log_variance = part(Slice::from(half..));
        Self { mean: part(Slice::from(..half)), deviation: log_variance.mapv_into(deviation) }
    }

    /// A draw from the distribution.
    pub fn sample(&self, generator: &mut TorchGenerator) -> ArrayD<f32> {
        let draw = generator.randn(self.mean.len());
        let mut latents =
            ArrayD::from_shape_vec(self.mean.raw_dim(), draw).expect("as many values");
        Zip::from(&mut latents)
            .and(&self.mean)
            .and(&self.deviation)
            .for_each(|x, &mean, &deviation| *x = mean + deviation * *x);
        latents
    }
}

/// The picture as the encoder takes it: f32 [1, 3, height, width], black at −1 and white at 1.
pub fn from_picture(picture: &RgbImage) -> ArrayD<f32> {
    let (width, height) = picture.dimensions();
    Array4::from_shape_fn((1, 3, height as usize, width as usize), |(_, c, y, x)| {
        f32::from(picture.get_pixel(x as u32, y as u32).0[c]) / 255.0 * 2.0 - 1.0
    })
    .into_dyn()
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn pixels_lie_between_minus_one_and_one_in_planes() {
        let picture = RgbImage::from_fn(2, 3, |x, y| Rgb([0, 255, (x * 100 + y) as u8]));
        let values = from_picture(&picture);
        assert_eq!(values.shape(), [1, 3, 3, 2]);
        assert!(values.index_axis(Axis(1), 0).iter().all(|&v| v == -1.0));
        assert!(values.index_axis(Axis(1), 1).iter().all(|&v| v == 1.0));
        assert!((values[[0, 2, 2, 1]] - (102.0 / 127.5 - 1.0)).abs() < 1e-6);
    }

    #[test]
    fn variances_are_cut_off_and_draws_are_torchs() {
        let parameters =
            ArrayD::from_shape_vec(vec![1, 4, 1, 1], vec![1.0, -2.0, -99.0, 4f32.ln()]);
        let posterior = Posterior::new(&parameters.expect("four values"));
        assert!((posterior.deviation[[0, 0, 0, 0]] / (-15f32).exp() - 1.0).abs() < 1e-6);
        assert!((posterior.deviation[[0, 1, 0, 0]] - 2.0).abs() < 1e-6);
        let z = TorchGenerator::new(5).randn(2);
        let latents = posterior.sample(&mut TorchGenerator::new(5));
        assert!((latents[[0, 0, 0, 0]] - 1.0).abs() < 1e-5);
        assert!((latents[[0, 1, 0, 0]] - (-2.0 + 2.0 * z[1])).abs() < 1e-6);
    }
}
