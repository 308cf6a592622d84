//! A folder of pictures with a text file beside each.

use super::{Captions, EXTENSIONS, LabelError, Labels, Place, Record};
use std::fs;
use std::path::{Path, PathBuf};

/// Endings of pictures that are told of instead of being passed over without a word.
const UNSUPPORTED: [&str; 9] = ["avif", "bmp", "gif", "heic", "heif", "jxl", "tif", "tiff", "jp2"];

/// Folders in folders; more is a loop or a mistake.
const DEPTH: usize = 32;

/// Every picture in the folder and below, by path. Hidden files and folders are passed over, and
/// folders that are links are not followed.
pub(super) fn read(image_dir: &Path) -> Result<Labels, LabelError> {
    let mut found = Vec::new();
    list(image_dir, Path::new(""), 0, &mut found)?;
    found.sort();
    let mut labels = Labels::default();
    for path in found {
        if !has_ending(&path, &EXTENSIONS) {
            labels.unsupported.push(path);
            continue;
        }
        let captions = Captions::new(caption(&image_dir.join(&path).with_extension("txt"))?, None);
        let place = Place { entry: labels.records.len() + 1, line: None };
        labels.records.push(Record { place, path, captions, declared: None });
    }
    Ok(labels)
}

fn list(
    root: &Path,
    below: &Path,
    depth: usize,
    found: &mut Vec<PathBuf>,
) -> Result<(), LabelError> {
    let folder = root.join(below);
    let unreadable = |source| LabelError::Read { path: folder.clone(), source };
    for entry in fs::read_dir(&folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = below.join(entry.file_name());
        if entry.file_type().map_err(unreadable)?.is_dir() {
            if depth < DEPTH {
                list(root, &path, depth + 1, found)?;
            }
        } else if has_ending(&path, &EXTENSIONS) || has_ending(&path, &UNSUPPORTED) {
            found.push(path);
        }
    }
    Ok(())
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    endings.contains(&ending.as_str())
}

/// The text of a caption file; none if there is no such file.
fn caption(file: &Path) -> Result<Option<String>, LabelError> {
    match file.is_file() {
        true => super::json::read_text(file).map(Some),
        false => Ok(None),
    }
}
