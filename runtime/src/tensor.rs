//! The values that go into an engine and come out of it.

use ndarray::ArrayD;

use crate::engine::EngineError;

/// A dense tensor in one of the two element types that the exported graphs take and give.
#[derive(Clone, Debug, PartialEq)]
pub enum Tensor {
    /// 32-bit floats: latents, embeddings, pictures.
    F32(ArrayD<f32>),
    /// 64-bit integers: token ids and masks.
    I64(ArrayD<i64>),
}

impl Tensor {
    /// The size of every dimension, outermost first.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::F32(array) => array.shape(),
            Self::I64(array) => array.shape(),
        }
    }

    /// The name of the element type, as messages spell it: `f32` or `int64`.
    pub fn dtype(&self) -> &'static str {
        match self {
            Self::F32(_) => "f32",
            Self::I64(_) => "int64",
        }
    }

    /// The floats, if these are floats.
    pub fn as_f32(&self) -> Option<&ArrayD<f32>> {
        match self {
            Self::F32(array) => Some(array),
            Self::I64(_) => None,
        }
    }

    /// The integers, if these are integers.
    pub fn as_i64(&self) -> Option<&ArrayD<i64>> {
        match self {
            Self::F32(_) => None,
            Self::I64(array) => Some(array),
        }
    }

    /// Takes the floats out.
    ///
    /// # Errors
    /// [`EngineError::OutputType`] naming `output` when the tensor holds integers.
    pub fn into_f32(self, output: &str) -> Result<ArrayD<f32>, EngineError> {
        match self {
            Self::F32(array) => Ok(array),
            Self::I64(_) => Err(EngineError::OutputType {
                output: output.to_owned(),
                found: "int64".to_owned(),
                expected: "f32",
            }),
        }
    }
}

impl<D: ndarray::Dimension> From<ndarray::Array<f32, D>> for Tensor {
    fn from(array: ndarray::Array<f32, D>) -> Self {
        Self::F32(array.into_dyn())
    }
}

impl<D: ndarray::Dimension> From<ndarray::Array<i64, D>> for Tensor {
    fn from(array: ndarray::Array<i64, D>) -> Self {
        Self::I64(array.into_dyn())
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, Array2};

    use super::*;

    #[test]
    fn floats_come_out_as_they_went_in() {
        let tensor = Tensor::from(Array2::from_elem((2, 3), 1.5f32));
        assert_eq!(tensor.shape(), [2, 3]);
        assert_eq!(tensor.dtype(), "f32");
        assert!(tensor.as_i64().is_none());
        let array = tensor.into_f32("sample").expect("floats");
        assert_eq!(array.sum(), 9.0);
    }

    #[test]
    fn integers_taken_for_floats_are_an_error_that_names_the_output() {
        let tensor = Tensor::from(Array1::from_vec(vec![1i64, 2]));
        assert!(tensor.as_f32().is_none());
        let message = tensor.into_f32("sample").expect_err("integers").to_string();
        assert!(message.contains("sample") && message.contains("int64"), "{message}");
    }
}
