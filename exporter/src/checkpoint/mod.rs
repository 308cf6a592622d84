//! Checkpoints on disk as named tensor views, and nothing else: names stay as they are stored.
//!
//! A checkpoint is a file of weights, or several with an index. Three kinds of file are read, told
//! apart by their content and never by their name:
//!
//! | kind | as written by | how |
//! |---|---|---|
//! | [`Container::Safetensors`] | diffusers, transformers | header checked by the `safetensors` crate |
//! | [`Container::TorchZip`] | `torch.save` since 1.6 | own strict zip reader; the pickle is interpreted as data, from a list of what it may name, and nothing in it is run |
//! | [`Container::TorchLegacy`] | `torch.save` before 1.6 | the same pickle reader |
//! | [`Container::MindSpore`] | `mindspore.save_checkpoint` | own protobuf reader |
//!
//! Files are mapped. Only tensors whose elements do not lie in order in their file (strided views,
//! tensors in several parts) are copied, one at a time, when they are asked for.

mod error;
// The fuzz targets call these two without a file.
pub(crate) mod file;
mod folder;
pub(crate) mod index;
mod mindspore;
mod options;
mod safetensors;
mod shard;
mod stored;
mod text;
mod torch;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use ::safetensors::Dtype;
pub use error::{CheckpointError, FileProblem};
pub use options::{OpenOptions, WeightsKey};
pub use shard::Shard;

use stored::Stored;

/// What kind of file a [`Shard`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Container {
    /// A safetensors file.
    Safetensors,
    /// A zip file of PyTorch.
    TorchZip,
    /// PyTorch's format before 1.6.
    TorchLegacy,
    /// A `.ckpt` of MindSpore.
    MindSpore,
}

/// What a file holds.
pub(crate) struct Contents {
    pub container: Container,
    /// The key of a PyTorch file under which the tensors were.
    pub weights_key: Option<String>,
    pub tensors: BTreeMap<String, Stored>,
}

/// Element type and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type in the file.
    pub dtype: Dtype,
    /// Shape, outermost axis first.
    pub shape: Vec<usize>,
}

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

