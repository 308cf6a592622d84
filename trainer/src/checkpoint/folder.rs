//! The folder that the checkpoints of a training lie in: finding the newest, removing the oldest.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use pixart_exporter::write::{remove_all_abandoned, sync_folder};

use super::{CheckpointError, Saved, record::Record};

/// What the name of a checkpoint's folder begins with; the number of the step follows.
const PREFIX: &str = "step_";

/// The name of the folder of a step.
pub(super) fn name(step: u64) -> String {
    format!("{PREFIX}{step:08}")
}

/// The checkpoints in a folder.
#[derive(Debug, Default)]
pub struct Listing {
    /// Those that can be used, in the order they were saved in.
    pub complete: Vec<Saved>,
    /// Folders with the name of a checkpoint, and why they cannot be used.
    pub incomplete: Vec<(PathBuf, String)>,
}

/// Looks at every checkpoint in a folder; a folder that does not exist has none.
///
/// # Errors
/// When the folder cannot be listed.
pub fn list(root: &Path) -> Result<Listing, CheckpointError> {
    let fail = |source| CheckpointError::Io { path: root.to_owned(), action: "list", source };
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Listing::default()),
        Err(error) => return Err(fail(error)),
    };
    let mut listing = Listing::default();
    for entry in entries {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let is_step =
            number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        let folder = entry.path();
        if !is_step || !folder.is_dir() {
            continue;
        }
        match Record::read(&folder) {
            Ok(record) => listing.complete.push(Saved { folder, record }),
            Err(problem) => listing.incomplete.push((folder, problem)),
        }
    }
    // By step where folders were copied together from several places.
    listing.complete.sort_by_key(|saved| (saved.record.sequence, saved.record.step));
    listing.incomplete.sort();
    Ok(listing)
}

/// The complete checkpoint that was saved last, if there is any.
///
/// # Errors
/// When the folder cannot be listed.
pub fn latest(root: &Path) -> Result<Option<Saved>, CheckpointError> {
    Ok(list(root)?.complete.pop())
}

/// Removes the oldest complete checkpoints until `keep` are left, and what killed processes have left;
/// returns what was removed. One is always kept, and incomplete ones are neither counted nor touched.
///
/// # Errors
/// When the folder cannot be listed or a checkpoint not be removed.
pub fn prune(root: &Path, keep: usize) -> Result<Vec<PathBuf>, CheckpointError> {
    remove_all_abandoned(root);
    let mut complete = list(root)?.complete;
    let excess = complete.len().saturating_sub(keep.max(1));
    let mut removed = Vec::new();
    for saved in complete.drain(..excess) {
        let folder = saved.folder;
        let fail = |source| CheckpointError::Io { path: folder.clone(), action: "remove", source };
        // Out of sight first, so that nobody finds half of it.
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let aside = root.join(format!(".{name}.removed.partial"));
        fs::rename(&folder, &aside).map_err(fail)?;
        sync_folder(root)?;
        fs::remove_dir_all(&aside).map_err(fail)?;
        removed.push(folder);
    }
    Ok(removed)
}
