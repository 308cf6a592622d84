//! Named tensors of floats: as arrays, and where an engine computes with them.

use std::{borrow::Cow, collections::BTreeMap};

use ndarray::{ArrayD, IxDyn};
use pixart_exporter::write::Floats;
use pixart_runtime::engine::{Engine, EngineError, Value};
use pixart_runtime::tensor::Tensor;

/// Weights or averages as arrays, by the name of the weight: what files hold.
pub type Tensors = BTreeMap<String, ArrayD<f32>>;

/// Weights, gradients or averages where an engine computes with them, by the name of the weight. The
/// order of the names is the order of everything that is done with them, so that it does not change
/// from run to run.
pub type Values = BTreeMap<String, Value>;

/// Brings tensors to where the engine computes. What the engine can read where it is, is not copied.
///
/// # Errors
/// When there is no room, or the device fails.
pub fn to_values(engine: &dyn Engine, tensors: Tensors) -> Result<Values, EngineError> {
    let each = tensors.into_iter();
    each.map(|(name, array)| Ok((name, engine.to_device(Tensor::F32(array))?))).collect()
}

/// Copies the floats among the values into arrays.
///
/// # Errors
/// When the device fails.
pub fn to_tensors(values: &Values) -> Result<Tensors, EngineError> {
    let floats = values.iter().filter(|(_, value)| value.dtype() == "f32");
    floats.map(|(name, value)| Ok((name.clone(), value.to_tensor()?.into_f32(name)?))).collect()
}

/// A number that an engine gets as an input of a graph, of shape `[1]`.
pub(crate) fn number(value: f64) -> Value {
    ArrayD::from_elem(IxDyn(&[1]), value as f32).into()
}

/// A tensor under the name that it has in a file.
pub(crate) fn floats(name: String, array: &ArrayD<f32>) -> Floats<'_> {
    let data = match array.as_slice() {
        Some(slice) => Cow::Borrowed(slice),
        None => Cow::Owned(array.iter().copied().collect()),
    };
    Floats { name, shape: array.shape().to_vec(), data }
}

/// A value under the name that it has in a file; copied only where the processor cannot read it.
pub(crate) fn value_floats(name: String, value: &Value) -> Result<Floats<'_>, EngineError> {
    let data = match value.floats() {
        Some(floats) => Cow::Borrowed(floats),
        None => Cow::Owned(value.to_tensor()?.into_f32(&name)?.into_raw_vec_and_offset().0),
    };
    Ok(Floats { name, shape: value.shape().to_vec(), data })
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
}
