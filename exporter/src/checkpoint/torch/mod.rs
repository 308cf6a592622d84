//! Files that PyTorch's `torch.save` writes: a pickle that describes tensors, and their raw bytes.

mod legacy;
mod pickle;
mod select;
mod value;
mod zip;

use std::collections::BTreeMap;
use std::ops::Range;

use super::stored::Stored;
use super::text::shown;
use super::{Container, Contents, FileProblem, WeightsKey};
use value::{Storage, Unpickled};

pub(super) use legacy::is_legacy;

/// The largest pickle that is read. That of a full training checkpoint has under a megabyte.
const MAX_PICKLE_BYTES: usize = 32 << 20;

fn invalid(reason: impl Into<String>) -> FileProblem {
    FileProblem::Torch { reason: reason.into() }
}

/// Reads a zip file, PyTorch's format since 1.6.
pub(super) fn read_zip(bytes: &[u8], key: &WeightsKey) -> Result<Contents, FileProblem> {
    let archive = zip::read(bytes)?;
    let mut pickles = archive.keys().filter_map(|name| {
        let root = name.strip_suffix("/data.pkl")?;
        (!root.is_empty() && !root.contains('/')).then_some(root)
    });
    let root = match (pickles.next(), pickles.next()) {
        (Some(root), None) => root,
        (None, _) => {
            let found = "found a zip file without the data.pkl of a PyTorch file".to_owned();
            return Err(FileProblem::Unrecognised { found });
        }
        (Some(_), Some(_)) => return Err(invalid("found two data.pkl, expected one")),
    };
    let entry = |name: &str| archive.get(format!("{root}/{name}").as_str()).cloned();
    if entry("constants.pkl").is_some() {
        let found = "found a TorchScript program, not weights".to_owned();
        return Err(FileProblem::Unrecognised { found });
    }
    // Files from before the entry existed are little-endian on every machine people use.
    if let Some(range) = entry("byteorder")
        && &bytes[range.clone()] != b"little"
    {
        let found = String::from_utf8_lossy(&bytes[range]).chars().take(16).collect::<String>();
        return Err(invalid(format!("byteorder is {found:?}, expected \"little\"")));
    }
    let pickle = entry("data.pkl").unwrap_or_default();
    if pickle.len() > MAX_PICKLE_BYTES {
        let found = pickle.len();
        return Err(invalid(format!(
            "data.pkl has {found} bytes, expected at most {MAX_PICKLE_BYTES}"
        )));
    }
    let (unpickled, end) = pickle::read(&bytes[pickle.clone()])?;
    if end != pickle.len() {
        return Err(invalid(format!("{} bytes follow the pickle", pickle.len() - end)));
    }

    let mut ranges = Vec::with_capacity(unpickled.storages.len());
    for storage in &unpickled.storages {
        let name = format!("data/{}", storage.key);
        let Some(range) = entry(&name) else {
            return Err(invalid(format!("the pickle names {name:?}, which is missing")));
        };
        let expected = storage.bytes()?;
        if range.len() < expected {
            return Err(invalid(format!(
                "{name:?} has {} bytes, but the pickle says {} elements of {}, which take {expected}",
                range.len(),
                storage.elements,
                storage.dtype
            )));
        }
        ranges.push(range.start..range.start + expected);
    }
    contents(Container::TorchZip, &unpickled, &ranges, bytes.len(), key)
}

/// Reads a file in PyTorch's format before 1.6: pickles one after another, then the storages.
pub(super) fn read_legacy(bytes: &[u8], key: &WeightsKey) -> Result<Contents, FileProblem> {
    let (unpickled, ranges) = legacy::read(bytes)?;
    contents(Container::TorchLegacy, &unpickled, &ranges, bytes.len(), key)
}

/// The chosen tensors, each checked against its storage.
fn contents(
    container: Container,
    unpickled: &Unpickled<'_>,
    storages: &[Range<usize>],
    file_bytes: usize,
    key: &WeightsKey,
) -> Result<Contents, FileProblem> {
    let (weights_key, chosen) = select::weights(unpickled, key)?;
    let mut tensors = BTreeMap::new();
    for (name, tensor) in chosen {
        let Storage { dtype, .. } = unpickled.storages[tensor.storage];
        let storage = storages[tensor.storage].clone();
        let (shape, strides) = (tensor.shape.clone(), tensor.strides.clone());
        let stored = Stored::strided(dtype, shape, storage, tensor.offset, strides, file_bytes)
            .map_err(|reason| invalid(format!("tensor {}: {reason}", shown(name))))?;
        if tensors.insert(name.to_owned(), stored).is_some() {
            return Err(invalid(format!("found two tensors named {}", shown(name))));
        }
    }
    Ok(Contents { container, weights_key, tensors })
}

#[cfg(test)]
mod tests;
