//! Checking the tensors of a checkpoint against those that a graph reads.

use std::collections::BTreeSet;

use super::{WeightProblem, WeightsError};
use super::{evidence, names};
use crate::Component;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::graph::ir::{Graph, WeightData};

/// A weight of the graph, found in the checkpoint and fit for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundWeight {
    /// Position in the graph's initializers.
    pub initializer: usize,
    /// The name it has in the checkpoint.
    pub tensor: String,
}

/// Finds every weight of the graph in the checkpoint, in the order of the graph's initializers.
///
/// Nothing is read but the headers, so all of this is known before anything is written.
///
/// # Errors
///
/// All tensors that are missing, have another shape, do not hold floats, or are read by nothing.
pub fn find(
    graph: &Graph,
    checkpoint: &Checkpoint,
    component: Component,
) -> Result<Vec<FoundWeight>, WeightsError> {
    let mut found = Vec::new();
    let mut problems: Vec<WeightProblem> = Vec::new();
    // A tensor of which several initializers are made is wrong once.
    let mut report = |problem| {
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    };
    let mut read = BTreeSet::new();
    for (initializer, entry) in graph.initializers.iter().enumerate() {
        let WeightData::Checkpoint(weight) = &entry.data else { continue };
        let names = [Some(weight.tensor.clone()), names::alternative(component, &weight.tensor)];
        let stored = names
            .into_iter()
            .flatten()
            .find_map(|name| checkpoint.info(&name).map(|info| (name, info)));
        let Some((tensor, info)) = stored else {
            let (tensor, expected) = (weight.tensor.clone(), weight.shape.clone());
            report(WeightProblem::Missing { tensor, expected });
            continue;
        };
        if !shape_fits(component, &tensor, &info.shape, &weight.shape) {
            report(WeightProblem::Shape {
                tensor: tensor.clone(),
                found: info.shape.clone(),
                expected: weight.shape.clone(),
            });
        }
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            let (tensor, found) = (tensor.clone(), info.dtype.to_string());
            report(WeightProblem::Dtype { tensor, found });
        }
        read.insert(tensor.clone());
        found.push(FoundWeight { initializer, tensor });
    }
    for name in checkpoint.names() {
        if !read.contains(name) && !names::is_droppable(component, name) {
            let shape = checkpoint.info(name).map(|info| info.shape);
            problems.push(WeightProblem::Unexpected {
                tensor: name.to_owned(),
                found: shape.unwrap_or_default(),
            });
        }
    }
    if problems.is_empty() {
        Ok(found)
    } else {
        Err(WeightsError { folder: evidence::place(checkpoint).to_owned(), problems })
    }
}

fn shape_fits(component: Component, tensor: &str, found: &[usize], expected: &[usize]) -> bool {
    let as_matrix = match found {
        [rows, columns, 1, 1] if names::may_be_convolution(component, tensor) => {
            vec![*rows, *columns]
        }
        _ => found.to_vec(),
    };
    found == expected || as_matrix == expected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_attention_matrices_may_be_convolutions() {
        let attention = "decoder.mid_block.attentions.0.query.weight";
        let vae = Component::VaeDecoder;
        assert!(shape_fits(vae, attention, &[8, 8, 1, 1], &[8, 8]));
        assert!(shape_fits(vae, attention, &[8, 8], &[8, 8]));
        assert!(!shape_fits(vae, attention, &[8, 8, 3, 3], &[8, 8]));
        assert!(!shape_fits(vae, "decoder.conv_in.weight", &[8, 8, 1, 1], &[8, 8]));
        assert!(!shape_fits(Component::Transformer, attention, &[8, 8, 1, 1], &[8, 8]));
    }
}
