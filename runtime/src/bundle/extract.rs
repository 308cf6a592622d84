//! Comparing a bundle with its hashes, and getting its folders back.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use super::{
    Bundle, BundleError,
    format::{portions, put},
};

impl Bundle {
    /// Compares every byte with the hashes taken when the bundle was made; `progress` is told how many bytes
    /// of how many are read.
    ///
    /// The program of a Windows bundle is left out: signing changes it.
    ///
    /// # Errors
    /// [`BundleError::Altered`] with everything that differs, or when the file cannot be read.
    pub fn check(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<(), BundleError> {
        let unreadable = |source| BundleError::Read { file: self.file().to_owned(), source };
        let file = File::open(self.file()).map_err(unreadable)?;
        let program = &self.index().program;
        let mut parts = Vec::new();
        if !program.platform.ends_with("windows") {
            parts.push(("the program", 0, program.bytes, &program.sha256));
        }
        let entries = self.index().entries.iter();
        parts.extend(entries.map(|e| (e.path.as_str(), e.offset, e.bytes, &e.sha256)));
        let total = parts.iter().map(|part| part.2).sum();
        let mut done = 0;
        let mut altered = Vec::new();
        for (name, offset, bytes, expected) in parts {
            let found = portions(&file, offset, bytes, &mut |portion| {
                done += portion.len() as u64;
                progress(done, total);
                Ok(())
            });
            if found.map_err(unreadable)? != *expected {
                altered.push(name.to_owned());
            }
        }
        match altered.is_empty() {
            true => Ok(()),
            false => Err(BundleError::Altered { file: self.file().to_owned(), entries: altered }),
        }
    }

    /// Writes the files into the new folder `output`, and compares them with their hashes on the way.
    ///
    /// # Errors
    /// When `output` exists, something was altered, or cannot be read or written. Then nothing is left behind.
    pub fn extract(
        &self,
        output: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), BundleError> {
        let unwritten = |source| BundleError::Write { path: output.to_owned(), source };
        if output.symlink_metadata().is_ok() {
            return Err(BundleError::Exists {
                path: output.to_owned(),
                advice: "name a folder that is not there yet",
            });
        }
        let file = File::open(self.file())
            .map_err(|source| BundleError::Read { file: self.file().to_owned(), source })?;
        let parent = match output.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let folder =
            tempfile::Builder::new().prefix(".pixart-").tempdir_in(parent).map_err(unwritten)?;
        let total = self.index().entries.iter().map(|entry| entry.bytes).sum();
        let mut done = 0;
        // A folder of its own inside, since the temporary one is private.
        let root = folder.path().join("bundle");
        for entry in &self.index().entries {
            let target = root.join(&entry.path);
            let mut write = || -> io::Result<String> {
                fs::create_dir_all(target.parent().unwrap_or(&root))?;
                let mut copy = File::create_new(&target)?;
                // Holes at the end count, too.
                copy.set_len(entry.bytes)?;
                let mut position = 0;
                portions(&file, entry.offset, entry.bytes, &mut |portion| {
                    put(&mut copy, position, portion)?;
                    position += portion.len() as u64;
                    progress(done + position, total);
                    Ok(())
                })
            };
            if write().map_err(unwritten)? != entry.sha256 {
                let entries = vec![entry.path.clone()];
                return Err(BundleError::Altered { file: self.file().to_owned(), entries });
            }
            done += entry.bytes;
        }
        fs::create_dir_all(&root).and_then(|()| fs::rename(&root, output)).map_err(unwritten)
    }
}
