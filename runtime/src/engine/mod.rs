//! Engines: what computes an exported graph.
//!
//! Two are known: ONNX Runtime, loaded at run time where the user has it, and tract, which is built
//! in. Both sit behind the traits [`Engine`] and [`Session`], so nothing else in the crate knows
//! which one is at work.

mod error;

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

pub use error::EngineError;

use crate::tensor::Tensor;

/// Something that loads and runs ONNX graphs.
pub trait Engine: Send + Sync {
    /// The name used on the command line: `ort` or `tract`.
    fn name(&self) -> &'static str;

    /// Name, version and processor, for people: `ONNX Runtime 1.32.0 (cpu)`.
    fn describe(&self) -> String;

    /// Loads `model`, the `model.onnx` of an exported folder, with the external data beside it.
    ///
    /// # Errors
    /// When the file or its external data is missing, broken or reaches outside its folder, or when
    /// the engine refuses the graph.
    fn load(&self, model: &Path) -> Result<Box<dyn Session>, EngineError>;
}

/// A loaded graph.
pub trait Session: Send {
    /// Computes every output from `inputs` (name and value, in any order), in the graph's order.
    ///
    /// Shapes may differ from one call to the next. An engine may prepare itself for a shape it sees
    /// for the first time, so that the first call of a shape can take longer.
    ///
    /// # Errors
    /// When an input is missing, unknown or of the wrong type or rank, or when the engine fails.
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, EngineError>;
}

/// Which engine is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// ONNX Runtime where a usable library is found, else tract.
    #[default]
    Auto,
    /// ONNX Runtime or an error.
    Ort,
    /// tract.
    Tract,
}

impl FromStr for EngineChoice {
    type Err = EngineError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "auto" => Ok(Self::Auto),
            "ort" => Ok(Self::Ort),
            "tract" => Ok(Self::Tract),
            _ => Err(EngineError::UnknownEngine { name: name.to_owned() }),
        }
    }
}

/// How an engine is opened.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// An ONNX Runtime library to use instead of searching for one.
    pub library: Option<PathBuf>,
    /// Threads of computation; the number of processors where not given.
    pub threads: Option<usize>,
}

/// An engine ready for use.
pub struct Opened {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// One line for the user when a faster engine could be had.
    pub note: Option<String>,
}
