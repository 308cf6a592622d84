//! The map that shows latents, fitted to the model's VAE.

use std::{fs, io::Write, path::Path};

use ndarray::{Array3, Axis, s};

use super::Pipeline;
use crate::{error::PipelineError, files::write_atomically, vae::LatentPreview};

/// Side of the even latents that the map is fitted to: what a VAE makes of them is mostly one colour. Sixteen
/// decodings of 64 × 64 pixels take what one of 256 × 256 does.
const SIDE: usize = 8;
/// How far their channels are from 0. Latents have a deviation of about 1; of 0.5 to 1.2, this explains the
/// demo model's pictures best.
const LEVEL: f32 = 0.85;

impl Pipeline {
    /// The map from latents to a small picture that suits the model's VAE. It is fitted to what the VAE
    /// makes of a few even latents, which takes as long as a picture of 256 × 256 pixels; it is kept in `cache`, if given, in a file named by the VAE's hash.
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
        let mut decoder = self.vae_decoder.load()?;
        let mut pairs = Vec::new();
        for signs in designs(channels) {
            let latents =
                Array3::from_shape_fn((channels, SIDE, SIDE), |(c, _, _)| signs[c] * LEVEL);
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
        Ok(LatentPreview::fit(&views).expect("each channel has both signs by turns"))
    }
}

/// Signs of the channels: all combinations of few channels, or of many each channel alone.
fn designs(channels: usize) -> Vec<Vec<f32>> {
    const FEW: usize = 6;
    let sign = |positive: bool| if positive { 1.0 } else { -1.0 };
    match channels {
        0..=FEW => (0..1usize << channels)
            .map(|bits| (0..channels).map(|c| sign(bits >> c & 1 == 1)).collect())
            .collect(),
        _ => (0..2 * channels)
            .map(|k| {
                (0..channels).map(|c| if c == k / 2 { sign(k % 2 == 1) } else { 0.0 }).collect()
            })
            .collect(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn designs_are_balanced() {
        for (channels, count) in [(1, 2), (4, 16), (16, 32)] {
            let designs = designs(channels);
            assert_eq!(designs.len(), count);
            for a in 0..channels {
                assert_eq!(designs.iter().map(|signs| signs[a]).sum::<f32>(), 0.0);
                for b in 0..a {
                    assert_eq!(designs.iter().map(|signs| signs[a] * signs[b]).sum::<f32>(), 0.0);
                }
            }
        }
    }
}
