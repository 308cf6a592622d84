//! MindSpore's `.ckpt`: protobuf messages, one value after another.
//!
//! ```text
//! Checkpoint  { repeated Value value = 1 }
//! Value       { string tag = 1; TensorProto tensor = 2; MapTensorProto maptensor = 3 }
//! TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3 }
//! ```
//!
//! A large tensor comes as several values of the same tag and dims, each with a part of the
//! content. Behind the last value there may be a checksum; it is not compared, because that would
//! read the whole file before anything else is checked.

use std::collections::BTreeMap;
use std::ops::Range;

use super::stored::Stored;
use super::text::shown;
use super::{Container, Contents, Dtype, FileProblem};

/// `crc_num` and ten bytes.
const CHECKSUM_MARK: &[u8] = b"crc_num";
const CHECKSUM_BYTES: usize = 17;

/// What encrypted files begin with, one for each cipher.
const ENCRYPTED: [u32; 3] = [0x7f3a_5ed8, 0x7f3a_5ed9, 0x7f3a_5eda];

/// Values that are no tensors: the state of random operators, and texts.
const NO_TENSORS: [&str; 2] = ["random_op", "str"];

const MAX_NAME_BYTES: usize = 4096;
const MAX_RANK: usize = 16;

fn invalid(reason: impl Into<String>) -> FileProblem {
    FileProblem::MindSpore { reason: reason.into() }
}

/// Whether a file begins with a value whose first field is a tag, or is an encrypted one.
pub(super) fn looks_like(bytes: &[u8]) -> bool {
    let begins = || {
        let mut file = Message { bytes, at: 0, end: bytes.len() };
        let (1, Field::Bytes(length)) = file.head()? else { return None };
        let end = file.at.checked_add(length)?;
        let mut value = Message { bytes, at: file.at, end: end.min(bytes.len()) };
        let (1, Field::Bytes(length)) = value.head()? else { return None };
        let tag = value.bytes.get(value.at..value.at.checked_add(length.min(MAX_NAME_BYTES))?)?;
        Some(!tag.is_empty() && tag.iter().all(|byte| byte.is_ascii_graphic()))
    };
    is_encrypted(bytes) || begins() == Some(true)
}

fn is_encrypted(bytes: &[u8]) -> bool {
    bytes.first_chunk().is_some_and(|first| {
        ENCRYPTED.contains(&u32::from_le_bytes(*first))
            || ENCRYPTED.contains(&u32::from_be_bytes(*first))
    })
}

/// Reads a file.
pub(super) fn read(bytes: &[u8]) -> Result<Contents, FileProblem> {
    if is_encrypted(bytes) {
        return Err(invalid("it is encrypted; save it again without enc_key"));
    }
    let mut tensors = BTreeMap::new();
    let mut open: Option<Part> = None;
    let mut file = Message { bytes, at: 0, end: bytes.len() };
    while file.at < file.end {
        if bytes.len() - file.at == CHECKSUM_BYTES && bytes[file.at..].starts_with(CHECKSUM_MARK) {
            break;
        }
        let value = match file.next()? {
            (1, Content::Bytes(range)) => range,
            (number, _) => {
                return Err(invalid(format!("found field {number} of a checkpoint, expected 1")));
            }
        };
        let Some(part) = Part::read(bytes, value)? else { continue };
        open = match open {
            Some(mut whole) if whole.tag == part.tag => {
                if (whole.kind, &whole.dims) != (part.kind, &part.dims) {
                    return Err(invalid(format!(
                        "the parts of {} have several types or shapes",
                        shown(part.tag)
                    )));
                }
                whole.content.extend(part.content);
                Some(whole)
            }
            other => {
                close(other, &mut tensors)?;
                Some(part)
            }
        };
    }
    close(open, &mut tensors)?;
    if tensors.is_empty() {
        return Err(invalid("it holds no tensors"));
    }
    Ok(Contents { container: Container::MindSpore, weights_key: None, tensors })
}

