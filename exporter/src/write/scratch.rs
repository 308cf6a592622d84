//! A folder for work that nobody keeps.

use std::fs::File;
use std::io;
use std::path::Path;

use tempfile::TempDir;

use super::staging::remove_abandoned;

/// End of such a folder's name.
const SUFFIX: &str = ".scratch";
/// How often a folder may be taken for an abandoned one in the moment between its making and its lock.
const TRIES: usize = 100;

/// A folder that is removed when this is dropped. What a killed process leaves, the next one of the same
/// kind removes, on Unix.
#[derive(Debug)]
pub struct Scratch {
    folder: TempDir,
    /// Held open: shows others that the folder is in use.
    _lock: Option<File>,
}

impl Scratch {
    /// Makes one in `parent` whose name begins with `prefix`, once those that nobody uses any more are gone.
    ///
    /// # Errors
    /// When no folder can be made there.
    pub fn new_in(parent: &Path, prefix: &str) -> io::Result<Self> {
        remove_abandoned(parent, prefix, SUFFIX);
        let mut builder = tempfile::Builder::new();
        builder.prefix(prefix).suffix(SUFFIX);
        for _ in 0..TRIES {
            let folder = builder.tempdir_in(parent)?;
            let lock = held(folder.path());
            // Another process may have found it before it was held, and have held it until it was gone.
            if folder.path().is_dir() {
                return Ok(Self { folder, _lock: lock });
            }
        }
        Err(io::Error::other("what was made there is removed again at once"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Takes a folder for this process, as soon as others are done with it; the system gives it back when the
/// process ends, however it ends. `None` if the system cannot.
fn held(folder: &Path) -> Option<File> {
    // Elsewhere a folder cannot be opened as a file; there, abandoned folders stay.
    if !cfg!(unix) {
        return None;
    }
    let handle = File::open(folder).ok()?;
    handle.lock().ok()?;
    Some(handle)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_is_in_use_stays_and_the_rest_goes() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for name in ["work-killed.scratch", "work-notes", "other-killed.scratch"] {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("weights"), "half").unwrap();
        }
        let first = Scratch::new_in(root.path(), "work-").unwrap();
        assert!(!path("work-killed.scratch").exists());
        let second = Scratch::new_in(root.path(), "work-").unwrap();
        assert!(first.path().is_dir() && second.path().is_dir());
        drop((first, second));
        let mut left: Vec<_> =
            fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["other-killed.scratch", "work-notes"]);
    }

    #[test]
    fn many_at_once_take_nothing_from_each_other() {
        let root = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let scratch = Scratch::new_in(root.path(), "work-").unwrap();
                        fs::write(scratch.path().join("weights"), "whole").unwrap();
                        assert!(scratch.path().join("weights").is_file());
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
