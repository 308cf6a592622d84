//! SHA-256 of the files that are written, while they are, and of those that are read.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::WriteError;
use crate::checkpoint::Shard;

/// Name, size and hash of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileRecord {
    /// The file's name, without a folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

fn hex(sha: Sha256) -> String {
    sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reserves room for a file that is going to be written, where the system can.
pub(super) fn reserve(file: &File, path: &Path, expected: u64) -> Result<(), WriteError> {
    #[cfg(target_os = "linux")]
    if expected > 0 {
        use rustix::fs::{FallocateFlags, fallocate};
        let reserved = fallocate(file, FallocateFlags::empty(), 0, expected);
        if reserved == Err(rustix::io::Errno::NOSPC) {
            return Err(WriteError::NoSpace { path: path.to_owned(), needed: expected });
        }
        // Any other refusal only means that the file system cannot reserve.
    }
    let _ = (file, path, expected);
    Ok(())
}

/// A new file that is hashed as it is written.
pub(super) struct HashedFile {
    path: PathBuf,
    name: String,
    file: File,
    sha: Sha256,
    written: u64,
    expected: u64,
}

impl HashedFile {
    /// Creates `name` in `folder`; `expected` bytes will follow, reserved now where that is
    /// possible, so that a full disk shows at the start rather than after minutes.
    pub fn create(folder: &Path, name: &str, expected: u64) -> Result<Self, WriteError> {
        let path = folder.join(name);
        let file = File::create_new(&path).map_err(WriteError::io(&path, "create", expected))?;
        reserve(&file, &path, expected)?;
        Ok(Self { path, name: name.to_owned(), file, sha: Sha256::new(), written: 0, expected })
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.file.write_all(bytes).map_err(WriteError::io(&self.path, "write", self.expected))?;
        self.sha.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Flushes the file to the disk.
    pub fn finish(self) -> Result<FileRecord, WriteError> {
        self.file.sync_all().map_err(WriteError::io(&self.path, "flush", self.expected))?;
        Ok(FileRecord { name: self.name, bytes: self.written, sha256: hex(self.sha) })
    }
}

/// Hashes mapped checkpoint files from front to back; `None` if `stop` is set before the end.
///
/// Meant for a thread of its own: the exporter reads the files in the graph's order, which need not
/// be theirs. Both go through them at about the same time, so each page is loaded once as a rule.
pub(super) fn hash_sources(shards: &[Shard], stop: &AtomicBool) -> Option<Vec<FileRecord>> {
    /// Large enough that the calls cost nothing, small enough to stay out of the memory figures.
    const STEP: usize = 8 << 20;
    let hash = |shard: &Shard| {
        let bytes = shard.bytes().len();
        let mut sha = Sha256::new();
        for start in (0..bytes).step_by(STEP) {
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            let step = start..bytes.min(start + STEP);
            sha.update(&shard.bytes()[step.clone()]);
            shard.release(step);
        }
        let name = shard.name().to_owned();
        Some(FileRecord { name, bytes: bytes as u64, sha256: hex(sha) })
    };
    shards.iter().map(hash).collect()
}
