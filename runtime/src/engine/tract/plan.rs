//! Plans: a graph made ready for one combination of input shapes.

use std::path::PathBuf;

use tract_linalg::multithread::Executor;
use tract_onnx::{prelude::RunOptions, tract_hir::internal::*};

use super::{
    super::{
        model_file::ModelFile,
        part::{self, GraphPart},
        signature::Input,
    },
    apart, checked,
    replaced::Replaced,
    rows,
    weights::{self, Graph},
};

/// At most this many plans are kept.
const MOST_PLANS: usize = 4;

/// Each plan holds the weights in an order of its own. Plans beyond the first are kept while their
/// weights together stay below this many bytes.
const MOST_BYTES: u64 = 1 << 30;

/// A graph with more bytes of weights than this is not kept beside its plan, which holds them all
/// again; it is read anew for other shapes.
const MOST_BYTES_TWICE: u64 = 256 << 20;

/// Shapes of all inputs, in the graph's order.
pub(super) type Shapes = Vec<Vec<usize>>;

/// Where a graph comes from, to be read anew.
pub(super) struct Source {
    pub path: PathBuf,
    /// The part of it that is meant, if not all.
    pub part: Option<GraphPart>,
    /// Weights in place of its own.
    pub replaced: Replaced,
}

/// The plans used last.
pub(super) struct Plans {
    source: Source,
    /// `None` once it has become a plan and is too large to be kept.
    graph: Option<Graph>,
    executor: Executor,
    /// [`MOST_BYTES_TWICE`], but for tests.
    pub most_bytes_twice: u64,
    most: usize,
    /// The one used last comes last.
    kept: Vec<(Shapes, Arc<TypedSimplePlan>)>,
}

impl Plans {
    /// Plans for `graph`, which was read from `source`.
    pub fn new(source: Source, graph: Graph, executor: Executor) -> Self {
        let fitting = MOST_BYTES.checked_div(graph.weight_bytes).unwrap_or(u64::MAX);
        let most = usize::try_from(fitting).unwrap_or(usize::MAX).clamp(1, MOST_PLANS);
        Self {
            source,
            graph: Some(graph),
            executor,
            most_bytes_twice: MOST_BYTES_TWICE,
            most,
            kept: Vec::new(),
        }
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

    fn make(&mut self, inputs: &[Input], shapes: &Shapes) -> TractResult<Arc<TypedSimplePlan>> {
        let mut model = self.model()?;
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
        let mut model = model.into_typed()?;
        apart::keep_loops(&mut model);
        let mut model = model.into_optimized()?;
        rows::by_rows(&mut model)?;
        checked::let_nan_through(&mut model);
        TypedSimplePlan::new_with_options(model, &options)
    }

    /// The graph to make a plan of.
    fn model(&mut self) -> TractResult<InferenceModel> {
        let graph = match self.graph.take() {
            Some(graph) => graph,
            None => {
                let Source { path, part, replaced } = &self.source;
                let mut file = ModelFile::open(path).map_err(|error| format_err!("{error}"))?;
                if let Some(part) = part {
                    part::cut(&mut file, part).map_err(|error| format_err!("{error}"))?;
                }
                weights::build(&mut file, replaced)?
            }
        };
        if graph.weight_bytes > self.most_bytes_twice {
            return Ok(graph.model);
        }
        let model = graph.model.clone();
        self.graph = Some(graph);
        Ok(model)
    }
}
