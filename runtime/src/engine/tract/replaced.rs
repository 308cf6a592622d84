//! Weights that take the place of a graph's own, in the form tract wants.

use std::collections::HashMap;

use tract_onnx::{pb::ModelProto, tract_hir::internal::*};

use super::super::{
    external_data::Stored,
    weights::{Override, WeightType},
};

/// Replaced weights by name. They stay, because a large graph is read again for other shapes.
#[derive(Clone, Default)]
pub(super) struct Replaced {
    tensors: HashMap<String, Arc<Tensor>>,
}

impl Replaced {
    /// Takes overrides that were compared with the graph.
    pub fn new(overrides: Vec<Override>) -> TractResult<Self> {
        let tensors = overrides.into_iter().map(|new| Ok((new.name.clone(), tensor(&new)?)));
        Ok(Self { tensors: tensors.collect::<TractResult<_>>()? })
    }

    /// What takes the place of a weight outside the graph file.
    pub fn stored(&self, name: &str) -> Option<Arc<Tensor>> {
        self.tensors.get(name).cloned()
    }

    /// Replaces those that the graph file holds itself.
    pub fn place_inline(&self, proto: &mut ModelProto, stored: &HashMap<&str, &Stored>) {
        if self.tensors.is_empty() {
            return;
        }
        for target in proto.graph.iter_mut().flat_map(|graph| &mut graph.initializer) {
            let new = self.tensors.get(&target.name);
            if let Some(new) = new.filter(|_| !stored.contains_key(target.name.as_str())) {
                target.float_data.clear();
                target.int32_data.clear();
                target.raw_data = new.as_bytes().to_vec();
                if new.datum_type() == DatumType::F32 {
                    target.data_type = tract_onnx::pb::tensor_proto::DataType::Float as i32;
                }
            }
        }
    }
}

fn tensor(new: &Override) -> TractResult<Arc<Tensor>> {
    let widened;
    let (dtype, bytes) = match &new.dtype {
        WeightType::F32 => (DatumType::F32, &new.data),
        WeightType::F16 => (DatumType::F16, &new.data),
        // tract has no bf16, whose every number is one of f32 too: the upper half of its bytes.
        WeightType::Bf16 => {
            let numbers = new.data.as_chunks().0.iter();
            widened = numbers.flat_map(|&[low, high]| [0, 0, low, high]).collect();
            (DatumType::F32, &widened)
        }
        WeightType::Other(name) => bail!("weights of type {name} cannot be replaced"),
    };
    let mut tensor = Tensor::zero_dt(dtype, &new.shape)?;
    ensure!(tensor.as_bytes().len() == bytes.len(), "{} bytes are needed", tensor.as_bytes().len());
    tensor.as_bytes_mut().copy_from_slice(bytes);
    Ok(tensor.into_arc_tensor())
}
