//! The solvers by name, with what each accepts.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use super::{
    DpmSolver, NoiseSchedule, SchedulerConfig, Solver,
    ddim::Ddim,
    dmd::{self, Dmd},
    iddpm::Iddpm,
    lcm::Lcm,
    sa_solver::SaSolver,
};
use crate::{error::RequestError, pipeline::Reference};

/// How a picture is drawn from noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SamplingMethod {
    /// DPM-Solver++ of order 2, multistep: the solver PixArt-Σ is released with.
    #[default]
    Dpm,
    /// Ancestral sampling with learned variance; stochastic.
    Iddpm,
    /// DDIM without noise.
    Ddim,
    /// SA-Solver, predictor and corrector of order 2; stochastic.
    SaSolver,
    /// A few steps of a latent consistency model; stochastic, without guidance.
    Lcm,
    /// The one step of a model distilled by distribution matching, without guidance.
    Dmd,
}

impl SamplingMethod {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Dpm, Self::Iddpm, Self::Ddim, Self::SaSolver, Self::Lcm, Self::Dmd];

    /// Its name in configs and flags.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dpm => "dpm",
            Self::Iddpm => "iddpm",
            Self::Ddim => "ddim",
            Self::SaSolver => "sa-solver",
            Self::Lcm => "lcm",
            Self::Dmd => "dmd",
        }
    }

    /// The steps taken where none are asked for: those of the official or mindone's tools.
    pub fn default_steps(self) -> usize {
        match self {
            Self::Dpm => 20,
            Self::Iddpm => 100,
            Self::Ddim => 50,
            Self::SaSolver => 25,
            Self::Lcm => 4,
            Self::Dmd => 1,
        }
    }

    /// The steps it can take. The upper end of LCM is the number of times its models are distilled at.
    pub fn steps(self) -> RangeInclusive<usize> {
        match self {
            Self::Dpm | Self::Iddpm | Self::Ddim | Self::SaSolver => 2..=1000,
            Self::Lcm => 1..=50,
            Self::Dmd => 1..=1,
        }
    }

    /// Whether its models are meant to be guided; distilled ones have guidance built in.
    pub fn takes_guidance(self) -> bool {
        !matches!(self, Self::Lcm | Self::Dmd)
    }

    /// The guidance scale where none is asked for.
    pub fn default_guidance_scale(self) -> f32 {
        if self.takes_guidance() { 4.5 } else { 1.0 }
    }

    /// A solver for one picture.
    ///
    /// # Errors
    /// When the schedule has fewer times than these steps need.
    ///
    /// # Panics
    /// When `steps` is outside [`steps`](Self::steps).
    pub fn solver(
        self,
        schedule: &NoiseSchedule,
        config: &SchedulerConfig,
        steps: usize,
        reference: Reference,
    ) -> Result<Box<dyn Solver>, RequestError> {
        assert!(self.steps().contains(&steps), "{steps} steps of {self}");
        let least = match self {
            Self::Dpm | Self::SaSolver => 2,
            Self::Iddpm | Self::Ddim => steps,
            Self::Lcm => config.original_inference_steps,
            Self::Dmd => dmd::TIMESTEP + 1,
        };
        if schedule.len() < least {
            return Err(RequestError::ShortSchedule { method: self, found: schedule.len(), least });
        }
        if self == Self::Lcm && steps > config.original_inference_steps {
            let most = config.original_inference_steps;
            return Err(RequestError::Steps { method: self, found: steps, accepted: 1..=most });
        }
        Ok(match (self, reference) {
            (Self::Dpm, Reference::Mindone) => Box::new(DpmSolver::continuous(schedule, steps)),
            (Self::Dpm, Reference::Diffusers) => {
                Box::new(DpmSolver::discrete(schedule, config, steps))
            }
            (Self::Iddpm, _) => Box::new(Iddpm::new(schedule, steps, reference)),
            (Self::Ddim, _) => Box::new(Ddim::new(schedule, steps, reference)),
            (Self::SaSolver, Reference::Mindone) => Box::new(SaSolver::continuous(schedule, steps)),
            (Self::SaSolver, Reference::Diffusers) => {
                Box::new(SaSolver::discrete(schedule, config, steps))
            }
            (Self::Lcm, _) => Box::new(Lcm::new(schedule, config, steps, reference)),
            (Self::Dmd, _) => Box::new(Dmd::new(schedule, reference)),
        })
    }
}

impl fmt::Display for SamplingMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SamplingMethod {
    type Err = RequestError;

