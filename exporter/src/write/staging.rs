//! A folder that appears complete or not at all.
//!
//! Everything is written into a hidden sibling of the target, flushed, and renamed. Replacing an
//! old export exchanges the two names in one step where the system can, so that at any moment the
//! target is either the old folder or the new one. What a killed export leaves is the sibling; the
//! next export to the same target removes it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{CHECKPOINT_FILES, COMPONENT_FILES, TRAINING_AVERAGE, TRAINING_FILES, WriteError};
use crate::Component;

/// What kind of folder the target is, which decides what may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// One exported component.
    Component,
    /// A complete exported pipeline.
    Pipeline,
    /// A converted checkpoint in the diffusers layout.
    Checkpoint,
    /// A checkpoint of training.
    Training,
}

/// End of a temporary folder's name.
const SUFFIX: &str = ".partial";

/// A target folder being written.
pub struct Staging {
    // Dropped in this order: the folder goes before the parents that were made for it.
    temporary: TempDir,
    /// Held open: shows other exports that the folder is still being written.
    lock: Option<File>,
    parents: MadeFolders,
    target: PathBuf,
    replace: bool,
}

impl Staging {
    /// Starts writing `target`. An empty folder may be there already; anything else needs `force`,
    /// and even then only an earlier export is replaced, and never one of the `sources`.
    ///
    /// # Errors
    /// When something is there that may not be replaced, or no folder can be made beside it.
    pub fn begin(
        target: &Path,
        kind: Kind,
        force: bool,
        sources: &[&Path],
    ) -> Result<Self, WriteError> {
        let absolute = std::path::absolute(target);
        let mut target = absolute.map_err(WriteError::io(target, "resolve", 0))?;
        let replace = target.symlink_metadata().is_ok();
        if replace {
            // Behind a symbolic link the folder itself is replaced, not the link.
            target = target.canonicalize().map_err(WriteError::io(&target, "resolve", 0))?;
            check_replaceable(&target, kind, force, sources)?;
        }
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(WriteError::NotAnExport {
                path: target,
                found: "everything else".to_owned(),
            });
        };
        let parents = MadeFolders::make(parent)?;
        let prefix = format!(".{}.", name.to_string_lossy());
        remove_abandoned(parent, &prefix, SUFFIX);
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(SUFFIX);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As any new folder; the default is for its owner alone. The umask still applies.
            builder.permissions(fs::Permissions::from_mode(0o777));
        }
        let temporary =
            builder.tempdir_in(parent).map_err(WriteError::io(parent, "create a folder in", 0))?;
        let lock = lock(temporary.path());
        Ok(Self { temporary, lock, parents, target, replace })
    }

    /// The folder to write into.
    pub fn folder(&self) -> &Path {
        self.temporary.path()
    }

    /// Puts the folder in place and returns where it is. The files in it must have been flushed.
    ///
    /// # Errors
    /// When a name cannot be flushed or changed; what was there before is there still.
    pub fn commit(self) -> Result<PathBuf, WriteError> {
        let Self { temporary, lock, parents, target, replace } = self;
        sync_folder(temporary.path())?;
        if replace {
            exchange(temporary.path(), &target)?;
        } else {
            fs::rename(temporary.path(), &target).map_err(WriteError::io(&target, "create", 0))?;
        }
        parents.keep();
        drop(lock);
        if let Some(parent) = target.parent() {
            sync_folder(parent)?;
        }
        // What is dropped now is the old export, or a name that is gone.
        drop(temporary);
        Ok(target)
    }
}

/// Removes what killed processes have left in `parent` when they were writing folders; what is still
/// being written stays, and what cannot be removed.
pub fn remove_all_abandoned(parent: &Path) {
    remove_abandoned(parent, ".", SUFFIX);
}

/// Takes a folder for this process alone; `None` if another has it or the system cannot tell. The
/// system gives it back when the process ends, however it ends.
fn lock(folder: &Path) -> Option<File> {
    // Elsewhere a folder cannot be opened as a file; there, abandoned folders stay.
    if !cfg!(unix) {
        return None;
    }
    let handle = File::open(folder).ok()?;
    handle.try_lock().ok()?;
    Some(handle)
}

/// Removes what killed processes have left under such names, gigabytes perhaps. What cannot be
/// removed does no harm to this one.
pub(super) fn remove_abandoned(parent: &Path, prefix: &str, suffix: &str) {
    for name in entries(parent).unwrap_or_default() {
        let folder = parent.join(&name);
        if name.starts_with(prefix)
            && name.ends_with(suffix)
            && let Some(_lock) = lock(&folder)
        {
            let _ = fs::remove_dir_all(&folder);
        }
    }
}

