//! The formats of picture files.

use std::{fmt, path::Path, str::FromStr};

/// A format that pictures can be written in and their texts read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// PNG: without loss.
    #[default]
    Png,
    /// JPEG: small, with loss.
    Jpeg,
    /// WebP, without loss. The lossy kind is not written.
    WebP,
}

/// A format that is none of [`ImageFormat::ALL`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("found `{0}`, expected png, jpeg or webp")]
pub struct UnknownFormat(pub String);

impl ImageFormat {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Png, Self::Jpeg, Self::WebP];

    /// The extension of its files: `png`, `jpg` or `webp`.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::WebP => "webp",
        }
    }

    /// The format whose files have this extension, in any case.
    pub fn from_extension(extension: &str) -> Option<Self> {
        match extension.to_ascii_lowercase().as_str() {
            "png" => Some(Self::Png),
            "jpg" | "jpeg" => Some(Self::Jpeg),
            "webp" => Some(Self::WebP),
            _ => None,
        }
    }

    /// The format that a path's extension stands for.
    pub fn from_path(path: &Path) -> Option<Self> {
        Self::from_extension(path.extension()?.to_str()?)
    }

    /// The longest side that the format can hold, in pixels.
    pub fn longest_side(self) -> u32 {
        match self {
            Self::Png => i32::MAX as u32,
            Self::Jpeg => u16::MAX.into(),
            Self::WebP => 1 << 14,
        }
    }
}

impl FromStr for ImageFormat {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        Self::from_extension(name).ok_or_else(|| UnknownFormat(name.to_owned()))
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::WebP => "webp",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_extensions_are_formats() {
        for format in ImageFormat::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
            assert_eq!(ImageFormat::from_extension(format.extension()), Some(format));
        }
        assert_eq!("JPG".parse(), Ok(ImageFormat::Jpeg));
        assert_eq!(ImageFormat::from_path("a/b.JPEG".as_ref()), Some(ImageFormat::Jpeg));
        assert_eq!(ImageFormat::from_path("png".as_ref()), None);
        let error = "gif".parse::<ImageFormat>().unwrap_err().to_string();
        assert_eq!(error, "found `gif`, expected png, jpeg or webp");
    }
}