impl TensorView<'_> {
    /// The elements, if they are floats of 16, 32 or 64 bits; the latter are rounded.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        fn all<const N: usize>(bytes: &[u8], read: fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.as_chunks().0.iter().map(|&bytes| read(bytes)).collect()
        }
        Some(match self.dtype {
            Dtype::F32 => all(&self.bytes, f32::from_le_bytes),
            Dtype::F16 => all(&self.bytes, |bytes| half::f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => all(&self.bytes, |bytes| half::bf16::from_le_bytes(bytes).to_f32()),
            Dtype::F64 => all(&self.bytes, |bytes| f64::from_le_bytes(bytes) as f32),
            _ => return None,
        })
    }
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
    /// Opens a file of weights, an index of shards, or the weights of a model folder.
    ///
    /// In a folder, the first of these is taken: `diffusion_pytorch_model.safetensors`,
    /// `model.safetensors`, `diffusion_pytorch_model.bin`, `pytorch_model.bin`, each either as one
    /// file or as shards with an `.index.json`; with a variant in the name if one is asked for, or
    /// if there is exactly one and no plain file. A folder without any of these but with one file
    /// of weights is that file.
    ///
    /// Files may be symbolic links, as they are in model caches.
    ///
    /// # Errors
    ///
    /// No such files, files of another kind, a truncated, damaged or hostile file, weights that are
    /// not under the key that was asked for, an index that names files outside the folder, missing
    /// files, or tensors that are not where it says.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, CheckpointError> {
        let unreadable = |source| CheckpointError::Unreadable { path: path.to_owned(), source };
        let file = match fs::metadata(path).map_err(unreadable)?.is_dir() {
            true => folder::find(path, options.variant.as_deref())?,
            false => path.to_owned(),
        };
        let folder = match file.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => Path::new("/"),
        };
        let map = shard::map(&file)?;
        // No weights are called `.json`; such a file that is no JSON is a damaged index.
        if file::is_index(&map) || file.extension().is_some_and(|it| it == "json") {
            return Self::from_index(folder, &file, index::read(&map, &file)?, options);
        }
        let shard = Shard::from_map(&file, map, options)?;
        let whole = |name: &String| (name.clone(), Place::whole(0, name.clone()));
        let tensors = shard.names().map(whole).collect();
        Ok(Self { folder: folder.to_owned(), shards: vec![shard], tensors })
    }

    /// What a folder without any weights holds.
    pub(crate) fn without_tensors(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), shards: Vec::new(), tensors: BTreeMap::new() }
    }

    fn from_index(
        folder: &Path,
        path: &Path,
        index: BTreeMap<String, String>,
        options: &OpenOptions,
    ) -> Result<Self, CheckpointError> {
        let mut shards: Vec<Shard> = Vec::new();
        let mut tensors = BTreeMap::new();
        let mut positions: BTreeMap<String, usize> = BTreeMap::new();
        for (tensor, file) in index {
            let position = match positions.get(&file) {
                Some(&position) => position,
                None => {
                    let shard = folder.join(&file);
                    if !shard.exists() {
                        let path = path.to_owned();
                        return Err(CheckpointError::MissingShard { path, shard: file });
                    }
                    shards.push(Shard::open(&shard, options)?);
                    positions.insert(file.clone(), shards.len() - 1);
                    shards.len() - 1
                }
            };
            if shards[position].range(&tensor).is_none() {
                let (path, tensor) = (path.to_owned(), text::shown(&tensor));
                return Err(CheckpointError::NotInShard { path, tensor, shard: file });
            }
            tensors.insert(tensor.clone(), Place::whole(position, tensor));
        }
        // The index is the authority on where a listed tensor is; unlisted ones are still part of
        // the checkpoint, so that what nothing reads is reported rather than overlooked.
        for (position, shard) in shards.iter().enumerate() {
            for name in shard.names() {
                let whole = || Place::whole(position, name.clone());
                tensors.entry(name.clone()).or_insert_with(whole);
            }
        }
        Ok(Self { folder: folder.to_owned(), shards, tensors })
    }

    /// The folder that the files are in.
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

    /// A tensor by its name. One whose elements do not lie in order is copied, so
    /// [`Self::info`] is cheaper where the elements do not matter.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let (shard, stored) = self.stored(name)?;
        stored.view(shard.bytes())
    }

    /// Element type and shape of a tensor; no element is read.
    pub fn info(&self, name: &str) -> Option<TensorInfo> {
        let (_, stored) = self.stored(name)?;
        let Stored { dtype, shape, .. } = stored.into_owned();
        Some(TensorInfo { dtype, shape })
    }

    fn stored(&self, name: &str) -> Option<(&Shard, Cow<'_, Stored>)> {
        let place = self.tensors.get(name)?;
        let shard = self.shards.get(place.shard)?;
        let whole = shard.stored(&place.stored)?;
        let stored = match &place.rows {
            None => Cow::Borrowed(whole),
            Some(rows) => Cow::Owned(whole.rows(rows)?),
        };
        Some((shard, stored))
    }

    /// Where a tensor's bytes are: position in [`Self::shards`], and the range in that file. Of a
    /// tensor's rows, the range is that of the whole; of one that does not lie in order, the range
    /// also holds what lies between.
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
            let fits = self.stored(&entry.stored).is_some_and(|(_, stored)| {
                entry.rows.as_ref().is_none_or(|rows| stored.rows(rows).is_some())
            });
            let place = self.tensors.get(&entry.stored).filter(|place| place.rows.is_none());
            let (true, Some(place)) = (fits, place) else { return Err(entry) };
            tensors.insert(entry.name, Place { rows: entry.rows, ..place.clone() });
        }
        self.tensors = tensors;
        Ok(self)
    }
}

#[cfg(test)]
mod tests;
