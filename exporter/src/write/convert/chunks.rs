//! The elements of a stored tensor as floats, in the order asked for, a chunk at a time.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

use crate::checkpoint::{Dtype, TensorView};
use crate::graph::ir::Phase;

/// Elements of a chunk: 1 MiB as f32.
pub(super) const CHUNK: usize = 1 << 18;

/// Rows that are turned at a time: a cache line of a column.
const TILE: usize = 16;

/// The order in which elements are wanted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// As they are stored.
    Stored,
    /// A matrix row after row, whole rows in every chunk.
    Rows { columns: usize },
    /// A matrix `[rows, columns]` column after column, whole columns in every chunk.
    Transposed { rows: usize, columns: usize },
    /// Kernels of 3×3 as the kernels of 2×2 that give one phase of an enlarged picture.
    Phase(Phase),
}

/// An element that may not be there, and its position in the tensor as stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused {
    pub element: usize,
    pub value: f32,
}

/// Reads a tensor chunk by chunk.
pub(super) struct Chunks<'a> {
    source: Source<'a>,
    order: Order,
    /// Elements read so far; columns in the transposed order.
    done: usize,
    tile: Vec<f32>,
}

impl<'a> Chunks<'a> {
    /// `None` when the tensor is malformed or does not have the order's shape.
    pub fn new(view: &'a TensorView<'_>, order: Order) -> Option<Self> {
        let source = Source::new(view)?;
        let fits = match order {
            Order::Stored => true,
            Order::Phase(_) => view.shape.len() == 4 && view.shape.ends_with(&[3, 3]),
            Order::Rows { columns } => columns > 0 && source.count.is_multiple_of(columns),
            Order::Transposed { rows, columns } => rows.checked_mul(columns) == Some(source.count),
        };
        fits.then_some(Self { source, order, done: 0, tile: Vec::new() })
    }

    /// Rows and columns of a matrix; a convolution of one pixel is one too.
    pub fn matrix_shape(view: &TensorView<'_>) -> Option<(usize, usize)> {
        match *view.shape {
            [rows, columns] | [rows, columns, 1, 1] if columns > 0 => Some((rows, columns)),
            _ => None,
        }
    }

    /// Elements of the next chunk; zero at the end.
    pub fn next_len(&self) -> usize {
        if self.source.count == 0 {
            return 0;
        }
        match self.order {
            Order::Stored => CHUNK.min(self.source.count - self.done),
            Order::Phase(_) => CHUNK.min((self.source.count - self.done) / 9 * 4),
            Order::Rows { columns } => {
                (CHUNK / columns).max(1).saturating_mul(columns).min(self.source.count - self.done)
            }
            Order::Transposed { rows, columns } => {
                // At least one cache line of columns, or reading the source would fetch every
                // line several times.
                (CHUNK / rows).max(TILE).min(columns - self.done) * rows
            }
        }
    }

    /// Fills `out`, which has the length of [`Self::next_len`]. Every element must be smaller than
    /// `limit`, which may be infinite, and none may be NaN.
    pub fn read(&mut self, out: &mut [f32], limit: f32) -> Result<(), Refused> {
        match self.order {
            Order::Stored | Order::Rows { .. } => {
                self.source.decode(self.done, out);
                check(out, self.done, limit)?;
                self.done += out.len();
            }
            Order::Transposed { rows, columns } => {
                let width = out.len() / rows;
                self.turn(out, rows, columns, width, limit)?;
                self.done += width;
            }
            Order::Phase(phase) => {
                self.tile.resize(out.len() / 4 * 9, 0.0);
                self.source.decode(self.done, &mut self.tile);
                check(&self.tile, self.done, f32::INFINITY)?;
                let kernels = self.tile.as_chunks().0;
                for (sums, kernel) in out.as_chunks_mut().0.iter_mut().zip(kernels) {
                    *sums = summed(kernel, phase);
                }
                // The sums of a kernel are not stored anywhere; where the kernel begins is.
                let in_kernel = |refused: Refused| Refused {
                    element: self.done + refused.element / 4 * 9,
                    ..refused
                };
                check(out, 0, limit).map_err(in_kernel)?;
                self.done += self.tile.len();
            }
        }
        Ok(())
    }

    /// The next `width` columns, one after the other.
    fn turn(
        &mut self,
        out: &mut [f32],
        rows: usize,
        columns: usize,
        width: usize,
        limit: f32,
    ) -> Result<(), Refused> {
        self.tile.resize(TILE * width, 0.0);
        for top in (0..rows).step_by(TILE) {
            let height = TILE.min(rows - top);
            for (row, line) in self.tile.chunks_exact_mut(width).take(height).enumerate() {
                let first = (top + row) * columns + self.done;
                self.source.decode(first, line);
                check(line, first, limit)?;
            }
            for (column, out) in out.chunks_exact_mut(rows).enumerate() {
                let place = &mut out[top..top + height];
                for (value, line) in place.iter_mut().zip(self.tile.chunks_exact(width)) {
                    *value = line[column];
                }
            }
        }
        Ok(())
    }
}

/// What a 3×3 kernel does to the small pixels under it, where each of them is 2×2 pixels: the taps
/// that fall on the same one, summed.
fn summed(kernel: &[f32; 9], phase: Phase) -> [f32; 4] {
    // The first small pixel of an upper row has one row of the kernel, that of a lower row two.
    let split = |second: bool| 1 + usize::from(second);
    let (row, column) = (split(phase.lower), split(phase.right));
    let mut sums = [0f64; 4];
    for (place, tap) in kernel.iter().enumerate() {
        let (y, x) = (usize::from(place / 3 >= row), usize::from(place % 3 >= column));
        sums[2 * y + x] += f64::from(*tap);
    }
    sums.map(|sum| sum as f32)
}

fn check(elements: &[f32], first: usize, limit: f32) -> Result<(), Refused> {
    // Without a branch for each element this vectorises; the search that follows is rare.
    let fits = |value: f32| value.abs() < limit;
    if elements.iter().fold(true, |all, &value| all & fits(value)) {
        return Ok(());
    }
    match elements.iter().position(|&value| !fits(value)) {
        Some(at) => Err(Refused { element: first + at, value: elements[at] }),
        None => Ok(()),
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
