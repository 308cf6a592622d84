//! What is typed for a LoRA: a path and, after a colon, a strength.

use std::path::{Path, PathBuf};

use super::LoraError;

/// Strengths beyond this are slips of the keyboard.
const LARGEST: f32 = 100.0;

/// A LoRA file or folder, and how strongly it is applied.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSpec {
    /// A safetensors file, or a folder with one.
    pub path: PathBuf,
    /// The factor on its changes, from -100 to 100: 1 is what was trained, 0 leaves it out.
    pub strength: f32,
}

impl LoraSpec {
    /// Reads `PATH` or `PATH:STRENGTH`. A text that names something that exists is a path, whatever
    /// colons are in it.
    ///
    /// # Errors
    /// When what follows the colon of an existing path is not a number in range, or the path does not
    /// exist.
    pub fn parse(text: &str) -> Result<Self, LoraError> {
        let whole = Path::new(text);
        if whole.exists() {
            return Ok(Self { path: whole.to_owned(), strength: 1.0 });
        }
        let missing = |path: &Path| LoraError::Missing { path: path.to_owned() };
        let (path, strength) = match text.rsplit_once(':') {
            Some((path, strength)) => (Path::new(path), strength.trim()),
            None => return Err(missing(whole)),
        };
        let number = strength.parse::<f32>();
        if !path.exists() {
            // The colon of a drive (`C:\a`) starts no strength.
            return Err(missing(if number.is_ok() { path } else { whole }));
        }
        match number {
            Ok(strength) if strength.abs() <= LARGEST => {
                Ok(Self { path: path.to_owned(), strength })
            }
            _ => Err(LoraError::Strength { path: path.to_owned(), found: strength.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strength_follows_the_last_colon() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("a.safetensors");
        std::fs::write(&file, "x").expect("file");
        let file = file.to_str().expect("text");
        for (suffix, strength) in
            [("", 1.0), (":0.5", 0.5), (":-1", -1.0), (":0", 0.0), (": 2 ", 2.0)]
        {
            let spec = LoraSpec::parse(&format!("{file}{suffix}")).expect(suffix);
            assert_eq!(spec, LoraSpec { path: file.into(), strength });
        }
        for suffix in [":", ":strong", ":nan", ":inf", ":101", ":0,5"] {
            let error = LoraSpec::parse(&format!("{file}{suffix}")).expect_err(suffix);
            assert!(matches!(error, LoraError::Strength { .. }), "{suffix}: {error}");
        }
        for text in ["nowhere", "nowhere:0.5", "C:\\nowhere", "nowhere:strong"] {
            let error = LoraSpec::parse(text).expect_err(text);
            assert!(matches!(error, LoraError::Missing { .. }), "{text}: {error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn an_existing_path_is_taken_as_it_is() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("a:0.5");
        std::fs::write(&file, "x").expect("file");
        let spec = LoraSpec::parse(file.to_str().expect("text")).expect("a path");
        assert_eq!(spec, LoraSpec { path: file, strength: 1.0 });
    }
}
