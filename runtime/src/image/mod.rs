//! Pictures as files.

pub(crate) mod fit;
mod grid;
mod png;
mod read;

pub use self::grid::grid;
pub use self::png::write_png;
pub use self::read::{MAX_PIXELS, ReadImageError, read_mask, read_picture};
pub use ::image::{GrayImage, RgbImage};

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
