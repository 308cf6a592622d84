//! `scheduler_config.json`: what the checkpoint says about its noise schedule and solver.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::bundle::store;

/// The scheduler settings that decide a trajectory, under diffusers' names.
///
/// The defaults are the values released with PixArt-Σ.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default)]
pub struct SchedulerConfig {
    /// Length T of the training schedule.
    pub num_train_timesteps: usize,
    /// β of the first training step.
    pub beta_start: f64,
    /// β of the last training step.
    pub beta_end: f64,
    /// Order of the multistep solver, 1 or 2.
    pub solver_order: usize,
    /// Whether the last step is of order 1 when there are fewer than 15 steps.
    pub lower_order_final: bool,
    /// Whether the last step is of order 1 whatever their number.
    pub euler_at_final: bool,
    /// Where the trajectory ends.
    pub final_sigmas_type: FinalSigma,
    /// How many times a latent consistency model was distilled at.
    pub original_inference_steps: usize,
    /// What a time is multiplied with in the boundary scalings of a latent consistency model.
    pub timestep_scaling: f64,
}

/// The noise level after the last step of the diffusers reference.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigma {
    /// No noise: the last step returns the predicted picture.
    #[default]
    Zero,
    /// The lowest level of the training schedule.
    SigmaMin,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            solver_order: 2,
            lower_order_final: true,
            euler_at_final: false,
            final_sigmas_type: FinalSigma::Zero,
            original_inference_steps: 50,
            timestep_scaling: 10.0,
        }
    }
}

/// A scheduler configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchedulerError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no JSON object with the expected types.
    #[error("{}: {source}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// What serde_json found.
        source: serde_json::Error,
    },
    /// A setting that no sampler here implements, or a value outside its range.
    #[error("{}: found {field} {found}, expected {expected}", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// Name of the field.
        field: &'static str,
        /// Its value, as JSON.
        found: String,
        /// What is supported.
        expected: &'static str,
    },
}

/// A setting that must have one of a few values: its name, whether a value is one of them, and how to
/// say which they are.
type Check = (&'static str, fn(&serde_json::Value) -> bool, &'static str);

/// A diffusers scheduler and what is asked of its settings.
struct Class {
    name: &'static str,
    checks: &'static [Check],
}

/// What every scheduler has to agree on.
const COMMON: [Check; 5] = [
    ("prediction_type", |v| v == "epsilon", "\"epsilon\""),
    ("beta_schedule", |v| v == "linear", "\"linear\""),
    ("trained_betas", |v| v.is_null(), "null"),
    ("thresholding", |v| v == false, "false"),
    ("rescale_betas_zero_snr", |v| v == false, "false"),
];

const LINSPACE: Check = ("timestep_spacing", |v| v == "linspace", "\"linspace\"");
const KARRAS: Check = ("use_karras_sigmas", |v| v == false || v.is_null(), "false");
// −∞ arrives as null. Below −5.1, the lowest λ of the schedule, clipping removes nothing.
const LAMBDA_MIN: Check = (
    "lambda_min_clipped",
    |v| v.is_null() || v.as_f64().is_some_and(|v| v < -5.1),
    "-Infinity or less than -5.1",
);
const NO_CLIP: Check = ("clip_sample", |v| v == false, "false: latents reach beyond 1");

/// The first one is meant where a file names none.
const CLASSES: [Class; 5] = [
    Class {
        name: "DPMSolverMultistepScheduler",
        checks: &[
            LINSPACE,
            KARRAS,
            LAMBDA_MIN,
            ("algorithm_type", |v| v == "dpmsolver++" || v == "deis", "\"dpmsolver++\""),
            // diffusers reads these three names as midpoint.
            (
                "solver_type",
                |v| v == "midpoint" || v == "logrho" || v == "bh1" || v == "bh2",
                "\"midpoint\"",
            ),
            ("solver_order", |v| v == 1 || v == 2, "1 or 2"),
            ("variance_type", |v| v.is_null(), "null"),
            ("use_lu_lambdas", |v| v == false || v.is_null(), "false"),
            ("final_sigmas_type", |v| v == "zero" || v == "sigma_min", "\"zero\" or \"sigma_min\""),
        ],
    },
    Class {
        name: "SASolverScheduler",
        checks: &[
            LINSPACE,
            KARRAS,
            LAMBDA_MIN,
            ("algorithm_type", |v| v == "data_prediction", "\"data_prediction\""),
            ("predictor_order", |v| v == 2, "2"),
            ("corrector_order", |v| v == 2, "2"),
            ("lower_order_final", |v| v == true, "true"),
        ],
    },
    Class {
        name: "DDIMScheduler",
        checks: &[LINSPACE, NO_CLIP, ("set_alpha_to_one", |v| v == true, "true")],
    },
    // The spacing plays no part in its times.
    Class { name: "LCMScheduler", checks: &[NO_CLIP] },
    // What belongs to its noise schedule counts; the official sampler never clips.
    Class { name: "DDPMScheduler", checks: &[] },
];

