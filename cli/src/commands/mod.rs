//! One file per command.

pub mod bench;
pub mod bundle;
pub mod completions;
pub mod convert;
pub mod dataset;
pub mod encode;
pub mod engine;
pub mod export;
pub mod inspect;
pub mod sample;
pub mod train;
