//! One file per command.

pub mod engine;
pub mod export;
pub mod sample;
