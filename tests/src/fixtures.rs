//! The files in `tests/fixtures`, written by the reference libraries.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use ndarray::ArrayD;
use pixart_runtime::tensor::Tensor;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use crate::binary::copy_folder;

/// The tensors of one case by name.
pub type Case = BTreeMap<String, Tensor>;

/// The folder of all fixtures.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// A whole pipeline with small random weights, of the 256-pixel family, in the released layout.
pub fn tiny() -> PathBuf {
    root().join("tiny")
}

/// A transformer of the 1024-pixel family, in a folder without the other parts as the first releases
/// had it, and an auto-encoder with three levels.
pub fn wide() -> PathBuf {
    root().join("wide")
}

/// The auto-encoder of [`tiny`], with the names that its attention weights had before diffusers 0.17.
///
/// # Panics
/// When the fixture is not what it should be.
pub fn tiny_with_old_vae_names() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let vae = folder.path().join("vae");
    copy_folder(&tiny().join("vae"), &vae);
    let file = vae.join("diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&file).expect("the weights");
    let parsed = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let mut renamed = 0;
    let tensors: Vec<(String, TensorView)> = parsed
        .iter()
        .map(|(name, view)| {
            let old = ["to_q", "to_k", "to_v", "to_out.0"]
                .into_iter()
                .zip(["query", "key", "value", "proj_attn"])
                .fold(name.to_owned(), |name, (new, old)| name.replace(new, old));
            renamed += usize::from(old != name);
            (old, view)
        })
        .collect();
    assert_eq!(renamed, 16, "four matrices with bias in the encoder and in the decoder");
    fs::write(&file, safetensors::serialize(tensors, None).expect("bytes")).expect("written");
    folder
}

/// The folder of T5's own tokenizer, where it lies beside the repository.
pub fn real_tokenizer() -> Option<PathBuf> {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join("shared/data/t5-tokenizer");
    folder.join("spiece.model").is_file().then_some(folder)
}

/// The tensors of a file whose tensors are named `case/tensor`, by case.
///
/// # Panics
/// When the file is missing or not such a file.
pub fn cases(file: &str) -> BTreeMap<String, Case> {
    let mut cases = BTreeMap::<String, Case>::new();
    for (key, tensor) in tensors(file) {
        let (case, name) =
            key.split_once('/').unwrap_or_else(|| panic!("{file}: {key} names no case"));
        cases.entry(case.to_owned()).or_default().insert(name.to_owned(), tensor);
    }
    cases
}

/// Every tensor of a file, by its full name.
///
/// # Panics
/// When the file is missing or broken.
pub fn tensors(file: &str) -> BTreeMap<String, Tensor> {
    let path = root().join(file);
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let parsed = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{file}: {error}"));
    parsed.iter().map(|(name, view)| (name.to_owned(), tensor(file, name, &view))).collect()
}

fn tensor(file: &str, name: &str, view: &TensorView) -> Tensor {
    let (shape, data) = (view.shape(), view.data());
    match view.dtype() {
        Dtype::F32 => {
            let values =
                data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            Tensor::F32(ArrayD::from_shape_vec(shape, values).expect("as many values as the shape"))
        }
        Dtype::I64 => {
            let values =
                data.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect();
            Tensor::I64(ArrayD::from_shape_vec(shape, values).expect("as many values as the shape"))
        }
        other => panic!("{file}: {name} has dtype {other:?}, expected F32 or I64"),
    }
}

/// A JSON file.
///
/// # Panics
/// When the file is missing or does not fit `T`.
pub fn json<T: DeserializeOwned>(file: &str) -> T {
    let path = root().join(file);
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
}
