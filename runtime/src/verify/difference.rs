//! How far two results are apart.

use ndarray::ArrayD;

/// The difference of two tensors, in proportion to the size of the reference.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Difference {
    /// max |a − b| / max |b|; infinite where a value is not finite.
    pub max_relative: f64,
    /// √(mean (a − b)²) / √(mean b²); infinite where a value is not finite.
    pub rms: f64,
}

impl Difference {
    /// The difference of `found` from `reference`, which have the same shape.
    pub(super) fn of(found: &ArrayD<f32>, reference: &ArrayD<f32>) -> Self {
        let (mut apart, mut size) = (0.0f64, 0.0f64);
        let (mut apart_squares, mut size_squares) = (0.0f64, 0.0f64);
        for (&a, &b) in found.iter().zip(reference) {
            if !(a.is_finite() && b.is_finite()) {
                return Self { max_relative: f64::INFINITY, rms: f64::INFINITY };
            }
            let (difference, b) = ((f64::from(a) - f64::from(b)).abs(), f64::from(b).abs());
            apart = apart.max(difference);
            size = size.max(b);
            apart_squares += difference * difference;
            size_squares += b * b;
        }
        // Nothing is far from zeros only if it is zero itself.
        let ratio = |apart: f64, size: f64| match apart == 0.0 {
            true => 0.0,
            false => apart / size,
        };
        Self { max_relative: ratio(apart, size), rms: ratio(apart_squares, size_squares).sqrt() }
    }

    /// The larger of each value.
    pub fn worst(self, other: Self) -> Self {
        Self {
            max_relative: self.max_relative.max(other.max_relative),
            rms: self.rms.max(other.rms),
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::arr1;

    use super::*;

    fn difference(found: &[f32], reference: &[f32]) -> Difference {
        Difference::of(&arr1(found).into_dyn(), &arr1(reference).into_dyn())
    }

    #[test]
    fn both_measures_are_relative_to_the_reference() {
        let found = difference(&[3.0, -4.5], &[3.0, -4.0]);
        assert_eq!(found.max_relative, 0.125);
        assert!((found.rms - 0.1).abs() < 1e-12, "{found:?}");
        assert_eq!(difference(&[0.0, 0.0], &[0.0, 0.0]), Difference::default());
        assert_eq!(difference(&[1.0], &[0.0]).max_relative, f64::INFINITY);
    }

    #[test]
    fn what_is_not_finite_is_infinitely_far() {
        for (found, reference) in [(f32::NAN, 1.0), (1.0, f32::NAN), (f32::INFINITY, f32::INFINITY)]
        {
            let difference = difference(&[1.0, found], &[1.0, reference]);
            assert_eq!(difference.max_relative, f64::INFINITY);
            assert_eq!(difference.worst(Difference::default()).rms, f64::INFINITY);
        }
    }
}
