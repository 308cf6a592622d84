//! The solvers beside DPM-Solver++ with a toy model, against diffusers' schedulers and against the
//! published formulas in float64. Stochastic ones draw from the generator of their first noise, as the
//! references do, so that the order of the draws is compared too.

use ndarray::{ArrayD, arr1};
use pixart_runtime::{
    noise::TorchGenerator,
    pipeline::Reference,
    sampler::{NoiseSchedule, Prediction, SamplingMethod, SchedulerConfig},
};
use pixart_tests::{errors::max_relative_error_of, fixtures};
use serde::Deserialize;

const TOLERANCE: f64 = 1e-5;

#[derive(Deserialize)]
struct Fixture {
    toy: Toy,
    /// v = p tanh(q x − t / 1000).
    variance: (f64, f64),
    seed: u64,
    length: usize,
    trajectories: Vec<Trajectory>,
}

/// ε = a x + b tanh(c x + t / 1000).
#[derive(Deserialize)]
struct Toy {
    a: f64,
    b: f64,
    c: f64,
}

#[derive(Deserialize)]
struct Trajectory {
    method: String,
    reference: String,
    steps: usize,
    times: Vec<f64>,
    /// Numbers, from 1, of the steps whose result is in `samples`.
    after: Vec<usize>,
    samples: Vec<Vec<f64>>,
}

impl Fixture {
    fn prediction(&self, sample: &ArrayD<f32>, time: f64) -> Prediction {
        let (Toy { a, b, c }, (p, q)) = (&self.toy, self.variance);
        let of = |rule: &dyn Fn(f64) -> f64| sample.mapv(|x| rule(x.into()) as f32);
        Prediction {
            noise: of(&|x| a * x + b * (c * x + time / 1000.0).tanh()),
            variance: Some(of(&|x| p * (q * x - time / 1000.0).tanh())),
        }
    }

    /// The worst error of a trajectory.
    fn compare(&self, expected: &Trajectory) -> f64 {
        let Trajectory { method, reference, steps, times, after, samples } = expected;
        let case = format!("{method}, {reference}, {steps} steps");
        let method: SamplingMethod = method.parse().expect("a known solver");
        let reference: Reference = reference.parse().expect("a known reference");
        let config = fixtures::tiny().join("scheduler/scheduler_config.json");
        let config = SchedulerConfig::from_file(&config).expect("the released configuration");
        let schedule = NoiseSchedule::new(&config);
        let mut solver =
            method.solver(&schedule, &config, *steps, reference).expect("a long enough schedule");

        let found: Vec<f64> = solver.timesteps().iter().map(|&time| time.into()).collect();
        let error = max_relative_error_of(&format!("{case}: times"), &found, times);
        assert!(error < 1e-6, "{case}: times {found:?}, expected {times:?}");

        let mut generator = TorchGenerator::new(self.seed);
        let mut sample = arr1(&generator.randn(self.length)).into_dyn();
        let mut worst = 0.0f64;
        let mut expected = after.iter().zip(samples);
        let mut next = expected.next();
        for (index, time) in found.into_iter().enumerate() {
            let prediction = self.prediction(&sample, time);
            solver.step(index, &mut sample, &prediction, &mut generator);
            let Some((step, values)) = next.filter(|(step, _)| **step == index + 1) else {
                continue;
            };
            let case = format!("{case}, after step {step}");
            let actual: Vec<f64> = sample.iter().map(|&x| x.into()).collect();
            let error = max_relative_error_of(&case, &actual, values);
            assert!(error <= TOLERANCE, "{case}: error {error:.2e}, allowed {TOLERANCE:.0e}");
            worst = worst.max(error);
            next = expected.next();
        }
        assert!(next.is_none(), "{case}: the last step was compared");
        worst
    }

    fn compare_all(&self, method: &str) {
        let mut references = Vec::new();
        for trajectory in self.trajectories.iter().filter(|t| t.method == method) {
            let error = self.compare(trajectory);
            eprintln!(
                "{method}, {}, {} steps: {error:.1e}",
                trajectory.reference, trajectory.steps
            );
            references.push(trajectory.reference.as_str());
        }
        references.dedup();
        let expected: &[_] = if method == "dmd" { &["mindone"] } else { &["mindone", "diffusers"] };
        assert_eq!(references, expected, "references of {method}");
    }
}

fn fixture() -> Fixture {
    fixtures::json("solvers.json")
}

#[test]
fn ddim_equals_its_references() {
    fixture().compare_all("ddim");
}

#[test]
fn iddpm_equals_its_references() {
    fixture().compare_all("iddpm");
}

#[test]
fn sa_solver_equals_its_references() {
    fixture().compare_all("sa-solver");
}

#[test]
fn lcm_equals_its_references() {
    fixture().compare_all("lcm");
}

#[test]
fn dmd_equals_its_formula() {
    fixture().compare_all("dmd");
}
