//! The final latents of a run as a safetensors file.

use std::{
    collections::HashMap,
    io::Write,
    path::{Path, PathBuf},
};

use ndarray::{ArrayView, Axis};
use safetensors::{Dtype, tensor::TensorView};

use crate::{files::write_atomically, pipeline::Picture};

/// The latents could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LatentsError {
    /// The file could not be written.
    #[error("cannot write the latents {}: {source}", path.display())]
    Write {
        /// The file that was to be written.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The pictures are not of one size.
    #[error("the pictures have latents of several sizes; write one file per size")]
    Shapes,
}

/// Writes the latents of `pictures` as they left the sampler (before the division by the VAE's
/// scaling factor): f32 [n, 4, height, width] under the key `latents`; the metadata holds `seeds`,
/// separated by commas. The file appears complete or not at all.
///
/// # Errors
/// When the pictures differ in size, or the file cannot be written.
pub fn write_latents(path: &Path, pictures: &[Picture]) -> Result<(), LatentsError> {
    let views: Vec<ArrayView<f32, _>> = pictures.iter().map(|p| p.latents.view()).collect();
    let latents = match views.as_slice() {
        [] => ndarray::ArrayD::zeros(vec![0, 4, 0, 0]),
        views => ndarray::concatenate(Axis(0), views).map_err(|_| LatentsError::Shapes)?,
    };
    let write = |source| LatentsError::Write { path: path.to_owned(), source };
    let bytes: Vec<u8> = latents.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, latents.shape().to_vec(), &bytes)
        .map_err(|error| write(std::io::Error::other(error)))?;
    let seeds: Vec<String> = pictures.iter().map(|picture| picture.seed.to_string()).collect();
    let metadata = HashMap::from([("seeds".to_owned(), seeds.join(","))]);
    let file = safetensors::serialize([("latents", view)], Some(metadata))
        .map_err(|error| write(std::io::Error::other(error)))?;
    write_atomically(path, |writer| writer.write_all(&file)).map_err(write)
}

#[cfg(test)]
mod tests {
    use image::RgbImage;
    use ndarray::ArrayD;
    use safetensors::SafeTensors;

    use super::*;

    fn picture(seed: u64, shape: &[usize]) -> Picture {
        Picture {
            image: RgbImage::new(8, 8),
            latents: ArrayD::from_elem(shape, seed as f32),
            seed,
            prompt: String::new(),
            vae_tiling: crate::vae::tiles::TilingMode::Off,
            reused_steps: 0,
        }
    }

    #[test]
    fn the_file_holds_every_picture_in_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("latents.safetensors");
        let pictures = [picture(7, &[1, 4, 2, 6]), picture(8, &[1, 4, 2, 6])];
        write_latents(&path, &pictures).expect("written");
        let bytes = std::fs::read(&path).expect("a file");
        let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("a header");
        assert_eq!(metadata.metadata().as_ref().expect("metadata")["seeds"], "7,8");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let latents = file.tensor("latents").expect("the key");
        assert_eq!((latents.dtype(), latents.shape()), (Dtype::F32, &[2, 4, 2, 6][..]));
        assert_eq!(latents.data()[..4], 7f32.to_le_bytes());
        assert_eq!(latents.data()[48 * 4..][..4], 8f32.to_le_bytes());
    }

    #[test]
    fn pictures_of_two_sizes_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("latents.safetensors");
        let pictures = [picture(7, &[1, 4, 2, 6]), picture(8, &[1, 4, 6, 2])];
        assert!(matches!(write_latents(&path, &pictures), Err(LatentsError::Shapes)));
        assert!(!path.exists());
    }
}
