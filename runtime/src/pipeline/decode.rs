//! From latents to a picture.

use image::RgbImage;
use ndarray::{ArrayD, s};

use super::{Pipeline, Reference};
use crate::{
    error::PipelineError,
    size::SizePlan,
    vae::{
        self,
        tiles::{self, TilingMode},
    },
};

impl Pipeline {
    /// From latents to the picture in the size asked for, and whether that took tiles. `tell` gets a line
    /// if it did without being asked for.
    pub(super) fn decode(
        &mut self,
        latents: &ArrayD<f32>,
        size: &SizePlan,
        reference: Reference,
        tell: &mut dyn FnMut(&str),
    ) -> Result<(RgbImage, TilingMode), PipelineError> {
        let factor = self.scaling_factor();
        let pixels = self.vae_decoder.folder.architecture.scale_factor;
        let input = ("latent_sample", latents.mapv(|value| value / factor));
        let (tiling, decoder) = (self.tiling(), &mut self.vae_decoder);
        let (decoded, mode) = tiles::run(decoder, input, "sample", (pixels, 1), &tiling, tell)?;
        let (width, height) = (size.generated.width as usize, size.generated.height as usize);
        decoder.check_shape(&decoded, &[1, 3, height, width])?;
        decoder.check_finite(&decoded, None)?;
        let picture = decoded.slice(s![0, .., .., ..]);
        Ok((vae::to_picture(picture, size.requested, reference), mode))
    }
}
