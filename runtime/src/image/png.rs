//! PNG.

use std::{
    io::{self, Write},
    path::Path,
};

use super::{ImageError, Metadata, PARAMETERS, RECORD, RgbImage, SaveOptions, save_image};

/// Writes `image` to `path` as an 8-bit RGB PNG without texts. The file appears complete or not at all;
/// an existing one is replaced.
///
/// # Errors
/// When the folder does not exist or cannot be written to.
pub fn write_png(path: &Path, image: &RgbImage) -> Result<(), ImageError> {
    save_image(path, image, &SaveOptions::default())
}

/// Writes a PNG with these texts in front of the pixels.
pub(super) fn encode(
    writer: impl Write,
    image: &RgbImage,
    metadata: Option<&Metadata>,
) -> io::Result<()> {
    let mut encoder = ::png::Encoder::new(writer, image.width(), image.height());
    encoder.set_color(::png::ColorType::Rgb);
    encoder.set_depth(::png::BitDepth::Eight);
    if let Some(Metadata { parameters, record }) = metadata {
        for (key, text) in [(PARAMETERS, parameters), (RECORD, record)] {
            // tEXt is Latin-1 by the standard and UTF-8 in what many programs write; ASCII is both.
            let added = match text.is_ascii() {
                true => encoder.add_text_chunk(key.to_owned(), text.clone()),
                false => encoder.add_itxt_chunk(key.to_owned(), text.clone()),
            };
            added.map_err(io::Error::from)?;
        }
    }
    let mut png = encoder.write_header().map_err(io::Error::from)?;
    png.write_image_data(image.as_raw()).map_err(io::Error::from)?;
    png.finish().map_err(io::Error::from)
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
