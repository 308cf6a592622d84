//! Which file of a folder holds the weights.

use std::fs;
use std::path::{Path, PathBuf};

use super::CheckpointError;

/// File names without extension, as diffusers and transformers write them.
const SAFETENSORS_STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
const TORCH_STEMS: [&str; 2] = ["diffusion_pytorch_model", "pytorch_model"];

/// Extensions that weights come in, so that a file under another name can be found.
const WEIGHT_EXTENSIONS: [&str; 7] = ["safetensors", "bin", "pth", "pt", "ckpt", "msgpack", "onnx"];

/// How files of weights are named: `<stem>.<variant>.<extension>`, and for the index of shards
/// `<stem>.<extension>.index.<variant>.json`, as diffusers and transformers put them together.
fn names(stem: &str, extension: &str, variant: Option<&str>) -> [String; 2] {
    match variant {
        None => [format!("{stem}.{extension}"), format!("{stem}.{extension}.index.json")],
        Some(variant) => [
            format!("{stem}.{variant}.{extension}"),
            format!("{stem}.{extension}.index.{variant}.json"),
        ],
    }
}

/// All usual names, the first to be taken first: safetensors before pickles.
fn usual_names(variant: Option<&str>) -> impl Iterator<Item = String> {
    let safetensors = SAFETENSORS_STEMS.iter().map(|stem| (stem, "safetensors"));
    let torch = TORCH_STEMS.iter().map(|stem| (stem, "bin"));
    safetensors.chain(torch).flat_map(move |(stem, extension)| names(stem, extension, variant))
}

/// Finds the file, or the index of shards.
pub(super) fn find(folder: &Path, variant: Option<&str>) -> Result<PathBuf, CheckpointError> {
    if let Some(variant) = variant
        && !is_variant(variant)
    {
        return Err(CheckpointError::BadVariant { variant: variant.to_owned() });
    }
    let usual = |variant: Option<&str>| {
        usual_names(variant).map(|name| folder.join(name)).find(|path| path.exists())
    };
    if let Some(path) = usual(variant) {
        return Ok(path);
    }
    let files = list(folder)?;
    let mut variants: Vec<&str> = files.iter().filter_map(|file| variant_of(file)).collect();
    variants.sort_unstable();
    variants.dedup();
    match (variant, variants.as_slice()) {
        (None, &[only]) => {
            if let Some(path) = usual(Some(only)) {
                return Ok(path);
            }
        }
        (None, []) => {}
        (asked, found) => {
            return Err(CheckpointError::Variant {
                folder: folder.to_owned(),
                asked: asked.map(str::to_owned),
                found: found.iter().map(|&variant| variant.to_owned()).collect(),
            });
        }
    }
    let weights: Vec<String> = files
        .into_iter()
        .filter(|name| {
            let extension = name.rsplit_once('.').map(|(_, extension)| extension);
            extension.is_some_and(|extension| WEIGHT_EXTENSIONS.contains(&extension))
        })
        .collect();
    match weights.as_slice() {
        [] => Err(CheckpointError::NoWeights { folder: folder.to_owned() }),
        [only] => Ok(folder.join(only)),
        _ => Err(CheckpointError::SeveralFiles { folder: folder.to_owned(), found: weights }),
    }
}

/// Names of the folder's files, sorted; hidden ones are left out.
fn list(folder: &Path) -> Result<Vec<String>, CheckpointError> {
    let unreadable = |source| CheckpointError::Unreadable { path: folder.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
            && entry.path().is_file()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The variant in a usual file name.
fn variant_of(file: &str) -> Option<&str> {
    let of = |stem: &str, extension: &str| {
        let rest = file.strip_prefix(stem)?.strip_prefix('.')?;
        let single = rest.strip_suffix(extension).and_then(|rest| rest.strip_suffix('.'));
        let index = || {
            let rest = rest.strip_prefix(extension)?.strip_prefix(".index.")?;
            rest.strip_suffix(".json")
        };
        // What the index calls shards is none: `model.fp16-00001-of-00002.safetensors`.
        single.or_else(index).filter(|variant| is_variant(variant) && !variant.contains("-of-"))
    };
    let safetensors = SAFETENSORS_STEMS.iter().find_map(|stem| of(stem, "safetensors"));
    safetensors.or_else(|| TORCH_STEMS.iter().find_map(|stem| of(stem, "bin")))
}

/// What can be a part of a file name without changing what the rest means.
fn is_variant(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    !text.is_empty() && text.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_read_from_usual_names() {
        for (name, variant) in [
            ("model.fp16.safetensors", Some("fp16")),
            ("diffusion_pytorch_model.non_ema.bin", Some("non_ema")),
            ("model.safetensors.index.fp16.json", Some("fp16")),
            ("pytorch_model.bin.index.bf16.json", Some("bf16")),
            ("model.safetensors", None),
            ("model.safetensors.index.json", None),
            ("model.fp16-00001-of-00002.safetensors", None),
            ("other.fp16.safetensors", None),
            ("model..safetensors", None),
        ] {
            assert_eq!(variant_of(name), variant, "{name}");
        }
    }
}
