//! From noise to latents: the noise schedule, the solvers and guidance.

mod config;
mod ddim;
mod dmd;
mod dpm_solver;
mod guidance;
mod iddpm;
mod lcm;
mod method;
mod sa_solver;
mod schedule;
mod solver;

pub use config::{FinalSigma, SchedulerConfig, SchedulerError};
pub use ddim::Ddim;
pub use dmd::Dmd;
pub use dpm_solver::DpmSolver;
pub use guidance::{GuidanceEnd, UncondMask, guide, rescale};
pub use iddpm::Iddpm;
pub use lcm::Lcm;
pub use method::SamplingMethod;
pub use sa_solver::SaSolver;
pub use schedule::{Level, NoiseSchedule};
pub use solver::{Prediction, Solver};
