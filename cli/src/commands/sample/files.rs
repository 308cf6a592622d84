//! The settings of picture files: folder, name, format, texts.

use super::{name::Template, settings::Settings};
use crate::exit::Failure;
use pixart_runtime::image::ImageFormat;
use std::path::PathBuf;

/// How the pictures of a run become files.
#[derive(Debug)]
pub struct Files {
    pub folder: PathBuf,
    pub template: Template,
    pub format: ImageFormat,
    /// As it was typed, else the format's own.
    pub extension: String,
    pub jpeg_quality: u8,
    /// Whether pictures say how they were made.
    pub metadata: bool,
}

impl Files {
    /// The file of a picture of this name.
    pub fn path(&self, stem: &str) -> PathBuf {
        self.folder.join(format!("{stem}.{}", self.extension))
    }
}

/// Extensions of picture formats that are not written. What else follows a point belongs to the name.
const OTHER_FORMATS: [&str; 12] =
    ["avif", "bmp", "exr", "gif", "heic", "heif", "jp2", "jxl", "ppm", "qoi", "tif", "tiff"];

impl Settings {
    /// The files' settings, checked.
    pub fn files(&self) -> Result<Files, Failure> {
        let asked = match self.output_format.as_deref().map(str::parse::<ImageFormat>) {
            Some(Err(error)) => return Err(Failure::request(format!("output_format: {error}"))),
            Some(Ok(format)) => Some(format),
            None => None,
        };
        let (typed_folder, name) = match &self.output_name {
            Some(name) => split_folder(name),
            None => (None, "{number}"),
        };
        let folder = match (&self.output_path, typed_folder) {
            (Some(path), Some(folder)) => {
                return Err(Failure::request(format!(
                    "output_name: found the folder `{folder}` beside output_path `{}`, expected only one \
                     of them",
                    path.display()
                )));
            }
            (_, Some(folder)) if folder.contains(['{', '}']) => {
                return Err(Failure::request(format!(
                    "output_name: found a brace in the folder `{folder}`, expected braces only in the name"
                )));
            }
            (None, Some(folder)) => PathBuf::from(folder),
            (Some(path), None) => path.clone(),
            (None, None) => "samples".into(),
        };
        let (stem, extension) = split_extension(name)?;
        let named = extension.and_then(ImageFormat::from_extension);
        let format = match (asked, named) {
            (Some(asked), Some(named)) if asked != named => {
                return Err(Failure::request(format!(
                    "output_format: found {asked}, but output_name ends in .{}; leave one of them out",
                    extension.unwrap_or_default()
                )));
            }
            (asked, named) => asked.or(named).unwrap_or_default(),
        };
        let jpeg_quality = match (self.jpeg_quality, format) {
            (None, _) => 95,
            (Some(quality @ 1..=100), ImageFormat::Jpeg) => quality as u8,
            (Some(1..=100), other) => {
                return Err(Failure::request(format!(
                    "jpeg_quality: the format is {other}, which is without loss; leave it out or give \
                     output_format jpeg"
                )));
            }
            (Some(found), _) => {
                return Err(Failure::request(format!(
                    "jpeg_quality: found {found}, expected 1 to 100"
                )));
            }
        };
        Ok(Files {
            folder,
            template: Template::parse(stem)?,
            format,
            extension: extension.unwrap_or(format.extension()).to_owned(),
            jpeg_quality,
            metadata: !self.no_metadata.unwrap_or(false),
        })
    }
}

/// The folder that was typed in front of a name, and the name.
fn split_folder(name: &str) -> (Option<&str>, &str) {
    match name.rfind(std::path::is_separator) {
        // The root keeps its separator.
        Some(end) => (Some(if end == 0 { &name[..1] } else { &name[..end] }), &name[end + 1..]),
        None => (None, name),
    }
}

/// A name without the extension of a picture, and that extension.
fn split_extension(name: &str) -> Result<(&str, Option<&str>), Failure> {
    let Some((stem, extension)) = name.rsplit_once('.') else { return Ok((name, None)) };
    if OTHER_FORMATS.contains(&extension.to_ascii_lowercase().as_str()) {
        return Err(Failure::request(format!(
            "output_name: found the extension .{extension}, expected .png, .jpg or .webp, or none"
        )));
    }
    match ImageFormat::from_extension(extension) {
        Some(_) => Ok((stem, Some(extension))),
        None => Ok((name, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(name: &str, format: Option<&str>, path: Option<&str>) -> Result<Files, String> {
        let settings = Settings {
            output_name: Some(name.to_owned()),
            output_format: format.map(str::to_owned),
            output_path: path.map(Into::into),
            ..Settings::default()
        };
        settings.files().map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn a_name_may_bring_folder_and_format() {
        for (name, folder, extension, format) in [
            ("cat.png", "samples", "png", ImageFormat::Png),
            ("out/cat.JPEG", "out", "JPEG", ImageFormat::Jpeg),
            ("./{seed}.webp", ".", "webp", ImageFormat::WebP),
            ("../a/b.png", "../a", "png", ImageFormat::Png),
            ("/cat", "/", "png", ImageFormat::Png),
            ("v1.5", "samples", "png", ImageFormat::Png),
        ] {
            let found = files(name, None, None).unwrap();
            assert_eq!(found.folder, PathBuf::from(folder), "{name}");
            assert_eq!((found.extension.as_str(), found.format), (extension, format), "{name}");
        }
        let found = files("v1.5", Some("jpeg"), Some("x")).unwrap();
        assert_eq!((found.extension.as_str(), found.folder), ("jpg", PathBuf::from("x")));
    }

    #[test]
    fn contradictions_are_refused() {
        for (name, format, path, expected) in [
            ("cat.png", Some("jpeg"), None, "output_name ends in .png"),
            ("a/cat", None, Some("b"), "expected only one of them"),
            ("{seed}/cat", None, None, "braces only in the name"),
            ("cat.gif", None, None, "the extension .gif"),
            ("cat", Some("gif"), None, "found `gif`, expected png, jpeg or webp"),
            ("a/", None, None, "no name"),
            (".png", None, None, "no name"),
        ] {
            let error = files(name, format, path).unwrap_err();
            assert!(error.contains(expected), "{name}: {error}");
        }
    }
}
