//! What can be wrong with a checkpoint's files.

use std::io;
use std::path::PathBuf;

/// A checkpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file or folder cannot be opened or read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder holds no weights.
    #[error(
        "{}: found no weights; expected diffusion_pytorch_model.safetensors or model.safetensors, \
         or its shards with their .safetensors.index.json",
        folder.display()
    )]
    NoWeights {
        /// The folder that was searched.
        folder: PathBuf,
    },
    /// The folder holds weights, but in a format or under a name that is not read.
    #[error(
        "{}: found {file}, which is not supported yet; expected \
         diffusion_pytorch_model.safetensors or model.safetensors, or its shards with their \
         .safetensors.index.json: convert the weights to safetensors",
        folder.display()
    )]
    UnsupportedFormat {
        /// The folder that was searched.
        folder: PathBuf,
        /// Name of the file that was found instead.
        file: String,
    },
    /// The file ends before its last tensor does.
    #[error(
        "{}: the file is truncated: found {found} bytes, expected {expected}; fetch it again",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The size its header asks for (at least).
        expected: u64,
    },
    /// The file is larger than its header says.
    #[error(
        "{}: found {found} bytes, but the header describes {expected}: it is no valid safetensors \
         file; fetch it again",
        path.display()
    )]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The size its header asks for.
        expected: u64,
    },
    /// The place-holder that Git leaves when large files were not fetched.
    #[error(
        "{}: found a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull`",
        path.display()
    )]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// The header of a safetensors file is not well-formed.
    #[error("{}: not a valid safetensors file: {reason}; fetch it again", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The index of a sharded checkpoint is not well-formed.
    #[error("{}: not a valid safetensors index: {reason}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The index names a file that is not directly inside its folder.
    #[error(
        "{}: weight_map sends tensor {tensor} to {shard:?}; expected the plain name of a \
         .safetensors file in the same folder",
        path.display()
    )]
    IndexEscapes {
        /// The index file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file name it is sent to.
        shard: String,
    },
    /// The index names a file that does not exist.
    #[error("{}: names the shard {shard}, which is not in the folder; fetch it", path.display())]
    MissingShard {
        /// The index file.
        path: PathBuf,
        /// The missing file.
        shard: String,
    },
    /// A tensor is not in the file that the index names.
    #[error(
        "{}: weight_map sends tensor {tensor} to {shard}, which does not hold it; the index and \
         the shards do not belong together",
        path.display()
    )]
    NotInShard {
        /// The index file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file it should be in.
        shard: String,
    },
}
