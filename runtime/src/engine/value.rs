//! Tensors that stay where an engine computes.

use std::{any::Any, fmt::Debug, sync::Arc};

use ndarray::{ArrayD, IxDyn};

use super::{EngineError, signature::Described};
use crate::tensor::Tensor;

/// Elements in row-major order, where an engine keeps them.
pub trait Buffer: Any + Debug + Send + Sync {
    /// The name of the element type: `f32` or `int64`.
    fn dtype(&self) -> &'static str;

    /// The elements, if they lie in memory that the processor reads.
    fn elements(&self) -> Option<Elements<'_>>;

    /// The same to be changed, if they are floats.
    fn floats_mut(&mut self) -> Option<&mut [f32]>;

    /// A copy in the processor's memory under a shape of as many elements.
    ///
    /// # Errors
    /// When the device fails.
    fn to_tensor(&self, shape: &[usize]) -> Result<Tensor, EngineError>;
}

/// Elements in the processor's memory.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// 64-bit integers.
    I64(&'a [i64]),
}

impl Elements<'_> {
    /// A copy under a shape.
    ///
    /// # Panics
    /// When the shape has another number of elements.
    pub(super) fn to_tensor(self, shape: &[usize]) -> Tensor {
        fn array<T: Clone>(shape: &[usize], elements: &[T]) -> ArrayD<T> {
            ArrayD::from_shape_vec(IxDyn(shape), elements.to_vec()).expect("as many elements")
        }
        match self {
            Self::F32(elements) => Tensor::F32(array(shape, elements)),
            Self::I64(elements) => Tensor::I64(array(shape, elements)),
        }
    }
}

/// A tensor, wherever its elements are: in the processor's memory, or where an engine left its results
/// ([`Session::run_values`](super::Session::run_values)).
///
/// Copies of a value share its elements. A value goes into any engine; one that cannot read it where it
/// lies gets a copy.
#[derive(Clone, Debug)]
pub struct Value {
    shape: Vec<usize>,
    buffer: Arc<dyn Buffer>,
}

impl Value {
    /// The elements of `buffer` as a tensor of a shape that has as many of them.
    pub fn new(shape: Vec<usize>, buffer: Arc<dyn Buffer>) -> Self {
        Self { shape, buffer }
    }

    /// The size of every dimension, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The name of the element type, as messages spell it: `f32` or `int64`.
    pub fn dtype(&self) -> &'static str {
        self.buffer.dtype()
    }

    /// The number of elements.
    pub fn size(&self) -> usize {
        self.shape.iter().product()
    }

    /// The same elements under another shape; nothing is copied.
    ///
    /// # Panics
    /// When the shape has another number of elements.
    pub fn reshaped(self, shape: &[usize]) -> Self {
        let size = shape.iter().product::<usize>();
        assert_eq!(self.size(), size, "{:?} as {shape:?}", self.shape);
        Self { shape: shape.to_vec(), ..self }
    }

    /// The elements in row-major order, if they lie in memory that the processor reads.
    pub fn elements(&self) -> Option<Elements<'_>> {
        self.buffer.elements()
    }

    /// The floats in row-major order, if these are floats in memory that the processor reads.
    pub fn floats(&self) -> Option<&[f32]> {
        match self.elements() {
            Some(Elements::F32(floats)) => Some(floats),
            _ => None,
        }
    }

    /// The same to be changed in their place; `None` as well while another value shares them.
    pub fn floats_mut(&mut self) -> Option<&mut [f32]> {
        Arc::get_mut(&mut self.buffer)?.floats_mut()
    }

    /// A copy in the processor's memory.
    ///
    /// # Errors
    /// When the device fails.
    pub fn to_tensor(&self) -> Result<Tensor, EngineError> {
        self.buffer.to_tensor(&self.shape)
    }

    /// The tensor in the processor's memory: without a copy if it came from there and nothing shares it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn into_tensor(self) -> Result<Tensor, EngineError> {
        let any: Arc<dyn Any + Send + Sync> = self.buffer.clone();
        let Ok(tensor) = any.downcast::<Tensor>() else { return self.to_tensor() };
        drop(self.buffer);
        Ok(match Arc::unwrap_or_clone(tensor) {
            Tensor::F32(array) => Tensor::F32(shaped(array, &self.shape)),
            Tensor::I64(array) => Tensor::I64(shaped(array, &self.shape)),
        })
    }

    /// The buffer, if it is one of this kind: for the engine that made it.
    pub fn buffer<B: Buffer>(&self) -> Option<&B> {
        let any: &dyn Any = &*self.buffer;
        any.downcast_ref()
    }
}