    /// Reads a name. `_` counts as `-`, and the official script's `dpm-solver` is `dpm`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.replace('_', "-");
        if name == "dpm-solver" {
            return Ok(Self::Dpm);
        }
        let found = Self::ALL.into_iter().find(|method| method.name() == name);
        found.ok_or_else(|| RequestError::UnknownMethod { found: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use ndarray::ArrayD;

    use super::*;
    use crate::{
        noise::TorchGenerator,
        sampler::{Level, Prediction},
    };

    const REFERENCES: [Reference; 2] = [Reference::Mindone, Reference::Diffusers];

    fn solver(method: SamplingMethod, steps: usize, reference: Reference) -> Box<dyn Solver> {
        let config = SchedulerConfig::default();
        let schedule = NoiseSchedule::new(&config);
        method.solver(&schedule, &config, steps, reference).expect("a solver")
    }

    #[test]
    fn names_are_read_in_every_spelling() {
        for method in SamplingMethod::ALL {
            assert_eq!(method.name().parse(), Ok(method));
            assert_eq!(method.name().replace('-', "_").parse(), Ok(method));
            assert!(method.steps().contains(&method.default_steps()));
        }
        assert_eq!("dpm-solver".parse(), Ok(SamplingMethod::Dpm));
        let message = "euler".parse::<SamplingMethod>().expect_err("unknown").to_string();
        assert!(message.contains("`euler`") && message.contains("sa-solver"), "{message}");
    }

    /// With the exact noise of a fixed picture every solver ends at the picture.
    #[test]
    fn a_perfect_model_leads_to_the_picture() {
        let picture = ArrayD::from_shape_fn(vec![2, 3], |i| i[0] as f32 - 0.4 * i[1] as f32);
        let noise = ArrayD::from_shape_fn(vec![2, 3], |i| 0.7 - i[0] as f32 * i[1] as f32);
        for method in SamplingMethod::ALL {
            for steps in [1, 2, 3, 14, 25, 50, 1000] {
                if !method.steps().contains(&steps) {
                    continue;
                }
                for reference in REFERENCES {
                    let mut solver = solver(method, steps, reference);
                    assert_eq!(solver.timesteps().len(), steps);
                    let Level { alpha, sigma } = solver.level(0);
                    let mut x = &picture * alpha as f32 + &noise * sigma as f32;
                    let mut generator = TorchGenerator::new(1);
                    for i in 0..steps {
                        let Level { alpha, sigma } = solver.level(i);
                        let prediction = Prediction {
                            noise: (&x - &picture * alpha as f32) / sigma as f32,
                            variance: Some(ArrayD::zeros(x.raw_dim())),
                        };
                        solver.step(i, &mut x, &prediction, &mut generator);
                    }
                    let error = (&x - &picture).iter().fold(0.0f32, |e, d| e.max(d.abs()));
                    assert!(x.iter().all(|v| v.is_finite()), "{method} {steps} {reference}");
                    // Some stop where a hundredth of the noise is left; its draws go up to 2.
                    assert!(error < 0.03, "{method}, {steps} steps, {reference}: {error}");
                }
            }
        }
    }

    /// As pictures from other pictures need it: the steps before the first one are left out.
    #[test]
    fn a_run_may_begin_at_any_step() {
        for method in SamplingMethod::ALL {
            for reference in REFERENCES {
                let steps = method.default_steps();
                let mut solver = solver(method, steps, reference);
                let mut x = ArrayD::from_elem(vec![4], 0.5);
                for i in steps / 2..steps {
                    let zero = ArrayD::zeros(x.raw_dim());
                    let prediction = Prediction { noise: zero.clone(), variance: Some(zero) };
                    solver.step(i, &mut x, &prediction, &mut TorchGenerator::new(3));
                }
                assert!(x.iter().all(|v| v.is_finite()), "{method} {reference}");
            }
        }
    }

    #[test]
    fn the_noise_goes_down_from_step_to_step() {
        for method in SamplingMethod::ALL {
            for reference in REFERENCES {
                let solver = solver(method, method.default_steps(), reference);
                let levels: Vec<Level> =
                    (0..solver.timesteps().len()).map(|i| solver.level(i)).collect();
                assert!(levels.is_sorted_by(|a, b| a.sigma > b.sigma), "{method} {reference}");
            }
        }
    }

    #[test]
    fn a_schedule_too_short_for_the_steps_is_refused() {
        let config = SchedulerConfig { num_train_timesteps: 30, ..SchedulerConfig::default() };
        let schedule = NoiseSchedule::new(&config);
        for method in
            [SamplingMethod::Iddpm, SamplingMethod::Ddim, SamplingMethod::Lcm, SamplingMethod::Dmd]
        {
            let steps = method.default_steps();
            let error = method.solver(&schedule, &config, steps, Reference::Mindone).err();
            let message = error.expect("too short").to_string();
            assert!(message.contains("found 30") && message.contains(method.name()), "{message}");
        }
    }
}
