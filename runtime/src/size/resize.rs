//! From the generated size to the size asked for.

use ndarray::ArrayView3;

use super::Size;

/// Two neighbours along an axis and the weight of the second.
struct Tap {
    first: usize,
    second: usize,
    weight: f32,
}

/// Resizes `image`, f32 [3, height, width], so that it just covers `target`, crops the middle and
/// hands every pixel to `put(x, y, rgb)`, row by row.
///
/// Bilinear with pixel centres at half-integers and no antialiasing, the convention of both torch's
/// `interpolate(align_corners=False)` and OpenCV's `INTER_LINEAR`. An image that already has the
/// target's size passes unchanged. Only the pixels kept are computed.
///
/// # Panics
/// When `image` has no pixels or not three channels.
pub fn cover_and_crop(
    image: ArrayView3<'_, f32>,
    target: Size,
    mut put: impl FnMut(u32, u32, [f32; 3]),
) {
    let (_, height, width) = image.dim();
    let [rows, columns] = taps((height, width), target);
    for (y, row) in (0..).zip(&rows) {
        for (x, column) in (0..).zip(&columns) {
            let rgb = [0, 1, 2].map(|c| {
                let along = |row: usize| {
                    let left = image[[c, row, column.first]];
                    let right = image[[c, row, column.second]];
                    left + (right - left) * column.weight
                };
                let (top, bottom) = (along(row.first), along(row.second));
                top + (bottom - top) * row.weight
            });
            put(x, y, rgb);
        }
    }
}

/// The taps of the rows and of the columns that are kept.
fn taps((height, width): (usize, usize), target: Size) -> [Vec<Tap>; 2] {
    let resized = covering((height as u64, width as u64), target);
    let axis = |from: usize, to: u64, kept: u32| {
        let start = (to - u64::from(kept)) / 2;
        let scale = from as f64 / to as f64;
        (start..start + u64::from(kept))
            .map(|i| {
                let position = ((i as f64 + 0.5) * scale - 0.5).max(0.0);
                let first = (position as usize).min(from - 1);
                let weight = if to == from as u64 { 0.0 } else { position - first as f64 };
                Tap { first, second: (first + 1).min(from - 1), weight: weight as f32 }
            })
            .collect()
    };
    [axis(height, resized.0, target.height), axis(width, resized.1, target.width)]
}

/// Height and width after scaling by the larger of the two ratios, in whole numbers: one side is the
/// target's, the other is rounded down, which cannot fall short of the target. (With a ratio in
/// floating point, as diffusers has it, it can, and the crop then fails.)
fn covering((height, width): (u64, u64), target: Size) -> (u64, u64) {
    let (target_height, target_width) = (u64::from(target.height), u64::from(target.width));
    if target_height * width >= target_width * height {
        (target_height, width * target_height / height)
    } else {
        (height * target_width / width, target_width)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    fn resized(image: &Array3<f32>, width: u32, height: u32) -> Array3<f32> {
        let mut out = Array3::zeros((3, height as usize, width as usize));
        cover_and_crop(image.view(), Size { width, height }, |x, y, rgb| {
            for (c, value) in rgb.into_iter().enumerate() {
                out[[c, y as usize, x as usize]] = value;
            }
        });
        out
    }

    #[test]
    fn every_size_is_covered() {
        for (height, width) in [(448, 576), (704, 1408), (512, 2048), (144, 432), (16, 16)] {
            for target_height in (1..700).step_by(7) {
                for target_width in (1..700).step_by(11) {
                    let target = Size { width: target_width, height: target_height };
                    let (h, w) = covering((height, width), target);
                    assert!(h >= target_height.into() && w >= target_width.into());
                    assert!(h == u64::from(target_height) || w == u64::from(target_width));
                }
            }
        }
    }

    #[test]
    fn the_example_that_collapses_with_floats() {
        // 640 × 480 on the 512 model: the bin is 576 × 416, and 416 · (480 / 416) in floats is below 480.
        let (h, w) = covering((416, 576), Size { width: 640, height: 480 });
        assert_eq!((h, w), (480, 664));
        let (h, w) = covering((704, 1408), Size { width: 1024, height: 512 });
        assert_eq!((h, w), (512, 1024));
    }

    #[test]
    fn the_same_size_passes_unchanged() {
        let image =
            Array3::from_shape_fn((3, 5, 7), |(c, y, x)| (c * 35 + y * 7 + x) as f32 * 0.37);
        assert_eq!(resized(&image, 7, 5), image);
    }

    #[test]
    fn a_ramp_stays_a_ramp() {
        let image = Array3::from_shape_fn((3, 4, 4), |(_, _, x)| x as f32);
        let twice = resized(&image, 8, 8);
        // torch.nn.functional.interpolate of [0, 1, 2, 3] to 8.
        let expected = [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0];
        for (x, value) in expected.into_iter().enumerate() {
            assert_eq!(twice[[1, 3, x]], value);
        }
    }

    #[test]
    fn the_middle_is_kept() {
        let image = Array3::from_shape_fn((3, 4, 8), |(_, _, x)| x as f32);
        let square = resized(&image, 4, 4);
        assert_eq!((square[[0, 0, 0]], square[[0, 0, 3]]), (2.0, 5.0));
    }
}
