//! `manifest.json`: what an exported folder is, and what it was made from.

use serde::Serialize;
use serde_json::Value;

use super::{FileRecord, WriteError};
use crate::precision::WeightClass;

/// Version of the manifest's own layout.
const FORMAT: u32 = 1;

/// The content of `manifest.json`.
#[derive(Debug, Serialize)]
pub(super) struct Manifest<'a> {
    pub format: u32,
    pub tool: &'a str,
    pub component: &'a str,
    pub profile: &'a str,
    pub precision: &'a str,
    /// Only of int8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub int8_mode: Option<&'a str>,
    /// How the weights are stored.
    pub weights: Vec<WeightClass>,
    /// What a check of the numbers found, if there was one: an object with the engine, what was
    /// compared and the errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<Value>,
    pub architecture: &'a Value,
    pub source: Source,
    pub files: Vec<FileRecord>,
    /// What the graph's user should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Source {
    pub files: Vec<FileRecord>,
}

impl Default for Manifest<'_> {
    fn default() -> Self {
        Self {
            format: FORMAT,
            tool: concat!("pixart ", env!("CARGO_PKG_VERSION")),
            component: "",
            profile: "",
            precision: "",
            int8_mode: None,
            weights: Vec::new(),
            verification: None,
            architecture: &Value::Null,
            source: Source::default(),
            files: Vec::new(),
            notes: Vec::new(),
        }
    }
}

impl Manifest<'_> {
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