/// Adds a tensor of which all parts were seen.
fn close(
    part: Option<Part<'_>>,
    tensors: &mut BTreeMap<String, Stored>,
) -> Result<(), FileProblem> {
    let Some(Part { tag, kind, mut dims, content }) = part else { return Ok(()) };
    let name = shown(tag);
    let dtype = dtype(kind)
        .ok_or_else(|| invalid(format!("tensor {name} has the unknown type {}", shown(kind))))?;
    let found: usize = content.iter().map(Range::len).sum();
    // Older versions wrote a single number with the shape [0].
    if dims == [0] && found == dtype.bitsize() / 8 {
        dims.clear();
    }
    let stored = Stored::in_pieces(dtype, dims, content)
        .map_err(|reason| invalid(format!("tensor {name}: {reason}")))?;
    if tensors.insert(tag.to_owned(), stored).is_some() {
        return Err(invalid(format!("found two tensors named {name}")));
    }
    Ok(())
}

/// A value that is a tensor, or a part of one.
struct Part<'a> {
    tag: &'a str,
    kind: &'a str,
    dims: Vec<usize>,
    content: Vec<Range<usize>>,
}

impl<'a> Part<'a> {
    fn read(bytes: &'a [u8], range: Range<usize>) -> Result<Option<Self>, FileProblem> {
        let mut tag = None;
        let mut tensor = None;
        let mut value = Message { bytes, at: range.start, end: range.end };
        while value.at < value.end {
            match value.next()? {
                (1, Content::Bytes(range)) => once(&mut tag, text(&bytes[range])?)?,
                (2, Content::Bytes(range)) => once(&mut tensor, range)?,
                (3, _) => return Err(invalid("it holds a map of tensors")),
                (number, _) => {
                    return Err(invalid(format!("found the unknown field {number} of a value")));
                }
            }
        }
        let (Some(tag), Some(tensor)) = (tag, tensor) else {
            return Err(invalid("found a value without a tag or without a tensor"));
        };
        let mut dims: Vec<u64> = Vec::new();
        let (mut kind, mut content) = (None, None);
        let mut message = Message { bytes, at: tensor.start, end: tensor.end };
        while message.at < message.end {
            match message.next()? {
                (1, Content::Number(size)) => dims.push(size),
                (1, Content::Bytes(range)) => {
                    let mut packed = Message { bytes, at: range.start, end: range.end };
                    while packed.at < packed.end && dims.len() <= MAX_RANK {
                        dims.push(packed.varint().ok_or_else(damaged)?);
                    }
                }
                (2, Content::Bytes(range)) => once(&mut kind, text(&bytes[range])?)?,
                (3, Content::Bytes(range)) => once(&mut content, range)?,
                (number, _) => {
                    return Err(invalid(format!("found the unknown field {number} of a tensor")));
                }
            }
            if dims.len() > MAX_RANK {
                return Err(invalid(format!("{} has more than {MAX_RANK} axes", shown(tag))));
            }
        }
        if kind.is_some_and(|kind| NO_TENSORS.contains(&kind)) {
            return Ok(None);
        }
        // A negative size is a number beyond i64.
        let dims: Option<Vec<usize>> = dims
            .iter()
            .map(|&size| i64::try_from(size).ok().and_then(|size| usize::try_from(size).ok()))
            .collect();
        match (kind, content, dims) {
            (Some(kind), Some(content), Some(dims)) => {
                Ok(Some(Self { tag, kind, dims, content: vec![content] }))
            }
            (_, _, None) => Err(invalid(format!("{} has a negative size", shown(tag)))),
            _ => Err(invalid(format!("{} has no type or no content", shown(tag)))),
        }
    }
}

