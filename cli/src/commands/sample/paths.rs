//! Paths in pictures that are shown to others: they must not tell who drew them.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// A path as it may stand in a picture.
///
/// Relative ones stay as they were typed. Of absolute ones, the home folder becomes `~`, which
/// [`expanded`] undoes; elsewhere, and above the working folder, a path with the user's name in it keeps its
/// last part only.
pub fn shared(path: &Path) -> String {
    shared_by(path, dirs::home_dir().as_deref())
}

fn shared_by(path: &Path, home: Option<&Path>) -> String {
    let name = home.and_then(Path::file_name);
    if let Some(below) = home.filter(|_| name.is_some()).and_then(|h| path.strip_prefix(h).ok()) {
        let parts = below.components().map(|part| part.as_os_str().to_string_lossy());
        return std::iter::once("~".into()).chain(parts).collect::<Vec<_>>().join("/");
    }
    let outside = path.is_absolute() || path.components().any(|p| p == Component::ParentDir);
    let telling = name.is_some_and(|name| path.iter().any(|part| same(part, name)));
    match path.file_name() {
        Some(last) if outside && telling => last.to_string_lossy().into_owned(),
        // What is really called `~` is no home folder.
        _ if path.starts_with("~") => format!("./{}", path.display()),
        _ => path.display().to_string(),
    }
}

fn same(part: &OsStr, name: &OsStr) -> bool {
    part.eq_ignore_ascii_case(name)
}

/// The path that [`shared`] was given, on a machine where there is one.
pub fn expanded(path: &str) -> PathBuf {
    match (path.strip_prefix('~'), dirs::home_dir()) {
        (Some(""), Some(home)) => home,
        (Some(rest), Some(home)) if rest.starts_with('/') => {
            home.join(rest.trim_start_matches('/'))
        }
        _ => path.into(),
    }
}

/// What people call a model: the name of its folder or file, without the folder of the part.
pub fn model_name(path: &Path) -> String {
    const PARTS: [&str; 5] = ["transformer", "text_encoder", "vae", "vae_decoder", "tokenizer"];
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let whole = match path.parent() {
        Some(parent) if PARTS.iter().any(|part| path.ends_with(part)) => parent,
        _ => &path,
    };
    let extension = whole.extension().and_then(OsStr::to_str);
    let is_file = matches!(extension, Some("safetensors" | "pth" | "pt" | "bin" | "ckpt"));
    let name = if is_file { whole.file_stem() } else { whole.file_name() };
    let home = dirs::home_dir();
    let telling = home.as_deref().is_some_and(|home| home == whole);
    name.filter(|_| !telling).map_or("model".to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn paths_do_not_tell_the_users_name() {
        for (path, expected) in [
            ("models/demo", "models/demo"),
            ("anna/model", "anna/model"),
            ("../models/demo", "../models/demo"),
            ("/data/models/x", "/data/models/x"),
            ("/home/anna/models/x", "~/models/x"),
            ("/home/anna", "~"),
            ("/scratch/anna/models/x", "x"),
            ("/scratch/Anna/x", "x"),
            ("../../anna/x", "x"),
            ("~/x", "./~/x"),
        ] {
            assert_eq!(shared_by(path.as_ref(), Some("/home/anna".as_ref())), expected, "{path}");
        }
        // A home that is the root folder tells nothing.
        assert_eq!(shared_by("/data/x".as_ref(), Some("/".as_ref())), "/data/x");
        assert_eq!(shared_by("/data/x".as_ref(), None), "/data/x");
    }

    #[test]
    fn a_path_at_home_is_found_again() {
        let home = dirs::home_dir().expect("a home folder");
        let path = home.join("models").join("x");
        assert_eq!(expanded(&shared(&path)), path);
        assert_eq!(expanded("~"), home);
        assert_eq!(expanded("~x"), PathBuf::from("~x"));
    }

    #[test]
    fn models_are_called_by_their_folder_or_file() {
        for (path, expected) in [
            ("models/demo/transformer", "demo"),
            ("models/demo", "demo"),
            ("models/PixArt-Sigma-XL-2-512-MS.pth", "PixArt-Sigma-XL-2-512-MS"),
            ("v1.5", "v1.5"),
        ] {
            assert_eq!(model_name(path.as_ref()), expected);
        }
    }
}
