//! Checkpoint elements on their way into the file: widened to f32, transposed where asked, in
//! blocks of bounded size.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

use crate::checkpoint::{Dtype, TensorView};

/// Elements held at a time: 1 MiB as f32.
const BLOCK: usize = 1 << 18;

/// Why a tensor cannot be streamed on.
#[derive(Debug)]
pub(super) enum Stop<E> {
    /// An element is NaN or infinite.
    NotFinite { element: usize, value: f32 },
    /// The elements are not floats of a supported width, or there are more or fewer than the shape says.
    Malformed,
    /// The sink failed.
    Sink(E),
}

/// Feeds the elements as little-endian f32, in their stored order.
pub(super) fn stream<E>(
    view: &TensorView<'_>,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), Stop<E>> {
    let source = Source::new(view).ok_or(Stop::Malformed)?;
    let mut block = Block::default();
    let mut first = 0;
    while first < source.count {
        let count = BLOCK.min(source.count - first);
        block.elements.resize(count, 0.0);
        source.decode(first, &mut block.elements);
        finite(&block.elements, first)?;
        sink(block.bytes()).map_err(Stop::Sink)?;
        first += count;
    }
    Ok(())
}

/// Feeds a matrix `[rows, columns]` as its transpose `[columns, rows]`, as little-endian f32.
pub(super) fn stream_transposed<E>(
    view: &TensorView<'_>,
    rows: usize,
    columns: usize,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), Stop<E>> {
    let source = Source::new(view).ok_or(Stop::Malformed)?;
    if rows.checked_mul(columns) != Some(source.count) {
        return Err(Stop::Malformed);
    }
    if source.count == 0 {
        return Ok(());
    }
    // A block is as many columns as fit, but at least one cache line of them, or reading the
    // source would fetch every line several times.
    let width = (BLOCK / rows).max(16).min(columns);
    let mut strip = vec![0.0; width];
    let mut block = Block::default();
    let mut left = 0;
    while left < columns {
        let width = width.min(columns - left);
        let strip = &mut strip[..width];
        block.elements.resize(width * rows, 0.0);
        for row in 0..rows {
            let first = row * columns + left;
            source.decode(first, strip);
            finite(strip, first)?;
            for (column, &value) in strip.iter().enumerate() {
                block.elements[column * rows + row] = value;
            }
        }
        sink(block.bytes()).map_err(Stop::Sink)?;
        left += width;
    }
    Ok(())
}

fn finite<E>(elements: &[f32], first: usize) -> Result<(), Stop<E>> {
    // Without a branch for each element this vectorises; the search that follows is rare.
    if elements.iter().fold(true, |all, value| all & value.is_finite()) {
        return Ok(());
    }
    match elements.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(Stop::NotFinite { element: first + at, value: elements[at] }),
        None => Ok(()),
    }
}

/// Elements in memory and as bytes.
#[derive(Default)]
struct Block {
    elements: Vec<f32>,
    swapped: Vec<u8>,
}

impl Block {
    fn bytes(&mut self) -> &[u8] {
        if cfg!(target_endian = "little") {
            bytemuck::cast_slice(&self.elements)
        } else {
            self.swapped = self.elements.iter().flat_map(|value| value.to_le_bytes()).collect();
            &self.swapped
        }
    }
}

/// Stored elements of one of the three widths.
struct Source<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
    count: usize,
}

