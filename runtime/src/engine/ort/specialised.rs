//! A graph with a session for each size of its inputs.
//!
//! Some providers compile a graph for fixed sizes, or take no other. What is open in the graph's inputs is fixed before
//! they see it.

use super::{OrtEngine, source::Source};
use crate::{
    engine::{EngineError, Session, signature::Described, value::Value},
    tensor::Tensor,
};

/// Sessions that are kept, each with weights of its own. Guided and unguided steps of two sizes need as many.
const KEPT: usize = 4;

/// Open sizes by their names in the graph.
pub(super) type Sizes = Vec<(String, usize)>;

/// Sessions of one graph.
pub(super) struct Specialised {
    engine: OrtEngine,
    source: Source,
    /// The one used last is the last.
    sessions: Vec<(Sizes, Box<dyn Session>)>,
}

impl Specialised {
    pub fn new(engine: OrtEngine, source: Source) -> Self {
        Self { engine, source, sessions: Vec::new() }
    }

    /// The session for these inputs, made now if it is not there.
    fn for_inputs<T: Described>(
        &mut self,
        inputs: &[(&str, &T)],
    ) -> Result<&mut dyn Session, EngineError> {
        let sizes = self.source.sizes(inputs)?;
        let used = match self.sessions.iter().position(|(known, _)| *known == sizes) {
            Some(place) => self.sessions.remove(place),
            None => {
                // Memory is needed for the new one.
                if self.sessions.len() == KEPT {
                    self.sessions.remove(0);
                }
                let session = self.engine.session(&self.source, &sizes)?;
                (sizes, Box::new(session) as Box<dyn Session>)
            }
        };
        self.sessions.push(used);
        let last = self.sessions.len() - 1;
        Ok(self.sessions[last].1.as_mut())
    }
}

impl Session for Specialised {
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, EngineError> {
        self.for_inputs(inputs)?.run(inputs)
    }

    fn run_values(
        &mut self,
        inputs: &[(&str, &Value)],
    ) -> Result<Vec<(String, Value)>, EngineError> {
        self.for_inputs(inputs)?.run_values(inputs)
    }

    fn run_to_tensors(
        &mut self,
        inputs: &[(&str, &Value)],
    ) -> Result<Vec<(String, Tensor)>, EngineError> {
        self.for_inputs(inputs)?.run_to_tensors(inputs)
    }
}
