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
