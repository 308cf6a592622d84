//! From the decoder's floats to a picture.

use image::{Rgb, RgbImage};
use ndarray::ArrayView3;

use crate::{
    pipeline::Reference,
    size::{Size, cover_and_crop},
};

/// Makes a picture of `size` from `decoded`, f32 [3, height, width] with black at −1 and white at 1.
///
/// The references differ in two points: mindone cuts values outside that range off before
/// resizing, diffusers after it; and mindone drops the fraction of a pixel value, diffusers rounds
/// (half to even).
///
/// # Panics
/// When `decoded` has no pixels or not three channels.
pub fn to_picture(decoded: ArrayView3<'_, f32>, size: Size, reference: Reference) -> RgbImage {
    let mut picture = RgbImage::new(size.width, size.height);
    let unit = |value: f32| (value * 0.5 + 0.5).clamp(0.0, 1.0);
    match reference {
        Reference::Mindone => {
            let decoded = decoded.mapv(unit);
            cover_and_crop(decoded.view(), size, |x, y, rgb| {
                picture.put_pixel(x, y, Rgb(rgb.map(|value| (value * 255.0) as u8)));
            });
        }
        Reference::Diffusers => cover_and_crop(decoded, size, |x, y, rgb| {
            let level = |value| (unit(value) * 255.0).round_ties_even() as u8;
            picture.put_pixel(x, y, Rgb(rgb.map(level)));
        }),
    }
    picture
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    const VALUES: [f32; 6] = [-9.0, -1.0, 0.0, 0.999, 1.0, 9.0];

    fn levels(reference: Reference) -> Vec<u8> {
        let decoded = Array3::from_shape_fn((3, 1, VALUES.len()), |(_, _, x)| VALUES[x]);
        let size = Size { width: VALUES.len() as u32, height: 1 };
        let picture = to_picture(decoded.view(), size, reference);
        picture.pixels().map(|pixel| pixel.0[1]).collect()
    }

    #[test]
    fn mindone_truncates() {
        assert_eq!(levels(Reference::Mindone), [0, 0, 127, 254, 255, 255]);
    }

    #[test]
    fn diffusers_rounds() {
        // 0 is 127.5, whose even neighbour is 128.
        assert_eq!(levels(Reference::Diffusers), [0, 0, 128, 255, 255, 255]);
    }
}