fn check_replaceable(
    target: &Path,
    kind: Kind,
    force: bool,
    sources: &[&Path],
) -> Result<(), WriteError> {
    for source in sources {
        let real = source.canonicalize().map_err(WriteError::io(*source, "resolve", 0))?;
        if real.starts_with(target) {
            let (path, source_path) = (target.to_owned(), source.to_path_buf());
            return Err(WriteError::WouldReplaceSource { path, source_path });
        }
    }
    let not_an_export = |found| WriteError::NotAnExport { path: target.to_owned(), found };
    if !target.is_dir() {
        return Err(if force {
            not_an_export("a file".to_owned())
        } else {
            WriteError::Exists { path: target.to_owned() }
        });
    }
    if entries(target)?.is_empty() {
        return Ok(());
    }
    if !force {
        return Err(WriteError::Exists { path: target.to_owned() });
    }
    match foreign_entry(target, kind)? {
        Some(found) => Err(not_an_export(found)),
        None => Ok(()),
    }
}

/// The first entry that no export writes, as a path inside the folder.
fn foreign_entry(folder: &Path, kind: Kind) -> Result<Option<String>, WriteError> {
    for name in entries(folder)? {
        let is_folder = folder.join(&name).is_dir();
        let known = match kind {
            Kind::Component => !is_folder && COMPONENT_FILES.contains(&name.as_str()),
            Kind::Checkpoint => !is_folder && CHECKPOINT_FILES.contains(&name.as_str()),
            Kind::Training if is_folder && name == TRAINING_AVERAGE => {
                if let Some(inner) = foreign_entry(&folder.join(&name), kind)? {
                    return Ok(Some(format!("{name}/{inner}")));
                }
                true
            }
            Kind::Training => !is_folder && TRAINING_FILES.contains(&name.as_str()),
            Kind::Pipeline if is_folder => match name.as_str() {
                "scheduler" | "tokenizer" => true,
                _ if name.parse::<Component>().is_ok() => {
                    let inner = foreign_entry(&folder.join(&name), Kind::Component)?;
                    if let Some(inner) = inner {
                        return Ok(Some(format!("{name}/{inner}")));
                    }
                    true
                }
                _ => false,
            },
            Kind::Pipeline => name == "model_index.json",
        };
        if !known {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn entries(folder: &Path) -> Result<Vec<String>, WriteError> {
    let list = fs::read_dir(folder).map_err(WriteError::io(folder, "list", 0))?;
    let mut names = list
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<String>>>()
        .map_err(WriteError::io(folder, "list", 0))?;
    names.sort();
    Ok(names)
}

/// Gives each of two folders the other's name.
fn exchange(new: &Path, old: &Path) -> Result<(), WriteError> {
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        // Some file systems cannot; what the reason is shows when the plain way fails, too.
        if renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE).is_ok() {
            return Ok(());
        }
    }
    exchange_in_steps(new, old)
}

/// As [`exchange`], for systems that can only rename: between two steps the target does not exist,
/// and the old folder lies beside it.
fn exchange_in_steps(new: &Path, old: &Path) -> Result<(), WriteError> {
    let mut aside = new.as_os_str().to_owned();
    aside.push(".old");
    let aside = PathBuf::from(aside);
    fs::rename(old, &aside).map_err(WriteError::io(old, "replace", 0))?;
    if let Err(error) = fs::rename(new, old) {
        // If this fails too, the message of the first failure still says what happened.
        let _ = fs::rename(&aside, old);
        return Err(WriteError::io(old, "replace", 0)(error));
    }
    fs::rename(&aside, new).map_err(WriteError::io(aside, "rename", 0))
}

/// Makes sure that the names in a folder are on the disk.
///
/// # Errors
/// When the system cannot.
pub fn sync_folder(folder: &Path) -> Result<(), WriteError> {
    // Elsewhere a folder cannot be opened as a file, and renames are journalled.
    if cfg!(unix) {
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(WriteError::io(folder, "flush", 0))?;
    }
    Ok(())
}

/// Folders that were made on the way to the target; removed again unless kept.
struct MadeFolders {
    /// Innermost first.
    made: Vec<PathBuf>,
}

impl MadeFolders {
    fn make(folder: &Path) -> Result<Self, WriteError> {
        let made = folder.ancestors().take_while(|f| !f.exists()).map(Path::to_owned).collect();
        let made = Self { made };
        fs::create_dir_all(folder).map_err(WriteError::io(folder, "create", 0))?;
        Ok(made)
    }

    fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in &self.made {
            // Fails, as it should, if somebody else has put something there.
            let _ = fs::remove_dir(folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(folder: &Path, name: &str, content: &str) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    #[test]
    fn both_ways_of_exchanging_swap_the_content() {
        for swap in [exchange, exchange_in_steps] {
            let root = tempfile::tempdir().unwrap();
            let (new, old) = (root.path().join("new"), root.path().join("old"));
            put(&new, "a", "new");
            put(&old, "b", "old");
            swap(&new, &old).unwrap();
            assert_eq!(fs::read_to_string(old.join("a")).unwrap(), "new");
            assert_eq!(fs::read_to_string(new.join("b")).unwrap(), "old");
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
        }
    }

    #[test]
    fn a_failed_exchange_restores_the_old_folder() {
        let root = tempfile::tempdir().unwrap();
        let (new, old) = (root.path().join("missing"), root.path().join("old"));
        put(&old, "b", "old");
        exchange_in_steps(&new, &old).unwrap_err();
        assert_eq!(fs::read_to_string(old.join("b")).unwrap(), "old");
    }

    #[test]
    fn abandoned_work_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("a/b/target");
        let staging = Staging::begin(&target, Kind::Component, false, &[]).unwrap();
        put(staging.folder(), "model.onnx", "half");
        drop(staging);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn leftovers_go_but_running_exports_stay() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("target");
        put(root.path(), ".target.killed.partial/model.onnx", "half");
        put(root.path(), ".other.killed.partial/model.onnx", "half");
        let first = Staging::begin(&target, Kind::Component, false, &[]).unwrap();
        assert!(!root.path().join(".target.killed.partial").exists());
        let second = Staging::begin(&target, Kind::Component, false, &[]).unwrap();
        assert!(first.folder().exists() && second.folder().exists());
        assert!(root.path().join(".other.killed.partial").exists());
    }

    #[test]
    fn committed_work_is_all_there_is() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("a/target");
        let staging = Staging::begin(&target, Kind::Component, false, &[]).unwrap();
        put(staging.folder(), "model.onnx", "whole");
        assert!(!target.exists());
        staging.commit().unwrap();
        assert_eq!(fs::read_to_string(target.join("model.onnx")).unwrap(), "whole");
        assert_eq!(fs::read_dir(root.path().join("a")).unwrap().count(), 1);
    }

    #[test]
    fn only_exports_are_replaced_and_only_with_force() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("target");
        let begin = |kind, force| Staging::begin(&target, kind, force, &[]).map(drop);
        fs::create_dir(&target).unwrap();
        begin(Kind::Component, false).unwrap();

        put(&target, "model.onnx", "old");
        assert!(matches!(begin(Kind::Component, false), Err(WriteError::Exists { .. })));
        begin(Kind::Component, true).unwrap();
        assert!(matches!(begin(Kind::Pipeline, true), Err(WriteError::NotAnExport { .. })));

        put(&target, "holiday.jpg", "precious");
        match begin(Kind::Component, true) {
            Err(WriteError::NotAnExport { found, .. }) => assert_eq!(found, "holiday.jpg"),
            other => panic!("{other:?}"),
        }
        assert!(target.join("holiday.jpg").exists());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_pipeline_is_checked_inside_its_components() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("target");
        put(&target, "model_index.json", "{}");
        put(&target, "tokenizer/spiece.model", "");
        put(&target, "vae_decoder/model.onnx", "");
        Staging::begin(&target, Kind::Pipeline, true, &[]).map(drop).unwrap();
        put(&target, "vae_decoder/notes.txt", "");
        match Staging::begin(&target, Kind::Pipeline, true, &[]).map(drop) {
            Err(WriteError::NotAnExport { found, .. }) => {
                assert_eq!(found, "vae_decoder/notes.txt")
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_training_checkpoint_has_an_average_beside_it() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("target");
        put(&target, "training.json", "{}");
        put(&target, "ema/config.json", "{}");
        Staging::begin(&target, Kind::Training, true, &[]).map(drop).unwrap();
        put(&target, "ema/notes.txt", "");
        match Staging::begin(&target, Kind::Training, true, &[]).map(drop) {
            Err(WriteError::NotAnExport { found, .. }) => assert_eq!(found, "ema/notes.txt"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sources_are_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        let source = root.path().join("models/transformer");
        put(&source, "config.json", "{}");
        for target in [root.path().join("models/transformer"), root.path().join("models")] {
            let result = Staging::begin(&target, Kind::Component, true, &[&source]).map(drop);
            assert!(matches!(result, Err(WriteError::WouldReplaceSource { .. })), "{target:?}");
        }
    }
}
