//! Pictures and masks from files.

use std::{
    fs::File,
    io::{self, BufReader},
    path::{Path, PathBuf},
};

use ::image::{
    DynamicImage, GrayImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, Luma, Rgb,
    RgbImage,
};

use crate::size::MAX_SIDE;

/// The most pixels a picture that is read may have: 134 million.
pub const MAX_PIXELS: u64 = 1 << 27;

/// The formats that can be read.
const FORMATS: [ImageFormat; 3] = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP];

/// A picture cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadImageError {
    /// The file is not there or cannot be opened.
    #[error("cannot read {}: {source}; expected a PNG, JPEG or WebP picture", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path is that of a folder, a pipe or a device.
    #[error("found a {found} at {}, expected a PNG, JPEG or WebP file", path.display())]
    NoFile {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The content is of no format that can be read.
    #[error("{}: found {found}, expected a PNG, JPEG or WebP picture; convert it first", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What its first bytes look like.
        found: String,
    },
    /// The picture is larger than what is decoded.
    #[error(
        "{}: found a picture of {width}x{height} pixels, expected at most {MAX_SIDE} on a side and {} \
         million in all; make it smaller",
        path.display(), MAX_PIXELS / 1_000_000
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Pixels from left to right.
        width: u32,
        /// Pixels from top to bottom.
        height: u32,
    },
    /// The file is cut off or damaged.
    #[error("{}: the picture is cut off or damaged: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        problem: String,
    },
}

/// Reads the picture at `path` as 8-bit RGB.
///
/// Its EXIF orientation is applied. Grey, 16-bit and palette pictures are converted; what is transparent is
/// laid on white. Colour profiles are ignored: values count as sRGB. Of an animation the first picture is
/// taken.
///
/// # Errors
/// When the file is missing, no picture, damaged, or larger than [`MAX_SIDE`] and [`MAX_PIXELS`]; the size
/// is checked before anything is decoded.
pub fn read_picture(path: &Path) -> Result<RgbImage, ReadImageError> {
    let picture = read(path)?;
    if !picture.color().has_alpha() {
        return Ok(picture.into_rgb8());
    }
    let rgba = picture.into_rgba8();
    let mut flat = RgbImage::new(rgba.width(), rgba.height());
    for (target, source) in flat.pixels_mut().zip(rgba.pixels()) {
        let [r, g, b, alpha] = source.0;
        *target = Rgb([r, g, b].map(|value| over(value, alpha, 255)));
    }
    Ok(flat)
}

/// Reads the mask at `path`: as [`read_picture`], as shades of grey. Colours count by their luminance;
/// what is transparent is laid on black.
///
/// # Errors
/// As [`read_picture`].
pub fn read_mask(path: &Path) -> Result<GrayImage, ReadImageError> {
    let picture = read(path)?;
    if !picture.color().has_alpha() {
        return Ok(picture.into_luma8());
    }
    let grey = picture.into_luma_alpha8();
    let mut flat = GrayImage::new(grey.width(), grey.height());
    for (target, source) in flat.pixels_mut().zip(grey.pixels()) {
        *target = Luma([over(source.0[0], source.0[1], 0)]);
    }
    Ok(flat)
}

/// `value` of this opacity laid on `ground`, rounded.
fn over(value: u8, alpha: u8, ground: u8) -> u8 {
    let [value, alpha, ground] = [value, alpha, ground].map(u32::from);
    ((value * alpha + ground * (255 - alpha) + 127) / 255) as u8
}

