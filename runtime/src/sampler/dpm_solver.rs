//! DPM-Solver++ (2M): the multistep solver of order 2 in its two common shapes.
//!
//! Both take the same steps, over different times. With α, σ at the target time, h the difference in
//! λ and x₀ the prediction at the current time:
//!
//! - order 1: x ← (σ/σ_s) x − α (e⁻ʰ − 1) x₀
//! - order 2: x₀ is replaced by x₀ + (x₀ − x₀_previous) h / (2 h_previous)
//!
//! (Lu et al., "DPM-Solver++", 2022, algorithm 2 with the midpoint form.)

use ndarray::{ArrayD, Zip};

use super::{FinalSigma, Level, NoiseSchedule, Prediction, SchedulerConfig, Solver};
use crate::noise::TorchGenerator;

/// How one step moves the sample.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// Signal and noise where it begins.
    level: Level,
    /// Factor of the sample.
    keep: f64,
    /// Factor of x₀.
    pull: f64,
    /// Factor of x₀ − x₀_previous; zero in a step of order 1.
    bend: f64,
}

/// A run of DPM-Solver++.
pub struct DpmSolver {
    timesteps: Vec<f32>,
    steps: Vec<Step>,
    previous: Option<ArrayD<f32>>,
}

impl DpmSolver {
    /// The solver of the official code and of mindone: times uniform and continuous from 1 to 1/T,
    /// so that the model sees fractional times; the last step is of order 1.
    ///
    /// The result lies at t = 1/T, where a little noise (σ ≈ 0.01) is left.
    pub fn continuous(schedule: &NoiseSchedule, steps: usize) -> Self {
        let total = schedule.len() as f64;
        let end = 1.0 / total;
        let times = (0..=steps).map(|i| 1.0 + (end - 1.0) * i as f64 / steps as f64);
        let points: Vec<_> = times.map(|t| (((t - end) * total) as f32, schedule.at(t))).collect();
        Self::new(&points, |step| step == 0 || step + 1 == steps)
    }

    /// diffusers' `DPMSolverMultistepScheduler`: whole times spread evenly from T − 1 to 0.
    pub fn discrete(schedule: &NoiseSchedule, config: &SchedulerConfig, steps: usize) -> Self {
        let last = (schedule.len() - 1) as f64;
        // The time 0 itself is not used: the final level takes its place.
        let times = (1..=steps).rev().map(|i| (last * i as f64 / steps as f64).round_ties_even());
        let mut points: Vec<_> = times
            .map(|t| (t as f32, Level::from_ratio(schedule.sigma_ratio(t as usize).into())))
            .collect();
        let end = match config.final_sigmas_type {
            FinalSigma::Zero => 0.0,
            FinalSigma::SigmaMin => schedule.sigma_ratio(0),
        };
        points.push((0.0, Level::from_ratio(end.into())));
        let first_order_last = config.euler_at_final
            || (config.lower_order_final && steps < 15)
            || config.final_sigmas_type == FinalSigma::Zero;
        Self::new(&points, |step| {
            config.solver_order == 1 || step == 0 || (step + 1 == steps && first_order_last)
        })
    }

    fn new(points: &[(f32, Level)], first_order: impl Fn(usize) -> bool) -> Self {
        let step = |i: usize| {
            let level = points[i].1;
            let target = points[i + 1].1;
            let h = target.lambda() - level.lambda();
            let pull = -target.alpha * (-h).exp_m1();
            // Two equal times (a thousand steps of a thousand) leave nothing to extrapolate from.
            let bend = match i.checked_sub(1).map(|p| level.lambda() - points[p].1.lambda()) {
                Some(previous) if !first_order(i) && previous != 0.0 => 0.5 * pull * h / previous,
                _ => 0.0,
            };
            Step { level, keep: target.sigma / level.sigma, pull, bend }
        };
        let count = points.len() - 1;
        let timesteps = points[..count].iter().map(|&(timestep, _)| timestep).collect();
        Self { timesteps, steps: (0..count).map(step).collect(), previous: None }
    }
}

impl Solver for DpmSolver {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn level(&self, index: usize) -> Level {
        self.steps[index].level
    }

    fn step(
        &mut self,
        index: usize,
        sample: &mut ArrayD<f32>,
        prediction: &Prediction,
        _: &mut TorchGenerator,
    ) {
        let Step { level, keep, pull, bend } = self.steps[index];
        let x0 = prediction.picture(sample, level);
        match self.previous.take() {
            Some(previous) if bend != 0.0 => {
                Zip::from(&mut *sample).and(&x0).and(&previous).for_each(|x, &x0, &previous| {
                    let x0 = f64::from(x0);
                    let change = x0 - f64::from(previous);
                    *x = (keep * f64::from(*x) + pull * x0 + bend * change) as f32;
                });
            }
            _ => Zip::from(&mut *sample).and(&x0).for_each(|x, &x0| {
                *x = (keep * f64::from(*x) + pull * f64::from(x0)) as f32;
            }),
        }
        self.previous = Some(x0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule() -> NoiseSchedule {
        NoiseSchedule::new(&SchedulerConfig::default())
    }

    #[test]
    fn diffusers_times_are_the_known_ones() {
        let config = SchedulerConfig::default();
        let solver = |steps| DpmSolver::discrete(&schedule(), &config, steps);
        assert_eq!(
            solver(20).timesteps(),
            [
                999., 949., 899., 849., 799., 749., 699., 649., 599., 549., 500., 450., 400., 350.,
                300., 250., 200., 150., 100., 50.
            ]
        );
        assert_eq!(
            solver(14).timesteps(),
            [999., 928., 856., 785., 714., 642., 571., 500., 428., 357., 285., 214., 143., 71.]
        );
        let fifty = solver(50).timesteps().to_vec();
        assert_eq!(fifty[..3], [999., 979., 959.]);
        assert_eq!(fifty[24..28], [519., 500., 480., 460.]);
        assert_eq!(fifty[48..], [40., 20.]);
    }

    #[test]
    fn continuous_times_are_fractional_and_skip_zero() {
        let times = DpmSolver::continuous(&schedule(), 20).timesteps().to_vec();
        assert_eq!(times.len(), 20);
        for (found, expected) in [(times[0], 999.0), (times[1], 949.05), (times[19], 49.95)] {
            assert!((found - expected).abs() < 1e-3, "{found} {expected}");
        }
    }
}
