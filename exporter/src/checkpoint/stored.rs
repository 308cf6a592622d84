//! Where a file keeps a tensor's elements, and how they are had from there.

use std::ops::Range;

use super::{Dtype, TensorView};

/// A view whose elements overlap (an expanded one) can be larger than the file that holds it. Up
/// to this many bytes, or the size of the file if that is more, it is read.
const MAX_EXPANDED_BYTES: usize = 64 << 20;

/// More axes than any tensor of a model has; PyTorch itself stops at 64.
pub(super) const MAX_RANK: usize = 64;

/// A tensor of a file, checked against the bytes it lies in.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost axis first.
    pub shape: Vec<usize>,
    place: Place,
}

/// Positions are bytes from the start of the file.
#[derive(Clone, Debug)]
enum Place {
    /// In order, without a gap.
    Range(Range<usize>),
    /// In order, but in several pieces.
    Pieces(Vec<Range<usize>>),
    /// Element `i` lies at `offset + Σ i[axis] · strides[axis]`, counted in elements of `storage`.
    Strided { storage: Range<usize>, offset: usize, strides: Vec<usize> },
}

impl Stored {
    /// A tensor that lies in order in `range`.
    pub fn in_order(dtype: Dtype, shape: Vec<usize>, range: Range<usize>) -> Result<Self, String> {
        Self::in_pieces(dtype, shape, vec![range])
    }

    /// A tensor that lies in order in `pieces`.
    pub fn in_pieces(
        dtype: Dtype,
        shape: Vec<usize>,
        pieces: Vec<Range<usize>>,
    ) -> Result<Self, String> {
        let found: usize = pieces.iter().map(Range::len).sum();
        let expected = byte_count(dtype, &shape)?;
        if found != expected {
            return Err(format!(
                "{dtype} of shape {shape:?} takes {expected} bytes, found {found}"
            ));
        }
        let place = match <[Range<usize>; 1]>::try_from(pieces) {
            Ok([range]) => Place::Range(range),
            Err(pieces) => Place::Pieces(pieces),
        };
        Ok(Self { dtype, shape, place })
    }

    /// A view of `storage`, the bytes of a file of `file_bytes`: `offset` and `strides` count
    /// elements.
    pub fn strided(
        dtype: Dtype,
        shape: Vec<usize>,
        storage: Range<usize>,
        offset: usize,
        strides: Vec<usize>,
        file_bytes: usize,
    ) -> Result<Self, String> {
        if shape.len() != strides.len() {
            return Err(format!("shape {shape:?} and strides {strides:?} differ in length"));
        }
        let bytes = byte_count(dtype, &shape)?;
        let width = dtype.bitsize() / 8;
        if bytes == 0 {
            let at = storage.start;
            return Ok(Self { dtype, shape, place: Place::Range(at..at) });
        }
        // The furthest element; all others lie between it and the offset.
        let furthest = shape
            .iter()
            .zip(&strides)
            .try_fold(offset, |sum, (&size, &stride)| {
                sum.checked_add((size - 1).checked_mul(stride)?)
            })
            .and_then(|last| last.checked_add(1)?.checked_mul(width));
        if furthest.is_none_or(|furthest| furthest > storage.len()) {
            return Err(format!(
                "a view of shape {shape:?}, strides {strides:?} and offset {offset} reaches past \
                 the end of its storage of {} elements",
                storage.len() / width
            ));
        }
        if is_in_order(&shape, &strides) {
            let begin = storage.start + offset * width;
            return Ok(Self { dtype, shape, place: Place::Range(begin..begin + bytes) });
        }
        let allowed = file_bytes.max(MAX_EXPANDED_BYTES);
        if bytes > allowed {
            return Err(format!(
                "a view of shape {shape:?} repeats the elements of its storage until they fill \
                 {bytes} bytes; expected at most {allowed}"
            ));
        }
        Ok(Self { dtype, shape, place: Place::Strided { storage, offset, strides } })
    }

    /// The bytes of the file from the first to the last one that belongs to the tensor. Where it
    /// does not lie in order, others lie between.
    pub fn range(&self) -> Range<usize> {
        match &self.place {
            Place::Range(range) => range.clone(),
            Place::Pieces(pieces) => {
                let begin = pieces.iter().map(|piece| piece.start).min().unwrap_or(0);
                begin..pieces.iter().map(|piece| piece.end).max().unwrap_or(0)
            }
            Place::Strided { storage, .. } => storage.clone(),
        }
    }

