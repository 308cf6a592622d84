//! A file that appears complete or not at all.

use std::fs::File;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::WriteError;
use super::staging::sync_folder;

/// A target file being written under another name beside it.
pub(crate) struct StagedFile {
    temporary: NamedTempFile,
    target: PathBuf,
    force: bool,
}

impl StagedFile {
    /// Starts writing `target`, which must not exist unless it may be replaced; `source` is never
    /// replaced.
    pub fn begin(target: &Path, force: bool, source: &Path) -> Result<Self, WriteError> {
        let absolute = std::path::absolute(target);
        let target = absolute.map_err(WriteError::io(target, "resolve", 0))?;
        if target.is_dir() {
            let found = "everything in that folder".to_owned();
            return Err(WriteError::NotAnExport { path: target, found });
        }
        if target.symlink_metadata().is_ok() {
            let same = |path: &Path| path.canonicalize().ok();
            if same(&target).is_some_and(|target| Some(target) == same(source)) {
                let source_path = source.to_owned();
                return Err(WriteError::WouldReplaceSource { path: target, source_path });
            }
            if !force {
                return Err(WriteError::Exists { path: target });
            }
        }
        let parent = target.parent().unwrap_or(Path::new("/"));
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let mut builder = tempfile::Builder::new();
        let prefix = format!(".{name}.");
        builder.prefix(&prefix).suffix(".partial");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As any new file; the default is for its owner alone. The umask still applies.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let temporary =
            builder.tempfile_in(parent).map_err(WriteError::io(parent, "create a file in", 0))?;
        Ok(Self { temporary, target, force })
    }

    /// The file to write into, and the name for messages.
    pub fn file(&mut self) -> (&mut File, &Path) {
        (self.temporary.as_file_mut(), &self.target)
    }

    /// Puts the file in place and returns where it is.
    pub fn commit(self) -> Result<PathBuf, WriteError> {
        let Self { temporary, target, force } = self;
        temporary.as_file().sync_all().map_err(WriteError::io(&target, "flush", 0))?;
        let persisted = match force {
            true => temporary.persist(&target),
            false => temporary.persist_noclobber(&target),
        };
        persisted.map_err(|error| WriteError::io(&target, "create", 0)(error.error))?;
        if let Some(parent) = target.parent() {
            sync_folder(parent)?;
        }
        Ok(target)
    }
}
