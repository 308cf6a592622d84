//! From noise to latents: the noise schedule, the solvers and guidance.

mod config;
mod ddim;
mod dmd;
mod dpm_solver;
mod easycache;
mod guidance;
mod iddpm;
mod lcm;
mod method;
mod sa_solver;
mod schedule;
mod solver;

pub use config::{FinalSigma, SchedulerConfig, SchedulerError};
pub use dpm_solver::DpmSolver;
pub use easycache::{EasyCache, StepCache};
pub use guidance::{GuidanceEnd, UncondMask, guide, rescale};
pub use method::SamplingMethod;
pub use schedule::{Level, NoiseSchedule};
pub use solver::{Prediction, Solver};
