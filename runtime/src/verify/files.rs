//! The files of an export against the hashes in its manifest.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use crate::files::sha256_of;

use super::{
    VerifyError,
    manifest::{FileEntry, MANIFEST, Manifest},
};

/// Files that show that a folder is, or was, an exported component.
const MARKS: [&str; 3] = [MANIFEST, "model.onnx", "model.onnx_data"];

/// Copied from the source for other programs; neither listed nor read.
const NOT_LISTED: [&str; 2] = [MANIFEST, "config.json"];

/// What was found in one exported component's folder.
#[derive(Clone, Debug)]
pub struct CheckedFolder {
    /// The folder.
    pub folder: PathBuf,
    /// How many files its manifest lists.
    pub files: usize,
    /// Their bytes in all, as the manifest has them.
    pub bytes: u64,
    /// Everything that is not as it was written; empty if all is well.
    pub problems: Vec<FileProblem>,
}

/// One difference between a folder and its manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileProblem {
    /// There is no manifest, or it cannot be used, so nothing is known about the files.
    Manifest(String),
    /// A listed file is not there.
    Missing {
        /// Its name.
        name: String,
    },
    /// A listed file cannot be read, or is no file.
    Unreadable {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// A file is longer or shorter than it was; its hash is then not computed.
    Size {
        /// Its name.
        name: String,
        /// Its bytes.
        found: u64,
        /// Its bytes when it was written.
        expected: u64,
    },
    /// A file's content has changed.
    Hash {
        /// Its name.
        name: String,
        /// SHA-256 of its content.
        found: String,
        /// SHA-256 when it was written.
        expected: String,
    },
    /// Something is in the folder that the manifest does not list.
    Unlisted {
        /// Its name.
        name: String,
    },
}

impl fmt::Display for FileProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifest(reason) => write!(f, "{MANIFEST}: {reason}"),
            Self::Missing { name } => write!(f, "{name}: is missing"),
            Self::Unreadable { name, reason } => write!(f, "{name}: cannot be read: {reason}"),
            Self::Size { name, found, expected } => {
                write!(f, "{name}: has {found} bytes, expected {expected}")
            }
            Self::Hash { name, found, expected } => {
                write!(f, "{name}: has sha256 {found}, expected {expected}")
            }
            Self::Unlisted { name } => write!(f, "{name}: is not listed in {MANIFEST}"),
        }
    }
}

/// The exported components under `folder`: itself, or the folders directly in it.
///
/// A folder counts when it has a manifest or a graph, so that one whose manifest was lost is found
/// too.
///
/// # Errors
/// When the folder cannot be listed, or there is none.
pub fn component_folders(folder: &Path) -> Result<Vec<PathBuf>, VerifyError> {
    let is_component = |folder: &Path| MARKS.iter().any(|mark| folder.join(mark).exists());
    if is_component(folder) {
        return Ok(vec![folder.to_owned()]);
    }
    let inside = names(folder)?;
    // What an export that was killed left behind has a hidden name, and is nobody's model.
    let inside = inside.into_iter().filter(|name| !name.starts_with('.'));
    let found: Vec<_> =
        inside.map(|name| folder.join(name)).filter(|folder| is_component(folder)).collect();
    match found.is_empty() {
        true => Err(VerifyError::NothingExported { folder: folder.to_owned() }),
        false => Ok(found),
    }
}

