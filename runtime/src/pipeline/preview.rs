//! The map that shows latents, fitted to the model's VAE.

use std::{fs, io::Write, path::Path};

use ndarray::{Array3, Axis, s};

use super::Pipeline;
use crate::{
    error::PipelineError, files::write_atomically, noise::TorchGenerator, vae::LatentPreview,
};

/// Latents that the map is fitted to, by the side of the squares that are of one value each: a picture is
/// smooth in some places and rough in others.
const SQUARES: [usize; 6] = [8, 4, 4, 2, 2, 2];
/// Their side. Six decodings of 128 × 128 pixels take what one of 314 × 314 does.
const SIDE: usize = 16;

impl Pipeline {
    /// The map from latents to a small picture that suits the model's VAE. It is fitted to what the VAE
    /// makes of a few random latents; that is kept in `cache`, if given, in a file named by the VAE's hash.
    ///
    /// # Errors
    /// When the VAE decoder cannot be loaded, fails, or computes something that is not a number. A cache
    /// that cannot be read or written is passed over.
    pub fn latent_preview(&mut self, cache: Option<&Path>) -> Result<LatentPreview, PipelineError> {
        let channels = self.vae_decoder.folder.architecture.latent_channels;
        let file =
            cache.map(|cache| cache.join(format!("{}.json", self.vae_decoder.folder.identity)));
        if let Some(kept) = file.as_deref().and_then(read)
            && kept.weights()[0].len() == channels + 1
        {
            return Ok(kept);
        }
        let fitted = self.fit_preview(channels);
        self.free(|pipeline| pipeline.vae_decoder.unload());
        let fitted = fitted?;
        if let Some(file) = file {
            let _ = write(&file, &fitted);
        }
        Ok(fitted)
    }

    fn fit_preview(&mut self, channels: usize) -> Result<LatentPreview, PipelineError> {
        let factor = self.scaling_factor();
        let decoder = self.vae_decoder.load()?;
        let mut generator = TorchGenerator::new(0);
        let mut pairs = Vec::new();
        for square in SQUARES {
            let latents = patches(&mut generator, channels, square);
            let scaled = latents.mapv(|value| value / factor).insert_axis(Axis(0));
            let decoded = decoder.run(&[("latent_sample", scaled.into())], "sample")?;
            decoder.check_shape(&decoded, &[1, 3, 8 * SIDE, 8 * SIDE])?;
            decoder.check_finite(&decoded, None)?;
            pairs.push((latents, decoded));
        }
        let views: Vec<_> = pairs
            .iter()
            .map(|(latents, decoded)| (latents.view(), decoded.slice(s![0, .., .., ..])))
            .collect();
        Ok(LatentPreview::fit(&views).expect("random latents leave nothing open"))
    }
}

/// Latents of normal values, the same in squares of this side.
fn patches(generator: &mut TorchGenerator, channels: usize, square: usize) -> Array3<f32> {
    let cells = SIDE / square;
    let values = generator.randn(channels * cells * cells);
    Array3::from_shape_fn((channels, SIDE, SIDE), |(c, y, x)| {
        values[(c * cells + y / square) * cells + x / square]
    })
}

fn read(file: &Path) -> Option<LatentPreview> {
    let weights: [Vec<f32>; 3] = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    LatentPreview::new(weights)
}

fn write(file: &Path, preview: &LatentPreview) -> std::io::Result<()> {
    let text = serde_json::to_vec(preview.weights())?;
    fs::create_dir_all(file.parent().unwrap_or(Path::new("")))?;
    write_atomically(file, |writer| writer.write_all(&text))
}
