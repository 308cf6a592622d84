//! PNG.

use std::{io, path::Path};

use super::{ImageError, RgbImage};
use crate::files::write_atomically;

/// Writes `image` to `path` as an 8-bit RGB PNG. The file appears complete or not at all; an existing
/// one is replaced.
///
/// # Errors
/// When the folder does not exist or cannot be written to.
pub fn write_png(path: &Path, image: &RgbImage) -> Result<(), ImageError> {
    write_atomically(path, |writer| {
        let mut encoder = ::png::Encoder::new(writer, image.width(), image.height());
        encoder.set_color(::png::ColorType::Rgb);
        encoder.set_depth(::png::BitDepth::Eight);
        let mut png = encoder.write_header().map_err(io::Error::from)?;
        png.write_image_data(image.as_raw()).map_err(io::Error::from)?;
        png.finish().map_err(io::Error::from)
    })
    .map_err(|source| ImageError { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_reads_back_as_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("0.png");
        let image = RgbImage::from_fn(5, 3, |x, y| ::image::Rgb([x as u8 * 50, y as u8, 7]));
        write_png(&path, &image).expect("written");
        assert_eq!(::image::open(&path).expect("a picture").into_rgb8(), image);
    }

    #[test]
    fn a_missing_folder_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("missing").join("0.png");
        let error = write_png(&path, &RgbImage::new(1, 1)).expect_err("no such folder");
        assert!(error.to_string().contains("0.png"), "{error}");
    }
}
