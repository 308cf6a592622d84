//! Floats of 32 bits as they are, or rounded to 16 bits.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

use super::chunks::{Chunks, Refused};
use super::{Sink, Stop};
use crate::graph::ir::DType;

/// The smallest number that rounds to infinity: the largest finite one plus half of its last place.
fn limit(dtype: DType) -> f32 {
    match dtype {
        DType::F16 => 65520.0,
        DType::BF16 => f32::from_bits(0x7f7f_8000),
        _ => f32::INFINITY,
    }
}

/// Elements as `dtype`, which is a float type, rounded to nearest with ties to even.
///
/// Elements that are not numbers or would become infinite are refused.
pub(super) fn elements<S: Sink>(
    chunks: Option<Chunks<'_>>,
    dtype: DType,
    sink: &mut S,
) -> Result<(), Stop<S::Error>> {
    let mut chunks = chunks.ok_or(Stop::Malformed)?;
    let limit = limit(dtype);
    let mut floats = Vec::new();
    loop {
        let count = chunks.next_len();
        if count == 0 {
            return Ok(());
        }
        let mut block = sink.empty();
        if dtype == DType::F32 {
            chunks.read(block.resize_floats(count), limit).map_err(refuse)?;
            block.little_endian(4);
        } else {
            floats.resize(count, 0.0);
            chunks.read(&mut floats, limit).map_err(refuse)?;
            let halves = block.resize_halves(count);
            if dtype == DType::F16 {
                halves.reinterpret_cast_mut::<f16>().convert_from_f32_slice(&floats);
            } else {
                halves.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(&floats);
            }
            block.little_endian(2);
        }
        sink.put(block).map_err(Stop::Sink)?;
    }
}

pub(super) fn refuse<E>(Refused { element, value }: Refused) -> Stop<E> {
    Stop::Value { element, value }
}
