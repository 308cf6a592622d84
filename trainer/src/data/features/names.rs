//! Which file is of which picture.

use super::{CaptionKind, Dataset, FeatureError};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// What a file has of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Moments,
    Caption(CaptionKind),
}

/// How many pictures a file can be of by its name, and how many captions.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// With buckets, the official trainer looks for names with the folder's before them.
    with_folder: bool,
    moments: HashMap<PathBuf, usize>,
    captions: HashMap<PathBuf, usize>,
    /// Pictures that are listed with several captions of a kind.
    several: [HashMap<PathBuf, usize>; 2],
}

impl Names {
    pub fn new(dataset: &Dataset) -> Self {
        let with_folder = dataset.sizing().multi_scale;
        let items = dataset.items().iter().map(|item| &item.path);
        // Pictures that are left out may have been extracted as well.
        let left_out = dataset.left_out().iter().map(|left_out| &left_out.path);
        let pictures: HashSet<&Path> = items.chain(left_out).map(PathBuf::as_path).collect();
        let claims = |part| {
            let mut claims = HashMap::new();
            for picture in &pictures {
                for name in candidates(picture, part, with_folder) {
                    *claims.entry(name).or_default() += 1;
                }
            }
            claims
        };
        Self {
            with_folder,
            moments: claims(Part::Moments),
            captions: claims(Part::Caption(CaptionKind::Prompt)),
            several: KINDS.map(|kind| several(dataset, kind)),
        }
    }

    /// The file of a picture in `folder`, which is there and can be of no other.
    pub fn find(&self, folder: &Path, picture: &Path, part: Part) -> Result<PathBuf, FeatureError> {
        let names = candidates(picture, part, self.with_folder);
        let Some(name) = names.iter().find(|name| folder.join(name).is_file()) else {
            let tried = names.iter().map(|name| folder.join(name)).collect();
            return Err(FeatureError::Missing { tried });
        };
        let path = folder.join(name);
        let claims = match part {
            Part::Moments => &self.moments,
            Part::Caption(_) => &self.captions,
        };
        match claims.get(name) {
            Some(&count) if count > 1 => return Err(FeatureError::Ambiguous { path, count }),
            _ => {}
        }
        let several =
            KINDS.iter().zip(&self.several).find(|(kind, _)| part == Part::Caption(**kind));
        match several.and_then(|(_, several)| several.get(picture)) {
            Some(&count) => Err(FeatureError::SeveralCaptions { path, count }),
            None => Ok(path),
        }
    }
}

const KINDS: [CaptionKind; 2] = [CaptionKind::Prompt, CaptionKind::Sharegpt4v];

/// The names that a picture's file may have, in the order in which they are looked for. The official trainer reads
/// `folder_name` with buckets and `name` without; the tools write `name`, for moments only up to its first dot.
fn candidates(picture: &Path, part: Part, with_folder: bool) -> Vec<PathBuf> {
    let ending = match part {
        Part::Moments => ".npy",
        Part::Caption(_) => ".npz",
    };
    let name = picture.file_stem().unwrap_or_default();
    let file = |parts: &[&OsStr]| -> OsString {
        parts.iter().copied().chain([OsStr::new(ending)]).collect()
    };
    let mut names = Vec::new();
    let above = picture.parent().filter(|above| with_folder && !above.as_os_str().is_empty());
    if let Some((above, last)) = above.and_then(|above| Some((above, above.file_name()?))) {
        names.push(above.with_file_name(file(&[last, OsStr::new("_"), name])));
    }
    names.push(file(&[name]).into());
    let short = up_to_first_dot(name);
    if part == Part::Moments && short != name {
        names.push(file(&[short]).into());
    }
    names
}

fn up_to_first_dot(name: &OsStr) -> &OsStr {
    match Path::new(name).file_stem() {
        Some(shorter) if shorter != name => up_to_first_dot(shorter),
        _ => name,
    }
}

/// Pictures that are listed more than once with different captions of a kind, and how many those are. The tool
/// keeps the first one that it comes by.
fn several(dataset: &Dataset, kind: CaptionKind) -> HashMap<PathBuf, usize> {
    let mut captions = HashMap::<&Path, HashSet<Option<&String>>>::new();
    for item in dataset.items() {
        captions.entry(&item.path).or_default().insert(item.captions.get(kind));
    }
    let captions = captions.into_iter().map(|(path, texts)| (path.to_owned(), texts.len()));
    captions.filter(|(_, count)| *count > 1).collect()
}
