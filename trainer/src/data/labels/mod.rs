//! What the pictures are and what they show: the seed's JSON, JSON lines, a CSV table, or a folder of
//! pictures with captions beside them.

mod entry;
mod error;
mod folder;
mod json;
mod relaxed;
mod table;

pub use error::LabelError;

use super::Captions;
use std::fmt;
use std::path::{Path, PathBuf};

/// Endings of the pictures that can be read.
pub const EXTENSIONS: [&str; 4] = ["jpeg", "jpg", "png", "webp"];

/// Where the labels are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A JSON list of records, as the seed has it. A comma after the last element is allowed.
    Json(PathBuf),
    /// A JSON record in every line.
    JsonLines(PathBuf),
    /// A table whose first line names the columns.
    Csv(PathBuf),
    /// Every picture in the folder of pictures and below, the caption in a text file of the same name
    /// with the ending `.txt`.
    Folder,
}

impl Source {
    /// The source in a label file, told by its ending: `.jsonl` or `.ndjson`, `.csv`, anything else is
    /// the seed's JSON.
    pub fn of_file(file: impl Into<PathBuf>) -> Self {
        let file = file.into();
        let ending = file.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        match ending.as_str() {
            "jsonl" | "ndjson" => Self::JsonLines(file),
            "csv" => Self::Csv(file),
            _ => Self::Json(file),
        }
    }

    /// The label file, if there is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Json(file) | Self::JsonLines(file) | Self::Csv(file) => Some(file),
            Self::Folder => None,
        }
    }
}

/// The names of the fields or columns that are read; others may be there and are not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The picture's path.
    pub path: String,
    /// The original caption.
    pub prompt: String,
    /// The long caption.
    pub sharegpt4v: String,
}

impl Default for Columns {
    /// The seed's names: `path`, `prompt`, `sharegpt4v`.
    fn default() -> Self {
        let [path, prompt, sharegpt4v] = ["path", "prompt", "sharegpt4v"].map(str::to_owned);
        Self { path, prompt, sharegpt4v }
    }
}

/// Where in its source a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 1.
    pub entry: usize,
    /// The line it begins at, from 1, where the format has one record a line or row.
    pub line: Option<u64>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {}", self.entry)?;
        self.line.map_or(Ok(()), |line| write!(f, " (line {line})"))
    }
}

/// One picture as its label describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Where the record is.
    pub place: Place,
    /// The picture, relative to the folder of pictures, and inside it.
    pub path: PathBuf,
    /// What it shows.
    pub captions: Captions,
    /// Height and width in pixels as the label says. The picture itself decides.
    pub declared: Option<(u64, u64)>,
}

/// All records of a source.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Labels {
    /// In the order of the file; of a folder, by path.
    pub records: Vec<Record>,
    /// Pictures in a folder that are of no kind that can be read, by path.
    pub unsupported: Vec<PathBuf>,
}

impl Labels {
    /// Reads a source. `image_dir` is the folder of pictures; no picture is opened.
    ///
    /// # Errors
    /// When the file cannot be read, is not of its format (with line and column), a field has a wrong
    /// type (with the number of the entry), or a path leads out of `image_dir`.
    pub fn read(source: &Source, columns: &Columns, image_dir: &Path) -> Result<Self, LabelError> {
        if !image_dir.is_dir() {
            return Err(LabelError::NoImageFolder { folder: image_dir.to_owned() });
        }
        let records = match source {
            Source::Json(file) => json::read_list(file, columns)?,
            Source::JsonLines(file) => json::read_lines(file, columns)?,
            Source::Csv(file) => table::read(file, columns)?,
            Source::Folder => return folder::read(image_dir),
        };
        Ok(Self { records, unsupported: Vec::new() })
    }
}

#[cfg(test)]
mod tests;