impl<'a> Source<'a> {
    fn new(view: &'a TensorView<'_>) -> Option<Self> {
        let size = match view.dtype {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            _ => return None,
        };
        let count = view.shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim))?;
        (count.checked_mul(size)? == view.bytes.len()).then_some(Self {
            dtype: view.dtype,
            bytes: &view.bytes,
            count,
        })
    }

    /// Fills `out` with the elements from `first` on.
    fn decode(&self, first: usize, out: &mut [f32]) {
        match self.dtype {
            Dtype::F32 => {
                let bytes = &self.bytes[first * 4..][..out.len() * 4];
                for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            // `new` admits nothing else.
            dtype => {
                let bytes = &self.bytes[first * 2..][..out.len() * 2];
                let mut buffer = [0u16; 1024];
                for (out, bytes) in out.chunks_mut(1024).zip(bytes.chunks(2048)) {
                    let bits = &mut buffer[..out.len()];
                    for (bits, bytes) in bits.iter_mut().zip(bytes.as_chunks::<2>().0) {
                        *bits = u16::from_le_bytes(*bytes);
                    }
                    if dtype == Dtype::F16 {
                        bits.reinterpret_cast::<f16>().convert_to_f32_slice(out);
                    } else {
                        bits.reinterpret_cast::<bf16>().convert_to_f32_slice(out);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(dtype: Dtype, values: &[f32]) -> Vec<u8> {
        let encode = |value: &f32| match dtype {
            Dtype::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
            Dtype::BF16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        };
        values.iter().flat_map(encode).collect()
    }

    /// Every value is exact in all three widths.
    fn ramp(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i % 255) as f32 - 127.0).collect()
    }

    fn collect(
        run: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), ()>) -> Result<(), Stop<()>>,
    ) -> Vec<f32> {
        let mut all = Vec::new();
        run(&mut |bytes: &[u8]| {
            all.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
            Ok(())
        })
        .expect("the elements are well-formed");
        all
    }

    #[test]
    fn widening_is_exact_across_blocks() {
        let values = ramp(BLOCK + 1500);
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let bytes = bytes_of(dtype, &values);
            let view =
                TensorView { dtype, shape: vec![values.len()].into(), bytes: (&bytes).into() };
            assert_eq!(collect(|sink| stream(&view, sink)), values, "{dtype}");
        }
    }

    #[test]
    fn transposes_match_the_definition() {
        // The last shape has more rows than a block has elements for 16 columns.
        for (rows, columns) in [(1, 7), (7, 1), (5, 3), (300, 1000), (40_000, 19)] {
            let values = ramp(rows * columns);
            for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                let bytes = bytes_of(dtype, &values);
                let view =
                    TensorView { dtype, shape: vec![rows, columns].into(), bytes: (&bytes).into() };
                let found = collect(|sink| stream_transposed(&view, rows, columns, sink));
                let expected: Vec<f32> = (0..columns)
                    .flat_map(|column| (0..rows).map(move |row| (row, column)))
                    .map(|(row, column)| values[row * columns + column])
                    .collect();
                assert!(found == expected, "{rows}x{columns} {dtype}");
            }
        }
    }

    #[test]
    fn elements_that_are_no_numbers_are_found() {
        let mut values = ramp(3000);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            values[2001] = bad;
            for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                let bytes = bytes_of(dtype, &values);
                let view =
                    TensorView { dtype, shape: vec![30, 100].into(), bytes: (&bytes).into() };
                let mut sink = |_: &[u8]| Ok::<(), ()>(());
                for result in
                    [stream(&view, &mut sink), stream_transposed(&view, 30, 100, &mut sink)]
                {
                    match result {
                        Err(Stop::NotFinite { element: 2001, value }) => {
                            assert_eq!(value.is_nan(), bad.is_nan());
                        }
                        other => panic!("{dtype} {bad}: {other:?}"),
                    }
                }
            }
        }
    }

    #[test]
    fn byte_counts_are_checked() {
        let bytes = [0u8; 12];
        let mut sink = |_: &[u8]| Ok::<(), ()>(());
        for (dtype, shape) in [
            (Dtype::F32, vec![4]),
            (Dtype::F16, vec![4]),
            (Dtype::I32, vec![3]),
            (Dtype::F32, vec![usize::MAX, 2]),
        ] {
            let view = TensorView { dtype, shape: shape.to_vec().into(), bytes: (&bytes).into() };
            assert!(matches!(stream(&view, &mut sink), Err(Stop::Malformed)), "{dtype} {shape:?}");
        }
        let view = TensorView { dtype: Dtype::F32, shape: vec![3].into(), bytes: (&bytes).into() };
        let result = stream_transposed(&view, 2, 2, &mut sink);
        assert!(matches!(result, Err(Stop::Malformed)));
    }
}
