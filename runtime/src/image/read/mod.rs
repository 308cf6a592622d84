//! The texts of picture files, our own and others'. Files come from strangers: every length is checked
//! and capped, and no pixel is decoded.

mod jpeg;
mod png;
mod webp;

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use super::{ImageFormat, PARAMETERS};

/// Most bytes of one text, unpacked. Workflows of node editors have some hundred KiB.
const MOST_TEXT: u64 = 16 << 20;

/// Most bytes of all texts of a file.
const MOST_TEXTS: u64 = 32 << 20;

/// What a text counts on top of its length, so that millions of empty ones end, too.
const OVERHEAD: u64 = 128;

/// A text of a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The key of the PNG chunk, the name of the EXIF tag, `comment` (JPEG) or `XMP`. Our record is
    /// [`RECORD`](super::RECORD) in every format.
    pub key: String,
    /// The text.
    pub text: String,
}

/// What a picture file says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PictureTexts {
    /// What it is, by its first bytes.
    pub format: ImageFormat,
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
    /// Its texts in the order they have in the file.
    pub texts: Vec<Text>,
}

impl PictureTexts {
    /// The first text with this key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.texts.iter().find(|text| text.key == key).map(|text| text.text.as_str())
    }

    /// The web UIs' text: the PNG text `parameters`, or the EXIF tag UserComment.
    pub fn parameters(&self) -> Option<&str> {
        self.get(PARAMETERS).or_else(|| self.get("UserComment"))
    }
}

/// A picture whose texts cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct ReadError {
    /// The file.
    pub path: PathBuf,
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("cannot read the file: {0}")]
    Io(io::Error),
    #[error("{0}, expected a picture: PNG, JPEG or WebP")]
    NoPicture(String),
    #[error("the file ends in the middle of the picture, so its copy is incomplete; copy it again")]
    Truncated,
    #[error("the file is damaged: {0}; copy it again")]
    Damaged(String),
    #[error(
        "{what} has more than {limit} bytes, the most that is read; no picture needs so much text"
    )]
    TooLong { what: String, limit: u64 },
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Io(error),
        }
    }
}

/// Whether a file begins like a picture of a known format. Anything else, unreadable files too, is none.
pub fn is_picture(path: &Path) -> bool {
    // A named pipe would wait for its writer, and what was read could not be read again.
    path.is_file() && File::open(path).is_ok_and(|mut file| matches!(format(&mut file), Ok(Ok(_))))
}

/// Reads size and texts of a PNG, JPEG or WebP file, whoever wrote it. Pixels are not looked at.
///
/// # Errors
/// When the file cannot be read, is no such picture, is cut off or damaged, or has texts of more than
/// 16 MiB (one) or 32 MiB (all), packed ones unpacked.
pub fn read_texts(path: &Path) -> Result<PictureTexts, ReadError> {
    read(path).map_err(|problem| ReadError { path: path.to_owned(), problem })
}

fn read(path: &Path) -> Result<PictureTexts, Problem> {
    let mut file = File::open(path).map_err(Problem::Io)?;
    let metadata = file.metadata().map_err(Problem::Io)?;
    if !metadata.is_file() {
        return Err(Problem::NoPicture("found no ordinary file".to_owned()));
    }
    let format = format(&mut file)?.map_err(Problem::NoPicture)?;
    file.rewind()?;
    let mut source =
        Source { reader: BufReader::new(file), length: metadata.len(), left: MOST_TEXTS };
    let found = match format {
        ImageFormat::Png => png::read(&mut source),
        ImageFormat::Jpeg => jpeg::read(&mut source),
        ImageFormat::WebP => webp::read(&mut source),
    };
    let ((width, height), texts) = found?;
    Ok(PictureTexts { format, width, height, texts })
}

