//! Matrices of floats as small integers with scales.
//!
//! Two forms, both symmetric: zero stays zero.
//!
//! - *Blocks*: a checkpoint matrix `[out, in]` is cut into blocks of [`BLOCK`] numbers along `in`,
//!   the last one filled up with zeros. A number is `(code − 2^(bits−1)) · scale`, codes unsigned.
//!   The number of a block that is largest in size gets the code 0, so the scale has the opposite
//!   sign of that number: this uses the one code more that there is on the negative side. Codes of
//!   4 bits share a byte, the first in its lower half. That is the layout of ONNX Runtime's
//!   `MatMulNBits`, and `llama.cpp`'s idea of a scale (`Q4_0`).
//! - *Columns*: the matrix is stored transposed, `[in, out]`, as signed bytes, with one scale for
//!   each column: the largest size in it, divided by 127.

use super::chunks::{Chunks, Order};
use super::round::refuse;
use super::{Sink, Stop};
use crate::checkpoint::TensorView;

/// Numbers that share a scale.
pub(crate) const BLOCK: usize = 32;

/// The code of zero, which is also the number of codes below it.
fn zero_code(bits: u8) -> i32 {
    1 << (bits - 1)
}

/// Bytes of a block's codes.
pub(crate) fn block_bytes(bits: u8) -> usize {
    BLOCK * usize::from(bits) / 8
}

/// The most negative and the most positive of some numbers and zero.
fn extremes(numbers: &[f32]) -> (f32, f32) {
    // In lanes, since floats may not be compared in another order than the one written down.
    const LANES: usize = 8;
    let (mut least, mut most) = ([0f32; LANES], [0f32; LANES]);
    let (lines, rest) = numbers.as_chunks::<LANES>();
    for line in lines {
        for lane in 0..LANES {
            least[lane] = if line[lane] < least[lane] { line[lane] } else { least[lane] };
            most[lane] = if line[lane] > most[lane] { line[lane] } else { most[lane] };
        }
    }
    let least = least.iter().chain(rest).fold(0f32, |a, &b| a.min(b));
    let most = most.iter().chain(rest).fold(0f32, |a, &b| a.max(b));
    (least, most)
}

/// The scale of a block. Of two numbers of the same size, the positive one is the largest.
fn scale(block: &[f32], zero: i32) -> f32 {
    let (least, most) = extremes(block);
    let largest = if most >= -least { most } else { least };
    largest / -(zero as f32)
}

/// To the nearest integer, ties to even, for sizes below 2^22. Unlike the library's function and
/// conversion this vectorises on every processor.
fn round(x: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5·2^23: a sum with it has no fraction
    ((x + SHIFT).to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32)
}

/// Fills `codes` (one a number) with the codes of a block.
fn encode(block: &[f32], codes: &mut [u8; BLOCK], zero: i32) {
    let scale = scale(block, zero);
    codes.fill(zero as u8);
    // A scale that underflows to zero would divide by zero; the numbers then are zero.
    if scale != 0.0 {
        for (code, &x) in codes.iter_mut().zip(block) {
            *code = (round(x / scale) + zero).clamp(0, 2 * zero - 1) as u8;
        }
    }
}

/// Calls `each` with some rows at a time.
fn by_rows<S: Sink>(
    chunks: Option<Chunks<'_>>,
    sink: &mut S,
    mut each: impl FnMut(&[f32], &mut S) -> Result<(), S::Error>,
) -> Result<(), Stop<S::Error>> {
    let mut chunks = chunks.ok_or(Stop::Malformed)?;
    let mut floats = Vec::new();
    loop {
        let count = chunks.next_len();
        if count == 0 {
            return Ok(());
        }
        floats.resize(count, 0.0);
        chunks.read(&mut floats, f32::INFINITY).map_err(refuse)?;
        each(&floats, sink).map_err(Stop::Sink)?;
    }
}

