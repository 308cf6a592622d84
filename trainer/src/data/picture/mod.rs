//! Pictures from files to what a model is trained on.

mod complete;
mod fit;
mod resample;

pub use fit::{Sizing, training_tensor};
pub use resample::Filter;

use image::error::ImageError;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};
use pixart_runtime::size::Size;
use std::fs;
use std::io::{self, Cursor, Read};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

/// What a picture may cost. A small file can unpack to any size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureLimits {
    /// Width times height.
    pub pixels: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
}

impl Default for PictureLimits {
    /// 2²⁷ pixels (16384 × 8192) in 512 MiB.
    fn default() -> Self {
        Self { pixels: 1 << 27, file_bytes: 512 << 20 }
    }
}

/// A picture cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PictureError {
    /// There is no such file.
    #[error("there is no such file")]
    Missing,
    /// A folder or a device.
    #[error("this is no file")]
    NoFile,
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Read(io::Error),
    /// The file or the picture is larger than the limits.
    #[error("{found} {unit}, at most {allowed} are read")]
    TooLarge {
        /// What it has.
        found: u64,
        /// Of what.
        unit: &'static str,
        /// What it may have.
        allowed: u64,
    },
    /// Not the content of a picture.
    #[error("no PNG, JPEG or WebP picture")]
    Unknown,
    /// A picture that ends early or is broken.
    #[error("{0}")]
    Broken(String),
}

/// The content of a picture's file, of a size that is allowed.
///
/// # Errors
/// When the file is missing, no file, too large or cannot be read.
pub fn read_file(path: &Path, limits: PictureLimits) -> Result<Vec<u8>, PictureError> {
    read_start(path, limits, u64::MAX).map(|(bytes, _)| bytes)
}

/// The first bytes of a file, `length` at most, and whether that is all of it.
fn read_start(
    path: &Path,
    limits: PictureLimits,
    length: u64,
) -> Result<(Vec<u8>, bool), PictureError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => PictureError::Missing,
        _ => PictureError::Read(error),
    };
    let metadata = fs::metadata(path).map_err(failed)?;
    // A pipe would be waited for without end.
    if !metadata.is_file() {
        return Err(PictureError::NoFile);
    }
    check(metadata.len(), limits.file_bytes, "bytes")?;
    // A file that grows meanwhile is not read beyond the limit either.
    let length = length.min(limits.file_bytes);
    let mut bytes = Vec::with_capacity(metadata.len().min(length) as usize);
    let file = fs::File::open(path).map_err(failed)?;
    file.take(length).read_to_end(&mut bytes).map_err(failed)?;
    let all = bytes.len() as u64 >= metadata.len();
    Ok((bytes, all))
}

/// Head of a file that is read first where only the picture's size is asked for.
const HEAD: u64 = 64 << 10;

/// The size of the picture in a file as [`picture_size`] tells it, of large files mostly without reading
/// all. That a JPEG is cut off then stays unnoticed.
///
/// # Errors
/// Those of [`read_file`] and [`picture_size`].
pub fn file_size(path: &Path, limits: PictureLimits) -> Result<Size, PictureError> {
    let (head, all) = read_start(path, limits, HEAD)?;
    // WebP has its EXIF data behind the picture.
    if !all && !head.starts_with(b"RIFF") {
        let size = guarded(|| {
            let (decoder, orientation) = open_unchecked(&head, limits)?;
            Ok(seen_size(&decoder, orientation))
        });
        match size {
            Ok(size) => return Ok(size),
            Err(error @ PictureError::TooLarge { .. }) => return Err(error),
            Err(_) => {}
        }
    }
    picture_size(&read_file(path, limits)?, limits)
}

