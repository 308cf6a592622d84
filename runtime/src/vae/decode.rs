//! From latents to the values of a picture, without a pipeline around it.

use std::{path::Path, sync::Arc};

use ndarray::ArrayD;

use super::tiles::{self, TilingMode, TilingOptions};
use crate::{
    engine::Engine,
    error::PipelineError,
    model_folder::{ComponentFolder, VaeDecoderArchitecture},
    pipeline::LazyComponent,
};

/// The VAE's decoder, loaded when it is first needed.
pub struct PictureDecoder(LazyComponent<VaeDecoderArchitecture>);

impl PictureDecoder {
    /// Reads the manifest of an exported VAE decoder; the weights stay on disk.
    ///
    /// # Errors
    /// When the folder is missing, broken, of another version or of another component.
    pub fn open(engine: &Arc<dyn Engine>, folder: &Path) -> Result<Self, PipelineError> {
        Ok(Self(LazyComponent::open(engine, folder)?))
    }

    /// What the manifest says.
    pub fn folder(&self) -> &ComponentFolder<VaeDecoderArchitecture> {
        &self.0.folder
    }

    /// What the decoder makes of latents, f32 [B, 4, height, width], divided by the scaling factor already:
    /// f32 [B, 3, 8 · height, 8 · width], nominally in −1 to 1, and how it was cut into tiles, which is never
    /// [`TilingMode::Auto`]. `tell` gets a line where that was done because memory is short.
    ///
    /// # Errors
    /// When the decoder cannot be loaded or fails, or gives another shape or what is not finite.
    pub fn decode(
        &mut self,
        latents: ArrayD<f32>,
        tiling: &TilingOptions,
        tell: &mut dyn FnMut(&str),
    ) -> Result<(ArrayD<f32>, TilingMode), PipelineError> {
        let decoder = &mut self.0;
        let pixels = decoder.folder.architecture.scale_factor;
        let &[count, _, height, width] = latents.shape() else {
            panic!("latents have four dimensions, these have the shape {:?}", latents.shape());
        };
        let input = ("latent_sample", latents);
        let (decoded, mode) = tiles::run(decoder, input, "sample", (pixels, 1), tiling, tell)?;
        decoder.check_shape(&decoded, &[count, 3, pixels * height, pixels * width])?;
        decoder.check_finite(&decoded, None)?;
        Ok((decoded, mode))
    }

    /// Frees the memory of the weights.
    pub fn unload(&mut self) {
        self.0.unload();
    }
}