/// Compares the files in a component's folder with its manifest. `progress` gets the bytes hashed so
/// far and those in all.
///
/// # Errors
/// When the folder cannot be listed. What is wrong with its files is not an error but the answer.
pub fn check_files(
    folder: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<CheckedFolder, VerifyError> {
    let present = names(folder)?;
    let mut checked =
        CheckedFolder { folder: folder.to_owned(), files: 0, bytes: 0, problems: Vec::new() };
    let manifest = match Manifest::require(folder) {
        Ok(manifest) => manifest,
        Err(VerifyError::Manifest { reason, .. }) => {
            checked.problems.push(FileProblem::Manifest(reason));
            return Ok(checked);
        }
        Err(error) => {
            checked.problems.push(FileProblem::Manifest(error.to_string()));
            return Ok(checked);
        }
    };
    checked.files = manifest.files.len();
    checked.bytes = manifest.files.iter().fold(0, |sum, entry| sum.saturating_add(entry.bytes));
    let mut done = 0u64;
    for entry in &manifest.files {
        let mut step = |bytes| {
            done += bytes;
            progress(done, checked.bytes);
        };
        checked.problems.extend(check_file(folder, entry, &mut step).err());
    }
    let known = |name: &String| {
        NOT_LISTED.contains(&name.as_str()) || manifest.files.iter().any(|e| e.name == *name)
    };
    let unlisted = present.into_iter().filter(|name| !known(name));
    checked.problems.extend(unlisted.map(|name| FileProblem::Unlisted { name }));
    Ok(checked)
}

fn check_file(
    folder: &Path,
    entry: &FileEntry,
    step: &mut dyn FnMut(u64),
) -> Result<(), FileProblem> {
    let FileEntry { name, bytes: expected, sha256 } = entry;
    let path = folder.join(name);
    if fs::symlink_metadata(&path).is_err() {
        return Err(FileProblem::Missing { name: name.clone() });
    }
    let unreadable = |reason: String| FileProblem::Unreadable { name: name.clone(), reason };
    let metadata = fs::metadata(&path).map_err(|error| unreadable(error.to_string()))?;
    if !metadata.is_file() {
        return Err(unreadable("it is not a file".to_owned()));
    }
    let found = metadata.len();
    if found != *expected {
        return Err(FileProblem::Size { name: name.clone(), found, expected: *expected });
    }
    let found = sha256_of(&path, step).map_err(|error| unreadable(error.to_string()))?;
    if !found.eq_ignore_ascii_case(sha256) {
        let expected = sha256.clone();
        return Err(FileProblem::Hash { name: name.clone(), found, expected });
    }
    Ok(())
}

/// The names in a folder, in order.
fn names(folder: &Path) -> Result<Vec<String>, VerifyError> {
    let unreadable = |source| VerifyError::Read { path: folder.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::files::hex;

    fn sha256(content: &str) -> String {
        hex(&Sha256::digest(content))
    }

    fn manifest() -> Value {
        let file = |name: &str, content: &str| json!({ "name": name, "bytes": content.len(), "sha256": sha256(content) });
        json!({
            "format": 1, "component": "vae_decoder", "precision": "fp32", "architecture": {},
            "files": [file("model.onnx", "graph"), file("model.onnx_data", "weights")],
        })
    }

    /// A folder like an export, without real graphs.
    fn export() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("folder");
        for (name, content) in
            [("model.onnx", "graph"), ("model.onnx_data", "weights"), ("config.json", "{}")]
        {
            fs::write(folder.path().join(name), content).expect("written");
        }
        write_manifest(folder.path(), &manifest());
        folder
    }

    fn write_manifest(folder: &Path, manifest: &Value) {
        fs::write(folder.join(MANIFEST), manifest.to_string()).expect("written");
    }

    fn problems(folder: &Path) -> Vec<FileProblem> {
        check_files(folder, &mut |_, _| ()).expect("checked").problems
    }

    #[test]
    fn an_untouched_folder_has_no_problems_and_progress_reaches_the_end() {
        let folder = export();
        let mut last = (0, 0);
        let checked =
            check_files(folder.path(), &mut |done, all| last = (done, all)).expect("checked");
        assert_eq!(checked.problems, []);
        assert_eq!((checked.files, checked.bytes, last), (2, 12, (12, 12)));
    }

    #[test]
    fn every_difference_is_reported_with_both_values() {
        let folder = export();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("model.onnx"), "grapX").expect("written");
        fs::write(at("model.onnx_data"), "weights and more").expect("written");
        fs::write(at("notes.txt"), "").expect("written");
        fs::create_dir(at("inner")).expect("folder");
        let name = |name: &str| name.to_owned();
        let expected = [
            FileProblem::Hash {
                name: name("model.onnx"),
                found: sha256("grapX"),
                expected: sha256("graph"),
            },
            FileProblem::Size { name: name("model.onnx_data"), found: 16, expected: 7 },
            FileProblem::Unlisted { name: name("inner") },
            FileProblem::Unlisted { name: name("notes.txt") },
        ];
        assert_eq!(problems(folder.path()), expected);
        fs::remove_file(at("model.onnx")).expect("removed");
        fs::remove_file(at("model.onnx_data")).expect("removed");
        fs::create_dir(at("model.onnx_data")).expect("folder");
        let found = problems(folder.path());
        assert_eq!(found[0], FileProblem::Missing { name: name("model.onnx") });
        assert!(matches!(&found[1], FileProblem::Unreadable { .. }), "{found:?}");
    }

    #[test]
    fn a_manifest_that_is_missing_or_broken_is_a_problem() {
        let folder = export();
        let mut far = manifest();
        far["format"] = json!(2);
        let mut none = manifest();
        none["files"] = json!([]);
        let mut outside = manifest();
        outside["files"][0]["name"] = json!("../secret");
        for (text, said) in [
            ("{\"format\": 1".to_owned(), "EOF"),
            ("[]".to_owned(), "invalid"),
            (far.to_string(), "expected 1"),
            (none.to_string(), "no files"),
            (outside.to_string(), "plain file name"),
            (" ".repeat((16 << 20) + 1), "bytes"),
        ] {
            fs::write(folder.path().join(MANIFEST), text).expect("written");
            match problems(folder.path()).as_slice() {
                [FileProblem::Manifest(reason)] => assert!(reason.contains(said), "{reason}"),
                other => panic!("{said}: {other:?}"),
            }
        }
        fs::remove_file(folder.path().join(MANIFEST)).expect("removed");
        let found = problems(folder.path());
        assert_eq!(found, [FileProblem::Manifest("the file is missing".to_owned())]);
    }

    #[cfg(unix)]
    #[test]
    fn links_of_a_download_cache_are_followed_and_circular_ones_are_problems() {
        use std::os::unix::fs::symlink;
        let folder = export();
        let at = |name: &str| folder.path().join(name);
        let store = tempfile::tempdir().expect("folder");
        fs::rename(at("model.onnx_data"), store.path().join("blob")).expect("moved");
        symlink(store.path().join("blob"), at("model.onnx_data")).expect("link");
        assert_eq!(problems(folder.path()), []);
        fs::remove_file(at("model.onnx_data")).expect("removed");
        symlink("model.onnx_data", at("model.onnx_data")).expect("link");
        let found = problems(folder.path());
        assert!(matches!(found.as_slice(), [FileProblem::Unreadable { .. }]), "{found:?}");
        fs::remove_file(at(MANIFEST)).expect("removed");
        symlink(MANIFEST, at(MANIFEST)).expect("link");
        let found = problems(folder.path());
        assert!(matches!(found.as_slice(), [FileProblem::Manifest(_)]), "{found:?}");
    }

    #[test]
    fn components_are_found_in_both_kinds_of_folder() {
        let root = tempfile::tempdir().expect("folder");
        let none = component_folders(root.path()).expect_err("nothing there");
        assert!(none.to_string().contains("pixart export"), "{none}");
        component_folders(&root.path().join("absent")).expect_err("nothing there");
        for name in ["vae_decoder", "transformer", "tokenizer", ".transformer.x.partial"] {
            let folder = root.path().join(name);
            fs::create_dir(&folder).expect("folder");
            let file = if name == "tokenizer" { "spiece.model" } else { "model.onnx" };
            fs::write(folder.join(file), "").expect("written");
        }
        let found = component_folders(root.path()).expect("found");
        let expected = ["transformer", "vae_decoder"].map(|name| root.path().join(name));
        assert_eq!(found, expected);
        assert_eq!(component_folders(&expected[0]).expect("found"), expected[..1]);
    }
}
