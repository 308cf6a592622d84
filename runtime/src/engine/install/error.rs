//! What can go wrong while an engine is fetched.

use std::path::PathBuf;

use super::super::EngineError;

/// An engine could not be installed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// No build of this name.
    #[error("there is no engine \"{name}\" to install; available: {}", available.join(", "))]
    UnknownBuild {
        /// What was asked for.
        name: String,
        /// What exists.
        available: Vec<&'static str>,
    },

    /// A provider that no wheel brings.
    #[error("{provider} cannot be installed: {instead}")]
    NoBuild {
        /// What was asked for.
        provider: &'static str,
        /// How else it is had.
        instead: &'static str,
    },

    /// A version that pip could misread.
    #[error("\"{version}\" is not a version number such as 1.32.0")]
    Version {
        /// What was asked for.
        version: String,
    },

    /// A version that the program cannot use.
    #[error("version {version} was asked for, but {oldest} or newer is needed")]
    TooOld {
        /// What was asked for.
        version: String,
        /// The oldest that serves.
        oldest: &'static str,
    },

    /// No working pip.
    #[error(
        "no working pip was found (tried {}); install Python with pip, or set PIXART_PIP to the \
         command that runs it",
        tried.join(", ")
    )]
    NoPip {
        /// The commands tried, and how each failed.
        tried: Vec<String>,
    },

    /// pip ran and failed.
    #[error("`{command}` failed ({status}); its last lines:\n{tail}")]
    Pip {
        /// The command line.
        command: String,
        /// Its exit status.
        status: String,
        /// The end of what it wrote.
        tail: String,
    },

    /// pip brought no wheel, or more than one.
    #[error("`{command}` left {found} wheels in its folder, expected one")]
    WheelCount {
        /// The command line.
        command: String,
        /// How many there were.
        found: usize,
    },

    /// The wheel is not what it should be.
    #[error("the wheel {wheel} is refused: {reason}")]
    Wheel {
        /// Its file name.
        wheel: String,
        /// What was found and what is expected.
        reason: String,
    },

    /// The library in the wheel cannot be used here.
    #[error("the library in {wheel} cannot be used: {source}")]
    Unusable {
        /// The wheel's file name.
        wheel: String,
        /// Why.
        source: Box<EngineError>,
    },

    /// A folder or file could not be read or written.
    #[error("cannot write to {}: {source}; set PIXART_DATA_DIR to another folder", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}
