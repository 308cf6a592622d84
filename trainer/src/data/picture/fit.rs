//! From a picture of any size to the size a model is trained at.

use super::resample::{Filter, resize};
use image::RgbImage;
use ndarray::Array3;
use pixart_runtime::size::{Size, SizePlan};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The sizes that pictures are brought to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizing {
    /// Side of the model's latents, an eighth of its side in pixels: 32, 64, 128 or 256 for the released
    /// models.
    pub sample_size: u32,
    /// Whether pictures keep about their ratio and go to the nearest trained size (aspect buckets), or all
    /// become squares.
    pub multi_scale: bool,
}

/// Where the reference resizes with Lanczos' filter instead of the cubic one, in pixels.
const LANCZOS_SIDES: [u32; 2] = [2048, 2880];

impl Sizing {
    /// The model's own side in pixels.
    pub fn side(self) -> u32 {
        self.sample_size.saturating_mul(8)
    }

    /// The trained size of a picture: the one whose ratio of height to width is nearest, or the square.
    /// Both sides are multiples of 16.
    pub fn bucket(self, picture: Size) -> Size {
        if !self.multi_scale {
            return Size { width: self.side(), height: self.side() };
        }
        let plan =
            SizePlan::with_ratio((picture.height, picture.width), None, None, self.sample_size);
        // Without sides asked for there is nothing that could be refused but a model's own.
        plan.map_or(Size { width: self.side(), height: self.side() }, |plan| plan.generated)
    }

    /// What PixArt-α is told of a picture, as the official code tells it in training: height and width before
    /// it was resized, and the ratio that names its trained size; for squares the trained sides, and 1.
    pub fn conditions(self, picture: Size) -> ([f32; 2], f32) {
        match self.multi_scale {
            false => ([self.side() as f32; 2], 1.0),
            true => (
                [picture.height as f32, picture.width as f32],
                SizePlan::ratio_label(picture, self.sample_size) as f32,
            ),
        }
    }

    /// By how much a picture is enlarged to cover its trained size; below 1 it becomes smaller.
    pub fn enlargement(self, picture: Size) -> f64 {
        let bucket = self.bucket(picture);
        let by = |to: u32, from: u32| f64::from(to) / f64::from(from);
        by(bucket.height, picture.height).max(by(bucket.width, picture.width))
    }

    /// The filter: as the official code, the cubic one for buckets (Lanczos' at 2048 and 2880 px) and
    /// the linear one for squares.
    pub fn filter(self) -> Filter {
        match self.multi_scale {
            false => Filter::Bilinear,
            true if LANCZOS_SIDES.contains(&self.side()) => Filter::Lanczos,
            true => Filter::Bicubic,
        }
    }

    /// Resizes a picture to cover its trained size, keeping its ratio, and crops the middle (facts 5.2).
    /// Equals torchvision's transforms on pictures of Pillow up to version 12 bit for bit.
    pub fn fit(self, picture: &RgbImage) -> RgbImage {
        let from = Size { width: picture.width(), height: picture.height() };
        let bucket = self.bucket(from);
        let (height, width) = covering(from, bucket);
        let rows = middle(height, bucket.height as usize);
        let columns = middle(width, bucket.width as usize);
        resize(picture, (width, height), columns, rows, self.filter())
    }
}

/// Height and width that just cover `target`. One side is the target's, the other is rounded down, in
/// whole numbers; upstream's floats give the same.
fn covering(from: Size, target: Size) -> (usize, usize) {
    let [height, width, to_height, to_width] =
        [from.height, from.width, target.height, target.width].map(u64::from);
    let (height, width) = if to_height * width > to_width * height {
        (to_height, width * to_height / height)
    } else {
        (height * to_width / width, to_width)
    };
    (height as usize, width as usize)
}

/// The middle of an axis. Half a pixel goes to the even side, as Python rounds.
fn middle(length: usize, kept: usize) -> Range<usize> {
    let rest = length - kept;
    let start = rest / 2 + usize::from(rest % 4 == 3);
    start..start + kept
}

/// What the VAE's encoder takes: f32 [3, height, width] in −1 to 1.
pub fn training_tensor(picture: &RgbImage) -> Array3<f32> {
    let shape = (3, picture.height() as usize, picture.width() as usize);
    let mut values = Array3::zeros(shape);
    for (x, y, pixel) in picture.enumerate_pixels() {
        for (channel, value) in pixel.0.into_iter().enumerate() {
            // torchvision's order of operations: to 0…1, then mean 0.5 and deviation 0.5.
            values[[channel, y as usize, x as usize]] = (f32::from(value) / 255.0 - 0.5) / 0.5;
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_picture_covers_its_bucket() {
        for (sample_size, multi_scale) in [(8, true), (32, true), (256, true), (16, false)] {
            let sizing = Sizing { sample_size, multi_scale };
            for height in (1..3000).step_by(97) {
                for width in (1..3000).step_by(89) {
                    let picture = Size { width, height };
                    let bucket = sizing.bucket(picture);
                    let (h, w) = covering(picture, bucket);
                    let (to_h, to_w) = (bucket.height as usize, bucket.width as usize);
                    assert!(h >= to_h && w >= to_w && (h == to_h || w == to_w), "{picture:?}");
                    let multiple = |side: u32| side.is_multiple_of(16);
                    assert!(multiple(bucket.height) && multiple(bucket.width), "{bucket:?}");
                }
            }
        }
    }

    #[test]
    fn the_middle_is_pythons() {
        // int(round((length - kept) / 2)) for a rest of 0 to 7.
        let starts: Vec<usize> = (0..8).map(|rest| middle(10 + rest, 10).start).collect();
        assert_eq!(starts, [0, 0, 1, 2, 2, 2, 3, 4]);
    }

    #[test]
    fn pictures_beyond_what_can_be_generated_have_a_bucket() {
        let sizing = Sizing { sample_size: 64, multi_scale: true };
        let bucket = sizing.bucket(Size { width: 40_000, height: 20_000 });
        assert_eq!((bucket.height, bucket.width), (352, 704));
    }

    #[test]
    fn conditions_are_those_of_the_official_code() {
        let buckets = Sizing { sample_size: 128, multi_scale: true };
        for ((height, width), label) in
            [((900, 1600), 0.57), ((1000, 1000), 1.0), ((3000, 750), 4.0), ((1024, 960), 1.07)]
        {
            let picture = Size { width, height };
            assert_eq!(buckets.conditions(picture), ([height as f32, width as f32], label));
        }
        let squares = Sizing { sample_size: 128, multi_scale: false };
        let picture = Size { width: 1600, height: 900 };
        assert_eq!(squares.conditions(picture), ([1024.0; 2], 1.0));
    }

    #[test]
    fn enlargement_is_that_of_the_side_that_decides() {
        let sizing = Sizing { sample_size: 64, multi_scale: false };
        assert_eq!(sizing.enlargement(Size { width: 256, height: 1024 }), 2.0);
        assert_eq!(sizing.enlargement(Size { width: 1024, height: 2048 }), 0.5);
    }
}
