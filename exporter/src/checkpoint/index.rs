//! The `.index.json` of a sharded checkpoint: which file holds which tensor.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::CheckpointError;
use super::text::shown;

/// No real index comes near: T5-XXL's has 219 entries in 20 kB.
const MAX_BYTES: usize = 64 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Extensions of files that an index may name. What they are is decided by their content.
const EXTENSIONS: [&str; 5] = [".safetensors", ".bin", ".pth", ".pt", ".ckpt"];

/// Tensor name → file name; every file name is a plain one. `path` is for messages.
pub(crate) fn read(text: &[u8], path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    let invalid = |reason: String| CheckpointError::Index { path: path.to_owned(), reason };

    if text.len() > MAX_BYTES {
        let found = text.len();
        return Err(invalid(format!("found {found} bytes, expected at most {MAX_BYTES}")));
    }
    let index: Index =
        serde_json::from_slice(text).map_err(|error| invalid(shown(&error.to_string())))?;
    if index.weight_map.is_empty() {
        return Err(invalid("weight_map is empty".to_owned()));
    }
    for (tensor, shard) in &index.weight_map {
        if !is_plain_name(shard) {
            return Err(CheckpointError::IndexEscapes {
                path: path.to_owned(),
                tensor: shown(tensor),
                shard: shown(shard),
            });
        }
    }
    Ok(index.weight_map)
}

/// Whether a name stays inside its folder on every system: no separator of any kind, no drive
/// letter, no control character, and an extension of weights.
fn is_plain_name(name: &str) -> bool {
    let harmless = |c: char| !matches!(c, '/' | '\\' | ':') && !c.is_control();
    EXTENSIONS.iter().any(|extension| name.len() > extension.len() && name.ends_with(extension))
        && !name.starts_with('.')
        && name.chars().all(harmless)
}

#[cfg(test)]
mod tests {
    use super::is_plain_name;

    #[test]
    fn only_plain_names_pass() {
        for name in [
            "model-00001-of-00002.safetensors",
            "pytorch_model-00001-of-00002.bin",
            "model.fp16-00001-of-00002.safetensors",
            "a b.safetensors",
            "x..safetensors",
        ] {
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
            "model.txt",
            "config.json",
        ] {
            assert!(!is_plain_name(name), "{name}");
        }
    }
}
