//! What an export is asked to do, and what it reports.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::Component;
use crate::naming::VariantFlags;
use crate::profile::Profile;
use crate::write::FileRecord;

/// Element type of the exported weights and of the arithmetic on them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// 32-bit IEEE floats.
    #[default]
    Fp32,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fp32 => "fp32",
        })
    }
}

/// A precision that is not supported.
#[derive(Debug, thiserror::Error)]
#[error("unsupported precision `{0}`: expected `fp32`, the only one so far")]
pub struct UnknownPrecision(String);

impl FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "fp32" => Ok(Self::Fp32),
            other => Err(UnknownPrecision(other.to_owned())),
        }
    }
}

/// How to export.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExportOptions {
    /// The engines the graphs are written for.
    pub profile: Profile,
    /// Element type of the weights.
    pub precision: Precision,
    /// Replace an earlier export. Folders that hold anything else are never replaced.
    pub force: bool,
    /// What the tensors of the transformer do not show.
    pub variant: VariantFlags,
}

/// How far an export is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The component being written.
    pub component: Component,
    /// Bytes of its weights that are written.
    pub bytes_done: u64,
    /// Bytes of its weights in all.
    pub bytes_total: u64,
}

/// A component that has been exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Which one.
    pub component: Component,
    /// Its folder.
    pub folder: PathBuf,
    /// The graph and its weights, as recorded in the manifest.
    pub files: Vec<FileRecord>,
    /// What its user should know, as recorded in the manifest; see [`Profile::notes`].
    pub notes: Vec<String>,
}
