//! Helpers shared by the tests in this package: the fixtures, the engines, exports of the small
//! models, random ones of any size, measures of error, and the `pixart` binary in a folder of its own.

pub mod binary;
pub mod component;
pub mod device;
pub mod engines;
pub mod errors;
pub mod exports;
pub mod fixtures;
pub mod learning;
pub mod mpi;
pub mod random;
pub mod ranks;
pub mod training;