/// The codes `[out, blocks, bytes of a block]` of a matrix `[out, in]`.
pub(super) fn block_codes<S: Sink>(
    view: &TensorView<'_>,
    (_, columns): (usize, usize),
    bits: u8,
    sink: &mut S,
) -> Result<(), Stop<S::Error>> {
    if !matches!(bits, 4 | 8) {
        return Err(Stop::Malformed);
    }
    let (zero, bytes) = (zero_code(bits), block_bytes(bits));
    by_rows(Chunks::new(view, Order::Rows { columns }), sink, |rows, sink| {
        let blocks = rows.len() / columns * columns.div_ceil(BLOCK);
        let mut block = sink.empty();
        let mut places = block.resize(blocks * bytes).chunks_exact_mut(bytes);
        let mut codes = [0; BLOCK];
        for part in rows.chunks_exact(columns).flat_map(|row| row.chunks(BLOCK)) {
            encode(part, &mut codes, zero);
            let Some(place) = places.next() else { break };
            if bits == 8 {
                place.copy_from_slice(&codes);
            } else {
                for (byte, pair) in place.iter_mut().zip(codes.as_chunks::<2>().0) {
                    *byte = pair[0] | pair[1] << 4;
                }
            }
        }
        sink.put(block)
    })
}

/// The scales `[out, blocks]` that belong to [`block_codes`].
pub(super) fn block_scales<S: Sink>(
    view: &TensorView<'_>,
    (_, columns): (usize, usize),
    bits: u8,
    sink: &mut S,
) -> Result<(), Stop<S::Error>> {
    let zero = zero_code(bits);
    by_rows(Chunks::new(view, Order::Rows { columns }), sink, |rows, sink| {
        let parts = rows.chunks_exact(columns).flat_map(|row| row.chunks(BLOCK));
        let mut block = sink.empty();
        let count = rows.len() / columns * columns.div_ceil(BLOCK);
        for (place, part) in block.resize_floats(count).iter_mut().zip(parts) {
            *place = scale(part, zero);
        }
        block.little_endian(4);
        sink.put(block)
    })
}

/// The largest code of a column.
const LARGEST: i32 = 127;

/// One scale for each row of the matrix as stored, which is a column of the one written.
fn row_scales<E>(
    view: &TensorView<'_>,
    (rows, columns): (usize, usize),
) -> Result<Vec<f32>, Stop<E>> {
    let mut chunks = Chunks::new(view, Order::Rows { columns }).ok_or(Stop::Malformed)?;
    let mut scales = Vec::with_capacity(rows);
    let mut floats = Vec::new();
    while chunks.next_len() > 0 {
        floats.resize(chunks.next_len(), 0.0);
        chunks.read(&mut floats, f32::INFINITY).map_err(refuse)?;
        scales.extend(floats.chunks_exact(columns).map(|row| {
            let (least, most) = extremes(row);
            most.max(-least) / LARGEST as f32
        }));
    }
    Ok(scales)
}

/// The codes `[in, out]` of a matrix `[out, in]`.
pub(super) fn column_codes<S: Sink>(
    view: &TensorView<'_>,
    (rows, columns): (usize, usize),
    sink: &mut S,
) -> Result<(), Stop<S::Error>> {
    let mut scales = row_scales(view, (rows, columns))?;
    // Where a scale is zero, all numbers are as good as zero, and so they become.
    scales.iter_mut().filter(|scale| **scale == 0.0).for_each(|scale| *scale = 1.0);
    let order = Order::Transposed { rows, columns };
    by_rows(Chunks::new(view, order), sink, |turned, sink| {
        let mut block = sink.empty();
        let codes = block.resize(turned.len());
        for (codes, line) in codes.chunks_exact_mut(rows).zip(turned.chunks_exact(rows)) {
            for ((code, &x), &scale) in codes.iter_mut().zip(line).zip(&scales) {
                *code = round(x / scale).clamp(-LARGEST, LARGEST) as i8 as u8;
            }
        }
        sink.put(block)
    })
}

/// The scales `[out]` that belong to [`column_codes`].
pub(super) fn column_scales<S: Sink>(
    view: &TensorView<'_>,
    shape: (usize, usize),
    sink: &mut S,
) -> Result<(), Stop<S::Error>> {
    let scales = row_scales(view, shape)?;
    let mut block = sink.empty();
    block.resize_floats(scales.len()).copy_from_slice(&scales);
    block.little_endian(4);
    sink.put(block).map_err(Stop::Sink)
}
