//! Graphs that are made here, ready on an engine.

use std::fs;

use ndarray::ArrayD;
use pixart_exporter::{graph::ir::Graph, write};
use pixart_runtime::{
    engine::{Engine, Session},
    tensor::Tensor,
};

use crate::optimizer::OptimizerError;

/// Loads a graph that has all its constants inside.
pub(crate) fn load(engine: &dyn Engine, graph: &Graph) -> Result<Box<dyn Session>, OptimizerError> {
    let bytes = write::to_bytes(graph)?;
    let unwritable = |source| OptimizerError::Temporary { source };
    // Engines read files; what they need of this one, they have read when they are done loading.
    let folder = tempfile::tempdir().map_err(unwritable)?;
    let path = folder.path().join(write::MODEL_FILE);
    fs::write(&path, bytes).map_err(unwritable)?;
    Ok(engine.load(&path)?)
}

/// Runs a graph that has `count` outputs; the results in their order.
pub(crate) fn run(
    session: &mut dyn Session,
    inputs: &[(&str, &Tensor)],
    count: usize,
) -> Result<Vec<ArrayD<f32>>, OptimizerError> {
    let results = session.run(inputs)?;
    if results.len() != count {
        return Err(OptimizerError::Outputs { found: results.len(), expected: count });
    }
    results.into_iter().map(|(name, tensor)| Ok(tensor.into_f32(&name)?)).collect()
}

/// Runs a graph that has one output.
pub(crate) fn run_one(
    session: &mut dyn Session,
    inputs: &[(&str, &Tensor)],
) -> Result<ArrayD<f32>, OptimizerError> {
    Ok(run(session, inputs, 1)?.remove(0))
}
