//! The learning rate of every step.

use std::{f64::consts::PI, fmt, str::FromStr};

/// The batch that learning rates are given for when they are scaled.
const BASE_BATCH: f64 = 256.0;

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// It stays.
    #[default]
    Constant,
    /// Half a cosine from the learning rate down to 0 at the last step.
    Cosine,
}

impl Shape {
    /// The name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Cosine => "cosine",
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Shape {
    type Err = UnknownSchedule;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "constant" => Ok(Self::Constant),
            "cosine" => Ok(Self::Cosine),
            _ => Err(UnknownSchedule {
                setting: "scheduler",
                found: name.to_owned(),
                expected: "constant or cosine",
            }),
        }
    }
}

/// A name that is no schedule or rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: found \"{found}\", expected {expected}")]
pub struct UnknownSchedule {
    /// The setting, as the command line names it.
    pub setting: &'static str,
    /// Its value.
    pub found: String,
    /// What it may be.
    pub expected: &'static str,
}

/// A schedule: linear warm-up from 0, then a [`Shape`].
///
/// Equal to diffusers' `get_constant_schedule_with_warmup` and `get_cosine_schedule_with_warmup`, and
/// to mindone's warm-up: step 0 of a warm-up has learning rate 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The learning rate after the warm-up, see [`AutoLr`].
    pub learning_rate: f64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// What comes then.
    pub shape: Shape,
    /// Steps in all, warm-up included; only the cosine needs them.
    pub total_steps: u64,
}

impl Schedule {
    /// The learning rate of a step, counted from 0. The state of a schedule is that number.
    pub fn learning_rate(&self, step: u64) -> f64 {
        let Self { warmup_steps, total_steps, .. } = *self;
        if step < warmup_steps {
            return self.learning_rate * step as f64 / warmup_steps as f64;
        }
        self.learning_rate
            * match self.shape {
                Shape::Constant => 1.0,
                Shape::Cosine => {
                    let length = total_steps.saturating_sub(warmup_steps).max(1);
                    // Behind the last step it stays down.
                    let done = ((step - warmup_steps) as f64 / length as f64).min(1.0);
                    0.5 * (1.0 + (PI * done).cos())
                }
            }
    }
}

/// How the learning rate follows the size of the batch, upstream's `auto_lr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoLr {
    /// It does not.
    #[default]
    Off,
    /// With the root of the batch over 256.
    Sqrt,
    /// With the batch over 256.
    Linear,
}

impl AutoLr {
    /// The name on the command line; empty for [`AutoLr::Off`], as upstream has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "",
            Self::Sqrt => "sqrt",
            Self::Linear => "linear",
        }
    }

    /// The learning rate for a batch: pictures of a step on all devices and of all accumulated batches.
    pub fn learning_rate(self, learning_rate: f64, batch: u64) -> f64 {
        let ratio = batch as f64 / BASE_BATCH;
        learning_rate
            * match self {
                Self::Off => 1.0,
                Self::Sqrt => ratio.sqrt(),
                Self::Linear => ratio,
            }
    }
}

impl FromStr for AutoLr {
    type Err = UnknownSchedule;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "" => Ok(Self::Off),
            "sqrt" => Ok(Self::Sqrt),
            "linear" => Ok(Self::Linear),
            _ => Err(UnknownSchedule {
                setting: "auto_lr",
                found: name.to_owned(),
                expected: "sqrt, linear or nothing",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cosine_ends_at_zero_and_stays_there() {
        let schedule = Schedule {
            learning_rate: 1.0,
            warmup_steps: 10,
            shape: Shape::Cosine,
            total_steps: 50,
        };
        assert_eq!(schedule.learning_rate(0), 0.0);
        assert_eq!(schedule.learning_rate(5), 0.5);
        assert_eq!(schedule.learning_rate(10), 1.0);
        assert!((schedule.learning_rate(30) - 0.5).abs() < 1e-15);
        assert_eq!(schedule.learning_rate(50), 0.0);
        assert_eq!(schedule.learning_rate(u64::MAX), 0.0);
        // Nothing but warm-up is no division by zero.
        let short = Schedule { total_steps: 10, ..schedule };
        assert_eq!(short.learning_rate(10), 1.0);
        assert_eq!(short.learning_rate(11), 0.0);
    }

    #[test]
    fn learning_rates_follow_the_batch_as_upstream_has_it() {
        // Batch 64 on 4 devices, and batch 12 on one.
        assert_eq!(AutoLr::Sqrt.learning_rate(2e-5, 256), 2e-5);
        assert_eq!(AutoLr::Sqrt.learning_rate(2e-5, 64), 1e-5);
        assert_eq!(AutoLr::Linear.learning_rate(2e-5, 64), 5e-6);
        assert_eq!(AutoLr::Off.learning_rate(2e-5, 12), 2e-5);
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for shape in [Shape::Constant, Shape::Cosine] {
            assert_eq!(shape.to_string().parse(), Ok(shape));
        }
        for rule in [AutoLr::Off, AutoLr::Sqrt, AutoLr::Linear] {
            assert_eq!(rule.as_str().parse(), Ok(rule));
        }
        let error = "root".parse::<AutoLr>().expect_err("unknown").to_string();
        assert_eq!(error, "auto_lr: found \"root\", expected sqrt, linear or nothing");
        "step".parse::<Shape>().expect_err("unknown");
    }
}
