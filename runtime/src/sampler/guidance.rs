//! Classifier-free guidance.

use std::{fmt, str::FromStr};

use ndarray::{ArrayD, Zip};

use crate::{error::RequestError, pipeline::Reference};

/// Where in a run guidance stops. The steps after it compute the prompt's half alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GuidanceEnd {
    /// After this part of the steps, from 0 (no guidance) to 1 (guidance to the end), rounded to whole
    /// steps.
    Fraction(f32),
    /// After this many steps.
    Step(usize),
}

impl Default for GuidanceEnd {
    /// At the end of the run.
    fn default() -> Self {
        Self::Fraction(1.0)
    }
}

impl GuidanceEnd {
    /// How many of `steps` steps are guided.
    pub fn guided_steps(self, steps: usize) -> usize {
        match self {
            Self::Fraction(fraction) => (f64::from(fraction) * steps as f64).round() as usize,
            Self::Step(step) => step.min(steps),
        }
    }
}

/// Which caption tokens the unconditional half of the batch attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UncondMask {
    /// As many as the prompt has, whatever the negative prompt's length: the official code and
    /// mindone. Training drops a caption in the same way: it keeps the caption's mask.
    Caption,
    /// Its own: diffusers.
    Own,
}

impl UncondMask {
    /// What the reference does.
    pub fn of(reference: Reference) -> Self {
        match reference {
            Reference::Mindone => Self::Caption,
            Reference::Diffusers => Self::Own,
        }
    }
}

impl fmt::Display for UncondMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Caption => "caption",
            Self::Own => "own",
        })
    }
}

impl FromStr for UncondMask {
    type Err = RequestError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "caption" => Ok(Self::Caption),
            "own" => Ok(Self::Own),
            _ => Err(RequestError::UnknownMask(name.to_owned())),
        }
    }
}

/// ε = ε_u + g (ε_c − ε_u), in place of the unconditional prediction.
///
/// # Panics
/// When the shapes differ.
pub fn guide(unconditional: &mut ArrayD<f32>, conditional: &ArrayD<f32>, scale: f32) {
    Zip::from(unconditional).and(conditional).for_each(|u, &c| *u += scale * (c - *u));
}

/// Pulls a guided prediction towards the standard deviation of the conditional one:
/// ε ← ((1 − r) + r std(ε_c)/std(ε)) ε (Lin et al., "Common Diffusion Noise Schedules and Sample Steps
/// are Flawed", 2023, section 3.4). The deviations are over all values of one picture; where the guided
/// one is zero, nothing changes.
pub fn rescale(guided: &mut ArrayD<f32>, conditional: &ArrayD<f32>, strength: f32) {
    let ratio = deviation(conditional) / deviation(guided);
    if ratio.is_finite() {
        let strength = f64::from(strength);
        let factor = 1.0 - strength + strength * ratio;
        guided.mapv_inplace(|value| (factor * f64::from(value)) as f32);
    }
}

fn deviation(values: &ArrayD<f32>) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
    let squares = values.iter().map(|&v| (f64::from(v) - mean).powi(2));
    (squares.sum::<f64>() / count).sqrt()
}

#[cfg(test)]
mod tests {
    use ndarray::arr1;

    use super::*;

    #[test]
    fn guidance_extrapolates_from_the_unconditional_prediction() {
        let mut unconditional = ArrayD::from_elem(vec![2], 1.0);
        guide(&mut unconditional, &ArrayD::from_elem(vec![2], 3.0), 4.5);
        assert_eq!(unconditional, ArrayD::from_elem(vec![2], 10.0));
    }

    #[test]
    fn rescaling_in_full_gives_the_deviation_of_the_conditional_prediction() {
        let conditional = arr1(&[1.0, -1.0, 3.0, 0.5]).into_dyn();
        let guided = arr1(&[4.0f32, -6.0, 9.0, 0.25]).into_dyn();
        let mut full = guided.clone();
        rescale(&mut full, &conditional, 1.0);
        assert!((deviation(&full) / deviation(&conditional) - 1.0).abs() < 1e-6);
        let mut none = guided.clone();
        rescale(&mut none, &conditional, 0.0);
        assert_eq!(none, guided);
        let mut flat = ArrayD::zeros(vec![4]);
        rescale(&mut flat, &conditional, 1.0);
        assert_eq!(flat, ArrayD::<f32>::zeros(vec![4]));
    }

    #[test]
    fn the_end_of_guidance_is_counted_in_whole_steps() {
        for (end, steps, expected) in [
            (GuidanceEnd::default(), 20, 20),
            (GuidanceEnd::Fraction(0.0), 20, 0),
            (GuidanceEnd::Fraction(0.5), 5, 3),
            (GuidanceEnd::Fraction(0.8), 20, 16),
            (GuidanceEnd::Step(7), 20, 7),
            (GuidanceEnd::Step(99), 20, 20),
        ] {
            assert_eq!(end.guided_steps(steps), expected, "{end:?} of {steps}");
        }
    }
}
