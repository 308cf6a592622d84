//! A tensor that flows through the graph.

use super::dim::Dim;
use super::ir::DType;

/// A tensor of the graph under construction, with its element type and symbolic shape.
///
/// Cheap to clone; only the builder makes one, so its type is what the operator produces.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    pub(super) name: String,
    pub(super) dtype: DType,
    pub(super) shape: Vec<Dim>,
}

impl Value {
    /// The name in the ONNX file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The symbolic shape.
    pub fn shape(&self) -> &[Dim] {
        &self.shape
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
}
