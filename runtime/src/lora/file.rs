//! From a path to the tensors of a LoRA file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sha2::{Digest, Sha256};

use crate::files::hex;

use super::LoraError;

/// What PEFT and diffusers call their files.
const NAMES: [&str; 2] = ["adapter_model.safetensors", "pytorch_lora_weights.safetensors"];

/// A larger file is a whole model. (A LoRA of rank 128 on all of T5 and the transformer has 2 GB.)
const MOST_BYTES: u64 = 8 << 30;

/// A tensor of floats, row-major.
#[derive(Clone, Debug)]
pub(super) struct Values {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// The contents of a LoRA file.
pub(super) struct Contents {
    pub path: PathBuf,
    pub tensors: BTreeMap<String, Values>,
    pub metadata: BTreeMap<String, String>,
    pub sha256: String,
}

/// Reads a file, or the one file of a folder.
pub(super) fn read(path: &Path) -> Result<Contents, LoraError> {
    let path = if path.is_dir() { file_in(path)? } else { path.to_owned() };
    let unreadable = |source| LoraError::Read { path: path.clone(), source };
    let unusable = |reason: String| LoraError::Format { path: path.clone(), reason };
    let metadata = match std::fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(LoraError::Missing { path });
        }
        Err(error) => return Err(unreadable(error)),
    };
    if metadata.len() > MOST_BYTES {
        return Err(unusable(format!("it has {} bytes, which no LoRA has", metadata.len())));
    }
    let bytes = std::fs::read(&path).map_err(unreadable)?;
    // A zip archive, or the bare pickle of old versions.
    if bytes.starts_with(b"PK\x03\x04") || matches!(bytes[..], [0x80, 1..=5, ..]) {
        // A safetensors file of that header size would be one all the same.
        if SafeTensors::deserialize(&bytes).is_err() {
            return Err(LoraError::Pickle { path });
        }
    }
    let parsed = SafeTensors::deserialize(&bytes).map_err(|error| unusable(error.to_string()))?;
    let (_, header) =
        SafeTensors::read_metadata(&bytes).map_err(|error| unusable(error.to_string()))?;
    let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
    let mut tensors = BTreeMap::new();
    for (name, view) in parsed.iter() {
        if let Some(values) = values(&view) {
            tensors.insert(name.to_owned(), values);
        } else {
            return Err(unusable(format!(
                "{name} has the type {:?}, expected F64, F32, F16 or BF16",
                view.dtype()
            )));
        }
    }
    if tensors.is_empty() {
        return Err(unusable("it holds no tensors".to_owned()));
    }
    let sha256 = hex(&Sha256::digest(&bytes));
    Ok(Contents { path, tensors, metadata, sha256 })
}

fn file_in(folder: &Path) -> Result<PathBuf, LoraError> {
    let unreadable = |source| LoraError::Read { path: folder.to_owned(), source };
    if let Some(known) = NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file()) {
        return Ok(known);
    }
    let mut found = Vec::new();
    let mut pickle = None;
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => found.push(path),
            Some("bin" | "pt" | "pth") => pickle = Some(path),
            _ => {}
        }
    }
    match (found.len(), pickle) {
        (1, _) => Ok(found.remove(0)),
        (0, Some(path)) => Err(LoraError::Pickle { path }),
        (count, _) => {
            let found = match count {
                0 => "no .safetensors file".to_owned(),
                _ => format!("{count} .safetensors files"),
            };
            Err(LoraError::Folder { folder: folder.to_owned(), found })
        }
    }
}

/// `None` for types other than floats.
fn values(view: &TensorView<'_>) -> Option<Values> {
    let bytes = view.data();
    let data = match view.dtype() {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Dtype::F64 => bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => {
            bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect()
        }
        _ => return None,
    };
    Some(Values { shape: view.shape().to_vec(), data })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(name: &str, bytes: &[u8]) -> LoraError {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join(name), bytes).expect("file");
        read(&folder.path().join(name)).err().expect("refused")
    }

    #[test]
    fn other_files_are_refused_by_what_they_are() {
        assert!(matches!(error("a.bin", b"PK\x03\x04..."), LoraError::Pickle { .. }));
        assert!(matches!(error("a.pt", b"\x80\x02}q\x00."), LoraError::Pickle { .. }));
        let page = error("a.safetensors", b"<html>not found</html>");
        assert!(matches!(page, LoraError::Format { .. }), "{page}");
        let integers = [1i32.to_le_bytes()].concat();
        let view = TensorView::new(Dtype::I32, vec![1], &integers).expect("view");
        let bytes = safetensors::serialize([("a", view)], None).expect("bytes");
        let message = error("a.safetensors", &bytes).to_string();
        assert!(message.contains("I32") && message.contains("expected"), "{message}");
        let empty: [(&str, TensorView<'_>); 0] = [];
        let bytes = safetensors::serialize(empty, None).expect("bytes");
        assert!(error("a.safetensors", &bytes).to_string().contains("no tensors"));
    }

    #[test]
    fn a_folder_stands_for_its_file() {
        let folder = tempfile::tempdir().expect("folder");
        let write = |name: &str| std::fs::write(folder.path().join(name), "x").expect("file");
        let found = || file_in(folder.path());
        assert!(found().expect_err("empty").to_string().contains("no .safetensors file"));
        write("adapter_model.bin");
        assert!(matches!(found(), Err(LoraError::Pickle { .. })));
        write("b.safetensors");
        assert!(found().expect("the only one").ends_with("b.safetensors"));
        write("c.safetensors");
        assert!(found().expect_err("two").to_string().contains("2 .safetensors files"));
        write("adapter_model.safetensors");
        assert!(found().expect("PEFT's").ends_with("adapter_model.safetensors"));
    }
}
