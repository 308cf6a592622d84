//! From noise to latents: the noise schedule, the solver and guidance.

mod config;
mod dpm_solver;
mod guidance;
mod schedule;

pub use config::{FinalSigma, SchedulerConfig, SchedulerError};
pub use dpm_solver::{DpmSolver, Step};
pub use guidance::guide;
pub use schedule::{Level, NoiseSchedule};
