//! Checkpoints on disk as named tensor views, and nothing else: no tensor is copied here.
//!
//! A checkpoint is a folder with one safetensors file, or with several and an index.

mod error;
mod index;
mod shard;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

pub use error::CheckpointError;
pub use safetensors::Dtype;
pub use shard::Shard;

/// File names without extension, as diffusers and transformers write them.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

/// Extensions that weights come in, so that a folder can be told from an empty one.
const WEIGHT_EXTENSIONS: [&str; 7] = ["safetensors", "bin", "pth", "pt", "ckpt", "msgpack", "onnx"];

/// A tensor of a checkpoint, still in its file.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Element type in the file.
    pub dtype: Dtype,
    /// Shape, outermost axis first.
    pub shape: &'a [usize],
    /// Little-endian elements, outermost axis slowest. Not necessarily aligned.
    pub bytes: &'a [u8],
}

/// An opened checkpoint.
pub struct Checkpoint {
    folder: PathBuf,
    shards: Vec<Shard>,
    /// Tensor name → position in `shards`.
    tensors: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Opens the checkpoint of a model folder: `diffusion_pytorch_model.safetensors`,
    /// `model.safetensors`, or the shards that one of these names' `.index.json` lists.
    ///
    /// Files may be symbolic links, as they are in model caches.
    ///
    /// # Errors
    ///
    /// No such files, files of another format, a truncated or damaged file, an index that names
    /// files outside the folder, missing files, or tensors that are not where it says.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        for stem in STEMS {
            let file = folder.join(format!("{stem}.safetensors"));
            if file.exists() {
                return Self::from_file(folder, &file);
            }
            let index = folder.join(format!("{stem}.safetensors.index.json"));
            if index.exists() {
                return Self::from_index(folder, &index);
            }
        }
        Err(nothing_usable(folder))
    }

    fn from_file(folder: &Path, file: &Path) -> Result<Self, CheckpointError> {
        let shard = Shard::open(file)?;
        let tensors = shard.names().into_iter().map(|name| (name, 0)).collect();
        Ok(Self { folder: folder.to_owned(), shards: vec![shard], tensors })
    }

    fn from_index(folder: &Path, index: &Path) -> Result<Self, CheckpointError> {
        let mut shards: Vec<Shard> = Vec::new();
        let mut tensors = BTreeMap::new();
        let mut positions: BTreeMap<String, usize> = BTreeMap::new();
        for (tensor, file) in index::read(index)? {
            let position = match positions.get(&file) {
                Some(&position) => position,
                None => {
                    let path = folder.join(&file);
                    if !path.exists() {
                        return Err(CheckpointError::MissingShard {
                            path: index.to_owned(),
                            shard: file,
                        });
                    }
                    shards.push(Shard::open(&path)?);
                    positions.insert(file.clone(), shards.len() - 1);
                    shards.len() - 1
                }
            };
            if shards[position].range(&tensor).is_none() {
                return Err(CheckpointError::NotInShard {
                    path: index.to_owned(),
                    tensor,
                    shard: file,
                });
            }
            tensors.insert(tensor, position);
        }
        // The index is the authority on where a listed tensor is; unlisted ones are still part of
        // the checkpoint, so that what nothing reads is reported rather than overlooked.
        for (position, shard) in shards.iter().enumerate() {
            for name in shard.names() {
                tensors.entry(name).or_insert(position);
            }
        }
        Ok(Self { folder: folder.to_owned(), shards, tensors })
    }

    /// The folder that was opened.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The files of the checkpoint.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor by its name.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.shards.get(self.shard_of(name)?)?.tensor(name)
    }

    /// Position in [`Self::shards`] of the file that holds a tensor.
    pub fn shard_of(&self, name: &str) -> Option<usize> {
        self.tensors.get(name).copied()
    }
}

/// The error for a folder without weights in a readable form, naming those it has in another.
fn nothing_usable(folder: &Path) -> CheckpointError {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(source) => return CheckpointError::Unreadable { path: folder.to_owned(), source },
    };
    let mut others: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            let extension = name.rsplit_once('.').map(|(_, extension)| extension);
            extension.is_some_and(|extension| WEIGHT_EXTENSIONS.contains(&extension))
        })
        .collect();
    others.sort();
    match others.into_iter().next() {
        Some(file) => CheckpointError::UnsupportedFormat { folder: folder.to_owned(), file },
        None => CheckpointError::NoWeights { folder: folder.to_owned() },
    }
}

#[cfg(test)]
mod tests;
