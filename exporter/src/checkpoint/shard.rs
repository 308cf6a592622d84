//! One mapped safetensors file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Metadata, SafeTensorError};

use super::{CheckpointError, TensorView};

/// Bytes in front of the header: its length as a little-endian u64.
const LENGTH_BYTES: usize = 8;

/// A safetensors file whose header has been checked.
///
/// The file is mapped, not read: a page is loaded when it is first touched. Another process that
/// *truncates* the file while it is mapped makes the system kill this one (SIGBUS); one that
/// overwrites it changes the weights under us. No portable interface prevents either. The size is
/// checked right after mapping, so only a change during the export remains; tools that replace
/// checkpoints by renaming a new file, as the usual ones do, are harmless.
pub struct Shard {
    path: PathBuf,
    name: String,
    map: Mmap,
    data_start: usize,
    metadata: Metadata,
}

impl Shard {
    pub(super) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let unreadable = |source| CheckpointError::Unreadable { path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        let file_type = file.metadata().map_err(unreadable)?;
        if !file_type.is_file() {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "expected a regular file");
            return Err(unreadable(source));
        }
        // SAFETY: the mapping is read-only and private to this struct, and all accesses are bounds
        // checked against its length. What remains is the file changing while it is mapped: see
        // the type's documentation.
        let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
        #[cfg(unix)]
        // Only a hint, so a refusal does not matter.
        let _ = map.advise(memmap2::Advice::Sequential);

        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|error| header_error(path, &map, error))?;
        let data_start = header + LENGTH_BYTES;
        // The crate has checked this sum, but with wrapping arithmetic.
        let expected = data_start.checked_add(metadata.data_len());
        if expected != Some(map.len()) {
            return Err(CheckpointError::Header {
                path: path.to_owned(),
                reason: "the tensors do not cover the file".to_owned(),
            });
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { path: path.to_owned(), name, map, data_start, metadata })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Names of the tensors, in the order of their bytes.
    pub(super) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Where a tensor's bytes are in the file.
    pub fn range(&self, name: &str) -> Option<Range<usize>> {
        let (begin, end) = self.metadata.info(name)?.data_offsets;
        Some(self.data_start + begin..self.data_start + end)
    }

    /// A tensor of this file.
    pub(super) fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let info = self.metadata.info(name)?;
        let bytes = self.map.get(self.range(name)?)?;
        let shape = info.shape.as_slice().into();
        Some(TensorView { dtype: info.dtype, shape, bytes: bytes.into() })
    }

    /// Lets the system take back the memory behind a range that is not needed for now. The bytes
    /// stay readable: they are loaded again when touched.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        {
            // SAFETY: the mapping is shared, read-only and backed by a file, so a dropped page is
            // loaded again with the same content; for such a mapping the call writes nothing.
            let _ = unsafe {
                self.map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    range.start,
                    range.len(),
                )
            };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

/// Says of a header that the parser refused what a user can act on.
fn header_error(path: &Path, bytes: &[u8], error: SafeTensorError) -> CheckpointError {
    let path = path.to_owned();
    if bytes.starts_with(b"version https://git-lfs") {
        return CheckpointError::LfsPointer { path };
    }
    let found = bytes.len() as u64;
    let truncated = |path, expected: usize| CheckpointError::Truncated {
        path,
        found,
        expected: expected as u64,
    };
    let header_end = bytes
        .first_chunk::<LENGTH_BYTES>()
        .and_then(|length| usize::try_from(u64::from_le_bytes(*length)).ok())
        .and_then(|length| length.checked_add(LENGTH_BYTES));
    match (error, header_end) {
        (SafeTensorError::HeaderTooSmall, _) => truncated(path, LENGTH_BYTES),
        (SafeTensorError::InvalidHeaderLength, Some(end)) => truncated(path, end),
        (error @ SafeTensorError::MetadataIncompleteBuffer, Some(end)) => {
            let header = bytes.get(LENGTH_BYTES..end).unwrap_or_default();
            let expected = serde_json::from_slice::<Metadata>(header)
                .ok()
                .and_then(|metadata| end.checked_add(metadata.data_len()));
            match expected {
                Some(expected) if expected as u64 > found => truncated(path, expected),
                Some(expected) => {
                    CheckpointError::TooLong { path, found, expected: expected as u64 }
                }
                None => CheckpointError::Header { path, reason: error.to_string() },
            }
        }
        (error, _) => CheckpointError::Header { path, reason: error.to_string() },
    }
}