const SWITCHES: [&str; 4] =
    ["use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas", "use_dynamic_shifting"];

impl SchedulerConfig {
    /// Reads a `scheduler_config.json`. Bare `-Infinity`, `Infinity` and `NaN` are accepted, as
    /// Python's JSON writer leaves them in the released file.
    ///
    /// The solver is the request's; a file of another scheduler gives its noise schedule and the
    /// settings of its own solver, and the other solvers take their defaults.
    ///
    /// # Errors
    /// When the file cannot be read or parsed, is of none of the schedulers that have a solver here, or
    /// asks for a variant that the solver is not.
    pub fn from_file(file: &Path) -> Result<Self, SchedulerError> {
        let text = store::read(file)
            .and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other))
            .map_err(|source| SchedulerError::Read { file: file.to_owned(), source })?;
        let json = |source| SchedulerError::Json { file: file.to_owned(), source };
        let value: serde_json::Value =
            serde_json::from_str(&without_bare_tokens(&text)).map_err(json)?;
        let unsupported =
            |field, found: &serde_json::Value, expected| SchedulerError::Unsupported {
                file: file.to_owned(),
                field,
                found: found.to_string(),
                expected,
            };
        let class = match value.get("_class_name") {
            None => &CLASSES[0],
            Some(name) => CLASSES.iter().find(|class| name == class.name).ok_or_else(|| {
                let expected = "DPMSolverMultistepScheduler, SASolverScheduler, DDIMScheduler, \
                                LCMScheduler or DDPMScheduler";
                unsupported("_class_name", name, expected)
            })?,
        };
        let switches =
            SWITCHES.map(|name| -> Check { (name, |v| v == false || v.is_null(), "false") });
        for (field, accepted, expected) in
            class.checks.iter().copied().chain(COMMON).chain(switches)
        {
            match value.get(field) {
                Some(found) if !accepted(found) => return Err(unsupported(field, found, expected)),
                _ => {}
            }
        }
        let config: Self = serde_json::from_value(value.clone()).map_err(json)?;
        if !(2..=1_000_000).contains(&config.num_train_timesteps) {
            return Err(unsupported(
                "num_train_timesteps",
                &value["num_train_timesteps"],
                "2 to 1000000",
            ));
        }
        if !(1..=config.num_train_timesteps).contains(&config.original_inference_steps) {
            return Err(unsupported(
                "original_inference_steps",
                &value["original_inference_steps"],
                "1 to num_train_timesteps",
            ));
        }
        if !config.timestep_scaling.is_finite() || config.timestep_scaling <= 0.0 {
            let found = &value["timestep_scaling"];
            return Err(unsupported("timestep_scaling", found, "a number above 0"));
        }
        let increasing = config.beta_start > 0.0 && config.beta_start <= config.beta_end;
        if !increasing || config.beta_end >= 1.0 {
            return Err(unsupported(
                "beta_start, beta_end",
                &serde_json::json!([config.beta_start, config.beta_end]),
                "0 < beta_start <= beta_end < 1",
            ));
        }
        Ok(config)
    }
}

