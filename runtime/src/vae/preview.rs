//! What latents look like, without decoding them.
//!
//! A latent pixel of a VAE looks much like the mean colour of the pixels it is decoded to, up to a linear
//! map and a bias. The map is fitted to each VAE by least squares.

use image::{Rgb, RgbImage};
use ndarray::{ArrayView3, Axis};

/// A linear map from latents to colours.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentPreview {
    /// For red, green and blue: a factor for every channel and then the bias.
    weights: [Vec<f32>; 3],
}

impl LatentPreview {
    /// A map with these weights: for red, green and blue, between −1 and 1, a factor for every channel
    /// and then the bias. Nothing if their numbers differ, there is no channel, or one is not finite.
    pub fn new(weights: [Vec<f32>; 3]) -> Option<Self> {
        let length = weights[0].len();
        let sound = length > 1
            && weights.iter().all(|row| row.len() == length && row.iter().all(|w| w.is_finite()));
        sound.then_some(Self { weights })
    }

    /// The weights, as [`new`](Self::new) takes them.
    pub fn weights(&self) -> &[Vec<f32>; 3] {
        &self.weights
    }

    /// The map with the smallest squared error over pairs of latents [channels, h, w] and decoded pictures
    /// [3, k h, k w]: that of a latent pixel is against the mean of its k × k pixels, cut off at −1 and 1.
    /// Nothing if that leaves it open.
    ///
    /// # Panics
    /// When there are no pairs, or shapes do not fit.
    pub fn fit(pairs: &[(ArrayView3<'_, f32>, ArrayView3<'_, f32>)]) -> Option<Self> {
        let terms = pairs[0].0.len_of(Axis(0)) + 1;
        // The normal equations.
        let mut matrix = vec![vec![0.0; terms]; terms];
        let mut sides = [0; 3].map(|_| vec![0.0; terms]);
        for (latents, decoded) in pairs {
            let (_, height, width) = latents.dim();
            let block = decoded.len_of(Axis(1)) / height;
            for y in 0..height {
                for x in 0..width {
                    let mut cell: Vec<f64> =
                        (0..terms - 1).map(|c| f64::from(latents[[c, y, x]])).collect();
                    cell.push(1.0);
                    for i in 0..terms {
                        for j in 0..terms {
                            matrix[i][j] += cell[i] * cell[j];
                        }
                    }
                    for (colour, side) in sides.iter_mut().enumerate() {
                        let mean = mean_of_block(decoded, colour, (y, x), block);
                        for (sum, term) in side.iter_mut().zip(&cell) {
                            *sum += term * mean;
                        }
                    }
                }
            }
        }
        let [r, g, b] = sides.map(|side| {
            let solved = solved(matrix.clone(), side)?;
            Some(solved.into_iter().map(|weight| weight as f32).collect())
        });
        Self::new([r?, g?, b?])
    }

    /// A picture with one pixel for each of the latents [channels, h, w], as they come from the sampler.
    ///
    /// # Panics
    /// When they have another number of channels than the VAE.
    pub fn picture(&self, latents: ArrayView3<'_, f32>) -> RgbImage {
        let (channels, height, width) = latents.dim();
        assert_eq!(channels + 1, self.weights[0].len(), "channels of the latents");
        RgbImage::from_fn(width as u32, height as u32, |x, y| {
            let colour = |weights: &Vec<f32>| {
                let (bias, factors) = weights.split_last().expect("a bias");
                let parts = factors.iter().enumerate();
                let sum: f32 =
                    parts.map(|(c, factor)| factor * latents[[c, y as usize, x as usize]]).sum();
                (127.5 * (sum + bias + 1.0)).clamp(0.0, 255.0) as u8
            };
            Rgb([0, 1, 2].map(|k| colour(&self.weights[k])))
        })
    }
}

fn mean_of_block(
    decoded: &ArrayView3<'_, f32>,
    colour: usize,
    (y, x): (usize, usize),
    block: usize,
) -> f64 {
    let mut sum = 0.0;
    for row in 0..block {
        for column in 0..block {
            let value = decoded[[colour, y * block + row, x * block + column]];
            sum += f64::from(value.clamp(-1.0, 1.0));
        }
    }
    sum / (block * block) as f64
}

/// Solves a positive definite system by elimination; nothing if it is singular.
fn solved(mut matrix: Vec<Vec<f64>>, mut side: Vec<f64>) -> Option<Vec<f64>> {
    let n = side.len();
    for k in 0..n {
        let pivot = matrix[k][k];
        if pivot.is_nan() || pivot <= 1e-12 * matrix.len() as f64 {
            return None;
        }
        for i in k + 1..n {
            let factor = matrix[i][k] / pivot;
            let (above, below) = matrix.split_at_mut(i);
            for (value, upper) in below[0].iter_mut().zip(&above[k]).skip(k) {
                *value -= factor * upper;
            }
            side[i] -= factor * side[k];
        }
    }
    for k in (0..n).rev() {
        let known: f64 = (k + 1..n).map(|j| matrix[k][j] * side[j]).sum();
        side[k] = (side[k] - known) / matrix[k][k];
    }
    Some(side)
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    /// Two channels of numbers without pattern, and a decoder that is a linear map.
    fn pair() -> (Array3<f32>, Array3<f32>) {
        let latents = Array3::from_shape_fn((2, 5, 7), |(c, y, x)| {
            ((c * 31 + y * 17 + x * 11) % 13) as f32 / 13.0 - 0.5
        });
        let decoded = Array3::from_shape_fn((3, 10, 14), |(k, y, x)| {
            let z = |c| latents[[c, y / 2, x / 2]];
            // What a block's pixels differ by does not change its mean.
            let detail = 0.05 * ((x % 2) as f32 - (y % 2) as f32);
            0.5 * z(k % 2) - 0.25 * z((k + 1) % 2) + 0.1 * k as f32 + detail
        });
        (latents, decoded)
    }

    #[test]
    fn a_linear_decoder_is_found_exactly() {
        let (latents, decoded) = pair();
        let map = LatentPreview::fit(&[(latents.view(), decoded.view())]).expect("a map");
        let expected = [[0.5, -0.25, 0.0], [-0.25, 0.5, 0.1], [0.5, -0.25, 0.2]];
        for (found, expected) in map.weights().iter().zip(expected) {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "{map:?}");
            }
        }
        let picture = map.picture(latents.view());
        assert_eq!(picture.dimensions(), (7, 5));
        let red: f32 = 0.5 * latents[[0, 3, 2]] - 0.25 * latents[[1, 3, 2]];
        assert_eq!(picture.get_pixel(2, 3).0[0], (127.5 * (red + 1.0)) as u8);
    }

    #[test]
    fn what_leaves_the_map_open_gives_none() {
        let (mut latents, decoded) = pair();
        let second = latents.index_axis(Axis(0), 0).to_owned();
        latents.index_axis_mut(Axis(0), 1).assign(&second);
        assert_eq!(LatentPreview::fit(&[(latents.view(), decoded.view())]), None);
        assert_eq!(LatentPreview::new([vec![1.0, 0.0], vec![1.0, 0.0], vec![1.0]]), None);
        assert_eq!(LatentPreview::new([0; 3].map(|_| vec![f32::NAN, 0.0])), None);
    }
}
