//! Pictures as files: PNG, JPEG and WebP, grids, and the texts that say how a picture was made.
//!
//! A picture can carry a [`Metadata`]: the `parameters` text that the web UIs read and one JSON text of
//! our own, under these places:
//!
//! | | `parameters` | our JSON |
//! |---|---|---|
//! | PNG | text chunk `parameters` | text chunk `pixart` |
//! | JPEG, WebP | EXIF UserComment, UTF-16 | EXIF MakerNote, UTF-8 after `pixart\0` |
//!
//! The EXIF tag MakerNote is the place for a maker's own data. Further lines in UserComment would hide the
//! parameters, which must be its last line, and what is in ImageDescription is shown as a caption.
//! [`read_texts`] reads these and the texts of other programs back.

mod exif;
pub(crate) mod fit;
mod format;
mod grid;
mod input;
mod metadata;
mod png;
mod read;
mod save;

pub use self::format::{ImageFormat, UnknownFormat};
pub use self::grid::grid;
pub use self::input::{MAX_PIXELS, ReadImageError, read_mask, read_picture};
pub use self::metadata::{Metadata, PARAMETERS, Parameters, RECORD};
pub use self::png::write_png;
pub use self::read::{PictureTexts, ReadError, Text, is_picture, read_texts};
pub use self::save::{SaveOptions, save_image, save_new_image};
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
