//! Classifier-free guidance.

use ndarray::{ArrayD, Zip};

/// ε = ε_u + g (ε_c − ε_u), in place of the unconditional prediction.
///
/// # Panics
/// When the shapes differ.
pub fn guide(unconditional: &mut ArrayD<f32>, conditional: &ArrayD<f32>, scale: f32) {
    Zip::from(unconditional).and(conditional).for_each(|u, &c| *u += scale * (c - *u));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guidance_extrapolates_from_the_unconditional_prediction() {
        let mut unconditional = ArrayD::from_elem(vec![2], 1.0);
        guide(&mut unconditional, &ArrayD::from_elem(vec![2], 3.0), 4.5);
        assert_eq!(unconditional, ArrayD::from_elem(vec![2], 10.0));
    }
}