fn read(path: &Path) -> Result<DynamicImage, ReadImageError> {
    let unread = |source| ReadImageError::Read { path: path.to_owned(), source };
    let kind = std::fs::metadata(path).map_err(unread)?.file_type();
    if !kind.is_file() {
        let found = if kind.is_dir() { "folder" } else { "pipe or device" };
        return Err(ReadImageError::NoFile { path: path.to_owned(), found });
    }
    // By its content alone: the name may say anything.
    let file = BufReader::new(File::open(path).map_err(unread)?);
    let mut reader = ImageReader::new(file).with_guessed_format().map_err(unread)?;
    let format = match reader.format() {
        Some(format) if FORMATS.contains(&format) => format,
        found => {
            let found = found.map_or("something else".to_owned(), |f| format!("{f:?}"));
            return Err(ReadImageError::Format { path: path.to_owned(), found });
        }
    };
    let failed = |error| match error {
        ImageError::IoError(source) if source.kind() != io::ErrorKind::UnexpectedEof => {
            ReadImageError::Read { path: path.to_owned(), source }
        }
        error => ReadImageError::Damaged {
            path: path.to_owned(),
            problem: format!("{format:?}: {error}"),
        },
    };
    // The dimensions are checked below, with an error of our own. Sixteen bits of four channels, twice.
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(16 * MAX_PIXELS);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    if width.max(height) > MAX_SIDE || u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(ReadImageError::TooLarge { path: path.to_owned(), width, height });
    }
    // Its decoder would fill the rest with grey.
    if format == ImageFormat::Jpeg && !ends(&std::fs::read(path).map_err(unread)?) {
        let problem = "Jpeg: the end of the data is missing".to_owned();
        return Err(ReadImageError::Damaged { path: path.to_owned(), problem });
    }
    // A broken note about the orientation is no reason to refuse the picture.
    let orientation = decoder.orientation().ok();
    let mut picture = DynamicImage::from_decoder(decoder).map_err(failed)?;
    if let Some(orientation) = orientation {
        picture.apply_orientation(orientation);
    }
    Ok(picture)
}

