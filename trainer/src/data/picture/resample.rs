//! Resizing as Pillow up to 12 does it, to the bit.
//!
//! The reference resizes with torchvision on Pillow's pictures: a separable filter, widened when a picture
//! becomes smaller, first along rows, then along columns. Weights are fixed-point numbers of 22 bits, and the
//! result of the first pass is rounded to 8 bits. (Pillow 13 begins with columns where that is cheaper,
//! which moves some values by one or two.) Only the part that is kept is computed.

use image::RgbImage;
use std::ops::Range;

/// The filters of the reference, by Pillow's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// A triangle, one pixel to each side.
    Bilinear,
    /// Keys' cubic with a = −0.5, two pixels to each side.
    Bicubic,
    /// Lanczos' windowed sinc, three pixels to each side.
    Lanczos,
}

/// Bits after the point of a weight: 8 bits for the pixel and 2 for what overshoots stay free of 32.
const PRECISION: u32 = 32 - 8 - 2;

impl Filter {
    /// How far it reaches to each side, in pixels of the larger picture.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let distance = x.abs();
        match self {
            Self::Bilinear => (1.0 - distance).max(0.0),
            Self::Bicubic => {
                const A: f64 = -0.5;
                if distance < 1.0 {
                    ((A + 2.0) * distance - (A + 3.0)) * distance * distance + 1.0
                } else if distance < 2.0 {
                    (((distance - 5.0) * distance + 8.0) * distance - 4.0) * A
                } else {
                    0.0
                }
            }
            Self::Lanczos => {
                if (-3.0..3.0).contains(&x) {
                    sinc(x) * sinc(x / 3.0)
                } else {
                    0.0
                }
            }
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// The pixels that one pixel of the result is made of.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// The taps of the pixels `kept` of an axis that goes from `from` to `to` pixels.
fn taps(filter: Filter, from: usize, to: usize, kept: Range<usize>) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let widened = scale.max(1.0);
    let support = filter.support() * widened;
    let narrowed = 1.0 / widened;
    kept.map(|place| {
        let center = (place as f64 + 0.5) * scale;
        // Both are rounded to the nearest by truncation, as Pillow does.
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..end)
            .map(|source| filter.weight((source as f64 - center + 0.5) * narrowed))
            .collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: &f64| {
            let weight = if sum == 0.0 { *weight } else { weight / sum };
            let scaled = weight * f64::from(1 << PRECISION);
            (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
        };
        Taps { first, weights: weights.iter().map(fixed).collect() }
    })
    .collect()
}

/// Resizes `image` to `width` × `height` and keeps the columns `x` and rows `y` of it.
///
/// # Panics
/// When the part kept is not inside of the resized picture.
pub(super) fn resize(
    image: &RgbImage,
    (width, height): (usize, usize),
    x: Range<usize>,
    y: Range<usize>,
    filter: Filter,
) -> RgbImage {
    assert!(x.end <= width && y.end <= height, "the part kept is inside");
    let (from_width, from_height) = (image.width() as usize, image.height() as usize);
    let (columns, rows) = (x.len(), y.len());
    let vertical = (height != from_height).then(|| taps(filter, from_height, height, y.clone()));
    // The rows that the second pass looks at.
    let used = match &vertical {
        None => y,
        Some(taps) => {
            let first = taps.iter().map(|taps| taps.first).min().unwrap_or(0);
            let end = taps.iter().map(|taps| taps.first + taps.weights.len()).max().unwrap_or(0);
            first..end
        }
    };
    let pixels = image.as_raw();
    let source = |row: usize| &pixels[row * from_width * 3..][..from_width * 3];
    let mut narrow = Vec::with_capacity(used.len() * columns * 3);
    if width == from_width {
        for row in used.clone() {
            narrow.extend_from_slice(&source(row)[x.start * 3..x.end * 3]);
        }
    } else {
        let horizontal = taps(filter, from_width, width, x);
        for row in used.clone() {
            let row = source(row);
            for taps in &horizontal {
                let mut sums = [HALF; 3];
                let pixels = row[taps.first * 3..].chunks_exact(3);
                for (pixel, &weight) in pixels.zip(&taps.weights) {
                    for (sum, &value) in sums.iter_mut().zip(pixel) {
                        *sum += i32::from(value) * weight;
                    }
                }
                narrow.extend(sums.map(rounded));
            }
        }
    }
    let finished = match vertical {
        None => narrow,
        Some(vertical) => {
            let mut finished = Vec::with_capacity(rows * columns * 3);
            let mut sums = vec![HALF; columns * 3];
            for taps in &vertical {
                sums.fill(HALF);
                let rows = narrow.chunks_exact(columns * 3).skip(taps.first - used.start);
                for (row, &weight) in rows.zip(&taps.weights) {
                    for (sum, &value) in sums.iter_mut().zip(row) {
                        *sum += i32::from(value) * weight;
                    }
                }
                finished.extend(sums.iter().map(|&sum| rounded(sum)));
            }
            finished
        }
    };
    RgbImage::from_raw(columns as u32, rows as u32, finished).expect("three values a pixel")
}

/// One half, so that cutting off the fraction rounds.
const HALF: i32 = 1 << (PRECISION - 1);

fn rounded(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}
