//! How far two results are apart.

use image::RgbImage;
use ndarray::ArrayD;

/// max|a − b| / max|b|; infinite where a value of `actual` is not finite.
///
/// # Panics
/// When the shapes differ, or `expected` is zero throughout or not finite.
pub fn max_relative_error(case: &str, actual: &ArrayD<f32>, expected: &ArrayD<f32>) -> f64 {
    assert_eq!(actual.shape(), expected.shape(), "{case}: shape");
    relative(
        case,
        actual.iter().map(|&value| f64::from(value)),
        expected.iter().map(|&value| f64::from(value)),
    )
}

/// √(Σ(a − b)² / Σb²): unlike the largest error, steady where every value is rounded by chance.
///
/// # Panics
/// As [`max_relative_error`].
pub fn rms_relative_error(case: &str, actual: &ArrayD<f32>, expected: &ArrayD<f32>) -> f64 {
    assert_eq!(actual.shape(), expected.shape(), "{case}: shape");
    let (mut apart, mut size) = (0.0f64, 0.0f64);
    for (&a, &b) in actual.iter().zip(expected) {
        assert!(b.is_finite(), "{case}: the expected values are not all finite");
        apart += (f64::from(a) - f64::from(b)).powi(2);
        size += f64::from(b).powi(2);
    }
    assert!(size > 0.0, "{case}: the expected values are all zero");
    if apart.is_nan() { f64::INFINITY } else { (apart / size).sqrt() }
}

/// The same as [`max_relative_error`] of plain sequences.
///
/// # Panics
/// As [`max_relative_error`].
pub fn max_relative_error_of(case: &str, actual: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(actual.len(), expected.len(), "{case}: length");
    relative(case, actual.iter().copied(), expected.iter().copied())
}

fn relative(
    case: &str,
    actual: impl Iterator<Item = f64>,
    expected: impl Iterator<Item = f64>,
) -> f64 {
    let (mut apart, mut size) = (0.0f64, 0.0f64);
    for (a, b) in actual.zip(expected) {
        assert!(b.is_finite(), "{case}: the expected values are not all finite");
        // `max` would drop a NaN.
        apart = if a.is_finite() { apart.max((a - b).abs()) } else { f64::INFINITY };
        if apart.is_infinite() {
            return apart;
        }
        size = size.max(b.abs());
    }
    assert!(size > 0.0, "{case}: the expected values are all zero");
    apart / size
}

/// Fails, naming `case`, when the results are further apart than `tolerance`; returns the error.
///
/// # Panics
/// Then, and as [`max_relative_error`].
pub fn assert_close(
    case: &str,
    actual: &ArrayD<f32>,
    expected: &ArrayD<f32>,
    tolerance: f64,
) -> f64 {
    let error = max_relative_error(case, actual, expected);
    assert!(error <= tolerance, "{case}: relative error {error:.2e}, allowed {tolerance:.0e}");
    error
}

/// Peak signal-to-noise ratio of two pictures in decibels; infinite when they are equal.
///
/// # Panics
/// When the sizes differ.
pub fn psnr(case: &str, actual: &RgbImage, expected: &RgbImage) -> f64 {
    assert_eq!(actual.dimensions(), expected.dimensions(), "{case}: size of the picture");
    let pairs = actual.as_raw().iter().zip(expected.as_raw());
    let squares: f64 = pairs.map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    10.0 * (255.0f64.powi(2) * expected.as_raw().len() as f64 / squares).log10()
}

#[cfg(test)]
mod tests {
    use ndarray::arr1;

    use super::*;

    #[test]
    fn the_error_is_relative_to_the_largest_value() {
        let expected = arr1(&[1.0f32, -4.0, 0.0]).into_dyn();
        let actual = arr1(&[1.0f32, -4.0, 0.5]).into_dyn();
        assert_eq!(max_relative_error("half", &actual, &expected), 0.125);
        let actual = arr1(&[f32::NAN, -4.0, 0.0]).into_dyn();
        assert!(max_relative_error("nan", &actual, &expected).is_infinite());
    }

    #[test]
    #[should_panic(expected = "off: relative error 1.00e-2, allowed 1e-3")]
    fn too_large_an_error_names_the_case() {
        assert_close("off", &arr1(&[1.01f32]).into_dyn(), &arr1(&[1.0f32]).into_dyn(), 1e-3);
    }

    #[test]
    fn psnr_of_one_level_everywhere_is_48_decibels() {
        let black = RgbImage::new(4, 2);
        let almost = RgbImage::from_pixel(4, 2, image::Rgb([1; 3]));
        assert!((psnr("one level", &almost, &black) - 48.13).abs() < 0.01);
        assert!(psnr("equal", &black, &black).is_infinite());
    }
}
