//! A safetensors file, written tensor by tensor.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::WriteError;
use crate::checkpoint::Dtype;

/// A tensor that will follow.
#[derive(Clone, Debug)]
pub(crate) struct Announced {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Size of its elements.
    pub bytes: u64,
}

/// Multiple that the data start at, so that a mapping of the file is aligned.
const ALIGNMENT: usize = 8;

/// Brings tensors into the order in which their elements have to be written: wide elements first,
/// which keeps every tensor aligned, then by name.
pub(crate) fn sort(tensors: &mut [Announced]) {
    tensors.sort_by(|a, b| {
        b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name))
    });
}

/// Writes everything that comes before the elements.
pub(crate) fn write_header(
    file: &mut File,
    path: &Path,
    tensors: &[Announced],
) -> Result<(), WriteError> {
    let mut header = Map::new();
    // What torch's own readers look for.
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut end = 0;
    for Announced { name, dtype, shape, bytes } in tensors {
        let begin = end;
        end += bytes;
        let entry =
            json!({"dtype": dtype.to_string(), "shape": shape, "data_offsets": [begin, end]});
        header.insert(name.clone(), entry);
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(ALIGNMENT), b' ');
    let total = (ALIGNMENT + text.len()) as u64 + end;
    super::hash::reserve(file, path, total)?;
    file.write_all(&(text.len() as u64).to_le_bytes())
        .and_then(|()| file.write_all(&text))
        .map_err(WriteError::io(path, "write", total))
}