/// Type names as MindSpore writes them, and as its PyTorch-like layers do.
fn dtype(kind: &str) -> Option<Dtype> {
    Some(match kind {
        "Float32" | "mindspore.float32" => Dtype::F32,
        "Float16" | "mindspore.float16" => Dtype::F16,
        "BFloat16" | "mindspore.bfloat16" => Dtype::BF16,
        "Float64" | "mindspore.float64" => Dtype::F64,
        "Int8" | "mindspore.int8" => Dtype::I8,
        "UInt8" | "Uint8" | "mindspore.uint8" => Dtype::U8,
        "Int16" | "mindspore.int16" => Dtype::I16,
        "UInt16" | "Uint16" | "mindspore.uint16" => Dtype::U16,
        "Int32" | "mindspore.int32" => Dtype::I32,
        "UInt32" | "Uint32" | "mindspore.uint32" => Dtype::U32,
        "Int64" | "mindspore.int64" => Dtype::I64,
        "UInt64" | "Uint64" | "mindspore.uint64" => Dtype::U64,
        "Bool" | "mindspore.bool" | "mindspore.bool_" => Dtype::BOOL,
        _ => return None,
    })
}

fn text(bytes: &[u8]) -> Result<&str, FileProblem> {
    std::str::from_utf8(bytes)
        .ok()
        .filter(|text| text.len() <= MAX_NAME_BYTES)
        .ok_or_else(|| invalid("found a name that is no UTF-8 or too long"))
}

fn once<T>(field: &mut Option<T>, value: T) -> Result<(), FileProblem> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(invalid("found the same field twice in one message")),
    }
}

fn damaged() -> FileProblem {
    invalid("it ends inside a field, or a field is damaged: it is truncated or no such file")
}

/// A part of the file that is a protobuf message.
struct Message<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

/// What follows a field's number.
enum Field {
    Number(u64),
    /// The length of the bytes that follow.
    Bytes(usize),
}

/// A field's content.
enum Content {
    Number(u64),
    Bytes(Range<usize>),
}

