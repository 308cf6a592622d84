//! Named tensors of floats, and views of them under other shapes.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

use ndarray::{ArrayD, IxDyn};
use pixart_exporter::write::Floats;
use pixart_runtime::tensor::Tensor;

/// Weights, gradients or averages by the name of the weight. The order of the names is the order of
/// everything that is done with them, so that it does not change from run to run.
pub type Tensors = BTreeMap<String, ArrayD<f32>>;

/// Weights by name, in whatever map they are kept: [`Tensors`], or the engine's tensors in which a
/// network reads them. Among them may be others than those that are trained.
pub trait NamedWeights {
    /// The weight of this name, if it is there and holds floats.
    fn weight(&self, name: &str) -> Option<&ArrayD<f32>>;

    /// The same, to be changed.
    fn weight_mut(&mut self, name: &str) -> Option<&mut ArrayD<f32>>;

    /// The names of all weights that hold floats.
    fn names(&self) -> Vec<&str>;
}

impl NamedWeights for Tensors {
    fn weight(&self, name: &str) -> Option<&ArrayD<f32>> {
        self.get(name)
    }

    fn weight_mut(&mut self, name: &str) -> Option<&mut ArrayD<f32>> {
        self.get_mut(name)
    }

    fn names(&self) -> Vec<&str> {
        self.keys().map(String::as_str).collect()
    }
}

impl NamedWeights for HashMap<String, Tensor> {
    fn weight(&self, name: &str) -> Option<&ArrayD<f32>> {
        self.get(name)?.as_f32()
    }

    fn weight_mut(&mut self, name: &str) -> Option<&mut ArrayD<f32>> {
        match self.get_mut(name)? {
            Tensor::F32(array) => Some(array),
            Tensor::I64(_) => None,
        }
    }

    fn names(&self) -> Vec<&str> {
        let floats = self.iter().filter(|(_, tensor)| tensor.as_f32().is_some());
        let mut names: Vec<&str> = floats.map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names
    }
}

/// The same elements under another shape of as many.
///
/// # Panics
/// When the numbers of elements differ.
pub(crate) fn reshaped(array: ArrayD<f32>, shape: &[usize]) -> ArrayD<f32> {
    let array = match array.is_standard_layout() {
        true => array,
        false => array.as_standard_layout().into_owned(),
    };
    array.into_shape_with_order(IxDyn(shape)).expect("as many elements")
}

/// Takes the elements out of `array` under another shape, for an engine. It holds nothing until they
/// are put back.
pub(crate) fn take(array: &mut ArrayD<f32>, shape: &[usize]) -> Tensor {
    Tensor::F32(reshaped(std::mem::replace(array, ArrayD::zeros(IxDyn(&[0]))), shape))
}

/// The elements in their order; they are brought into it first where they are not.
pub(crate) fn elements(array: &mut ArrayD<f32>) -> &mut [f32] {
    if !array.is_standard_layout() {
        *array = array.as_standard_layout().into_owned();
    }
    array.as_slice_mut().expect("in order")
}

/// A number that an engine gets as an input of a graph, of shape `[1]`.
pub(crate) fn number(value: f64) -> Tensor {
    Tensor::F32(ArrayD::from_elem(IxDyn(&[1]), value as f32))
}

/// A tensor under the name that it has in a file.
pub(crate) fn floats(name: String, array: &ArrayD<f32>) -> Floats<'_> {
    let data = match array.as_slice() {
        Some(slice) => Cow::Borrowed(slice),
        None => Cow::Owned(array.iter().copied().collect()),
    };
    Floats { name, shape: array.shape().to_vec(), data }
}

/// The shape `[leading axes, rows, columns]`: the last two axes, and all before them as one. A vector
/// is one row.
pub(crate) fn matrices(shape: &[usize]) -> [usize; 3] {
    match *shape {
        [] => [1, 1, 1],
        [columns] => [1, 1, columns],
        [ref leading @ .., rows, columns] => [leading.iter().product(), rows, columns],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_the_last_two_axes_are_one() {
        assert_eq!(matrices(&[]), [1, 1, 1]);
        assert_eq!(matrices(&[5]), [1, 1, 5]);
        assert_eq!(matrices(&[3, 5]), [1, 3, 5]);
        assert_eq!(matrices(&[8, 4, 2, 3]), [32, 2, 3]);
    }

    #[test]
    fn elements_keep_their_order_whatever_their_layout() {
        let array = ArrayD::from_shape_vec(vec![2, 3], (0..6u8).map(f32::from).collect());
        let turned = array.expect("six").reversed_axes();
        let flat = reshaped(turned, &[6]);
        assert_eq!(flat.as_slice().expect("in order"), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        let mut turned = reshaped(flat, &[3, 2]).reversed_axes();
        assert_eq!(elements(&mut turned), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(turned.shape(), [2, 3]);
    }
}
