use super::*;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, codecs::jpeg::JpegEncoder};

fn png(data: &[u8], width: u32, height: u32, color: ExtendedColorType) -> Vec<u8> {
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes).write_image(data, width, height, color).expect("a picture");
    bytes
}

fn decoded(bytes: &[u8]) -> RgbImage {
    decode_picture(bytes, PictureLimits::default()).expect("a picture")
}

#[test]
fn grey_is_three_equal_channels() {
    let image = decoded(&png(&[0, 100, 255, 7], 2, 2, ExtendedColorType::L8));
    assert_eq!(image.as_raw(), &[0, 0, 0, 100, 100, 100, 255, 255, 255, 7, 7, 7]);
}

#[test]
fn sixteen_bits_are_rounded_to_eight() {
    let values: [u16; 3] = [65535, 257 * 100 + 128, 257 * 100 + 129];
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    let image = decoded(&png(&data, 3, 1, ExtendedColorType::L16));
    assert_eq!(image.as_raw(), &[255, 255, 255, 100, 100, 100, 101, 101, 101]);
}

#[test]
fn what_is_transparent_lies_on_white() {
    let data = [10, 20, 30, 255, 0, 0, 0, 0, 100, 0, 255, 128];
    let image = decoded(&png(&data, 3, 1, ExtendedColorType::Rgba8));
    assert_eq!(image.as_raw(), &[10, 20, 30, 255, 255, 255, 177, 127, 255]);
    let grey = decoded(&png(&[0, 51], 1, 1, ExtendedColorType::La8));
    assert_eq!(grey.as_raw(), &[204; 3]);
}

/// A JPEG that is red on the left and blue on the right, with an EXIF orientation.
fn turned_jpeg(orientation: u8) -> Vec<u8> {
    let image = RgbImage::from_fn(32, 16, |x, _| {
        image::Rgb(if x < 16 { [255, 0, 0] } else { [0, 0, 255] })
    });
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 95);
    // A little-endian TIFF directory with the one entry 0x0112.
    let mut exif = b"II\x2a\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    encoder.set_exif_metadata(exif).expect("EXIF is supported");
    encoder.encode_image(&image).expect("a picture");
    bytes
}

#[test]
fn pictures_are_turned_as_exif_says() {
    let is_red = |image: &RgbImage, x, y| image.get_pixel(x, y).0[0] > 128;
    for (orientation, width, height, red) in [
        (1, 32, 16, (2, 2)),
        (2, 32, 16, (29, 2)),
        (3, 32, 16, (29, 13)),
        (6, 16, 32, (2, 2)),
        (8, 16, 32, (2, 29)),
    ] {
        let bytes = turned_jpeg(orientation);
        let image = decoded(&bytes);
        assert_eq!((image.width(), image.height()), (width, height), "{orientation}");
        let size = picture_size(&bytes, PictureLimits::default()).expect("a size");
        assert_eq!(size, Size { width, height }, "{orientation}");
        assert!(is_red(&image, red.0, red.1), "{orientation}");
        assert!(!is_red(&image, width - 1 - red.0, height - 1 - red.1), "{orientation}");
    }
}

#[test]
fn large_pictures_are_refused_before_they_are_unpacked() {
    let data = vec![0; 4000 * 3000];
    let bytes = png(&data, 4000, 3000, ExtendedColorType::L8);
    assert!(bytes.len() < 200_000, "{} bytes", bytes.len());
    let limits = PictureLimits { pixels: 1_000_000, ..PictureLimits::default() };
    for error in [picture_size(&bytes, limits).err(), decode_picture(&bytes, limits).err()] {
        let error = error.expect("refused").to_string();
        assert_eq!(error, "12000000 pixels, at most 1000000 are read");
    }
}

#[test]
fn broken_pictures_are_told_from_other_files() {
    let data: Vec<u8> = (0..30 * 20 * 3).map(|k| (k * 37 % 251) as u8).collect();
    let bytes = png(&data, 30, 20, ExtendedColorType::Rgb8);
    let limits = PictureLimits::default();
    let error = |bytes: &[u8]| decode_picture(bytes, limits).expect_err("no picture").to_string();
    assert!(error(&bytes[..bytes.len() / 2]).contains("truncated"));
    let mut changed = bytes.clone();
    changed[200] ^= 0x55;
    assert!(error(&changed).contains("broken"), "{}", error(&changed));
    assert_eq!(error(b"<html></html>"), "no PNG, JPEG or WebP picture");
    assert_eq!(error(b""), "no PNG, JPEG or WebP picture");
}

#[test]
fn the_size_of_a_large_file_is_read_from_its_head() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.jpg");
    let mut bytes = turned_jpeg(6);
    bytes.resize(3 * HEAD as usize, 0);
    std::fs::write(&path, &bytes).expect("written");
    let limits = PictureLimits::default();
    let size = Size { width: 16, height: 32 };
    assert_eq!(file_size(&path, limits).expect("a size"), size);
    // Where the head is not enough, the whole file is read.
    let mut padded = bytes[..2].to_vec();
    for _ in 0..3 {
        padded.extend([0xff, 0xfe, 0xff, 0xff]);
        padded.resize(padded.len() + 0xfffd, b' ');
    }
    padded.extend(&bytes[2..]);
    std::fs::write(&path, &padded).expect("written");
    assert_eq!(file_size(&path, limits).expect("a size"), size);
    let small = PictureLimits { file_bytes: 1000, ..limits };
    assert!(matches!(file_size(&path, small), Err(PictureError::TooLarge { .. })));
    assert!(matches!(file_size(folder.path(), limits), Err(PictureError::NoFile)));
    assert!(matches!(file_size(&path.join("b"), limits), Err(PictureError::Missing)));
}

#[test]
fn a_decoder_that_panics_is_an_error() {
    let error = guarded(|| -> Result<(), _> { panic!("as if by a decoder") }).expect_err("a panic");
    assert!(error.to_string().contains("the decoder gave up"));
}

#[test]
fn damaged_pictures_neither_panic_nor_take_more_than_they_may() {
    let data: Vec<u8> =
        (0..48 * 40 * 4).map(|k: u32| (k.wrapping_mul(2_654_435_761) >> 25) as u8).collect();
    let rgb: Vec<u8> = data.chunks(4).flat_map(|pixel| pixel[..3].to_vec()).collect();
    let mut jpeg = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut jpeg, 80);
    encoder.write_image(&rgb, 48, 40, ExtendedColorType::Rgb8).expect("a picture");
    let mut webp = Vec::new();
    let encoder = image::codecs::webp::WebPEncoder::new_lossless(&mut webp);
    encoder.write_image(&data, 48, 40, ExtendedColorType::Rgba8).expect("a picture");
    let limits = PictureLimits { pixels: 1 << 16, ..PictureLimits::default() };
    for bytes in [png(&data, 48, 40, ExtendedColorType::Rgba8), jpeg, webp, turned_jpeg(6)] {
        let mut state = 1u32;
        let mut next = |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below
        };
        for _ in 0..400 {
            let mut damaged = bytes.clone();
            for _ in 0..1 + next(4) {
                // Heads are where sizes and lengths stand.
                let below = if next(2) == 0 { damaged.len().min(200) } else { damaged.len() };
                damaged[next(below)] = next(256) as u8;
            }
            if let Ok(image) = decode(&damaged, limits) {
                assert!(u64::from(image.width()) * u64::from(image.height()) <= limits.pixels);
            }
        }
    }
}
