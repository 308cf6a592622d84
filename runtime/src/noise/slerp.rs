//! Spherical interpolation: Shoemake, "Animating Rotation with Quaternion Curves", 1985.

/// The cosine above which two directions count as one, and the way between them is straight.
const PARALLEL: f64 = 0.9995;

/// Moves `from` towards `to`, both seen as one vector, along the arc between them:
///
/// (sin((1 − w) θ) from + sin(w θ) to) / sin θ, where θ is the angle between them.
///
/// Two vectors of one length give a vector of that length, unlike a weighted mean, which would take
/// away a part of the noise. Weights 0 and 1 give `from` and `to` themselves, bit for bit.
///
/// # Panics
/// When the lengths differ.
pub(super) fn slerp(from: &mut [f32], to: &[f32], weight: f64) {
    assert_eq!(from.len(), to.len(), "two vectors of one space");
    if weight == 0.0 {
        return;
    }
    if weight == 1.0 {
        from.copy_from_slice(to);
        return;
    }
    let [mut dot, mut own, mut other] = [0.0f64; 3];
    for (&a, &b) in from.iter().zip(to) {
        let (a, b) = (f64::from(a), f64::from(b));
        dot += a * b;
        own += a * a;
        other += b * b;
    }
    let cosine = dot / (own * other).sqrt();
    let (keep, take) = if cosine.abs() <= PARALLEL {
        let angle = cosine.acos();
        (((1.0 - weight) * angle).sin() / angle.sin(), (weight * angle).sin() / angle.sin())
    } else {
        // Opposite directions have no shortest arc, and a zero vector has no direction.
        (1.0 - weight, weight)
    };
    for (a, &b) in from.iter_mut().zip(to) {
        *a = (keep * f64::from(*a) + take * f64::from(b)) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn norm(values: &[f32]) -> f64 {
        values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
    }

    #[test]
    fn the_arc_between_two_axes_is_the_circle() {
        for degrees in [0.0f64, 1.0, 30.0, 45.0, 60.0, 89.0, 90.0] {
            let mut point = [2.0f32, 0.0];
            slerp(&mut point, &[0.0, 2.0], degrees / 90.0);
            let (sin, cos) = degrees.to_radians().sin_cos();
            assert!((f64::from(point[0]) - 2.0 * cos).abs() < 1e-6, "{degrees}: {point:?}");
            assert!((f64::from(point[1]) - 2.0 * sin).abs() < 1e-6, "{degrees}: {point:?}");
        }
    }

    #[test]
    fn vectors_of_one_length_keep_it() {
        let a: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
        let mut b: Vec<f32> = (0..64).map(|i| (i as f32 * 1.3 + 1.0).cos()).collect();
        let scale = (norm(&a) / norm(&b)) as f32;
        b.iter_mut().for_each(|v| *v *= scale);
        for weight in [0.1, 0.25, 0.5, 0.9] {
            let mut c = a.clone();
            slerp(&mut c, &b, weight);
            assert!((norm(&c) / norm(&a) - 1.0).abs() < 1e-6, "{weight}");
        }
    }

    #[test]
    fn the_ends_are_exact_and_one_direction_is_no_division_by_zero() {
        let (a, b) = ([0.1f32, -0.7, 3e-9], [1.0f32, 0.3, -0.0]);
        for (weight, expected) in [(0.0, a), (1.0, b)] {
            let mut c = a;
            slerp(&mut c, &b, weight);
            assert_eq!(c.map(f32::to_bits), expected.map(f32::to_bits));
        }
        for other in [a, a.map(|v| 3.0 * v), a.map(|v| -v), [0.0; 3]] {
            let mut c = a;
            slerp(&mut c, &other, 0.25);
            for ((c, a), b) in c.iter().zip(a).zip(other) {
                assert!((c - (0.75 * a + 0.25 * b)).abs() < 1e-6, "{c}");
            }
        }
    }
}
