//! Plans: a graph made ready for one combination of input shapes.

use tract_linalg::multithread::Executor;
use tract_onnx::{prelude::RunOptions, tract_hir::internal::*};

use super::{super::signature::Input, weights::Graph};

/// At most this many plans are kept.
const MOST_PLANS: usize = 4;

/// Each plan holds the weights in an order of its own. Plans beyond the first are kept while their
/// weights together stay below this many bytes.
const MOST_BYTES: u64 = 1 << 30;

/// Shapes of all inputs, in the graph's order.
pub(super) type Shapes = Vec<Vec<usize>>;

/// The plans used last.
pub(super) struct Plans {
    graph: Graph,
    executor: Executor,
    most: usize,
    /// The one used last comes last.
    kept: Vec<(Shapes, Arc<TypedSimplePlan>)>,
}

impl Plans {
    pub fn new(graph: Graph, executor: Executor) -> Self {
        let fitting = MOST_BYTES.checked_div(graph.weight_bytes).unwrap_or(u64::MAX);
        let most = usize::try_from(fitting).unwrap_or(usize::MAX).clamp(1, MOST_PLANS);
        Self { graph, executor, most, kept: Vec::new() }
    }

    /// The plan for `shapes`, made now if it is not among those kept.
    pub fn get(&mut self, inputs: &[Input], shapes: Shapes) -> TractResult<Arc<TypedSimplePlan>> {
        if let Some(index) = self.kept.iter().position(|(known, _)| *known == shapes) {
            let entry = self.kept.remove(index);
            let plan = entry.1.clone();
            self.kept.push(entry);
            return Ok(plan);
        }
        // Room is made first, so that an old and a new copy of the weights do not meet.
        let excess = (self.kept.len() + 1).saturating_sub(self.most);
        self.kept.drain(..excess);
        let plan = self.make(inputs, &shapes)?;
        self.kept.push((shapes, plan.clone()));
        Ok(plan)
    }

    fn make(&self, inputs: &[Input], shapes: &Shapes) -> TractResult<Arc<TypedSimplePlan>> {
        let mut model = self.graph.model.clone();
        ensure!(
            model.inputs.len() == inputs.len(),
            "the graph has {} inputs, {} are declared",
            model.inputs.len(),
            inputs.len()
        );
        for (index, (input, shape)) in inputs.iter().zip(shapes).enumerate() {
            let dtype: DatumType = input.dtype.try_into()?;
            model.set_input_fact(index, InferenceFact::dt_shape(dtype, shape))?;
        }
        let options = RunOptions { executor: Some(self.executor.clone()), ..RunOptions::default() };
        TypedSimplePlan::new_with_options(model.into_optimized()?, &options)
    }
}
