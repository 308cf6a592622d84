//! Safetensors files: the `safetensors` crate reads the header, this says what is wrong with it.

use std::collections::BTreeMap;

use ::safetensors::SafeTensors;
use ::safetensors::tensor::{Metadata, SafeTensorError};

use super::stored::Stored;
use super::text::shown;
use super::{Container, Contents, FileProblem};

/// Bytes in front of the header: its length as a little-endian u64.
const LENGTH_BYTES: usize = 8;

/// Whether a file begins with a length and the brace that opens a header.
pub(super) fn looks_like(bytes: &[u8]) -> bool {
    const MAX_HEADER_BYTES: u64 = 100_000_000;
    bytes.get(LENGTH_BYTES) == Some(&b'{')
        && bytes.first_chunk().is_some_and(|length| u64::from_le_bytes(*length) <= MAX_HEADER_BYTES)
}

/// Reads a file.
pub(super) fn read(bytes: &[u8]) -> Result<Contents, FileProblem> {
    let invalid = |reason| FileProblem::Safetensors { reason };
    // Before the length, which would be taken from a file of another kind.
    if bytes.get(LENGTH_BYTES).is_some_and(|&first| first != b'{') {
        return Err(invalid("its header does not begin with {".to_owned()));
    }
    let (header, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| header_error(bytes, error))?;
    let data_start = header + LENGTH_BYTES;
    // The crate has checked this sum, but with wrapping arithmetic.
    if data_start.checked_add(metadata.data_len()) != Some(bytes.len()) {
        return Err(invalid("the tensors do not cover the file".to_owned()));
    }
    let mut tensors = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let (begin, end) = info.data_offsets;
        let range = data_start + begin..data_start + end;
        let stored = Stored::in_order(info.dtype, info.shape.clone(), range)
            .map_err(|reason| invalid(format!("tensor {}: {reason}", shown(&name))))?;
        tensors.insert(name, stored);
    }
    Ok(Contents { container: Container::Safetensors, weights_key: None, tensors })
}

/// Says of a header that the parser refused what a user can act on.
fn header_error(bytes: &[u8], error: SafeTensorError) -> FileProblem {
    let found = bytes.len() as u64;
    let truncated = |expected: usize| FileProblem::Truncated { found, expected: expected as u64 };
    let invalid =
        |error: SafeTensorError| FileProblem::Safetensors { reason: shown(&error.to_string()) };
    let header_end = bytes
        .first_chunk::<LENGTH_BYTES>()
        .and_then(|length| usize::try_from(u64::from_le_bytes(*length)).ok())
        .and_then(|length| length.checked_add(LENGTH_BYTES));
    match (error, header_end) {
        (SafeTensorError::HeaderTooSmall, _) => truncated(LENGTH_BYTES),
        (SafeTensorError::InvalidHeaderLength, Some(end)) => truncated(end),
        (error @ SafeTensorError::MetadataIncompleteBuffer, Some(end)) => {
            let header = bytes.get(LENGTH_BYTES..end).unwrap_or_default();
            let expected = serde_json::from_slice::<Metadata>(header)
                .ok()
                .and_then(|metadata| end.checked_add(metadata.data_len()));
            match expected {
                Some(expected) if expected as u64 > found => truncated(expected),
                Some(expected) => FileProblem::TooLong { found, expected: expected as u64 },
                None => invalid(error),
            }
        }
        (error, _) => invalid(error),
    }
}
