//! Pictures as files.

mod grid;
mod png;

pub use self::grid::grid;
pub use self::png::write_png;
pub use ::image::RgbImage;

use std::{io, path::PathBuf};

/// A picture could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the picture {}: {source}", path.display())]
pub struct ImageError {
    /// The file that was to be written.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}
