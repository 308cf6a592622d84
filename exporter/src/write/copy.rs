//! Files that go into an export as they are.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::WriteError;
use super::staging::sync_folder;

/// Copies a file, following links. The copy has a new file's permissions, not those of a read-only
/// model cache.
pub(crate) fn copy_file(from: &Path, to: &Path) -> Result<(), WriteError> {
    let mut source = File::open(from).map_err(WriteError::io(from, "read", 0))?;
    let bytes = source.metadata().map_err(WriteError::io(from, "read", 0))?.len();
    let mut target = File::create_new(to).map_err(WriteError::io(to, "create", bytes))?;
    io::copy(&mut source, &mut target)
        .and_then(|_| target.sync_all())
        .map_err(WriteError::io(to, "write", bytes))
}

/// Makes a folder inside one that exists.
pub(crate) fn create_folder(path: &Path) -> Result<(), WriteError> {
    fs::create_dir(path).map_err(WriteError::io(path, "create", 0))
}

/// Copies the plain files of a folder into a new folder; folders and hidden files stay behind.
pub(crate) fn copy_plain_files(from: &Path, to: &Path) -> Result<(), WriteError> {
    create_folder(to)?;
    for entry in fs::read_dir(from).map_err(WriteError::io(from, "list", 0))? {
        let entry = entry.map_err(WriteError::io(from, "list", 0))?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if !hidden && entry.path().is_file() {
            copy_file(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    sync_folder(to)
}

/// Writes a new small text file and flushes it.
///
/// # Errors
/// When the file is there already, there is no room, or it cannot be written.
pub fn write_text(to: &Path, text: &str) -> Result<(), WriteError> {
    use io::Write;
    let bytes = text.len() as u64;
    let mut file = File::create_new(to).map_err(WriteError::io(to, "create", bytes))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(WriteError::io(to, "write", bytes))
}