/// Width and height as the picture is to be seen, that is, after turning it as its EXIF data say.
/// Nothing is decompressed.
///
/// # Errors
/// When the bytes are no picture, or one that is too large or, for JPEG and WebP, cut off.
pub fn picture_size(bytes: &[u8], limits: PictureLimits) -> Result<Size, PictureError> {
    guarded(|| {
        let (decoder, orientation) = open(bytes, limits)?;
        Ok(seen_size(&decoder, orientation))
    })
}

fn seen_size(decoder: &impl ImageDecoder, orientation: Orientation) -> Size {
    let (width, height) = decoder.dimensions();
    match turned(orientation) {
        true => Size { width: height, height: width },
        false => Size { width, height },
    }
}

/// The pixels of a picture as it is to be seen: turned as its EXIF data say, grey as three equal channels,
/// 16 bits rounded to 8, and what is transparent on white. Colour profiles are not applied.
///
/// # Errors
/// When the bytes are no picture, or one that is too large, broken or cut off.
pub fn decode_picture(bytes: &[u8], limits: PictureLimits) -> Result<RgbImage, PictureError> {
    guarded(|| decode(bytes, limits))
}

/// One picture that a decoder cannot cope with must not end a run over all others.
fn guarded<T>(decode: impl FnOnce() -> Result<T, PictureError>) -> Result<T, PictureError> {
    panic::catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| {
        Err(PictureError::Broken("broken: the decoder gave up; save the picture anew".to_owned()))
    })
}

fn decode(bytes: &[u8], limits: PictureLimits) -> Result<RgbImage, PictureError> {
    let (decoder, orientation) = open(bytes, limits)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(broken)?;
    image.apply_orientation(orientation);
    Ok(if image.color().has_alpha() { on_white(&image) } else { image.into_rgb8() })
}

fn open(
    bytes: &[u8],
    limits: PictureLimits,
) -> Result<(impl ImageDecoder + '_, Orientation), PictureError> {
    let opened = open_unchecked(bytes, limits)?;
    match complete::truncation(bytes) {
        Some(problem) => Err(PictureError::Broken(problem)),
        None => Ok(opened),
    }
}

fn open_unchecked(
    bytes: &[u8],
    limits: PictureLimits,
) -> Result<(impl ImageDecoder + '_, Orientation), PictureError> {
    let mut reader = ImageReader::new(Cursor::new(bytes));
    reader.limits(Limits::no_limits());
    let mut reader = reader.with_guessed_format().map_err(PictureError::Read)?;
    if reader.format().is_none() {
        return Err(PictureError::Unknown);
    }
    // Text and colour profiles are compressed too. A pixel has at most 8 bytes.
    let mut allocations = Limits::default();
    allocations.max_alloc = Some(limits.pixels.saturating_mul(8).saturating_add(64 << 20));
    reader.limits(allocations);
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(PictureError::Broken(format!("{width} × {height} pixels")));
    }
    check(u64::from(width) * u64::from(height), limits.pixels, "pixels")?;
    // Broken EXIF data are no reason to do without the picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((decoder, orientation))
}

fn check(found: u64, allowed: u64, unit: &'static str) -> Result<(), PictureError> {
    match found > allowed {
        true => Err(PictureError::TooLarge { found, unit, allowed }),
        false => Ok(()),
    }
}

fn broken(error: ImageError) -> PictureError {
    match error {
        ImageError::Unsupported(_) => PictureError::Unknown,
        ImageError::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            PictureError::Broken("truncated: the file ends inside the picture".to_owned())
        }
        error => PictureError::Broken(format!("broken: {error}")),
    }
}

/// Whether width and height change places.
fn turned(orientation: Orientation) -> bool {
    matches!(
        orientation,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    )
}

/// The colours under transparent pixels are leftovers, mostly black.
fn on_white(image: &DynamicImage) -> RgbImage {
    let image = image.to_rgba8();
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let [red, green, blue, alpha] = image.get_pixel(x, y).0.map(u32::from);
        let laid = |value: u32| ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        image::Rgb([red, green, blue].map(laid))
    })
}

#[cfg(test)]
mod tests;
