//! SHA-256 while bytes pass by, so that nothing is read a second time.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

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
        #[cfg(target_os = "linux")]
        if expected > 0 {
            use rustix::fs::{FallocateFlags, fallocate};
            let reserved = fallocate(&file, FallocateFlags::empty(), 0, expected);
            if reserved == Err(rustix::io::Errno::NOSPC) {
                return Err(WriteError::NoSpace { path, needed: expected });
            }
            // Any other refusal only means that the file system cannot reserve.
        }
        Ok(Self { path, name: name.to_owned(), file, sha: Sha256::new(), written: 0, expected })
    }

    /// Position in the file.
    pub fn position(&self) -> u64 {
        self.written
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.file.write_all(bytes).map_err(WriteError::io(&self.path, "write", self.expected))?;
        self.sha.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Appends zeros up to a position.
    pub fn pad_to(&mut self, position: u64) -> Result<(), WriteError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.written < position {
            let count = (position - self.written).min(ZEROS.len() as u64) as usize;
            self.write(&ZEROS[..count])?;
        }
        Ok(())
    }

    /// Flushes the file to the disk.
    pub fn finish(self) -> Result<FileRecord, WriteError> {
        self.file.sync_all().map_err(WriteError::io(&self.path, "flush", self.expected))?;
        Ok(FileRecord { name: self.name, bytes: self.written, sha256: hex(self.sha) })
    }
}

/// Hashes a mapped checkpoint file front to back, as far as it has been asked to; what has been
/// hashed is released from memory.
pub(super) struct HashedSource<'a> {
    shard: &'a Shard,
    position: usize,
    sha: Sha256,
}

impl<'a> HashedSource<'a> {
    /// Large enough that the calls cost nothing, small enough to stay out of the memory figures.
    const STEP: usize = 8 << 20;

    pub fn new(shard: &'a Shard) -> Self {
        Self { shard, position: 0, sha: Sha256::new() }
    }

    /// Hashes up to a position of the file.
    pub fn advance(&mut self, end: usize) {
        while self.position < end {
            let step = self.position..end.min(self.position + Self::STEP);
            self.sha.update(&self.shard.bytes()[step.clone()]);
            self.position = step.end;
            self.shard.release(step);
        }
    }

    /// Hashes the rest.
    pub fn finish(mut self) -> FileRecord {
        let bytes = self.shard.bytes().len();
        self.advance(bytes);
        let name = self.shard.name().to_owned();
        FileRecord { name, bytes: bytes as u64, sha256: hex(self.sha) }
    }
}
