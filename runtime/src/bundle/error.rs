//! What can be wrong with a bundle, and with making one.

use std::path::PathBuf;

use crate::{engine::EngineError, model_folder::ModelError};

/// A bundle cannot be read or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The end is missing.
    #[error(
        "{} is a bundle that was cut short: found {found} bytes, expected {expected}; copy it again",
        file.display()
    )]
    CutShort {
        /// The file.
        file: PathBuf,
        /// Its size.
        found: u64,
        /// Its size when it was written.
        expected: u64,
    },
    /// The end is missing, and what says how much of it.
    #[error(
        "{} was cut short: found {found} bytes, which end within the program or right behind it; copy it again",
        file.display()
    )]
    CutEarly {
        /// The file.
        file: PathBuf,
        /// Its size.
        found: u64,
    },
    /// What says where everything lies cannot be used.
    #[error("{} is a damaged bundle: {reason}; copy it again", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Written by another version.
    #[error(
        "{} is a bundle of format {found}, this program reads format {expected}; use the program in it, \
         or make it again",
        file.display()
    )]
    Format {
        /// The file.
        file: PathBuf,
        /// What it has.
        found: u32,
        /// What this program reads.
        expected: u32,
    },
    /// Bytes differ from those that were written.
    #[error("{}: altered since it was made: {}; copy the file again", file.display(), entries.join(", "))]
    Altered {
        /// The file.
        file: PathBuf,
        /// What differs.
        entries: Vec<String>,
    },
    /// A plain file where a bundle was expected.
    #[error("{} is no bundle; expected a file that `pixart bundle` made", file.display())]
    NotOne {
        /// The file.
        file: PathBuf,
    },
    /// A bundle where a plain program or a folder was expected.
    #[error(
        "{} is a bundle itself, and bundles hold no bundles; get its folders with `{} bundle --extract DIR`, \
         and make the new one with a plain pixart",
        file.display(),
        file.display()
    )]
    Nested {
        /// The file.
        file: PathBuf,
    },
    /// The output is there already.
    #[error("{} exists already; {advice}", path.display())]
    Exists {
        /// The file or folder.
        path: PathBuf,
        /// What to do.
        advice: &'static str,
    },
    /// The output cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What was to be written could not be opened again.
    #[error("{} is not written, since it could not be opened: {reason}", path.display())]
    Unusable {
        /// The bundle.
        path: PathBuf,
        /// What a reader would say.
        reason: String,
    },
    /// A component that cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A graph that cannot be used.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A part without files.
    #[error("{}: found no {part} there, expected {expected}", folder.display())]
    Part {
        /// The folder.
        folder: PathBuf,
        /// What was looked for.
        part: &'static str,
        /// The files.
        expected: &'static str,
    },
    /// A file whose name cannot stand in a bundle.
    #[error("{} cannot be bundled: {reason}", file.display())]
    Name {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file differs from its manifest.
    #[error(
        "{} differs from what its manifest says it was when it was exported; export the model again, or \
         copy it again",
        file.display()
    )]
    Differs {
        /// The file.
        file: PathBuf,
    },
    /// An engine of several libraries.
    #[error(
        "the engine {name} has {count} libraries that load one another, and a bundle can start one that \
         stands alone; choose --engine cpu or --engine tract"
    )]
    EngineInParts {
        /// Its name.
        name: String,
        /// How many.
        count: usize,
    },
    /// No such engine here.
    #[error(
        "engine: found no \"{name}\" here, expected one of {}; `pixart engine install {name}` fetches what it \
         knows",
        installed.join(", ")
    )]
    NoEngine {
        /// What was asked for.
        name: String,
        /// What there is.
        installed: Vec<String>,
    },
}
