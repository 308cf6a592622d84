//! What a graph's weights are stored as, in a few lines for the manifest.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use crate::graph::ir::{DType, Graph, Transform, WeightData};

/// Weights that are stored alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct WeightClass {
    /// How, in words.
    pub stored_as: String,
    /// Tensors of the checkpoint.
    pub tensors: usize,
    /// Numbers in them.
    pub parameters: u64,
    /// Bytes they take, scales included.
    pub bytes: u64,
}

/// The classes, in the order of their descriptions.
pub(crate) fn summary(graph: &Graph) -> Vec<WeightClass> {
    let mut classes: BTreeMap<String, WeightClass> = BTreeMap::new();
    // Several initializers can be made of one tensor: codes and scales, or the phases of a kernel.
    let mut counted = HashSet::new();
    for initializer in &graph.initializers {
        let WeightData::Checkpoint(weight) = &initializer.data else { continue };
        let bits = match weight.transform {
            Transform::QuantisedBlocks { bits } | Transform::BlockScales { bits } => bits,
            _ => 8,
        };
        let stored_as = match weight.transform {
            Transform::QuantisedBlocks { .. } | Transform::BlockScales { .. } => {
                format!("{bits}-bit codes in blocks of 32 with an f32 scale, symmetric")
            }
            Transform::QuantisedColumns | Transform::ColumnScales => {
                "8-bit codes with an f32 scale for each output, symmetric".to_owned()
            }
            _ => match initializer.dtype {
                DType::F32 => "float32".to_owned(),
                DType::F16 => "float16".to_owned(),
                DType::BF16 => "bfloat16".to_owned(),
                other => other.to_string(),
            },
        };
        let class = classes.entry(stored_as.clone()).or_insert(WeightClass {
            stored_as,
            tensors: 0,
            parameters: 0,
            bytes: 0,
        });
        let elements = initializer.shape.iter().product::<usize>();
        class.bytes += (elements * initializer.dtype.size()) as u64;
        if counted.insert(&weight.tensor) {
            class.tensors += 1;
            class.parameters += weight.shape.iter().product::<usize>() as u64;
        }
    }
    classes.into_values().collect()
}
