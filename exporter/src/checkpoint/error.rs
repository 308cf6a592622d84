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
    /// A file is not a checkpoint that is read here, or a damaged or hostile one.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: FileProblem,
    },
    /// The folder holds no weights.
    #[error(
        "{}: found no weights; expected diffusion_pytorch_model.safetensors, model.safetensors, \
         diffusion_pytorch_model.bin or pytorch_model.bin, or their shards with the .index.json",
        folder.display()
    )]
    NoWeights {
        /// The folder that was searched.
        folder: PathBuf,
    },
    /// The folder holds several files of weights, none under a usual name.
    #[error(
        "{}: found {}, none of which has a usual name; expected \
         diffusion_pytorch_model.safetensors or model.safetensors: give the path of the file itself",
        folder.display(), found.join(", ")
    )]
    SeveralFiles {
        /// The folder that was searched.
        folder: PathBuf,
        /// Names of the files that were found.
        found: Vec<String>,
    },
    /// The folder does not hold the variant that was asked for, or several when none was.
    #[error("{}: {}", folder.display(), no_variant(asked.as_deref(), found))]
    Variant {
        /// The folder that was searched.
        folder: PathBuf,
        /// The variant that was asked for.
        asked: Option<String>,
        /// The variants that were found.
        found: Vec<String>,
    },
    /// What was asked for cannot be part of a file name.
    #[error(
        "variant: found {variant:?}, expected letters, digits, `_` and `-`, as the `fp16` of \
         model.fp16.safetensors"
    )]
    BadVariant {
        /// What was asked for.
        variant: String,
    },
    /// The index of a sharded checkpoint is not well-formed.
    #[error("{}: not a valid index of shards: {reason}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The index names a file that is not directly inside its folder.
    #[error(
        "{}: weight_map sends tensor {tensor} to {shard:?}; expected the plain name of a \
         .safetensors or .bin file in the same folder",
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

fn no_variant(asked: Option<&str>, found: &[String]) -> String {
    let list = found.join(", ");
    match asked {
        None => format!(
            "found no plain weights but those of the variants {list}; say which of them to read"
        ),
        Some(asked) if found.is_empty() => {
            format!("found no weights of the variant {asked}, nor of any other")
        }
        Some(asked) => {
            format!("found no weights of the variant {asked}, only of {list}; ask for one of these")
        }
    }
}

/// What is wrong with a single file of weights.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileProblem {
    /// The file is of no kind that is read.
    #[error(
        "{found}; expected weights as safetensors, PyTorch (.pth, .pt, .bin) or MindSpore (.ckpt)"
    )]
    Unrecognised {
        /// What the file begins with, in words.
        found: String,
    },
    /// The place-holder that Git leaves when large files were not fetched.
    #[error("found a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull`")]
    LfsPointer,
    /// The file ends before its last tensor does.
    #[error("the file is truncated: found {found} bytes, expected {expected}; fetch it again")]
    Truncated {
        /// Its size in bytes.
        found: u64,
        /// The size its header asks for (at least).
        expected: u64,
    },
    /// The file is larger than its header says.
    #[error(
        "found {found} bytes, but the header describes {expected}: it is no valid safetensors \
         file; fetch it again"
    )]
    TooLong {
        /// Its size in bytes.
        found: u64,
        /// The size its header asks for.
        expected: u64,
    },
    /// The header of a safetensors file is not well-formed.
    #[error("not a valid safetensors file: {reason}; fetch it again")]
    Safetensors {
        /// What is wrong.
        reason: String,
    },
    /// The zip container of a PyTorch file is damaged, or not one that PyTorch writes.
    #[error(
        "not a zip file as PyTorch writes it: {reason}; fetch it again, or save it again with \
         torch.save"
    )]
    Zip {
        /// What is wrong.
        reason: String,
    },
    /// The pickle of a PyTorch file refers to something that is not data.
    #[error(
        "the pickle asks for {global:?}, which a file of weights does not need (loading it in \
         Python may run code); expected tensors, numbers, text, lists and dictionaries: save the \
         weights alone, as safetensors or with torch.save(model.state_dict())"
    )]
    ForbiddenGlobal {
        /// Module and name.
        global: String,
    },
    /// The pickle of a PyTorch file is damaged, hostile, or uses something that is not read.
    #[error("the pickle is not that of a file of weights: {reason}; fetch it again")]
    Pickle {
        /// What is wrong.
        reason: String,
    },
    /// A PyTorch file is well-formed, but its tensors are not.
    #[error("not a valid PyTorch file: {reason}; fetch it again")]
    Torch {
        /// What is wrong.
        reason: String,
    },
    /// The weights are not where they were asked for.
    #[error("{}", no_weights(asked.as_deref(), found))]
    WeightsKey {
        /// The key that was asked for.
        asked: Option<String>,
        /// The keys of the file's dictionary.
        found: Vec<String>,
    },
    /// A MindSpore file is damaged or uses something that is not read.
    #[error("not a MindSpore checkpoint that can be read: {reason}")]
    MindSpore {
        /// What is wrong.
        reason: String,
    },
}

fn no_weights(asked: Option<&str>, found: &[String]) -> String {
    let list = match found {
        [] => "none".to_owned(),
        keys => keys.join(", "),
    };
    match asked {
        Some(key) => format!("found no weights under the key {key:?}; the keys are: {list}"),
        None => format!("found no weights; expected a dictionary of tensors. The keys are: {list}"),
    }
}
