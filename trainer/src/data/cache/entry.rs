//! The files of a cache: one tensor each, with a hash of its bytes and what else there is to tell.
//!
//! They are written under a temporary name and renamed, so a process that was killed leaves whole files
//! only.

use crate::files::hex;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

const TENSOR: &str = "values";
const HASH: &str = "sha256";
const PROBLEM: &str = "problem";
/// Begins the names of files that are not finished.
const UNFINISHED: &str = ".pixart-";
/// An unfinished file of this age is no other process's work any more.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// Why something is not to be had from a cache.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Lack {
    /// It was never put in, or under other settings.
    #[error("it is not there")]
    Missing,
    /// The file is not what was written.
    #[error("its file is damaged: {0}")]
    Damaged(String),
    /// It is of another picture than the one that is there now.
    #[error("the picture has changed since")]
    Changed,
    /// The picture could not be read when the cache was filled.
    #[error("the picture could not be read: {0}")]
    Unreadable(String),
}

impl Lack {
    /// Whether it is known and noted, and nothing that filling the cache again would change.
    pub fn is_noted(&self) -> bool {
        matches!(self, Self::Unreadable(_))
    }
}

/// A tensor in a file.
#[derive(Debug)]
pub(super) struct Entry {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
    /// Without the hash.
    pub notes: HashMap<String, String>,
}

/// Where an entry of this name is: in one of 256 folders, so that none gets too long.
pub(super) fn path(folder: &Path, name: &Sha256) -> PathBuf {
    let name = hex(&name.clone().finalize()[..16]);
    folder.join(&name[..2]).join(format!("{name}.safetensors"))
}

/// Reads a file.
pub(super) fn read(path: &Path) -> Result<Entry, Lack> {
    let file = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Lack::Missing),
        Err(error) => return Err(Lack::Damaged(error.to_string())),
    };
    let damaged = |error: safetensors::SafeTensorError| Lack::Damaged(error.to_string());
    let (_, metadata) = SafeTensors::read_metadata(&file).map_err(damaged)?;
    let mut notes = metadata.metadata().clone().unwrap_or_default();
    if let Some(problem) = notes.remove(PROBLEM) {
        return Err(Lack::Unreadable(problem));
    }
    let tensors = SafeTensors::deserialize(&file).map_err(damaged)?;
    let view = tensors.tensor(TENSOR).map_err(damaged)?;
    if notes.remove(HASH) != Some(hex(&Sha256::digest(view.data()))) {
        return Err(Lack::Damaged("its content has another hash than when it was written".into()));
    }
    let (shape, bytes) = (view.shape().to_vec(), view.data().to_vec());
    Ok(Entry { dtype: view.dtype(), shape, bytes, notes })
}

/// Writes a file.
pub(super) fn write(path: &Path, entry: Entry) -> io::Result<()> {
    let Entry { dtype, shape, bytes, mut notes } = entry;
    notes.insert(HASH.to_owned(), hex(&Sha256::digest(&bytes)));
    let view = TensorView::new(dtype, shape, &bytes).map_err(io::Error::other)?;
    let file = safetensors::serialize([(TENSOR, view)], Some(notes)).map_err(io::Error::other)?;
    put(path, &file)
}

/// Writes in place of an entry why there is none.
pub(super) fn write_problem(path: &Path, problem: &str) -> io::Result<()> {
    let notes = HashMap::from([(PROBLEM.to_owned(), problem.to_owned())]);
    let none: [(&str, TensorView<'_>); 0] = [];
    put(path, &safetensors::serialize(none, Some(notes)).map_err(io::Error::other)?)
}

/// Makes `bytes` the content of a file, in one step.
pub(super) fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(UNFINISHED);
    // A temporary file is private by default; a cache may be shared.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

/// Removes what killed processes left in a folder of entries.
pub(super) fn remove_abandoned(folder: &Path) {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    for file in entries(folder).flat_map(|part| entries(&part.path())) {
        let unfinished = file.file_name().to_string_lossy().starts_with(UNFINISHED);
        let age = file.metadata().and_then(|metadata| metadata.modified());
        let age = age.ok().and_then(|changed| changed.elapsed().ok()).unwrap_or_default();
        if unfinished && age > ABANDONED {
            // It is in nobody's way if it cannot be removed.
            let _ = fs::remove_file(file.path());
        }
    }
}

/// The floats in bytes of this type, if it is one that caches have.
pub(super) fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    match dtype {
        Dtype::F32 => Some(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()),
        Dtype::F16 => {
            let halves = bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32());
            Some(halves.collect())
        }
        _ => None,
    }
}
