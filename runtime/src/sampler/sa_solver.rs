//! SA-Solver: a stochastic Adams method with predictor and corrector of order 2 (Xue et al.,
//! "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models", 2023).
//!
//! With s = 1 + τ², h the difference in λ, primes for the level a step leads to, and x₀ the prediction
//! where it begins:
//!
//! - base b = e^(−τ² h) (σ'/σ) x + α' (1 − e^(−s h)) x₀ + σ' √(1 − e^(−2 τ² h)) z
//! - predictor: b + s α' (h²/2) (x₀ − x₀_previous)/(λ − λ_previous)
//! - corrector, once x₀' is known at the predicted sample: b + s α' (h/2) (x₀' − x₀)
//!
//! This is the paper's rescaled form for few steps (its appendix D), in which h²/2 and h/2 take
//! the place of the exact integrals. The model is asked once a step (PEC). The noise z is the
//! same in predictor and corrector. τ is 1 in the middle of the trajectory and 0 outside.

use ndarray::{ArrayD, Zip};

use super::{Level, NoiseSchedule, Prediction, SchedulerConfig, Solver, solver::noise_like};
use crate::noise::TorchGenerator;

struct Step {
    level: Level,
    /// Factor of x in the base.
    keep: f64,
    /// Factor of x₀ in the base.
    pull: f64,
    /// Factor of z in the base.
    stir: f64,
    /// Factor of x₀ − x₀_previous in the predictor; zero in one of order 1.
    bend: f64,
    /// Factor of x₀' − x₀ in the corrector.
    correct: f64,
}

/// A run of SA-Solver.
pub struct SaSolver {
    timesteps: Vec<f32>,
    steps: Vec<Step>,
    /// Whether one draw is thrown away before the first step, as the official code does.
    spare_draw: bool,
    last: Option<Last>,
}

/// What the step before left.
struct Last {
    base: ArrayD<f32>,
    x0: ArrayD<f32>,
    correct: f64,
}

/// A time of the trajectory: for the model, its level, and whether noise may be added there.
type Point = (f32, Level, bool);

impl SaSolver {
    /// The official solver: times uniform and continuous from 1 to 1/T; τ = 1 in steps that lead to a
    /// time in [0.2, 0.8], except the last.
    pub fn continuous(schedule: &NoiseSchedule, steps: usize) -> Self {
        let total = schedule.len() as f64;
        let end = 1.0 / total;
        let times: Vec<f64> =
            (0..=steps).map(|i| 1.0 + (end - 1.0) * i as f64 / steps as f64).collect();
        let stirred =
            |i: usize| i + 1 < steps && times.get(i + 1).is_some_and(|t| (0.2..=0.8).contains(t));
        let point =
            |(i, &t): (usize, &f64)| (((t - end) * total) as f32, schedule.at(t), stirred(i));
        let points: Vec<Point> = times.iter().enumerate().map(point).collect();
        Self::new(&points, true)
    }

    /// diffusers' `SASolverScheduler` with `algorithm_type="data_prediction"` and its defaults: whole
    /// times spread evenly from T − 1 to 0, where a little noise (σ ≈ 0.01) is left; τ = 1 in steps that
    /// begin at a time in [200, 800].
    pub fn discrete(schedule: &NoiseSchedule, config: &SchedulerConfig, steps: usize) -> Self {
        let last = (config.num_train_timesteps - 1) as f64;
        let point = |i: usize| {
            let t = (last * i as f64 / steps as f64).round_ties_even() as usize;
            let level = Level::from_ratio(schedule.sigma_ratio(t).into());
            (t as f32, level, (200..=800).contains(&t))
        };
        let points: Vec<Point> = (0..=steps).rev().map(point).collect();
        Self::new(&points, false)
    }

    fn new(points: &[Point], spare_draw: bool) -> Self {
        let count = points.len() - 1;
        let step = |i: usize| {
            let (_, level, stirred) = points[i];
            let target = points[i + 1].1;
            let h = target.lambda() - level.lambda();
            let tau2 = if stirred { 1.0 } else { 0.0 };
            let s = 1.0 + tau2;
            let before = i.checked_sub(1).map(|p| level.lambda() - points[p].1.lambda());
            let bend = match before {
                // Two equal times (a thousand steps of a thousand) leave nothing to extrapolate from.
                Some(before) if i + 1 < count && before != 0.0 => {
                    s * target.alpha * h * h / 2.0 / before
                }
                _ => 0.0,
            };
            Step {
                level,
                keep: (-tau2 * h).exp() * target.sigma / level.sigma,
                pull: -target.alpha * (-s * h).exp_m1(),
                stir: target.sigma * (-(-2.0 * tau2 * h).exp_m1()).sqrt(),
                bend,
                correct: s * target.alpha * h / 2.0,
            }
        };
        let timesteps = points[..count].iter().map(|point| point.0).collect();
        Self { timesteps, steps: (0..count).map(step).collect(), spare_draw, last: None }
    }
}

impl Solver for SaSolver {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn level(&self, index: usize) -> Level {
        self.steps[index].level
    }

    /// Draws noise in every step, used or not; in the official form once more before the first step
    /// taken.
    fn step(
        &mut self,
        index: usize,
        sample: &mut ArrayD<f32>,
        prediction: &Prediction,
        generator: &mut TorchGenerator,
    ) {
        let Step { level, keep, pull, stir, bend, correct } = self.steps[index];
        let x0 = prediction.picture(sample, level);
        if self.last.is_none() && self.spare_draw {
            noise_like(sample, generator);
        }
        let z = noise_like(sample, generator);

        let mut base = match &self.last {
            // The corrector of the step before.
            Some(last) => {
                let mut x = last.base.clone();
                Zip::from(&mut x).and(&x0).and(&last.x0).for_each(|x, &now, &before| {
                    let change = f64::from(now) - f64::from(before);
                    *x = (f64::from(*x) + last.correct * change) as f32;
                });
                x
            }
            None => sample.clone(),
        };
        Zip::from(&mut base).and(&x0).and(&z).for_each(|x, &x0, &z| {
            *x = (keep * f64::from(*x) + pull * f64::from(x0) + stir * f64::from(z)) as f32;
        });
        sample.assign(&base);
        if let Some(last) = self.last.take()
            && bend != 0.0
        {
            Zip::from(sample).and(&x0).and(&last.x0).for_each(|x, &now, &before| {
                *x = (f64::from(*x) + bend * (f64::from(now) - f64::from(before))) as f32;
            });
        }
        self.last = Some(Last { base, x0, correct });
    }
}
