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
        verification: Option<Value>,
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
            verification,
        }
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