/// Replaces `-Infinity`, `Infinity` and `NaN` outside strings by `null`.
fn without_bare_tokens(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    let mut quoted = false;
    while let Some(next) = rest.chars().next() {
        let bare = ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| rest.starts_with(word));
        let taken = match (next, bare) {
            // A backslash keeps the character after it from ending the string.
            ('\\', _) if quoted => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            (_, Some(word)) if !quoted => {
                clean.push_str("null");
                rest = &rest[word.len()..];
                continue;
            }
            _ => next.len_utf8(),
        };
        if next == '"' {
            quoted = !quoted;
        }
        clean.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<SchedulerConfig, SchedulerError> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("scheduler_config.json");
        std::fs::write(&file, text).expect("a file");
        SchedulerConfig::from_file(&file)
    }

    #[test]
    fn the_released_file_gives_the_defaults() {
        let released = r#"{
            "_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.22.0.dev0",
            "algorithm_type": "dpmsolver++", "beta_end": 0.02, "beta_schedule": "linear",
            "beta_start": 0.0001, "dynamic_thresholding_ratio": 0.995, "euler_at_final": false,
            "lambda_min_clipped": -Infinity, "lower_order_final": true,
            "num_train_timesteps": 1000, "prediction_type": "epsilon", "sample_max_value": 1.0,
            "solver_order": 2, "solver_type": "midpoint", "steps_offset": 0,
            "thresholding": false, "timestep_spacing": "linspace", "trained_betas": null,
            "use_karras_sigmas": false, "use_lu_lambdas": false, "variance_type": null
        }"#;
        assert_eq!(read(released).expect("a config"), SchedulerConfig::default());
    }

    #[test]
    fn bare_tokens_inside_strings_stay() {
        let text = r#"{"a": "NaN \" -Infinity", "b": [-Infinity, Infinity, NaN]}"#;
        assert_eq!(
            without_bare_tokens(text),
            r#"{"a": "NaN \" -Infinity", "b": [null, null, null]}"#
        );
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (text, field) in [
            (r#"{"_class_name": "EulerDiscreteScheduler"}"#, "_class_name"),
            (r#"{"algorithm_type": "sde-dpmsolver++"}"#, "algorithm_type"),
            (r#"{"solver_order": 3}"#, "solver_order"),
            (r#"{"prediction_type": "v_prediction"}"#, "prediction_type"),
            (r#"{"use_karras_sigmas": true}"#, "use_karras_sigmas"),
            (r#"{"use_flow_sigmas": true}"#, "use_flow_sigmas"),
            (r#"{"lambda_min_clipped": -4.0}"#, "lambda_min_clipped"),
            (r#"{"num_train_timesteps": 0}"#, "num_train_timesteps"),
            (r#"{"beta_start": 0.5, "beta_end": 0.1}"#, "beta_start"),
            (r#"{"original_inference_steps": 0}"#, "original_inference_steps"),
            (r#"{"_class_name": "LCMScheduler", "timestep_scaling": 0}"#, "timestep_scaling"),
            (r#"{"_class_name": "LCMScheduler", "clip_sample": true}"#, "clip_sample"),
            (r#"{"_class_name": "DDIMScheduler", "timestep_spacing": "leading"}"#, "spacing"),
            (r#"{"_class_name": "DDIMScheduler", "set_alpha_to_one": false}"#, "set_alpha_to_one"),
            (r#"{"_class_name": "SASolverScheduler", "predictor_order": 3}"#, "predictor_order"),
        ] {
            let message = read(text).expect_err(text).to_string();
            assert!(message.contains(field) && message.contains("expected"), "{message}");
        }
    }

    #[test]
    fn files_of_the_other_schedulers_give_what_their_solvers_need() {
        let lcm = r#"{"_class_name": "LCMScheduler", "beta_start": 0.0001, "beta_end": 0.02,
            "clip_sample": false, "original_inference_steps": 40, "timestep_scaling": 5.0,
            "timestep_spacing": "leading", "set_alpha_to_one": true}"#;
        let expected = SchedulerConfig {
            original_inference_steps: 40,
            timestep_scaling: 5.0,
            ..SchedulerConfig::default()
        };
        assert_eq!(read(lcm).expect("a config"), expected);
        let ddpm = r#"{"_class_name": "DDPMScheduler", "clip_sample": true, "variance_type": "fixed_small"}"#;
        assert_eq!(read(ddpm).expect("a config"), SchedulerConfig::default());
    }

    #[test]
    fn a_broken_file_is_an_error_with_its_name() {
        let message = read("{").expect_err("no JSON").to_string();
        assert!(message.contains("scheduler_config.json"), "{message}");
    }
}
