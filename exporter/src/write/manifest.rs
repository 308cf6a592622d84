//! `manifest.json`: what an exported folder is, and what it was made from.

use serde::Serialize;
use serde_json::Value;

use super::{FileRecord, WriteError};
use crate::profile::Profile;
use crate::{Component, Precision};

/// Version of the manifest's own layout.
const FORMAT: u32 = 1;

/// The content of `manifest.json`.
#[derive(Debug, Serialize)]
pub(super) struct Manifest<'a> {
    format: u32,
    tool: String,
    component: String,
    profile: String,
    precision: String,
    architecture: &'a Value,
    source: Source,
    files: Vec<FileRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verification: Option<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Source {
    files: Vec<FileRecord>,
}

impl<'a> Manifest<'a> {
    pub fn new(
        component: Component,
        profile: Profile,
        precision: Precision,
        architecture: &'a Value,
        source: Vec<FileRecord>,
        files: Vec<FileRecord>,
    ) -> Self {
        Self {
            format: FORMAT,
            tool: concat!("pixart ", env!("CARGO_PKG_VERSION")).to_owned(),
            component: component.to_string(),
            profile: profile.to_string(),
            precision: precision.to_string(),
            architecture,
            source: Source { files: source },
            files,
            verification: None,
            notes: Vec::new(),
        }
    }

    /// With what the graph's user should know.
    pub fn with_notes(self, notes: Vec<String>) -> Self {
        Self { notes, ..self }
    }

    /// With the result of the check before the folder was kept.
    pub fn with_verification(self, verification: Option<Value>) -> Self {
        Self { verification, ..self }
    }

    pub fn to_json(&self) -> Result<String, WriteError> {
        let mut text = serde_json::to_string_pretty(self).map_err(|error| WriteError::Io {
            path: "manifest.json".into(),
            action: "write",
            source: error.into(),
        })?;
        text.push('\n');
        Ok(text)
    }
}
