//! Graphs that are made here, run on an engine: piece by piece where the processor can read the values,
//! else as a whole.

use ndarray::{ArrayD, IxDyn};
use pixart_runtime::engine::{Session, Value};

use crate::{optimizer::OptimizerError, tensors::matrices};

/// Rows and columns of a piece: small enough that what a graph computes in between stays in the
/// processor's cache, large enough that a call costs little beside it.
const PIECE: [usize; 2] = [64, 256];

/// Runs a graph that has `count` outputs; the results in their order.
pub(crate) fn run(
    session: &mut dyn Session,
    inputs: &[(&str, &Value)],
    count: usize,
) -> Result<Vec<Value>, OptimizerError> {
    let results = session.run_values(inputs)?;
    if results.len() != count {
        return Err(OptimizerError::Outputs { found: results.len(), expected: count });
    }
    Ok(results.into_iter().map(|(_, value)| value).collect())
}

/// Runs a graph that works element by element on vectors. The results, as many as there are in `moved`
/// and in their order, take their place; all of `moved` and `read` have as many elements. At least one of
/// them is there.
pub(crate) fn run_by_element(
    session: &mut dyn Session,
    moved: &mut [(&str, &mut Value)],
    read: Option<(&str, &Value)>,
    numbers: &[(&str, &Value)],
) -> Result<(), OptimizerError> {
    let count = moved.len();
    let size = [read.map_or_else(|| moved[0].1.size(), |(_, value)| value.size())];
    let mut slices = Vec::with_capacity(count);
    for (name, value) in moved.iter_mut() {
        slices.extend(value.floats_mut().map(|floats| (*name, floats)));
    }
    let floats = read.and_then(|(name, value)| Some((name, value.floats()?)));
    if slices.len() == count && floats.is_some() == read.is_some() {
        return run_in_pieces(session, size[0], &mut slices, floats, numbers);
    }
    let whole = |value: &Value| value.clone().reshaped(&size);
    let vectors = moved.iter().map(|(name, value)| (*name, whole(value)));
    let vectors: Vec<_> = vectors.chain(read.map(|(name, value)| (name, whole(value)))).collect();
    let inputs = vectors.iter().map(|(name, value)| (*name, value));
    let inputs: Vec<_> = inputs.chain(numbers.iter().copied()).collect();
    let results = run(session, &inputs, count)?;
    for ((_, value), result) in moved.iter_mut().zip(results) {
        let shape = value.shape().to_vec();
        **value = result.reshaped(&shape);
    }
    Ok(())
}

fn run_in_pieces(
    session: &mut dyn Session,
    size: usize,
    moved: &mut [(&str, &mut [f32])],
    read: Option<(&str, &[f32])>,
    numbers: &[(&str, &Value)],
) -> Result<(), OptimizerError> {
    let [rows, columns] = PIECE;
    let piece = |values: &[f32]| own(&[values.len()], values);
    for start in (0..size).step_by(rows * columns) {
        let range = start..size.min(start + rows * columns);
        let own = moved.iter().map(|(name, whole)| (*name, piece(&whole[range.clone()])));
        let read = read.map(|(name, whole)| (name, piece(&whole[range.clone()])));
        let own: Vec<_> = own.chain(read).collect();
        let inputs = own.iter().map(|(name, value)| (*name, value));
        let inputs: Vec<_> = inputs.chain(numbers.iter().copied()).collect();
        let results = run(session, &inputs, moved.len())?;
        for ((name, whole), result) in moved.iter_mut().zip(results) {
            let whole = &mut whole[range.clone()];
            match result.floats() {
                Some(floats) => whole.copy_from_slice(floats),
                None => {
                    let array = result.into_tensor()?.into_f32(name)?;
                    whole.iter_mut().zip(&array).for_each(|(old, &new)| *old = new);
                }
            }
        }
    }
    Ok(())
}

/// The mean of the results of a graph that makes one number of a stack of matrices, over the pieces of
/// a value, weighted by their sizes. Both sums it takes are short, so that they are exact enough on
/// engines that add one element after the other.
pub(crate) fn mean_of_pieces(
    session: &mut dyn Session,
    (name, value): (&str, &Value),
    numbers: &[(&str, &Value)],
) -> Result<f64, OptimizerError> {
    let mut number = |value: Value| -> Result<f64, OptimizerError> {
        let inputs: Vec<_> = [(name, &value)].into_iter().chain(numbers.iter().copied()).collect();
        let result = run(session, &inputs, 1)?.remove(0).into_tensor()?.into_f32(name)?;
        Ok(f64::from(result.first().copied().unwrap_or(f32::NAN)))
    };
    let Some(floats) = value.floats() else {
        return number(value.clone().reshaped(&matrices(value.shape())));
    };
    let [rows, columns] = PIECE;
    let mut sum = 0.0;
    for piece in floats.chunks(rows * columns) {
        let shape = match piece.len() == rows * columns {
            true => [1, rows, columns],
            false => [1, 1, piece.len()],
        };
        sum += piece.len() as f64 * number(own(&shape, piece))?;
    }
    Ok(sum / floats.len() as f64)
}

fn own(shape: &[usize], values: &[f32]) -> Value {
    ArrayD::from_shape_vec(IxDyn(shape), values.to_vec()).expect("as many values").into()
}
