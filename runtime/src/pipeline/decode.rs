//! From latents to a picture.

use image::RgbImage;
use ndarray::{ArrayD, s};

use super::{Pipeline, Reference};
use crate::{error::PipelineError, size::SizePlan, vae};

impl Pipeline {
    /// From latents to the picture in the size asked for.
    pub(super) fn decode(
        &mut self,
        latents: &ArrayD<f32>,
        size: &SizePlan,
        reference: Reference,
    ) -> Result<RgbImage, PipelineError> {
        let factor = self.scaling_factor();
        let decoder = self.vae_decoder.load()?;
        let scaled = latents.mapv(|value| value / factor);
        let decoded = decoder.run(&[("latent_sample", scaled.into())], "sample")?;
        let (width, height) = (size.generated.width as usize, size.generated.height as usize);
        decoder.check_shape(&decoded, &[1, 3, height, width])?;
        decoder.check_finite(&decoded, None)?;
        Ok(vae::to_picture(decoded.slice(s![0, .., .., ..]), size.requested, reference))
    }
}
