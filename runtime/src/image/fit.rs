//! Pictures and masks into other sizes.

use ::image::{
    GrayImage, ImageBuffer, Pixel, RgbImage,
    imageops::{self, FilterType},
};

use crate::size::Size;

/// The largest middle part of `from` with the sides' ratio of `like`: its corner and its size.
///
/// Nothing is cut off where the ratios are equal up to a pixel.
pub fn middle(from: Size, like: Size) -> (u32, u32, Size) {
    let [width, height] = [from.width, from.height].map(u64::from);
    let [like_width, like_height] = [like.width, like.height].map(u64::from);
    // Rounded, and at least one pixel.
    let part = |a: u64, b: u64, c: u64| ((a * b + c / 2) / c).max(1);
    let (w, h) = if width * like_height >= height * like_width {
        (part(height, like_width, like_height).min(width), height)
    } else {
        (width, part(width, like_height, like_width).min(height))
    };
    let size = Size { width: w as u32, height: h as u32 };
    ((from.width - size.width) / 2, (from.height - size.height) / 2, size)
}

/// Crops the middle of `picture` to the sides' ratio of `shape` and scales it to `target`, by Lanczos
/// (three lobes, widened when it gets smaller). A picture that already is of that size passes unchanged.
pub fn picture_into(picture: &RgbImage, shape: Size, target: Size) -> RgbImage {
    into(picture, shape, target, FilterType::Lanczos3)
}

/// The same for a mask, linearly, since Lanczos rings at hard edges.
pub fn mask_into(mask: &GrayImage, shape: Size, target: Size) -> GrayImage {
    into(mask, shape, target, FilterType::Triangle)
}

fn into<P>(
    picture: &ImageBuffer<P, Vec<u8>>,
    shape: Size,
    target: Size,
    filter: FilterType,
) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8> + 'static,
{
    let (width, height) = picture.dimensions();
    let (x, y, part) = middle(Size { width, height }, shape);
    let cropped = imageops::crop_imm(picture, x, y, part.width, part.height);
    if part == target {
        return cropped.to_image();
    }
    imageops::resize(&*cropped, target.width, target.height, filter)
}

/// Scales `picture` to `target` linearly, without cropping.
pub fn stretch(picture: &RgbImage, target: Size) -> RgbImage {
    if picture.dimensions() == (target.width, target.height) {
        return picture.clone();
    }
    imageops::resize(picture, target.width, target.height, FilterType::Triangle)
}

#[cfg(test)]
mod tests {
    use ::image::{Luma, Rgb};

    use super::*;

    fn size(width: u32, height: u32) -> Size {
        Size { width, height }
    }

    #[test]
    fn the_middle_keeps_as_much_as_the_ratio_allows() {
        for (from, like, expected) in [
            (size(640, 480), size(640, 480), (0, 0, size(640, 480))),
            (size(640, 480), size(512, 512), (80, 0, size(480, 480))),
            (size(480, 640), size(512, 512), (0, 80, size(480, 480))),
            (size(640, 480), size(1600, 900), (0, 60, size(640, 360))),
            // 4:3 but for a pixel.
            (size(1333, 1000), size(4, 3), (0, 0, size(1333, 1000))),
            (size(1, 5000), size(16384, 1), (0, 2499, size(1, 1))),
        ] {
            assert_eq!(middle(from, like), expected, "{from:?} {like:?}");
        }
        for width in 1..60 {
            for height in 1..60 {
                let (x, y, part) = middle(size(width, height), size(37, 23));
                assert!(part.width >= 1 && part.height >= 1);
                assert!(x + part.width <= width && y + part.height <= height);
                assert!(part.width == width || part.height == height);
            }
        }
    }

    #[test]
    fn a_picture_of_the_size_passes_unchanged() {
        let picture = RgbImage::from_fn(8, 6, |x, y| Rgb([x as u8 * 30, y as u8 * 40, 5]));
        assert_eq!(picture_into(&picture, size(8, 6), size(8, 6)), picture);
        assert_eq!(stretch(&picture, size(8, 6)), picture);
    }

    #[test]
    fn the_crop_is_the_middle_and_the_rest_is_scaled() {
        let mask = GrayImage::from_fn(12, 4, |x, _| Luma([if x < 6 { 0 } else { 255 }]));
        let square = mask_into(&mask, size(100, 100), size(4, 4));
        assert_eq!(square.as_raw()[..4], [0, 0, 255, 255]);
        let grown = mask_into(&mask, size(12, 4), size(24, 8));
        assert_eq!((grown.get_pixel(0, 0).0, grown.get_pixel(23, 7).0), ([0], [255]));
        let picture = RgbImage::from_fn(4, 4, |x, _| Rgb([x as u8 * 80; 3]));
        let wide = stretch(&picture, size(8, 4));
        // torch.nn.functional.interpolate(mode="bilinear") of [0, 80, 160, 240] to 8.
        let row: Vec<u8> = (0..8).map(|x| wide.get_pixel(x, 2).0[0]).collect();
        assert_eq!(row, [0, 20, 60, 100, 140, 180, 220, 240]);
    }

    /// A filter that skips pixels would show black or white here.
    #[test]
    fn fine_patterns_are_averaged_when_the_picture_gets_smaller() {
        let checks = RgbImage::from_fn(160, 160, |x, y| Rgb([((x + y) % 2 * 255) as u8; 3]));
        let small = picture_into(&checks, size(1, 1), size(20, 20));
        assert!(small.pixels().all(|pixel| pixel.0[0].abs_diff(127) < 12), "{small:?}");
    }
}
