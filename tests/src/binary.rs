//! Runs the `pixart` binary in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What a run of the binary came to.
#[derive(Debug)]
pub struct Run {
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// Results.
    pub stdout: String,
    /// Talk.
    pub stderr: String,
}

/// A temporary working folder with its own cache; ONNX Runtime is the tests' own.
pub struct Sandbox {
    folder: tempfile::TempDir,
    environment: Vec<(String, PathBuf)>,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Sandbox {
    /// An empty working folder.
    ///
    /// # Panics
    /// When no temporary folder can be made.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cache = folder.path().join(".cache");
        Self { folder, environment: vec![("PIXART_CACHE_DIR".into(), cache)] }
    }

    /// As on a machine without ONNX Runtime.
    #[must_use]
    pub fn without_onnx_runtime(self) -> Self {
        let data = self.path().join(".data");
        self.with("PIXART_DATA_DIR", data)
    }

    /// Sets an environment variable for the binary.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<PathBuf>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The working folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Runs `pixart` with these arguments.
    ///
    /// # Panics
    /// When the binary is missing.
    #[must_use]
    pub fn pixart(&self, args: &[&str]) -> Run {
        let output = Command::new(binary())
            .args(args)
            .current_dir(self.path())
            .env_remove("PIXART_ORT_LIBRARY")
            .env_remove("ORT_DYLIB_PATH")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .output()
            .expect("the pixart binary runs");
        Run {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Every file below the working folder, the cache left out.
    ///
    /// # Panics
    /// When a folder cannot be listed.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).expect("a readable folder") {
                let path = entry.expect("a readable entry").path();
                if path.is_dir() { walk(&path, into) } else { into.push(path) }
            }
        }
        let mut files = Vec::new();
        walk(self.path(), &mut files);
        files.retain(|file| !file.starts_with(self.path().join(".cache")));
        files.sort();
        files
    }
}

/// The binary that `scripts/test` built, beside the test executables.
fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let target = test.ancestors().nth(2).expect("target/release/deps/test");
    let binary = target.join("pixart").with_extension(std::env::consts::EXE_EXTENSION);
    assert!(binary.is_file(), "no {}: run the tests with scripts/test", binary.display());
    binary
}

/// Copies a folder of plain files and folders.
///
/// # Panics
/// When something cannot be copied.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a new folder");
    for entry in std::fs::read_dir(from).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("a copied file");
        }
    }
}
