//! The `*.safetensors.index.json` of a sharded checkpoint: which file holds which tensor.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::CheckpointError;

/// No real index comes near: T5-XXL's has 219 entries in 20 kB.
const MAX_BYTES: u64 = 64 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Tensor name → file name; every file name is a plain `.safetensors` name.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    let unreadable = |source| CheckpointError::Unreadable { path: path.to_owned(), source };
    let invalid = |reason: String| CheckpointError::Index { path: path.to_owned(), reason };

    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > MAX_BYTES {
        return Err(invalid(format!("found {bytes} bytes, expected at most {MAX_BYTES}")));
    }
    let text = fs::read(path).map_err(unreadable)?;
    let index: Index = serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
    if index.weight_map.is_empty() {
        return Err(invalid("weight_map is empty".to_owned()));
    }
    for (tensor, shard) in &index.weight_map {
        if !is_plain_name(shard) {
            return Err(CheckpointError::IndexEscapes {
                path: path.to_owned(),
                tensor: tensor.clone(),
                shard: shard.clone(),
            });
        }
    }
    Ok(index.weight_map)
}

/// Whether a name stays inside its folder on every system: no separator of any kind, no drive
/// letter, no control character, and the extension that is read here.
fn is_plain_name(name: &str) -> bool {
    let harmless = |c: char| !matches!(c, '/' | '\\' | ':') && !c.is_control();
    name.len() > ".safetensors".len()
        && name.ends_with(".safetensors")
        && !name.starts_with('.')
        && name.chars().all(harmless)
}

#[cfg(test)]
mod tests {
    use super::is_plain_name;

    #[test]
    fn only_plain_names_pass() {
        for name in ["model-00001-of-00002.safetensors", "a b.safetensors", "x..safetensors"] {
            assert!(is_plain_name(name), "{name}");
        }
        for name in [
            "",
            "..",
            ".safetensors",
            "../model.safetensors",
            "sub/model.safetensors",
            "sub\\model.safetensors",
            "/model.safetensors",
            "C:model.safetensors",
            "..\\model.safetensors",
            "model.safetensors\0",
            "model.bin",
        ] {
            assert!(!is_plain_name(name), "{name}");
        }
    }
}
