//! What an export is asked to do, and what it reports.

use std::path::PathBuf;

use crate::Component;
use crate::checkpoint::OpenOptions;
use crate::naming::VariantFlags;
use crate::precision::{Int8Mode, Precision};
use crate::profile::Profile;
use crate::write::FileRecord;

/// How to export.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExportOptions {
    /// The engines the graphs are written for.
    pub profile: Profile,
    /// How the weights of the transformer and the text encoder are stored and computed with; also
    /// those of the auto-encoder, if it is exported alone.
    pub precision: Precision,
    /// How int8 computes; weight-only without it. Only for [`Precision::Int8`]. In a pipeline it
    /// says so for the transformer, and the text encoder is weight-only.
    pub int8_mode: Option<Int8Mode>,
    /// The precision of the auto-encoder: fp32, fp16 or bf16. Without it, fp32 in a pipeline.
    pub vae_precision: Option<Precision>,
    /// Replace an earlier export. Folders that hold anything else are never replaced.
    pub force: bool,
    /// What the tensors of the transformer do not show.
    pub variant: VariantFlags,
    /// Which files of a folder and which part of a file are read.
    pub open: OpenOptions,
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
    /// What the user should know about the result.
    pub warnings: Vec<String>,
}