impl Described for Value {
    fn dtype(&self) -> &'static str {
        self.dtype()
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }
}

impl Buffer for Tensor {
    fn dtype(&self) -> &'static str {
        self.dtype()
    }

    fn elements(&self) -> Option<Elements<'_>> {
        match self {
            Self::F32(array) => array.as_slice().map(Elements::F32),
            Self::I64(array) => array.as_slice().map(Elements::I64),
        }
    }

    fn floats_mut(&mut self) -> Option<&mut [f32]> {
        match self {
            Self::F32(array) => array.as_slice_mut(),
            Self::I64(_) => None,
        }
    }

    fn to_tensor(&self, shape: &[usize]) -> Result<Tensor, EngineError> {
        Ok(match self.clone() {
            Self::F32(array) => Self::F32(shaped(array, shape)),
            Self::I64(array) => Self::I64(shaped(array, shape)),
        })
    }
}

impl From<Tensor> for Value {
    /// Brings the elements into row-major order first, where they are not.
    fn from(tensor: Tensor) -> Self {
        let shape = tensor.shape().to_vec();
        let tensor = match tensor {
            Tensor::F32(array) => Tensor::F32(ordered(array)),
            Tensor::I64(array) => Tensor::I64(ordered(array)),
        };
        Self { shape, buffer: Arc::new(tensor) }
    }
}

impl<D: ndarray::Dimension> From<ndarray::Array<f32, D>> for Value {
    fn from(array: ndarray::Array<f32, D>) -> Self {
        Tensor::from(array).into()
    }
}

impl<D: ndarray::Dimension> From<ndarray::Array<i64, D>> for Value {
    fn from(array: ndarray::Array<i64, D>) -> Self {
        Tensor::from(array).into()
    }
}

fn ordered<T: Clone>(array: ArrayD<T>) -> ArrayD<T> {
    match array.is_standard_layout() {
        true => array,
        false => array.as_standard_layout().into_owned(),
    }
}

fn shaped<T>(array: ArrayD<T>, shape: &[usize]) -> ArrayD<T> {
    array.into_shape_with_order(IxDyn(shape)).expect("as many elements, in order")
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    #[test]
    fn elements_are_shared_until_they_are_changed_alone() {
        let array = Array2::from_shape_fn((2, 3), |(row, column)| (10 * row + column) as f32);
        // In another order in memory.
        let mut value = Value::from(array.clone().reversed_axes());
        assert_eq!((value.shape(), value.dtype(), value.size()), (&[3, 2][..], "f32", 6));
        assert_eq!(value.floats().expect("floats"), [0.0, 10.0, 1.0, 11.0, 2.0, 12.0]);
        let other = value.clone().reshaped(&[6]);
        assert!(value.floats_mut().is_none(), "shared");
        assert_eq!(other.floats().map(<[f32]>::as_ptr), value.floats().map(<[f32]>::as_ptr));
        drop(other);
        let place = value.floats().map(<[f32]>::as_ptr);
        value.floats_mut().expect("alone")[1] = 5.0;
        let tensor = value.reshaped(&[6]).into_tensor().expect("on the host");
        let array = tensor.into_f32("").expect("floats");
        assert_eq!(array.as_slice().expect("a vector"), [0.0, 5.0, 1.0, 11.0, 2.0, 12.0]);
        assert_eq!(Some(array.as_ptr()), place, "not copied");
    }

    #[test]
    fn integers_are_no_floats() {
        let mut value = Value::from(Array2::<i64>::ones((1, 2)));
        assert!(value.floats().is_none() && value.floats_mut().is_none());
        assert!(matches!(value.elements(), Some(Elements::I64([1, 1]))));
        assert_eq!(value.to_tensor().expect("on the host"), Array2::<i64>::ones((1, 2)).into());
    }

    #[test]
    #[should_panic(expected = "[2] as [3]")]
    fn another_number_of_elements_is_a_mistake() {
        let _ = Value::from(ndarray::Array1::<f32>::zeros(2)).reshaped(&[3]);
    }
}
