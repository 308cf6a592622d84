//! Who may look at an entry, or change it: one at a time, of all processes that share a cache.
//!
//! Beside an entry lies an empty file that is locked as long as somebody is at it. The system unlocks it when a process
//! ends, however it ends.

use std::{
    fs::{self, File},
    path::Path,
};

use super::{UNFINISHED, is_whole_name};

/// What the names of these files begin with; the name of the entry follows.
const LOCK: &str = ".lock-";

/// Waits for the turn at an entry, which lasts as long as what is returned. `None` where the folder cannot be written
/// or the file system has no locks.
pub(super) fn wait_for(cache: &Path, entry: &str) -> Option<File> {
    fs::create_dir_all(cache).ok()?;
    let file = open(cache, entry)?;
    file.lock().ok()?;
    Some(file)
}

fn open(cache: &Path, entry: &str) -> Option<File> {
    File::create(cache.join(format!("{LOCK}{entry}"))).ok()
}

/// Removes what killed processes have left of entries under construction, gigabytes perhaps. `own` is the entry whose
/// turn this process has.
pub(super) fn remove_abandoned(cache: &Path, own: Option<&String>) {
    for folder in fs::read_dir(cache).into_iter().flatten().flatten() {
        let name = folder.file_name();
        let name = name.to_string_lossy();
        let Some((entry, _)) = name.strip_prefix(UNFINISHED).and_then(|n| n.rsplit_once('.'))
        else {
            continue;
        };
        let free = || open(cache, entry).filter(|file| file.try_lock().is_ok());
        if own.is_some_and(|own| own == entry) {
            let _ = fs::remove_dir_all(folder.path());
        } else if is_whole_name(entry)
            && let Some(_lock) = free()
        {
            let _ = fs::remove_dir_all(folder.path());
        }
    }
}

/// Removes a file of this module that nobody has locked, and nothing else.
pub(super) fn remove_idle(path: &Path) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(entry) = name.strip_prefix(LOCK) else { return };
    if is_whole_name(entry)
        && let Ok(file) = File::open(path)
        && file.try_lock().is_ok()
    {
        let _ = fs::remove_file(path);
    }
}
