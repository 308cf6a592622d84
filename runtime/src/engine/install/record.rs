//! The record beside each installed engine: where it came from and what it should hold.

use std::{
    io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::files::sha256_of;

use super::{
    super::{
        EngineError,
        data_folder::engines_folder,
        external_data::is_plain_file_name,
        library::{self, Library, Origin, parse_version},
    },
    InstallError,
};

/// The record's file name.
const FILE_NAME: &str = "engine.json";

/// The layout that this program writes and reads.
const FORMAT: u32 = 1;

/// What is known about an installed engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Layout of this record; 1.
    pub format: u32,
    /// The provider's name: `cpu`.
    pub name: String,
    /// Version of the wheel: `1.32.0`.
    pub version: String,
    /// The package that the wheel belongs to.
    pub package: String,
    /// File name of the wheel.
    pub wheel: String,
    /// SHA-256 of the wheel, in hexadecimal.
    pub wheel_sha256: String,
    /// File name of the library to load.
    pub library: String,
    /// Whether the library is a plugin for ONNX Runtime, not the runtime itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plugin: bool,
    /// Every file that was unpacked.
    pub files: Vec<FileRecord>,
    /// When, in UTC: `2026-11-23T04:12:59Z`.
    pub installed: String,
}

/// One unpacked file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its file name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// An installed engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Its folder.
    pub folder: PathBuf,
    /// Its record.
    pub record: Record,
}

impl Record {
    /// Writes the record into `folder`.
    pub(super) fn write(&self, folder: &Path) -> Result<(), InstallError> {
        let path = folder.join(FILE_NAME);
        let written = serde_json::to_vec_pretty(self)
            .map_err(io::Error::other)
            .and_then(|bytes| std::fs::write(&path, bytes));
        written.map_err(|source| InstallError::Folder { path, source })
    }

    fn read(folder: &Path) -> Result<Self, EngineError> {
        let path = folder.join(FILE_NAME);
        let name = folder_name(folder);
        // The folder is named after build and version.
        let name = name.rsplit_once('-').map_or(&*name, |(build, _)| build).to_owned();
        let damaged = |reason: String| EngineError::LibraryDamaged {
            path: path.clone(),
            name: name.clone(),
            reason,
        };
        let bytes = std::fs::read(&path).map_err(|error| damaged(error.to_string()))?;
        let record: Self =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if record.format != FORMAT {
            let reason = format!("its format is {}, expected {FORMAT}", record.format);
            return Err(damaged(reason));
        }
        let names = record.files.iter().map(|file| &file.name).chain([&record.library]);
        if let Some(name) = names.into_iter().find(|name| !is_plain_file_name(name)) {
            return Err(damaged(format!("\"{}\" is no file name", name.escape_debug())));
        }
        Ok(record)
    }
}

impl Installed {
    /// The library to load.
    pub fn library(&self) -> PathBuf {
        self.folder.join(&self.record.library)
    }

    /// Looks at the library: its size against the record, and its version.
    ///
    /// # Errors
    /// When it is damaged or cannot be used, or is a plugin.
    pub fn open(&self) -> Result<Library, EngineError> {
        self.check_size()?;
        library::inspect(&self.library(), Origin::Installed(self.record.name.clone()))
    }

    /// The same for a plugin, of which only the size can be told.
    ///
    /// # Errors
    /// When it is damaged or cannot be used.
    pub fn check(&self) -> Result<(), EngineError> {
        match self.record.plugin {
            true => self.check_size(),
            false => self.open().map(drop),
        }
    }

    fn check_size(&self) -> Result<(), EngineError> {
        let path = self.library();
        let recorded = self.record.files.iter().find(|file| file.name == self.record.library);
        let found = std::fs::metadata(&path).map(|metadata| metadata.len());
        match (recorded, found) {
            (Some(file), Ok(found)) if found == file.bytes => Ok(()),
            (Some(file), Ok(found)) => {
                let reason = format!("it has {found} bytes, {} were installed", file.bytes);
                Err(self.damaged(path, reason))
            }
            (None, Ok(_)) => Err(self.damaged(path, "it has no record".to_owned())),
            (_, Err(error)) => Err(self.damaged(path, error.to_string())),
        }
    }

    /// Compares every file with its recorded hash.
    ///
    /// # Errors
    /// [`EngineError::LibraryDamaged`] naming the first file that differs.
    pub fn verify(&self) -> Result<(), EngineError> {
        for file in &self.record.files {
            let path = self.folder.join(&file.name);
            match sha256_of(&path, &mut |_| ()) {
                Ok(found) if found == file.sha256 => {}
                Ok(_) => {
                    let reason = "it differs from what was installed".to_owned();
                    return Err(self.damaged(path, reason));
                }
                Err(error) => return Err(self.damaged(path, error.to_string())),
            }
        }
        Ok(())
    }

    fn damaged(&self, path: PathBuf, reason: String) -> EngineError {
        EngineError::LibraryDamaged { path, name: self.record.name.clone(), reason }
    }
}

/// Every engine in the data folder, the newest version first; an unreadable record is an error in
/// its place. A data folder that does not exist holds none.
pub(in super::super) fn records(data_folder: &Path) -> Vec<Result<Installed, EngineError>> {
    let Ok(entries) = std::fs::read_dir(engines_folder(data_folder)) else { return Vec::new() };
    let mut found: Vec<Result<Installed, EngineError>> = entries
        .flatten()
        .map(|entry| entry.path())
        // Hidden folders belong to an installation that is at work or was cut off.
        .filter(|path| path.is_dir() && !folder_name(path).starts_with('.'))
        .map(|folder| Record::read(&folder).map(|record| Installed { folder, record }))
        .collect();
    let rank = |entry: &Result<Installed, EngineError>| match entry {
        Ok(installed) => (
            parse_version(&installed.record.version),
            installed.record.version.clone(),
            installed.record.name.clone(),
        ),
        Err(_) => (None, String::new(), String::new()),
    };
    found.sort_by_key(|entry| std::cmp::Reverse(rank(entry)));
    found
}

fn folder_name(folder: &Path) -> String {
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The time now, as `2026-11-23T04:12:59Z`.
pub(super) fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    timestamp(since.as_secs())
}

fn timestamp(seconds: u64) -> String {
    let (mut days, clock) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_704_067_199, "2023-12-31T23:59:59Z"),
            (1_795_407_179, "2026-11-23T04:12:59Z"),
        ] {
            assert_eq!(timestamp(seconds), expected);
        }
    }

    #[test]
    fn hashes_are_those_of_the_standard() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc").expect("file");
        assert_eq!(
            sha256_of(&path, &mut |_| ()).expect("hash"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
