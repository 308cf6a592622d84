//! The solvers and their schedules, with a toy model in place of a network, against diffusers'
//! scheduler and against the official solver in float64.

use ndarray::{ArrayD, arr1};
use pixart_runtime::noise::TorchGenerator;
use pixart_runtime::sampler::{DpmSolver, NoiseSchedule, Prediction, SchedulerConfig, Solver};
use pixart_tests::{errors::max_relative_error_of, fixtures};
use serde::Deserialize;

const TOLERANCE: f64 = 1e-5;

#[derive(Deserialize)]
struct Fixture {
    toy: Toy,
    start: Vec<f32>,
    diffusers: Vec<Trajectory>,
    mindone: Vec<Trajectory>,
}

/// ε = a x + b tanh(c x + t / 1000), in double precision from the float32 sample, then rounded.
#[derive(Deserialize)]
struct Toy {
    a: f64,
    b: f64,
    c: f64,
}

#[derive(Deserialize)]
struct Trajectory {
    steps: usize,
    times: Vec<f64>,
    /// σ/α at each time and at the end.
    sigmas: Option<Vec<f64>>,
    /// The sample after each step.
    samples: Vec<Vec<f64>>,
}

impl Toy {
    fn noise(&self, sample: &ArrayD<f32>, time: f64) -> ArrayD<f32> {
        sample.mapv(|x| {
            let x = f64::from(x);
            (self.a * x + self.b * (self.c * x + time / 1000.0).tanh()) as f32
        })
    }
}

/// The configuration in the released form, with its bare `-Infinity`.
fn config() -> SchedulerConfig {
    SchedulerConfig::from_file(&fixtures::tiny().join("scheduler/scheduler_config.json"))
        .expect("the released configuration is read")
}

fn assert_trajectory(reference: &str, fixture: &Fixture, expected: &Trajectory, solver: DpmSolver) {
    let case = format!("{reference}, {} steps", expected.steps);
    let mut solver = solver;
    let times: Vec<f64> = solver.timesteps().iter().map(|&time| time.into()).collect();
    let error = max_relative_error_of(&format!("{case}: times"), &times, &expected.times);
    assert!(error < 1e-6, "{case}: times {times:?}, expected {:?}", expected.times);

    let mut sample = arr1(&fixture.start).into_dyn();
    let mut generator = TorchGenerator::new(0);
    for (index, (time, expected)) in times.iter().zip(&expected.samples).enumerate() {
        let prediction = Prediction { noise: fixture.toy.noise(&sample, *time), variance: None };
        solver.step(index, &mut sample, &prediction, &mut generator);
        let case = format!("{case}, after step {}", index + 1);
        let actual: Vec<f64> = sample.iter().map(|&x| x.into()).collect();
        let error = max_relative_error_of(&case, &actual, expected);
        assert!(error <= TOLERANCE, "{case}: relative error {error:.2e}, allowed {TOLERANCE:.0e}");
    }
}

fn fixture() -> Fixture {
    let fixture: Fixture = fixtures::json("solver.json");
    for trajectories in [&fixture.diffusers, &fixture.mindone] {
        let steps: Vec<_> = trajectories.iter().map(|trajectory| trajectory.steps).collect();
        assert_eq!(steps, [2, 4, 14, 20, 50]);
        for trajectory in trajectories {
            assert_eq!(trajectory.samples.len(), trajectory.steps);
        }
    }
    fixture
}

#[test]
fn trajectories_equal_those_of_diffusers() {
    let (fixture, config) = (fixture(), config());
    let schedule = NoiseSchedule::new(&config);
    for expected in &fixture.diffusers {
        let solver = DpmSolver::discrete(&schedule, &config, expected.steps);
        assert_trajectory("diffusers", &fixture, expected, solver);
    }
}

#[test]
fn trajectories_equal_those_of_the_official_formulas() {
    let fixture = fixture();
    let schedule = NoiseSchedule::new(&config());
    for expected in &fixture.mindone {
        let solver = DpmSolver::continuous(&schedule, expected.steps);
        assert_trajectory("mindone", &fixture, expected, solver);
    }
}

#[test]
fn noise_levels_equal_those_of_diffusers() {
    let schedule = NoiseSchedule::new(&config());
    for Trajectory { steps, times, sigmas, .. } in &fixture().diffusers {
        let sigmas = sigmas.as_ref().expect("diffusers' sigmas");
        assert_eq!(sigmas.last(), Some(&0.0), "the trajectory ends without noise");
        let actual: Vec<f64> =
            times.iter().map(|&time| schedule.sigma_ratio(time as usize).into()).collect();
        for ((time, actual), expected) in times.iter().zip(actual).zip(sigmas) {
            let error = (actual / expected - 1.0).abs();
            assert!(error < 1e-6, "{steps} steps, time {time}: {actual}, expected {expected}");
        }
    }
}
