//! What can go wrong while an export is written.

use std::io;
use std::path::PathBuf;

use crate::graph::ir::DType;

/// An export cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The target is there already.
    #[error("{}: exists already; choose another output, or replace it with --force", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// The target should be replaced, but it is not (only) an export.
    #[error(
        "{}: will not be replaced, because it holds {found}, which is not part of an export; choose \
         another output or move that away",
        path.display()
    )]
    NotAnExport {
        /// The target.
        path: PathBuf,
        /// The first entry that no export writes.
        found: String,
    },
    /// The target is, or contains, what is being exported.
    #[error(
        "{}: writing here would replace the source {}; choose another output",
        path.display(), source_path.display()
    )]
    WouldReplaceSource {
        /// The target.
        path: PathBuf,
        /// The folder that is being read.
        source_path: PathBuf,
    },
    /// The file system has too little room.
    #[error("{}: no space left: {needed} bytes are needed; free some or choose another output", path.display())]
    NoSpace {
        /// The file that did not fit.
        path: PathBuf,
        /// Its full size.
        needed: u64,
    },
    /// A file or folder cannot be created, written, flushed or renamed.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Who was told the progress asked to end it.
    #[error("ended before it was complete")]
    Stopped,
    /// A weight is not a number.
    #[error(
        "{}: tensor {tensor} holds {value} at element {element}; the checkpoint is damaged",
        path.display()
    )]
    NotFinite {
        /// The checkpoint file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Position in the tensor's elements as stored.
        element: usize,
        /// NaN, inf or -inf.
        value: f32,
    },
    /// A weight does not fit into the type it is to be stored in.
    #[error(
        "{}: tensor {tensor} holds {value} at element {element}, which is too large for {dtype}; \
         choose another precision, for example bf16 or fp32",
        path.display()
    )]
    TooLarge {
        /// The checkpoint file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Position in the tensor's elements as stored.
        element: usize,
        /// The element.
        value: f32,
        /// The type.
        dtype: DType,
    },
    /// The graph and the checkpoint it is written from do not fit: a mistake in this library.
    #[error("internal error: initializer {initializer}: {reason}; please report this")]
    Inconsistent {
        /// The initializer.
        initializer: String,
        /// What does not fit.
        reason: String,
    },
}

impl WriteError {
    /// Maps an I/O error, giving a full disk its own message.
    pub(crate) fn io(
        path: impl Into<PathBuf>,
        action: &'static str,
        needed: u64,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { path, needed }
            }
            _ => Self::Io { path, action, source },
        }
    }
}
