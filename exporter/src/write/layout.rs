//! Where the elements of each initializer go: into the graph, or at which offset of the data file.

use super::WriteError;
use crate::graph::ir::{Graph, Initializer, WeightData};

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

/// Places of all initializers.
///
/// The data file has them in the graph's order, so it does not depend on how the checkpoint's files
/// are arranged: the same numbers give the same bytes.
pub(super) struct Layout {
    /// By position in the graph's initializers.
    pub places: Vec<Place>,
    /// Size of the data file.
    pub data_bytes: u64,
}

impl Layout {
    pub fn new(graph: &Graph) -> Result<Self, WriteError> {
        let mut places = Vec::with_capacity(graph.initializers.len());
        let mut end = 0u64;
        for initializer in &graph.initializers {
            let length = byte_length(initializer)?;
            places.push(if length >= EXTERNAL_FROM {
                let offset = end.next_multiple_of(ALIGNMENT);
                end = offset + length;
                Place::External { offset, length }
            } else {
                Place::Inline
            });
        }
        Ok(Self { places, data_bytes: end })
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