/// Whether a JPEG file goes on to its end marker. Markers inside of segments, such as those of a preview
/// picture, do not count.
fn ends(jpeg: &[u8]) -> bool {
    const END: u8 = 0xd9;
    let mut at = 0;
    while let Some(found) = jpeg.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0xff)) {
        at += found + 1;
        match jpeg.get(at) {
            Some(&END) => return true,
            // Fill bytes, escaped data, and the markers that stand alone.
            Some(0xff | 0x00 | 0x01 | 0xd0..=0xd8) => {}
            Some(_) => match jpeg.get(at + 1..at + 3) {
                Some(&[high, low]) => at += 1 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use ::image::{ImageBuffer, ImageEncoder, LumaA, Rgba, codecs::jpeg::JpegEncoder};
    use tempfile::TempDir;

    use super::*;

    fn written(name: &str, bytes: &[u8]) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        (folder, path)
    }

    fn encoded(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = io::Cursor::new(Vec::new());
        picture.into().write_to(&mut bytes, format).expect("encoded");
        bytes.into_inner()
    }

    fn read_back(picture: impl Into<DynamicImage>) -> RgbImage {
        // The name says nothing; the content does.
        let (_folder, path) = written("picture.jpg", &encoded(picture, ImageFormat::Png));
        read_picture(&path).expect("a picture")
    }

    #[test]
    fn every_kind_of_pixel_becomes_rgb() {
        let rgb = RgbImage::from_fn(3, 2, |x, y| Rgb([x as u8 * 90, y as u8 * 200, 7]));
        assert_eq!(read_back(rgb.clone()), rgb);
        let grey = ImageBuffer::from_pixel(2, 1, Luma([77u8]));
        assert_eq!(read_back(grey).get_pixel(1, 0).0, [77; 3]);
        let deep = ImageBuffer::from_pixel(2, 1, Luma([0x8080u16]));
        assert_eq!(read_back(DynamicImage::ImageLuma16(deep)).get_pixel(0, 0).0, [0x80; 3]);
        let deep = ImageBuffer::from_pixel(2, 1, Rgb([0xffffu16, 0x0101, 0]));
        assert_eq!(read_back(DynamicImage::ImageRgb16(deep)).get_pixel(0, 0).0, [255, 1, 0]);
    }

    #[test]
    fn transparency_is_white_in_pictures_and_black_in_masks() {
        let half = ImageBuffer::from_fn(3, 1, |x, _| Rgba([255u8, 0, 0, [255, 51, 0][x as usize]]));
        let flat = read_back(half);
        let row: Vec<[u8; 3]> = flat.pixels().map(|pixel| pixel.0).collect();
        assert_eq!(row, [[255, 0, 0], [255, 204, 204], [255, 255, 255]]);
        let mask = ImageBuffer::from_fn(3, 1, |x, _| LumaA([255u8, [255, 51, 0][x as usize]]));
        let (_folder, path) = written("mask.png", &encoded(mask, ImageFormat::Png));
        let mask = read_mask(&path).expect("a mask");
        assert_eq!(mask.as_raw(), &[255, 51, 0]);
    }

    #[test]
    fn a_turned_photo_is_turned_back() {
        // The left half is black, the right half white; EXIF says it was taken turned by 90 degrees.
        let photo = RgbImage::from_fn(32, 16, |x, _| Rgb([if x < 16 { 0 } else { 255 }; 3]));
        let mut bytes = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 95);
        // TIFF header, one entry: orientation (0x112), short, one value, 6; no further directory.
        let mut exif = b"II*\0\x08\0\0\0\x01\0".to_vec();
        exif.extend([0x12, 0x01, 3, 0, 1, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0]);
        encoder.set_exif_metadata(exif).expect("taken");
        let colour = ::image::ExtendedColorType::Rgb8;
        encoder.write_image(photo.as_raw(), 32, 16, colour).expect("encoded");
        let (_folder, path) = written("photo.jpg", &bytes);
        let turned = read_picture(&path).expect("a picture");
        assert_eq!(turned.dimensions(), (16, 32));
        assert!(turned.get_pixel(8, 4).0[0] < 30 && turned.get_pixel(8, 28).0[0] > 225);
        assert_eq!(read_mask(&path).expect("a mask").dimensions(), (16, 32));
    }

    #[test]
    fn webp_is_read() {
        let rgb = RgbImage::from_fn(9, 5, |x, y| Rgb([x as u8 * 20, y as u8 * 50, 3]));
        let (_folder, path) = written("picture", &encoded(rgb.clone(), ImageFormat::WebP));
        assert_eq!(read_picture(&path).expect("a picture"), rgb);
    }

    fn refused(bytes: &[u8]) -> String {
        let (_folder, path) = written("picture.png", bytes);
        // Without its pixels in the message, should it be read.
        let result = read_picture(&path).map(|picture| picture.dimensions());
        let message = result.expect_err("refused").to_string();
        assert!(message.contains("picture.png"), "{message}");
        message
    }

    /// A PNG whose header announces this size, with next to nothing behind it.
    fn bomb(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = ::png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(::png::ColorType::Rgba);
        encoder.set_depth(::png::BitDepth::Sixteen);
        let mut writer = encoder.write_header().expect("a header");
        // The beginning of a stream that would go on with zeros.
        let stream = [0x78, 0x9c, 0x62, 0, 0];
        writer.write_chunk(::png::chunk::IDAT, &stream).expect("written");
        drop(writer);
        bytes
    }

    #[test]
    fn what_cannot_be_read_is_told_apart() {
        let good = encoded(RgbImage::new(64, 64), ImageFormat::Png);
        for (bytes, said) in [
            (bomb(100_000, 100_000), "found a picture of 100000x100000 pixels, expected at most"),
            (bomb(MAX_SIDE, MAX_SIDE), "found a picture of 16384x16384 pixels, expected at most"),
            (bomb(64, 64), "cut off or damaged"),
            (good[..good.len() / 2].to_vec(), "cut off or damaged"),
            (good[..12].to_vec(), "cut off or damaged"),
            (b"not a picture".to_vec(), "found something else, expected a PNG, JPEG or WebP"),
            (Vec::new(), "found something else"),
            (b"GIF89a\x01\0\x01\0\0\0\0;".to_vec(), "found Gif, expected a PNG, JPEG or WebP"),
        ] {
            let message = refused(&bytes);
            assert!(message.contains(said), "{message}");
        }
        for format in [ImageFormat::Jpeg, ImageFormat::WebP] {
            let picture = RgbImage::from_fn(64, 64, |x, y| Rgb([(x * y) as u8, x as u8, y as u8]));
            let bytes = encoded(picture, format);
            let message = refused(&bytes[..bytes.len() / 3]);
            assert!(message.contains("cut off or damaged"), "{format:?}: {message}");
        }
    }

    #[test]
    fn a_folder_and_nothing_are_no_pictures() {
        let folder = tempfile::tempdir().expect("a folder");
        let message = read_picture(folder.path()).expect_err("a folder").to_string();
        assert!(message.contains("found a folder at"), "{message}");
        let message = read_mask(&folder.path().join("none")).expect_err("nothing").to_string();
        assert!(message.contains("cannot read") && message.contains("none"), "{message}");
    }
}
