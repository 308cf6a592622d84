//! Whether an exported model still is, and computes, what it should.
//!
//! [`component_folders`] finds the exported components under a folder, [`check_files`] compares the
//! files of one with the hashes in its manifest, and [`compare_engines`] runs it on random inputs on
//! two engines. [`compare_models`] runs two exports of one component, for example in two precisions,
//! and says how far their outputs are apart.

mod difference;
mod error;
mod files;
mod inputs;
mod manifest;
mod numeric;

pub use difference::Difference;
pub use error::VerifyError;
pub use files::{CheckedFolder, FileProblem, check_files, component_folders};
pub use inputs::{RandomCase, random_cases};
pub use numeric::{
    EngineComparison, allowed_difference, allowed_error, compare_engines, compare_models,
};
