//! What verification reads of a manifest.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::VerifyError;
use crate::{bundle::store, engine::is_plain_file_name};

/// Name of the file.
pub(super) const MANIFEST: &str = "manifest.json";

/// The manifest format this version reads.
const FORMAT: u64 = 1;

/// No real manifest comes near; a larger file is something else.
const MOST_BYTES: u64 = 16 << 20;

#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    pub format: u64,
    pub component: String,
    pub precision: String,
    pub architecture: Value,
    pub files: Vec<FileEntry>,
}

#[derive(Debug, Deserialize)]
pub(super) struct FileEntry {
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

impl Manifest {
    /// Reads `folder/manifest.json`; `None` if there is no such file.
    pub fn read(folder: &Path) -> Result<Option<Self>, VerifyError> {
        let path = folder.join(MANIFEST);
        let Some(place) = store::place(&path).ok().flatten() else { return Ok(None) };
        let invalid = |reason: String| VerifyError::Manifest { path: path.clone(), reason };
        if place.bytes > MOST_BYTES {
            return Err(invalid(format!("it has more than {MOST_BYTES} bytes")));
        }
        let text =
            place.read().map_err(|source| VerifyError::Read { path: path.clone(), source })?;
        let manifest: Self =
            serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
        if manifest.format != FORMAT {
            let found = manifest.format;
            return Err(invalid(format!("found format {found}, expected {FORMAT}")));
        }
        if manifest.files.is_empty() {
            return Err(invalid("it lists no files".to_owned()));
        }
        for entry in &manifest.files {
            if !is_plain_file_name(&entry.name) {
                let name = entry.name.escape_debug();
                return Err(invalid(format!(
                    "it lists \"{name}\", which is not a plain file name in its folder"
                )));
            }
        }
        Ok(Some(manifest))
    }

    /// As [`Manifest::read`], where there must be one.
    pub fn require(folder: &Path) -> Result<Self, VerifyError> {
        let path: PathBuf = folder.join(MANIFEST);
        Self::read(folder)?
            .ok_or_else(|| VerifyError::Manifest { path, reason: "the file is missing".to_owned() })
    }
}