/// The format by the first bytes, or what was found instead.
fn format(file: &mut File) -> io::Result<Result<ImageFormat, String>> {
    let mut head = Vec::new();
    file.take(12).read_to_end(&mut head)?;
    Ok(match head.as_slice() {
        [] => Err("found an empty file".to_owned()),
        head if head.starts_with(b"\x89PNG\r\n\x1a\n") => Ok(ImageFormat::Png),
        head if head.starts_with(b"\xff\xd8\xff") => Ok(ImageFormat::Jpeg),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => Ok(ImageFormat::WebP),
        head => Err(format!("found a file that begins with \"{}\"", head.escape_ascii())),
    })
}

/// Width and height in pixels, and the texts.
type Found = ((u32, u32), Vec<Text>);

/// A file that is read from the front.
struct Source {
    reader: BufReader<File>,
    length: u64,
    /// Bytes of text that may still come.
    left: u64,
}

impl Source {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// `length` bytes of text; `what` is for the message.
    fn text(&mut self, length: u64, what: &str) -> Result<Vec<u8>, Problem> {
        self.spend(length, what)?;
        let mut bytes = Vec::new();
        // Memory grows with what is really there.
        (&mut self.reader).take(length).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < length { Err(Problem::Truncated) } else { Ok(bytes) }
    }

    /// Counts bytes of text.
    fn spend(&mut self, length: u64, what: &str) -> Result<(), Problem> {
        let what = || what.escape_debug().to_string();
        if length > MOST_TEXT {
            return Err(Problem::TooLong { what: what(), limit: MOST_TEXT });
        }
        let all = || Problem::TooLong { what: "all text together".into(), limit: MOST_TEXTS };
        self.left = self.left.checked_sub(length + OVERHEAD).ok_or_else(all)?;
        Ok(())
    }

    fn skip(&mut self, length: u64) -> Result<(), Problem> {
        let place = self.reader.stream_position()?;
        match place.checked_add(length) {
            Some(target) if target <= self.length => {
                self.reader.seek(SeekFrom::Start(target))?;
                Ok(())
            }
            _ => Err(Problem::Truncated),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Metadata, RECORD, RgbImage, SaveOptions, save_image};
    use std::fs;

    fn error(content: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        fs::write(&path, content).unwrap();
        assert_eq!(is_picture(&path), !content.is_empty() && content[0] != b'h');
        read_texts(&path).unwrap_err().to_string()
    }

    fn file(format: ImageFormat) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let metadata = Metadata { parameters: "für".into(), record: "{}".into() };
        let options = SaveOptions { format, metadata: Some(&metadata), ..Default::default() };
        save_image(&path, &RgbImage::new(40, 30), &options).unwrap();
        fs::read(&path).unwrap()
    }

    #[test]
    fn what_is_no_picture_is_said() {
        assert!(error(b"").contains("an empty file"));
        let message = error(b"hello, this is no picture");
        assert!(
            message.contains("a.png: found a file that begins with \"hello, this "),
            "{message}"
        );
        let folder = tempfile::tempdir().unwrap();
        let message = read_texts(folder.path()).unwrap_err().to_string();
        assert!(
            message.contains("no ordinary file") || message.contains("cannot read"),
            "{message}"
        );
        let message = read_texts(&folder.path().join("missing.png")).unwrap_err().to_string();
        assert!(message.contains("missing.png: cannot read the file"), "{message}");
    }

    #[test]
    fn a_file_cut_off_anywhere_is_an_error() {
        for format in ImageFormat::ALL {
            let whole = file(format);
            for end in 12..whole.len() {
                let message = error(&whole[..end]);
                assert!(message.contains("incomplete"), "{format} at {end}: {message}");
            }
        }
    }

    #[test]
    fn damage_is_no_danger() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        for format in ImageFormat::ALL {
            let whole = file(format);
            for place in 12..whole.len() {
                for value in [0, 0xff] {
                    let mut damaged = whole.clone();
                    damaged[place] = value;
                    fs::write(&path, &damaged).unwrap();
                    // Texts or an error, but no panic and no endless loop.
                    if let Ok(texts) = read_texts(&path) {
                        assert!(texts.texts.len() <= 3, "{texts:?}");
                    }
                }
            }
            fs::write(&path, &whole).unwrap();
            assert_eq!(read_texts(&path).unwrap().get(RECORD), Some("{}"));
        }
    }
}
