//! Where the elements of each initializer go: into the graph, or at which offset of the data file.

use super::WriteError;
use crate::checkpoint::Checkpoint;
use crate::graph::ir::{Graph, Initializer, WeightData};
use crate::naming::FoundWeight;

/// Every external tensor starts at a multiple of this, so that engines can map it.
pub(super) const ALIGNMENT: u64 = 4096;

/// Tensors from this size on are external. Smaller ones stay in the graph, where shape inference
/// can see the values of constants.
pub(super) const EXTERNAL_FROM: u64 = 1024;

/// Place of an initializer's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the graph.
    Inline,
    /// In the data file.
    External { offset: u64, length: u64 },
}

/// Places of all initializers, and the order in which the external ones are written.
pub(super) struct Layout {
    /// By position in the graph's initializers.
    pub places: Vec<Place>,
    /// The tensor each initializer comes from, if it comes from the checkpoint.
    pub tensors: Vec<Option<String>>,
    /// Initializers in the order in which their elements are needed: first what the graph brings
    /// itself, then the checkpoint's tensors as they lie in its files, so that each source file is
    /// read once, front to back.
    pub order: Vec<usize>,
    /// Size of the data file.
    pub data_bytes: u64,
}

impl Layout {
    pub fn new(
        graph: &Graph,
        weights: &[FoundWeight],
        checkpoint: &Checkpoint,
    ) -> Result<Self, WriteError> {
        let mut tensors = vec![None; graph.initializers.len()];
        for weight in weights {
            tensors[weight.initializer] = Some(weight.tensor.clone());
        }
        let mut order: Vec<usize> = (0..graph.initializers.len()).collect();
        let position = |index: &usize| {
            let tensor = tensors[*index].as_ref()?;
            let (shard, range) = checkpoint.position(tensor)?;
            Some((shard, range.start))
        };
        order.sort_by_key(position);

        let mut places = vec![Place::Inline; graph.initializers.len()];
        let mut end = 0u64;
        for &index in &order {
            let initializer = &graph.initializers[index];
            let length = byte_length(initializer)?;
            if length >= EXTERNAL_FROM {
                let offset = end.next_multiple_of(ALIGNMENT);
                places[index] = Place::External { offset, length };
                end = offset + length;
            }
        }
        Ok(Self { places, tensors, order, data_bytes: end })
    }
}

/// Size of an initializer's elements in the file.
pub(super) fn byte_length(initializer: &Initializer) -> Result<u64, WriteError> {
    let fail =
        |reason: String| WriteError::Inconsistent { initializer: initializer.name.clone(), reason };
    let bytes = initializer
        .shape
        .iter()
        .try_fold(initializer.dtype.size(), |bytes, &dim| bytes.checked_mul(dim))
        .filter(|&bytes| bytes < 1 << 48)
        .ok_or_else(|| fail(format!("the shape {:?} is too large", initializer.shape)))?;
    match &initializer.data {
        WeightData::Inline(data) if data.len() != bytes => {
            Err(fail(format!("{} bytes of data for {bytes} bytes of shape", data.len())))
        }
        _ => Ok(bytes as u64),
    }
}
