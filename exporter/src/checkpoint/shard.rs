//! One mapped file of weights.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::stored::Stored;
use super::{CheckpointError, Container, Contents, OpenOptions, file};

/// A file of weights whose structure has been checked.
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
    container: Container,
    weights_key: Option<String>,
    tensors: BTreeMap<String, Stored>,
}

/// Maps a regular file.
pub(super) fn map(path: &Path) -> Result<Mmap, CheckpointError> {
    let unreadable = |source| CheckpointError::Unreadable { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "expected a regular file");
        return Err(unreadable(source));
    }
    // SAFETY: the mapping is read-only and never handed out but as bytes that are bounds checked
    // against its length. What remains is the file changing while it is mapped: see the
    // documentation of `Shard`.
    unsafe { Mmap::map(&file) }.map_err(unreadable)
}

impl Shard {
    pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Self, CheckpointError> {
        Self::from_map(path, map(path)?, options)
    }

    pub(super) fn from_map(
        path: &Path,
        map: Mmap,
        options: &OpenOptions,
    ) -> Result<Self, CheckpointError> {
        #[cfg(unix)]
        // Only a hint, so a refusal does not matter.
        let _ = map.advise(memmap2::Advice::Sequential);

        let promises_safetensors = path.extension().is_some_and(|it| it == "safetensors");
        let Contents { container, weights_key, tensors } =
            file::read(&map, promises_safetensors, options)
                .map_err(|problem| CheckpointError::File { path: path.to_owned(), problem })?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { path: path.to_owned(), name, map, container, weights_key, tensors })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What kind of file it is.
    pub fn container(&self) -> Container {
        self.container
    }

    /// The key of a PyTorch file under which the tensors were found, with a `.` where it is nested;
    /// `None` where they are not wrapped.
    pub fn weights_key(&self) -> Option<&str> {
        self.weights_key.as_deref()
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Names of the tensors, sorted.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    /// The bytes of the file between which a tensor lies. Tensors may share them.
    pub fn range(&self, name: &str) -> Option<Range<usize>> {
        Some(self.tensors.get(name)?.range())
    }

    /// A tensor of this file.
    pub(super) fn stored(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name)
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
