//! The optimizers and their settings.

use std::{fmt, str::FromStr};

use super::OptimizerError;

/// AdamW (Loshchilov and Hutter, 2019) as torch computes it: decay apart from the gradient, both
/// moments corrected for their start at zero, `epsilon` added to the root of the corrected second one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the moments, each from 0 to below 1.
    pub betas: [f64; 2],
    /// Added to the root of the second moment, at least 0.
    pub epsilon: f64,
}

impl Default for AdamW {
    /// The values of upstream's training: 0.9, 0.999 and 1e-10.
    fn default() -> Self {
        Self { betas: [0.9, 0.999], epsilon: 1e-10 }
    }
}

/// CAME (Luo et al., 2023): the second moment of a matrix is kept as the means of its rows and
/// columns, and steps are divided by the root of a second such moment, of how much they change.
///
/// Weights of more than two axes, such as the kernels of convolutions, are matrices over their last
/// two axes, as in the published code; vectors have a whole second moment and no confidence. There is
/// no correction for the start at zero. Weight decay is apart from the step and comes before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Came {
    /// Decay of the step, of the second moment and of the instability, each from 0 to below 1.
    pub betas: [f64; 3],
    /// Added to the squares of the gradient and to those of the instability, above 0.
    pub epsilons: [f64; 2],
    /// Largest root mean square of the step of one weight before it is smoothed, above 0.
    pub clip_threshold: f64,
}

impl Default for Came {
    /// The values of upstream's training: 0.9, 0.999, 0.9999; 1e-30, 1e-16; 1.
    fn default() -> Self {
        Self { betas: [0.9, 0.999, 0.9999], epsilons: [1e-30, 1e-16], clip_threshold: 1.0 }
    }
}

/// Which optimizer, with its settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Algorithm {
    /// Two numbers of state for each weight.
    AdamW(AdamW),
    /// One number of state for each weight, and little more.
    Came(Came),
}

impl Algorithm {
    /// The name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AdamW(_) => "adamw",
            Self::Came(_) => "came",
        }
    }

    /// Whether every setting is in its range.
    ///
    /// # Errors
    /// Names the first that is not.
    pub fn check(&self) -> Result<(), OptimizerError> {
        let fail = |setting, found: f64, expected| {
            Err(OptimizerError::Setting { setting, found: found.to_string(), expected })
        };
        let beta = |setting, betas: &[f64]| match betas.iter().find(|b| !(0.0..1.0).contains(*b)) {
            Some(&found) => fail(setting, found, "numbers from 0 to below 1"),
            None => Ok(()),
        };
        // What is no positive number in 32 bits would divide by zero.
        let positive = |value: f64| (value as f32) > 0.0 && (value as f32).is_finite();
        match self {
            Self::AdamW(AdamW { betas, epsilon }) => {
                beta("adamw_betas", betas)?;
                match *epsilon {
                    found if found == 0.0 || positive(found) => Ok(()),
                    found => fail("adamw_eps", found, "0 or a positive number"),
                }
            }
            Self::Came(Came { betas, epsilons, clip_threshold }) => {
                beta("came_betas", betas)?;
                if let Some(&found) = epsilons.iter().find(|&&epsilon| !positive(epsilon)) {
                    return fail("came_eps", found, "positive numbers");
                }
                match *clip_threshold {
                    found if positive(found) => Ok(()),
                    found => fail("came_clip_threshold", found, "a positive number"),
                }
            }
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Algorithm {
    type Err = OptimizerError;

    /// The optimizer of this name with upstream's settings.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "adamw" => Ok(Self::AdamW(AdamW::default())),
            "came" => Ok(Self::Came(Came::default())),
            other => Err(OptimizerError::Setting {
                setting: "optim",
                found: format!("\"{other}\""),
                expected: "adamw or came",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for name in ["adamw", "came"] {
            let found: Algorithm = name.parse().expect(name);
            assert_eq!(found.to_string(), name);
            found.check().expect("upstream's settings");
        }
        let error = "sgd".parse::<Algorithm>().expect_err("unknown").to_string();
        assert_eq!(error, "optim: found \"sgd\", expected adamw or came");
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let adamw = AdamW::default();
        let came = Came::default();
        for (algorithm, name) in [
            (Algorithm::AdamW(AdamW { betas: [0.9, 1.0], ..adamw }), "adamw_betas: found 1,"),
            (Algorithm::AdamW(AdamW { betas: [-0.1, 0.9], ..adamw }), "adamw_betas: found -0.1,"),
            (Algorithm::AdamW(AdamW { epsilon: f64::NAN, ..adamw }), "adamw_eps: found NaN,"),
            (Algorithm::Came(Came { betas: [0.9, f64::NAN, 0.9], ..came }), "came_betas"),
            // Zero in 32 bits.
            (Algorithm::Came(Came { epsilons: [1e-60, 1e-16], ..came }), "came_eps"),
            (Algorithm::Came(Came { clip_threshold: 0.0, ..came }), "came_clip_threshold"),
        ] {
            let error = algorithm.check().expect_err(name).to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
