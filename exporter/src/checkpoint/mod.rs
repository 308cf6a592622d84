//! Checkpoints on disk as named tensor views, and nothing else: no tensor is copied here.
//!
//! A checkpoint is a folder with one safetensors file, or with several and an index.

mod error;
mod index;
mod shard;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use error::CheckpointError;
pub use safetensors::Dtype;
pub use shard::Shard;

/// File names without extension, as diffusers and transformers write them.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

/// Extensions that weights come in, so that a folder can be told from an empty one.
const WEIGHT_EXTENSIONS: [&str; 7] = ["safetensors", "bin", "pth", "pt", "ckpt", "msgpack", "onnx"];

/// A tensor of a checkpoint, still in its file where its elements lie there in order.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    /// Element type in the file.
    pub dtype: Dtype,
    /// Shape, outermost axis first.
    pub shape: Cow<'a, [usize]>,
    /// Little-endian elements, outermost axis slowest. Not necessarily aligned.
    pub bytes: Cow<'a, [u8]>,
}

/// A stored tensor, or some of its rows, under another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The new name.
    pub name: String,
    /// The name of the tensor that is stored.
    pub stored: String,
    /// The rows of its first axis; `None` is all of it.
    pub rows: Option<Range<usize>>,
}

/// An opened checkpoint.
pub struct Checkpoint {
    folder: PathBuf,
    shards: Vec<Shard>,
    /// Tensor name → where it is stored.
    tensors: BTreeMap<String, Place>,
}

/// Where a tensor is stored.
#[derive(Clone, Debug)]
struct Place {
    /// Position in the checkpoint's shards.
    shard: usize,
    /// The name it has there.
    stored: String,
    /// The rows of its first axis; `None` is all of it.
    rows: Option<Range<usize>>,
}

impl Place {
    fn whole(shard: usize, stored: String) -> Self {
        Self { shard, stored, rows: None }
    }
}

impl Checkpoint {
    /// Opens a safetensors file, or the checkpoint of a model folder: `diffusion_pytorch_model.safetensors`,
    /// `model.safetensors`, or the shards that one of these names' `.index.json` lists.
    ///
    /// Files may be symbolic links, as they are in model caches.
    ///
    /// # Errors
    ///
    /// No such files, files of another format, a truncated or damaged file, an index that names
    /// files outside the folder, missing files, or tensors that are not where it says.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        if folder.is_file() {
            return Self::from_file(folder.parent().unwrap_or(folder), folder);
        }
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
        let whole = |name: String| (name.clone(), Place::whole(0, name));
        let tensors = shard.names().into_iter().map(whole).collect();
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
            tensors.insert(tensor.clone(), Place::whole(position, tensor));
        }
        // The index is the authority on where a listed tensor is; unlisted ones are still part of
        // the checkpoint, so that what nothing reads is reported rather than overlooked.
        for (position, shard) in shards.iter().enumerate() {
            for name in shard.names() {
                let whole = Place::whole(position, name.clone());
                tensors.entry(name).or_insert(whole);
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
        let place = self.tensors.get(name)?;
        let view = self.shards.get(place.shard)?.tensor(&place.stored)?;
        match &place.rows {
            None => Some(view),
            Some(rows) => rows_of(view, rows),
        }
    }

    /// Where a tensor's bytes are: position in [`Self::shards`], and the range in that file.
    pub fn position(&self, name: &str) -> Option<(usize, Range<usize>)> {
        let place = self.tensors.get(name)?;
        Some((place.shard, self.shards.get(place.shard)?.range(&place.stored)?))
    }

    /// The same files under other names: exactly these tensors, in place of all the present ones.
    ///
    /// # Errors
    ///
    /// Gives back the first entry whose stored tensor does not exist or has no such rows.
    pub fn renamed(mut self, entries: Vec<Renamed>) -> Result<Self, Renamed> {
        let mut tensors = BTreeMap::new();
        for entry in entries {
            let fits = self.tensor(&entry.stored).is_some_and(|view| {
                entry.rows.as_ref().is_none_or(|rows| rows_of(view, rows).is_some())
            });
            let place = self.tensors.get(&entry.stored).filter(|place| place.rows.is_none());
            let (true, Some(place)) = (fits, place) else { return Err(entry) };
            tensors.insert(entry.name, Place { rows: entry.rows, ..place.clone() });
        }
        self.tensors = tensors;
        Ok(self)
    }
}

/// Some rows of a tensor's first axis.
fn rows_of<'a>(view: TensorView<'a>, rows: &Range<usize>) -> Option<TensorView<'a>> {
    let (&all, inner) = view.shape.split_first()?;
    if rows.start > rows.end || rows.end > all {
        return None;
    }
    let row_bytes = view.bytes.len().checked_div(all).unwrap_or(0);
    let range = rows.start * row_bytes..rows.end * row_bytes;
    let bytes = match view.bytes {
        Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[range]),
        Cow::Owned(bytes) => Cow::Owned(bytes[range].to_vec()),
    };
    let shape = [&[rows.len()], inner].concat();
    Some(TensorView { dtype: view.dtype, shape: shape.into(), bytes })
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
