//! What can be wrong with labels as a whole.

use super::Place;
use std::io;
use std::path::PathBuf;

/// Labels could not be read. Nothing is trained on half of a label file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    /// The folder of pictures is not there.
    #[error("image_dir: {} is no folder; expected the folder that the labels' paths start from", folder.display())]
    NoImageFolder {
        /// What was given.
        folder: PathBuf,
    },
    /// The label file is not there.
    #[error("json_path: there is no file {}; expected a label file: .json, .jsonl or .csv", file.display())]
    NotFound {
        /// What was given.
        file: PathBuf,
    },
    /// A file or folder cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file does not follow its format.
    #[error("{}, line {line}, column {column}: {problem}", file.display())]
    Malformed {
        /// The label file.
        file: PathBuf,
        /// From 1.
        line: u64,
        /// In characters, from 1.
        column: u64,
        /// What was found, what was expected.
        problem: String,
    },
    /// A field has a wrong type or is missing.
    #[error("{}, {place}: `{field}`: found {found}, expected {expected}", file.display())]
    Field {
        /// The label file.
        file: PathBuf,
        /// Which record.
        place: Place,
        /// The field's name.
        field: String,
        /// What is there.
        found: String,
        /// What should be.
        expected: &'static str,
    },
    /// A record is not an object with fields.
    #[error(
        "{}, {place}: found {found}, expected an object with the fields `path` and `prompt`",
        file.display()
    )]
    NoObject {
        /// The label file.
        file: PathBuf,
        /// Which record.
        place: Place,
        /// What is there.
        found: String,
    },
    /// A path leads out of the folder of pictures.
    #[error(
        "{}, {place}: the path `{path}` {problem}; expected a path inside of image_dir, relative to it",
        file.display()
    )]
    PathEscapes {
        /// The label file.
        file: PathBuf,
        /// Which record.
        place: Place,
        /// As it is written.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A table lacks a column.
    #[error(
        "{}: there is no column `{column}`, the columns are {}; name the right one with `{flag}`",
        file.display(),
        found.join(", ")
    )]
    NoColumn {
        /// The label file.
        file: PathBuf,
        /// The name looked for.
        column: String,
        /// The setting that names it.
        flag: &'static str,
        /// The names there are.
        found: Vec<String>,
    },
}

impl LabelError {
    /// Whether what was asked for is wrong, not what is in the files.
    pub fn is_request(&self) -> bool {
        matches!(self, Self::NoImageFolder { .. } | Self::NotFound { .. } | Self::NoColumn { .. })
    }
}