impl Message<'_> {
    fn varint(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes[..self.end].get(self.at)?;
            self.at += 1;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// The number and kind of the next field.
    fn head(&mut self) -> Option<(u64, Field)> {
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Number(self.varint()?),
            2 => Field::Bytes(usize::try_from(self.varint()?).ok()?),
            _ => return None,
        };
        Some((key >> 3, field))
    }

    /// The next field, wholly inside of the message.
    fn next(&mut self) -> Result<(u64, Content), FileProblem> {
        match self.head().ok_or_else(damaged)? {
            (number, Field::Number(value)) => Ok((number, Content::Number(value))),
            (number, Field::Bytes(length)) => {
                let begin = self.at;
                let end = begin.checked_add(length).filter(|&end| end <= self.end);
                self.at = end.ok_or_else(damaged)?;
                Ok((number, Content::Bytes(begin..self.at)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn varint(mut number: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while number > 127 {
            bytes.push(number as u8 & 127 | 128);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    }

    fn field(number: u64, content: &[u8]) -> Vec<u8> {
        [varint(number << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
    }

    fn tensor(dims: &[i64], kind: &str, content: &[u8]) -> Vec<u8> {
        let dims: Vec<u8> =
            dims.iter().flat_map(|&size| [varint(1 << 3), varint(size as u64)].concat()).collect();
        [dims, field(2, kind.as_bytes()), field(3, content)].concat()
    }

    fn value(tag: &str, tensor: &[u8]) -> Vec<u8> {
        field(1, &[field(1, tag.as_bytes()), field(2, tensor)].concat())
    }

    fn good(tag: &str) -> Vec<u8> {
        value(tag, &tensor(&[2, 1], "Float32", &[1, 2, 3, 4, 5, 6, 7, 8]))
    }

    #[track_caller]
    fn assert_refused(bytes: &[u8], expected: &str) {
        match read(bytes) {
            Ok(contents) => panic!("read, with {:?}", contents.tensors),
            Err(problem) => {
                let message = problem.to_string();
                assert!(message.contains(expected), "no `{expected}` in: {message}");
            }
        }
    }

    #[test]
    fn packed_sizes_scalars_and_values_that_are_no_tensors() {
        let packed = [field(1, &[2, 1]), field(2, b"Float16"), field(3, &[1, 2, 3, 4])].concat();
        let bytes = [
            value("packed", &packed),
            value("random_op", &tensor(&[0], "random_op", b"state")),
            value("note", &tensor(&[0], "str", b"text")),
            value("old_scalar", &tensor(&[0], "Int32", &[1, 2, 3, 4])),
            value("scalar", &tensor(&[], "mindspore.int64", &[0; 8])),
            good("w"),
        ]
        .concat();
        assert!(looks_like(&bytes));
        let contents = read(&bytes).unwrap();
        let found: Vec<_> =
            contents.tensors.iter().map(|(name, it)| (&**name, it.dtype, &*it.shape)).collect();
        assert_eq!(
            found,
            [
                ("old_scalar", Dtype::I32, &[][..]),
                ("packed", Dtype::F16, &[2, 1]),
                ("scalar", Dtype::I64, &[]),
                ("w", Dtype::F32, &[2, 1]),
            ]
        );
    }

    #[test]
    fn damaged_files_are_refused() {
        let eight = [0; 8];
        let cases: [(Vec<u8>, &str); 20] = [
            (value("w", &tensor(&[3, 1], "Float32", &eight)), "takes 12 bytes, found 8"),
            (value("w", &tensor(&[1], "Float32", &eight)), "takes 4 bytes, found 8"),
            (value("w", &tensor(&[-1], "Float32", &eight)), "negative size"),
            (value("w", &tensor(&[1 << 62, 8], "Float32", &eight)), "too large"),
            (value("w", &tensor(&[1; 17], "Float32", &eight)), "more than 16 axes"),
            (value("w", &tensor(&[2], "Float8", &eight)), "unknown type Float8"),
            (value("w", &field(2, b"Float32")), "no type or no content"),
            (value("w", &field(3, b"")), "no type or no content"),
            (value("w", &field(4, b"")), "unknown field 4"),
            (value("w", &[field(2, b"Bool"), field(2, b"Bool")].concat()), "twice"),
            (field(1, &field(1, b"w")), "without a tag or without a tensor"),
            (field(1, &field(2, b"")), "without a tag or without a tensor"),
            (field(1, &[field(1, b"w"), field(3, b"")].concat()), "map of tensors"),
            (field(1, &field(9, b"")), "unknown field 9"),
            (field(1, &field(1, b"\xff")), "no UTF-8"),
            (field(1, &field(1, &[b'x'; 5000])), "too long"),
            (field(2, b""), "found field 2"),
            ([good("w"), good("x"), good("w")].concat(), "two tensors named w"),
            ([good("w"), good("w")].concat(), "takes 8 bytes, found 16"),
            (
                [good("w"), value("w", &tensor(&[2], "Float32", &eight))].concat(),
                "several types or shapes",
            ),
        ];
        for (bytes, expected) in &cases {
            assert_refused(bytes, expected);
        }
        // Lengths that reach past the end, or that do not fit at all.
        assert_refused(&[0x0a, 0x7f], "truncated");
        assert_refused(&[&[0x0a][..], &[0xff; 9], &[0x01]].concat(), "truncated");
        assert_refused(&[&[0x0a][..], &[0xff; 12]].concat(), "truncated");
        assert_refused(&[0x0b], "truncated");
        assert_refused(b"", "no tensors");
        for cipher in ENCRYPTED {
            assert!(looks_like(&cipher.to_le_bytes()));
            assert_refused(&cipher.to_le_bytes(), "encrypted");
        }
    }

    #[test]
    fn a_file_that_was_cut_is_refused_unless_whole_tensors_are_left() {
        let [first, second] = ["first", "second"].map(good);
        let whole = [&first[..], &second].concat();
        for length in 0..whole.len() {
            // The format has neither a count nor an end, so this cannot be seen.
            let complete = length == first.len();
            assert_eq!(read(&whole[..length]).is_ok(), complete, "{length} bytes");
        }
        let checked = [&whole[..], b"crc_num\0\0\0\0\0\0\x01\x02\x03\x04"].concat();
        assert_eq!(read(&checked).unwrap().tensors.len(), 2);
        assert_refused(&checked[..checked.len() - 1], "truncated");
    }
}
