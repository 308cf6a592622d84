//! `training.json`: what is in a checkpoint beside tensors. Written last, so that it completes it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Component, Path},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Name of the file.
pub(super) const FILE: &str = "training.json";

/// Version of the layout.
const FORMAT: u32 = 1;

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Model,
    Lora,
}

/// The optimizer whose state is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct OptimizerRecord {
    pub name: String,
    pub steps: u64,
}

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    /// Counts the checkpoints of a folder in the order they were saved in, which is not that of their
    /// steps when training went on from an earlier one.
    pub sequence: u64,
    pub kind: Kind,
    pub step: u64,
    pub epoch: u64,
    pub optimizer: Option<OptimizerRecord>,
    /// Updates of the average.
    pub average: Option<u64>,
    pub state: BTreeMap<String, Value>,
    /// Every other file with its size.
    pub files: BTreeMap<String, u64>,
}

impl Record {
    /// A record without files.
    pub fn new(kind: Kind, sequence: u64, [step, epoch]: [u64; 2]) -> Self {
        let (optimizer, average) = (None, None);
        let (state, files) = (BTreeMap::new(), BTreeMap::new());
        Self { format: FORMAT, sequence, kind, step, epoch, optimizer, average, state, files }
    }

    /// Reads the record of a folder and checks that every file it names is there in full. What is wrong
    /// comes back as text.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let text = fs::read(folder.join(FILE)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!("found no {FILE}"),
            _ => format!("{FILE} cannot be read: {error}"),
        })?;
        // Looked at first: what other versions write may have other fields.
        let value: Value =
            serde_json::from_slice(&text).map_err(|error| format!("{FILE}: {error}"))?;
        if value["format"] != FORMAT {
            let found = &value["format"];
            return Err(format!("{FILE}: found format {found}, expected {FORMAT}"));
        }
        let record: Self =
            serde_json::from_value(value).map_err(|error| format!("{FILE}: {error}"))?;
        for (name, &expected) in &record.files {
            if !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
                return Err(format!("{FILE} names {name:?}, expected files inside the folder"));
            }
            let found = fs::metadata(folder.join(name));
            match found.map(|found| found.len()) {
                Ok(found) if found == expected => {}
                Ok(found) => return Err(format!("{name} has {found} bytes, expected {expected}")),
                Err(error) => return Err(format!("{name} cannot be read: {error}")),
            }
        }
        Ok(record)
    }
}