    /// Some rows of the first axis; `None` where there are no such rows, or where they do not begin
    /// at a byte.
    pub fn rows(&self, rows: &Range<usize>) -> Option<Self> {
        let (&all, inner) = self.shape.split_first()?;
        if rows.start > rows.end || rows.end > all {
            return None;
        }
        let shape = [&[rows.len()], inner].concat();
        if let Place::Strided { storage, offset, strides } = &self.place {
            let offset = offset + rows.start * strides[0];
            let (storage, strides) = (storage.clone(), strides.clone());
            // Bounds were checked for the whole, and the file is at least as large as the view.
            return Self::strided(self.dtype, shape, storage, offset, strides, usize::MAX).ok();
        }
        // Checked when the whole was: the product of all axes times the bits does not overflow,
        // unless one of them is zero.
        let row_bits = byte_count(self.dtype, &shape).ok()? * 8 / rows.len().max(1);
        if !row_bits.is_multiple_of(8) {
            return None;
        }
        let row_bytes = row_bits / 8;
        let wanted = rows.start * row_bytes..rows.end * row_bytes;
        let pieces = match &self.place {
            Place::Range(range) => part_of(std::slice::from_ref(range), wanted),
            Place::Pieces(pieces) => part_of(pieces, wanted),
            Place::Strided { .. } => return None,
        };
        Self::in_pieces(self.dtype, shape, pieces).ok()
    }

    /// The tensor, given all bytes of the file. It is copied only where it does not lie in order.
    pub fn view<'a>(&self, file: &'a [u8]) -> Option<TensorView<'a>> {
        let bytes = match &self.place {
            Place::Range(range) => file.get(range.clone())?.into(),
            Place::Pieces(pieces) => {
                let mut bytes = Vec::with_capacity(pieces.iter().map(Range::len).sum());
                for piece in pieces {
                    bytes.extend_from_slice(file.get(piece.clone())?);
                }
                bytes.into()
            }
            Place::Strided { storage, offset, strides } => {
                let width = self.dtype.bitsize() / 8;
                let storage = file.get(storage.clone())?;
                gather(storage, width, &self.shape, strides, *offset)?.into()
            }
        };
        Some(TensorView { dtype: self.dtype, shape: self.shape.clone().into(), bytes })
    }
}

/// The size of a tensor; it exists only if it can be addressed and its rank is sane.
fn byte_count(dtype: Dtype, shape: &[usize]) -> Result<usize, String> {
    if shape.len() > MAX_RANK {
        return Err(format!("found {} axes, expected at most {MAX_RANK}", shape.len()));
    }
    if shape.contains(&0) {
        return Ok(0);
    }
    let bits = shape
        .iter()
        .try_fold(dtype.bitsize(), |product, &size| product.checked_mul(size))
        .filter(|&bits| bits <= isize::MAX as usize)
        .ok_or_else(|| format!("shape {shape:?} is too large to be addressed"))?;
    if !bits.is_multiple_of(8) {
        return Err(format!("{dtype} of shape {shape:?} does not fill whole bytes"));
    }
    Ok(bits / 8)
}

/// Whether strides are those of a tensor without gaps; an axis of one element has no say.
fn is_in_order(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    for (&size, &stride) in shape.iter().zip(strides).rev() {
        if size != 1 && stride != expected {
            return false;
        }
        expected *= size;
    }
    true
}

/// The part `wanted` of pieces that are counted through.
fn part_of(pieces: &[Range<usize>], wanted: Range<usize>) -> Vec<Range<usize>> {
    let mut before = 0;
    let mut part = Vec::new();
    for piece in pieces {
        let begin = wanted.start.clamp(before, before + piece.len()) - before;
        let end = wanted.end.clamp(before, before + piece.len()) - before;
        if begin < end {
            part.push(piece.start + begin..piece.start + end);
        }
        before += piece.len();
    }
    part
}

