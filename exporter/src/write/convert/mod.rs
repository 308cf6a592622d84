//! Checkpoint elements on their way into the file: reordered, rounded or quantised as the graph's
//! initializer asks, in blocks of bounded size.

mod block;
mod chunks;
mod quantise;
mod round;
#[cfg(test)]
mod tests;

pub(crate) use block::{Block, Sink};
pub(crate) use quantise::{BLOCK as QUANTISED_BLOCK, block_bytes};

use crate::checkpoint::TensorView;
use crate::graph::ir::{DType, Transform};
use chunks::{Chunks, Order};

/// Why a tensor cannot be converted.
#[derive(Debug)]
pub(crate) enum Stop<E> {
    /// An element is NaN or infinite, or too large for the type it is to be stored in.
    Value {
        /// Position in the tensor's elements as stored.
        element: usize,
        /// The element.
        value: f32,
    },
    /// The elements are not floats of a supported width, there are more or fewer than the shape
    /// says, or there is no such conversion.
    Malformed,
    /// The sink failed.
    Sink(E),
}

/// Feeds a tensor to `sink` as the initializer `(transform, dtype)` has it, little-endian.
pub(crate) fn convert<S: Sink>(
    view: &TensorView<'_>,
    transform: Transform,
    dtype: DType,
    sink: &mut S,
) -> Result<(), Stop<S::Error>> {
    let matrix = || Chunks::matrix_shape(view).ok_or(Stop::Malformed);
    match (transform, dtype) {
        (Transform::None | Transform::Reshape, DType::F32 | DType::F16 | DType::BF16) => {
            round::elements(Chunks::new(view, Order::Stored), dtype, sink)
        }
        (Transform::Transpose2d, DType::F32 | DType::F16 | DType::BF16) => {
            let (rows, columns) = matrix()?;
            round::elements(Chunks::new(view, Order::Transposed { rows, columns }), dtype, sink)
        }
        (Transform::Phase(phase), DType::F32 | DType::F16 | DType::BF16) => {
            round::elements(Chunks::new(view, Order::Phase(phase)), dtype, sink)
        }
        (Transform::QuantisedBlocks { bits }, DType::U8) => {
            quantise::block_codes(view, matrix()?, bits, sink)
        }
        (Transform::BlockScales { bits }, DType::F32) => {
            quantise::block_scales(view, matrix()?, bits, sink)
        }
        (Transform::QuantisedColumns, DType::I8) => quantise::column_codes(view, matrix()?, sink),
        (Transform::ColumnScales, DType::F32) => quantise::column_scales(view, matrix()?, sink),
        _ => Err(Stop::Malformed),
    }
}
