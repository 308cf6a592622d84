//! From latents to a picture.

use image::RgbImage;
use ndarray::{ArrayD, s};

use super::{Pipeline, Reference};
use crate::{
    error::PipelineError,
    size::SizePlan,
    vae::{self, tiles},
};

impl Pipeline {
    /// From latents to the picture in the size asked for. `tell` gets a line if it is decoded in tiles
    /// without being asked for.
    pub(super) fn decode(
        &mut self,
        latents: &ArrayD<f32>,
        size: &SizePlan,
        reference: Reference,
        tell: &mut dyn FnMut(&str),
    ) -> Result<RgbImage, PipelineError> {
        let factor = self.scaling_factor();
        let pixels = self.vae_decoder.folder.architecture.scale_factor;
        let input = ("latent_sample", latents.mapv(|value| value / factor));
        let (decoder, tiling) = (&mut self.vae_decoder, &self.options.vae_tiling);
        let decoded = tiles::run(decoder, input, "sample", (pixels, 1), tiling, tell)?;
        let (width, height) = (size.generated.width as usize, size.generated.height as usize);
        decoder.check_shape(&decoded, &[1, 3, height, width])?;
        decoder.check_finite(&decoded, None)?;
        Ok(vae::to_picture(decoded.slice(s![0, .., .., ..]), size.requested, reference))
    }
}
