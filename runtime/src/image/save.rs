//! Pictures into files.

use std::{
    io::{self, Write},
    path::Path,
};

use ::image::{
    ExtendedColorType, ImageEncoder,
    codecs::{jpeg::JpegEncoder, webp::WebPEncoder},
};

use super::{ImageError, ImageFormat, Metadata, RgbImage, exif, png};
use crate::files::{write_atomically, write_new_atomically};

/// How a picture is written.
#[derive(Clone, Debug)]
pub struct SaveOptions<'a> {
    /// The format.
    pub format: ImageFormat,
    /// Quality of a JPEG, 1 (smallest) to 100 (best). Other formats are without loss.
    pub jpeg_quality: u8,
    /// The texts it carries.
    pub metadata: Option<&'a Metadata>,
}

impl Default for SaveOptions<'_> {
    /// A PNG without texts.
    fn default() -> Self {
        Self { format: ImageFormat::Png, jpeg_quality: 95, metadata: None }
    }
}

/// Most bytes of EXIF that fit into a JPEG's segment of 65,535 bytes with its length and prefix.
const MOST_EXIF: usize = 65_535 - 2 - exif::PREFIX.len();

impl SaveOptions<'_> {
    /// Whether the format has room for the texts: JPEG takes 64 KiB, the others any length.
    pub fn metadata_fits(&self) -> bool {
        self.format != ImageFormat::Jpeg
            || self.metadata.is_none_or(|metadata| exif::write(metadata).len() <= MOST_EXIF)
    }
}

/// Writes `image` to `path`. The file appears complete or not at all; an existing one is replaced.
///
/// # Errors
/// When the folder does not exist or cannot be written to, the format cannot hold a picture of this size,
/// or the texts do not fit ([`SaveOptions::metadata_fits`]).
pub fn save_image(path: &Path, image: &RgbImage, options: &SaveOptions) -> Result<(), ImageError> {
    write_atomically(path, |writer| encode(writer, image, options))
        .map_err(|source| ImageError { path: path.to_owned(), source })
}

/// As [`save_image`], but never replaces a file: when there is one of this name, nothing is written and
/// the answer is `false`.
///
/// # Errors
/// As [`save_image`].
pub fn save_new_image(
    path: &Path,
    image: &RgbImage,
    options: &SaveOptions,
) -> Result<bool, ImageError> {
    write_new_atomically(path, |writer| encode(writer, image, options))
        .map_err(|source| ImageError { path: path.to_owned(), source })
}

fn encode(mut writer: impl Write, image: &RgbImage, options: &SaveOptions) -> io::Result<()> {
    let (width, height) = image.dimensions();
    let (format, longest) = (options.format, options.format.longest_side());
    if width.max(height) > longest {
        return Err(io::Error::other(format!(
            "it has {width}x{height} pixels, but the format {format} ends at {longest} a side; take png"
        )));
    }
    let exif = options.metadata.map(exif::write);
    match format {
        ImageFormat::Png => png::encode(writer, image, options.metadata),
        ImageFormat::Jpeg => {
            if !options.metadata_fits() {
                return Err(io::Error::other(
                    "its texts do not fit into the 64 KiB that a JPEG has for them; take png or webp",
                ));
            }
            let quality = options.jpeg_quality.clamp(1, 100);
            finish(JpegEncoder::new_with_quality(&mut writer, quality), image, exif)
        }
        ImageFormat::WebP => finish(WebPEncoder::new_lossless(&mut writer), image, exif),
    }
}

fn finish(
    mut encoder: impl ImageEncoder,
    image: &RgbImage,
    exif: Option<Vec<u8>>,
) -> io::Result<()> {
    if let Some(exif) = exif {
        encoder.set_exif_metadata(exif).map_err(io::Error::other)?;
    }
    let (width, height) = image.dimensions();
    encoder
        .write_image(image.as_raw(), width, height, ExtendedColorType::Rgb8)
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{RECORD, read_texts};

    fn picture() -> RgbImage {
        RgbImage::from_fn(37, 19, |x, y| ::image::Rgb([x as u8 * 6, y as u8 * 12, 90]))
    }

    #[test]
    fn every_format_keeps_pixels_and_texts() {
        let folder = tempfile::tempdir().unwrap();
        let metadata = Metadata {
            parameters: "für 🦊\nSteps: 1, Sampler: a, Seed: 3".into(),
            record: "{\"a\":1}".into(),
        };
        for format in ImageFormat::ALL {
            let path = folder.path().join(format!("a.{}", format.extension()));
            let options = SaveOptions { format, metadata: Some(&metadata), ..Default::default() };
            save_image(&path, &picture(), &options).unwrap();
            let read = ::image::open(&path).unwrap().into_rgb8();
            assert_eq!(read.dimensions(), (37, 19));
            if format != ImageFormat::Jpeg {
                assert_eq!(read, picture());
            } else {
                let pairs = read.as_raw().iter().zip(picture().into_raw());
                assert!(pairs.clone().all(|(a, b)| a.abs_diff(b) < 16), "{read:?}");
            }
            let texts = read_texts(&path).unwrap();
            assert_eq!((texts.width, texts.height, texts.format), (37, 19, format));
            assert_eq!(texts.parameters(), Some(metadata.parameters.as_str()));
            assert_eq!(texts.get(RECORD), Some(metadata.record.as_str()));

            save_image(&path, &picture(), &SaveOptions { format, ..Default::default() }).unwrap();
            assert_eq!(read_texts(&path).unwrap().texts, []);
        }
    }

    #[test]
    fn a_new_picture_replaces_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        assert!(save_new_image(&path, &picture(), &SaveOptions::default()).unwrap());
        let first = std::fs::read(&path).unwrap();
        let black = RgbImage::new(1, 1);
        assert!(!save_new_image(&path, &black, &SaveOptions::default()).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), first);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_does_not_fit_is_an_error_and_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let wide = RgbImage::new((1 << 14) + 1, 1);
        let webp = SaveOptions { format: ImageFormat::WebP, ..Default::default() };
        let error = save_image(&path, &wide, &webp).unwrap_err().to_string();
        assert!(error.contains("16385x1") && error.contains("16384"), "{error}");

        let metadata = Metadata { parameters: "a".repeat(40_000), record: String::new() };
        for (format, fits) in [(ImageFormat::Jpeg, false), (ImageFormat::WebP, true)] {
            let options = SaveOptions { format, metadata: Some(&metadata), ..Default::default() };
            assert_eq!(options.metadata_fits(), fits);
            assert_eq!(save_image(&path, &picture(), &options).is_ok(), fits);
            assert_eq!(path.exists(), fits);
        }
        // The longest that fits is written and read back whole.
        let mut metadata = Metadata { parameters: "a".into(), record: String::new() };
        let empty = exif::write(&metadata).len();
        metadata.record = "x".repeat(MOST_EXIF - empty);
        let path = folder.path().join("full.jpg");
        let jpeg = ImageFormat::Jpeg;
        let options = SaveOptions { format: jpeg, metadata: Some(&metadata), ..Default::default() };
        assert!(options.metadata_fits());
        save_image(&path, &picture(), &options).unwrap();
        assert_eq!(read_texts(&path).unwrap().get(RECORD), Some(metadata.record.as_str()));
    }
}
