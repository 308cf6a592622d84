//! Pictures for training against Pillow's, which torchvision's transforms use: equal to the bit, but for
//! JPEG, where decoders differ.

use image::{GenericImageView, RgbImage};
use pixart_tests::errors::psnr;
use pixart_tests::fixtures;
use pixart_trainer::data::{PictureLimits, Sizing, decode_picture, read_file, training_tensor};

fn fitted(file: &str, sample_size: u32, multi_scale: bool) -> RgbImage {
    let limits = PictureLimits::default();
    let bytes = read_file(&fixtures::root().join("training_pictures").join(file), limits);
    let picture = decode_picture(&bytes.expect("a file"), limits).expect("a picture");
    Sizing { sample_size, multi_scale }.fit(&picture)
}

fn expected(name: &str) -> RgbImage {
    let file = fixtures::root().join("training_pictures").join(format!("{name}.expected.png"));
    image::open(file).expect("a picture").into_rgb8()
}

fn assert_equal(name: &str, ours: &RgbImage, theirs: &RgbImage) {
    assert_eq!(ours.dimensions(), theirs.dimensions(), "{name}");
    let different = ours.as_raw().iter().zip(theirs.as_raw()).filter(|(a, b)| a != b).count();
    assert_eq!(different, 0, "{name}: values that differ, of {}", ours.as_raw().len());
}

#[test]
fn buckets_are_filled_with_the_cubic_filter() {
    for name in ["wide", "tall", "small", "exact"] {
        let ours = fitted(&format!("{name}.png"), 8, true);
        assert_equal(name, &ours, &expected(&format!("{name}.64")));
    }
}

#[test]
fn squares_are_filled_with_the_linear_filter() {
    for name in ["square", "enlarged"] {
        let ours = fitted(&format!("{name}.png"), 8, false);
        assert_equal(name, &ours, &expected(&format!("{name}.64")));
    }
}

#[test]
fn the_largest_models_use_lanczos_filter() {
    let ours = fitted("huge.png", 256, true);
    assert_eq!(ours.dimensions(), (2048, 1920));
    let kept = ours.view(1350, 900, 64, 64).to_image();
    assert_equal("huge", &kept, &expected("huge.2048"));
}

#[test]
fn jpeg_is_as_good_as_equal() {
    let decibels = psnr("photo", &fitted("photo.jpg", 8, true), &expected("photo.64"));
    assert!(decibels > 50.0, "{decibels:.1} dB");
}

#[test]
fn pixels_go_from_minus_one_to_one() {
    let image = RgbImage::from_fn(256, 1, |x, _| image::Rgb([x as u8, 0, 255]));
    let values = training_tensor(&image);
    assert_eq!(values.shape(), [3, 1, 256]);
    // torch: (torch.tensor([0, 1, 100, 128, 254, 255], dtype=torch.uint8) / 255 - 0.5) / 0.5
    let bits = [0, 1, 100, 128, 254, 255].map(|x| values[[0, 0, x]].to_bits());
    assert_eq!(bits, TORCH);
    assert!(values.iter().skip(256).all(|&value| value == -1.0 || value == 1.0));
}

/// The reference's values.
const TORCH: [u32; 6] = [0xbf800000, 0xbf7dfdfe, 0xbe5cdcdc, 0x3b808100, 0x3f7dfdfe, 0x3f800000];
