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

/// Muon (Jordan et al., 2024): the momentum of a matrix, made nearly orthogonal, is its step. Everything
/// else is AdamW's.
///
/// Matrices are the weights of two axes inside the blocks whose names end in `.weight`, LoRA's factors
/// among them; neither the first and last layers nor tables, biases and kernels are. As torch computes it
/// with Nesterov's momentum and `match_rms_adamw`: steps are multiplied by 0.2·√(the longer side), so
/// that one learning rate and one decay serve both kinds. The iteration is computed in 32 bits, where
/// torch rounds to bfloat16.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Muon {
    /// Decay of the momentum, from 0 to below 1.
    pub momentum: f64,
    /// How everything else is moved.
    pub rest: AdamW,
}

impl Default for Muon {
    /// The published momentum, 0.95, and upstream's AdamW.
    fn default() -> Self {
        Self { momentum: 0.95, rest: AdamW::default() }
    }
}

impl Muon {
    /// Whether a weight is one of the matrices.
    pub fn is_matrix(name: &str, shape: &[usize]) -> bool {
        shape.len() == 2 && name.contains("blocks.") && name.ends_with(".weight")
    }

    /// The factor on the learning rate of a matrix, which gives its steps the size of AdamW's.
    pub(super) fn rate(shape: &[usize]) -> f64 {
        let longer = shape.iter().copied().max().unwrap_or(1);
        0.2 * (longer as f64).sqrt()
    }
}

/// Which optimizer, with its settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Algorithm {
    /// Two numbers of state for each weight.
    AdamW(AdamW),
    /// One number of state for each weight, and little more.
    Came(Came),
    /// One number of state for each element of a matrix, two for all others.
    Muon(Muon),
}

impl Algorithm {
    /// The name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AdamW(_) => "adamw",
            Self::Came(_) => "came",
            Self::Muon(_) => "muon",
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
        let adamw = |AdamW { betas, epsilon }: &AdamW| {
            beta("adamw_betas", betas)?;
            match *epsilon {
                found if found == 0.0 || positive(found) => Ok(()),
                found => fail("adamw_eps", found, "0 or a positive number"),
            }
        };
        match self {
            Self::AdamW(settings) => adamw(settings),
            Self::Muon(Muon { momentum, rest }) => {
                if !(0.0..1.0).contains(momentum) {
                    return fail("muon_momentum", *momentum, "a number from 0 to below 1");
                }
                adamw(rest)
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
            "muon" => Ok(Self::Muon(Muon::default())),
            other => Err(OptimizerError::Setting {
                setting: "optim",
                found: format!("\"{other}\""),
                expected: "adamw, came or muon",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for name in ["adamw", "came", "muon"] {
            let found: Algorithm = name.parse().expect(name);
            assert_eq!(found.to_string(), name);
            found.check().expect("upstream's settings");
        }
        let error = "sgd".parse::<Algorithm>().expect_err("unknown").to_string();
        assert_eq!(error, "optim: found \"sgd\", expected adamw, came or muon");
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let adamw = AdamW::default();
        let came = Came::default();
        let muon = Muon::default();
        let rest = AdamW { epsilon: -1.0, ..adamw };
        for (algorithm, name) in [
            (Algorithm::AdamW(AdamW { betas: [0.9, 1.0], ..adamw }), "adamw_betas: found 1,"),
            (Algorithm::AdamW(AdamW { betas: [-0.1, 0.9], ..adamw }), "adamw_betas: found -0.1,"),
            (Algorithm::AdamW(AdamW { epsilon: f64::NAN, ..adamw }), "adamw_eps: found NaN,"),
            (Algorithm::Came(Came { betas: [0.9, f64::NAN, 0.9], ..came }), "came_betas"),
            // Zero in 32 bits.
            (Algorithm::Came(Came { epsilons: [1e-60, 1e-16], ..came }), "came_eps"),
            (Algorithm::Came(Came { clip_threshold: 0.0, ..came }), "came_clip_threshold"),
            (Algorithm::Muon(Muon { momentum: 1.0, ..muon }), "muon_momentum: found 1,"),
            (Algorithm::Muon(Muon { rest, ..muon }), "adamw_eps: found -1,"),
        ] {
            let error = algorithm.check().expect_err(name).to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn matrices_are_the_blocks_layers() {
        for (name, shape, expected) in [
            ("transformer_blocks.3.attn1.to_q.weight", &[8, 8][..], true),
            ("transformer_blocks.3.ff.net.2.lora_A.weight", &[4, 32], true),
            ("transformer_blocks.3.attn1.to_q.bias", &[8], false),
            ("transformer_blocks.3.scale_shift_table", &[6, 8], false),
            ("transformer_blocks.3.attn1.sr.weight", &[8, 1, 2, 2], false),
            ("caption_projection.linear_1.weight", &[8, 8], false),
            ("proj_out.weight", &[32, 8], false),
        ] {
            assert_eq!(Muon::is_matrix(name, shape), expected, "{name}");
        }
    }
}
