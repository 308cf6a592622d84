//! Graphs that are made here, run on an engine piece by piece.

use ndarray::{ArrayD, IxDyn};
use pixart_runtime::{engine::Session, tensor::Tensor};

use crate::optimizer::OptimizerError;

/// Rows and columns of a piece: small enough that what a graph computes in between stays in the
/// processor's cache, large enough that a call costs little beside it.
const PIECE: [usize; 2] = [64, 256];

/// Runs a graph that has `count` outputs; the results in their order.
pub(crate) fn run(
    session: &mut dyn Session,
    inputs: &[(&str, &Tensor)],
    count: usize,
) -> Result<Vec<ArrayD<f32>>, OptimizerError> {
    let results = session.run(inputs)?;
    if results.len() != count {
        return Err(OptimizerError::Outputs { found: results.len(), expected: count });
    }
    results.into_iter().map(|(name, tensor)| Ok(tensor.into_f32(&name)?)).collect()
}

/// Runs a graph that works element by element, piece by piece. The results, as many as there are in
/// `moved` and in their order, take their place; all of `moved` and `read` are vectors of one length.
pub(crate) fn run_in_pieces(
    session: &mut dyn Session,
    moved: &mut [(&str, &mut [f32])],
    read: (&str, &[f32]),
    numbers: &[(&str, &Tensor)],
) -> Result<(), OptimizerError> {
    let (name, read) = read;
    let [rows, columns] = PIECE;
    let piece = |values: &[f32]| Tensor::F32(own(&[values.len()], values));
    for start in (0..read.len()).step_by(rows * columns) {
        let range = start..read.len().min(start + rows * columns);
        let own = moved.iter().map(|(name, whole)| (*name, piece(&whole[range.clone()])));
        let own: Vec<_> = own.chain([(name, piece(&read[range.clone()]))]).collect();
        let inputs = own.iter().map(|(name, tensor)| (*name, tensor));
        let inputs: Vec<_> = inputs.chain(numbers.iter().copied()).collect();
        let results = run(session, &inputs, moved.len())?;
        for ((_, whole), result) in moved.iter_mut().zip(results) {
            whole[range.clone()].iter_mut().zip(&result).for_each(|(old, &new)| *old = new);
        }
    }
    Ok(())
}

/// The mean of the results of a graph that makes one number of a stack of matrices, over the pieces of
/// a vector, weighted by their sizes. Both sums it takes are short, so that they are exact enough on
/// engines that add one element after the other.
pub(crate) fn mean_of_pieces(
    session: &mut dyn Session,
    (name, values): (&str, &[f32]),
    numbers: &[(&str, &Tensor)],
) -> Result<f64, OptimizerError> {
    let [rows, columns] = PIECE;
    let mut sum = 0.0;
    for piece in values.chunks(rows * columns) {
        let shape = match piece.len() == rows * columns {
            true => [1, rows, columns],
            false => [1, 1, piece.len()],
        };
        let tensor = Tensor::F32(own(&shape, piece));
        let inputs: Vec<_> = [(name, &tensor)].into_iter().chain(numbers.iter().copied()).collect();
        let result = run(session, &inputs, 1)?;
        let number = result[0].first().copied().unwrap_or(f32::NAN);
        sum += piece.len() as f64 * f64::from(number);
    }
    Ok(sum / values.len() as f64)
}

fn own(shape: &[usize], values: &[f32]) -> ArrayD<f32> {
    ArrayD::from_shape_vec(IxDyn(shape), values.to_vec()).expect("as many values as the shape")
}
