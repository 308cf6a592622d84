//! What can go wrong between a gradient and the changed weight.

use pixart_exporter::graph::GraphError;
use pixart_runtime::engine::EngineError;

use crate::SessionError;

/// A step of training cannot be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptimizerError {
    /// A setting is out of its range.
    #[error("{setting}: found {found}, expected {expected}")]
    Setting {
        /// The setting, as the command line names it.
        setting: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A weight has no tensor of the kind that is needed.
    #[error(
        "{kind} of {name}: found none, expected f32{expected:?}; give one for every weight that is trained"
    )]
    Missing {
        /// `weight`, `gradient`, or what the optimizer keeps.
        kind: &'static str,
        /// The weight.
        name: String,
        /// The shape it must have.
        expected: Vec<usize>,
    },
    /// A tensor has another shape than its weight.
    #[error("{kind} of {name}: found f32{found:?}, expected f32{expected:?}; {advice}")]
    Shape {
        /// `weight`, `gradient`, or what the optimizer keeps.
        kind: &'static str,
        /// The weight.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape it must have.
        expected: Vec<usize>,
        /// What to do.
        advice: &'static str,
    },
    /// A tensor belongs to no weight.
    #[error("{kind} of {name}: expected none, because no such weight is trained; {advice}")]
    Unknown {
        /// `gradient`, or what the optimizer keeps.
        kind: &'static str,
        /// The name.
        name: String,
        /// What to do.
        advice: &'static str,
    },
    /// Nothing is to be trained.
    #[error("found no weight to train, expected at least one; check which layers are chosen")]
    Nothing,
    /// A graph of this crate is wired wrongly: a mistake in this crate.
    #[error("internal error: {0}; please report this")]
    Graph(#[from] GraphError),
    /// A graph of this crate cannot be loaded.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// An engine gave another number of results than the graph has outputs.
    #[error(
        "internal error: an engine gave {found} results, expected {expected}; please report this"
    )]
    Outputs {
        /// Results.
        found: usize,
        /// Outputs of the graph.
        expected: usize,
    },
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}