/// Elements of `width` bytes in the order of the axes.
fn gather(
    storage: &[u8],
    width: usize,
    shape: &[usize],
    strides: &[usize],
    offset: usize,
) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(shape.iter().product::<usize>() * width);
    let mut index = vec![0; shape.len()];
    let (&inner, outer) = shape.split_last()?;
    let stride = *strides.last()?;
    loop {
        let begin: usize = offset + index.iter().zip(strides).map(|(i, s)| i * s).sum::<usize>();
        if stride == 1 {
            bytes.extend_from_slice(storage.get(begin * width..(begin + inner) * width)?);
        } else {
            for i in 0..inner {
                let at = (begin + i * stride) * width;
                bytes.extend_from_slice(storage.get(at..at + width)?);
            }
        }
        // The next index of the outer axes; the innermost stays 0.
        let mut axis = outer.len();
        loop {
            if axis == 0 {
                return Some(bytes);
            }
            axis -= 1;
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(shape: &[usize], offset: usize, strides: &[usize]) -> Result<Vec<u8>, String> {
        let file: Vec<u8> = (0..20).collect();
        let stored =
            Stored::strided(Dtype::U8, shape.to_vec(), 4..16, offset, strides.to_vec(), 20)?;
        Ok(stored.view(&file).unwrap().bytes.into_owned())
    }

    #[test]
    fn strides_are_followed() {
        assert_eq!(view(&[2, 3], 0, &[3, 1]), Ok(vec![4, 5, 6, 7, 8, 9]));
        assert_eq!(view(&[3, 2], 0, &[1, 3]), Ok(vec![4, 7, 5, 8, 6, 9]));
        assert_eq!(view(&[2, 2], 1, &[6, 2]), Ok(vec![5, 7, 11, 13]));
        assert_eq!(view(&[2, 2], 11, &[0, 0]), Ok(vec![15; 4]));
        assert_eq!(view(&[], 2, &[]), Ok(vec![6]));
        assert_eq!(view(&[2, 0], 99, &[7, 7]), Ok(vec![]));
        // The stride of an axis of one element means nothing, but has to be in bounds all the same.
        assert_eq!(view(&[1, 2], 0, &[9, 1]), Ok(vec![4, 5]));
    }

    #[test]
    fn nothing_is_read_outside_of_the_storage() {
        for (shape, offset, strides) in [
            (vec![13], 0, vec![1]),
            (vec![12], 1, vec![1]),
            (vec![2], 0, vec![12]),
            (vec![2], 0, vec![usize::MAX]),
            (vec![1], usize::MAX, vec![1]),
            (vec![2, 2], 0, vec![usize::MAX / 2, usize::MAX / 2]),
        ] {
            let error = view(&shape, offset, &strides).expect_err("past the end");
            assert!(error.contains("past the end of its storage of 12 elements"), "{error}");
        }
        let error = view(&[1 << 40, 1 << 40], 0, &[0, 0]).expect_err("too large");
        assert!(error.contains("too large"), "{error}");
        let error = view(&[1 << 40], 0, &[0]).expect_err("an expanded terabyte");
        assert!(error.contains("1099511627776 bytes"), "{error}");
        assert!(view(&[1], 0, &[1, 1]).is_err());
        assert!(view(&[1; 65], 0, &[1; 65]).is_err());
    }

    #[test]
    fn pieces_are_put_together() {
        let file: Vec<u8> = (0..20).collect();
        let whole = Stored::in_pieces(Dtype::U8, vec![4, 2], vec![1..4, 10..12, 17..20]).unwrap();
        let all = [1, 2, 3, 10, 11, 17, 18, 19];
        assert_eq!(*whole.view(&file).unwrap().bytes, all);
        assert_eq!(whole.range(), 1..20);
        for (begin, end) in [(0, 4), (0, 1), (1, 3), (2, 2), (3, 4)] {
            let rows = whole.rows(&(begin..end)).unwrap();
            assert_eq!(*rows.view(&file).unwrap().bytes, all[begin * 2..end * 2], "{begin}..{end}");
        }
        assert!(whole.rows(&(3..5)).is_none());
        assert!(Stored::in_order(Dtype::U8, vec![4, 2], 1..4).is_err());
    }

    #[test]
    fn rows_of_a_strided_tensor() {
        let file: Vec<u8> = (0..12).collect();
        let whole = Stored::strided(Dtype::U8, vec![3, 2], 0..12, 0, vec![1, 3], 12).unwrap();
        let rows = whole.rows(&(1..3)).unwrap();
        assert_eq!(*rows.view(&file).unwrap().bytes, [1, 4, 2, 5]);
        assert_eq!(rows.shape, [2, 2]);
    }
}
