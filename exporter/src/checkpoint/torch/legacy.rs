//! PyTorch's format before 1.6: five pickles one after another, then the storages.
//!
//! The pickles are a magic number, a version, facts about the machine, the value, and the keys of
//! the storages in the order in which they follow. A storage is its number of elements as a
//! little-endian i64, and the elements.

use std::collections::HashMap;
use std::ops::Range;

use super::super::FileProblem;
use super::super::text::shown;
use super::invalid;
use super::pickle;
use super::value::{Unpickled, Value};

/// The magic number as pickles write it from protocol 2 on, behind its length.
const MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
/// The same as protocol 1 writes it: a line of text.
const MAGIC_TEXT: &[u8] = b"L119547037146038801333356L\n.";

const VERSION: i64 = 1001;

/// Bytes of the count in front of a storage.
const COUNT_BYTES: usize = 8;

/// Where the first pickle ends, if it is the magic number.
fn magic_end(bytes: &[u8]) -> Option<usize> {
    // From protocol 4 on, a frame with its length stands behind the protocol's number.
    [(0, MAGIC_TEXT), (2, MAGIC), (11, MAGIC)]
        .into_iter()
        .find(|&(at, magic)| {
            (at == 0 || bytes.first() == Some(&0x80))
                && bytes.get(at..).is_some_and(|rest| rest.starts_with(magic))
        })
        .map(|(at, magic)| at + magic.len())
}

/// Whether a file begins as this format does.
pub(in super::super) fn is_legacy(bytes: &[u8]) -> bool {
    magic_end(bytes).is_some()
}

/// The value, and where its storages are.
pub(super) fn read(bytes: &[u8]) -> Result<(Unpickled<'_>, Vec<Range<usize>>), FileProblem> {
    let mut at = magic_end(bytes).ok_or_else(|| invalid("its magic number is missing"))?;
    let mut next = || {
        let (unpickled, length) = pickle::read(&bytes[at..])?;
        at += length;
        Ok::<_, FileProblem>(unpickled)
    };
    let version = next()?.root;
    if !matches!(version, Value::Int(VERSION)) {
        return Err(invalid(format!("its version is not {VERSION}")));
    }
    let machine = next()?;
    let little = match machine.root {
        Value::Dict(dict) => machine.dicts[dict]
            .iter()
            .any(|item| matches!(item, (Value::Text("little_endian"), Value::Bool(true)))),
        _ => false,
    };
    if !little {
        return Err(invalid("it was not written on a little-endian machine"));
    }
    let unpickled = next()?;
    let keys = next()?;
    let Value::List(list) = keys.root else { return Err(invalid("it has no list of storages")) };

    let mut left: HashMap<&str, usize> =
        unpickled.storages.iter().enumerate().map(|(i, storage)| (storage.key, i)).collect();
    let mut ranges = vec![0..0; unpickled.storages.len()];
    for key in &keys.sequences[list] {
        let Value::Text(key) = *key else { return Err(invalid("a storage's key is no text")) };
        let Some(position) = left.remove(key) else {
            return Err(invalid(format!("the storage {} is listed but not used", shown(key))));
        };
        let storage = &unpickled.storages[position];
        let truncated = |expected: usize| FileProblem::Truncated {
            found: bytes.len() as u64,
            expected: expected as u64,
        };
        let begin = at + COUNT_BYTES;
        let Some(count) = bytes.get(at..begin).and_then(|count| count.first_chunk()) else {
            return Err(truncated(begin));
        };
        let count = i64::from_le_bytes(*count);
        if usize::try_from(count) != Ok(storage.elements) {
            let expected = storage.elements;
            let key = shown(key);
            return Err(invalid(format!(
                "the storage {key} has {count} elements, but the pickle says {expected}"
            )));
        }
        let end = begin.checked_add(storage.bytes()?);
        let Some(end) = end.filter(|&end| end <= bytes.len()) else {
            return Err(truncated(end.unwrap_or(usize::MAX)));
        };
        ranges[position] = begin..end;
        at = end;
    }
    if let Some(key) = left.keys().min() {
        return Err(invalid(format!("the storage {} is missing", shown(key))));
    }
    if at != bytes.len() {
        return Err(invalid(format!("{} bytes follow the last storage", bytes.len() - at)));
    }
    Ok((unpickled, ranges))
}
