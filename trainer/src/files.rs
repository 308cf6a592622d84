//! Reading safetensors files of floats, and naming files by hashes.

use std::path::{Path, PathBuf};

use ndarray::{ArrayD, IxDyn};
use pixart_exporter::checkpoint::{Checkpoint, CheckpointError, Dtype, OpenOptions};
pub(crate) use pixart_runtime::files::hex;

use crate::tensors::Tensors;

/// A file of floats cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// It is missing or damaged.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A tensor is of another type.
    #[error("{}: {name} holds {found}, expected F32, which training saves; fetch the file again", path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        found: Dtype,
    },
}

/// Every tensor of a file, all of which must be 32-bit floats.
pub(crate) fn read_floats(path: &Path) -> Result<Tensors, FileError> {
    let checkpoint = Checkpoint::open(path, &OpenOptions::default())?;
    let mut tensors = Tensors::new();
    for name in checkpoint.names() {
        let Some(view) = checkpoint.tensor(name) else { continue };
        if view.dtype != Dtype::F32 {
            let (path, name, found) = (path.to_owned(), name.to_owned(), view.dtype);
            return Err(FileError::Type { path, name, found });
        }
        let values = view.bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
        let array = ArrayD::from_shape_vec(IxDyn(&view.shape), values.collect());
        // The reader has compared the shape with the number of bytes.
        tensors.insert(name.to_owned(), array.expect("as many elements as the shape"));
    }
    Ok(tensors)
}
