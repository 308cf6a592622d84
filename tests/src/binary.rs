//! The `pixart` binary, run in a folder of its own.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

use crate::{engines, fixtures};

/// The folder for caches inside a sandbox, which [`Sandbox::files`] leaves out.
const CACHE: &str = ".cache";

/// What one run of the binary did.
#[derive(Debug)]
pub struct Run {
    /// The exit code.
    pub code: i32,
    /// What was printed.
    pub stdout: String,
    /// What was reported.
    pub stderr: String,
}

impl Run {
    /// What a command did that has ended.
    ///
    /// # Panics
    /// When it was killed.
    pub fn new(output: &Output) -> Self {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        let code = output.status.code();
        let code = code.unwrap_or_else(|| panic!("killed: {}\n{stderr}", output.status));
        Self { code, stdout, stderr }
    }
}

/// That a run ends with `code` and says all of `said` on stderr.
///
/// # Panics
/// When it does not.
pub fn says(run: &Run, code: i32, said: &[&str]) {
    assert_eq!(run.code, code, "{run:?}");
    for said in said {
        assert!(run.stderr.contains(said), "`{said}` is not in {}", run.stderr);
    }
}

/// A temporary working folder. The cache lies in it; ONNX Runtime is the one that tests use.
pub struct Sandbox {
    folder: TempDir,
    /// Variables set and removed on top of the test's own environment.
    variables: Vec<(OsString, Option<OsString>)>,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Sandbox {
    /// An empty folder.
    ///
    /// # Panics
    /// When none can be made.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("pixart-test-").tempdir();
        let folder = folder.expect("a temporary folder");
        let variables = vec![
            ("PIXART_CACHE_DIR".into(), Some(folder.path().join(CACHE).into())),
            ("PIXART_ORT_LIBRARY".into(), engines::test_library().map(Into::into)),
            ("ORT_DYLIB_PATH".into(), None),
            ("NO_COLOR".into(), Some("1".into())),
        ];
        Self { folder, variables }
    }

    /// A folder with a copy of the tiny pipeline in `model`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn with_tiny_model() -> Self {
        let sandbox = Self::new();
        copy_folder(&fixtures::tiny(), &sandbox.path().join("model"));
        sandbox
    }

    /// Sets an environment variable of the binary.
    pub fn with(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.into(), Some(value.as_ref().to_owned())));
        self
    }

    /// Hides every ONNX Runtime from the binary.
    pub fn without_onnx_runtime(mut self) -> Self {
        self.variables.push(("PIXART_ORT_LIBRARY".into(), None));
        let nothing = self.path().join(CACHE).join("no-data");
        self.with("PIXART_DATA_DIR", nothing)
    }

    /// The working folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Runs the binary with `arguments` in the working folder.
    ///
    /// # Panics
    /// When the binary has not been built, or was killed.
    pub fn pixart<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Run {
        let output = self.command(arguments).output().expect("the binary starts");
        Run::new(&output)
    }

    /// The same, to be run in another way.
    ///
    /// # Panics
    /// When the binary has not been built.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        self.command_of(&binary(), arguments)
    }

    /// The same for another executable, such as a bundle.
    pub fn command_of<S: AsRef<OsStr>>(&self, program: &Path, arguments: &[S]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.path());
        for (name, value) in &self.variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// The pixels of a picture. Files with the same pixels can differ in what they say about themselves.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn pixels(&self, name: &str) -> image::RgbImage {
        let picture = image::open(self.path().join(name));
        picture.unwrap_or_else(|error| panic!("{name}: {error}")).into_rgb8()
    }

    /// Every file in the working folder but the cache, relative to it, in order.
    ///
    /// # Panics
    /// When the folder cannot be listed.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        list(self.path(), Path::new(""), &mut files);
        files.retain(|file| !file.starts_with(CACHE));
        files.sort();
        files
    }
}

fn list(root: &Path, below: &Path, files: &mut Vec<PathBuf>) {
    let folder = root.join(below);
    let entries =
        fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let entry = entry.expect("an entry");
        let path = below.join(entry.file_name());
        if entry.file_type().expect("its type").is_dir() {
            list(root, &path, files);
        } else {
            files.push(path);
        }
    }
}

/// A command under a limit on the size of a file, in blocks of 512 bytes. With `handled`, the program gets an
/// error, as from a full disk; else the system ends it.
#[cfg(unix)]
pub fn limited(command: &Command, blocks: u64, handled: bool) -> Command {
    let trap = if handled { "trap '' XFSZ; " } else { "" };
    let script = format!("{trap}ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        shell.current_dir(folder);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

/// Copies the files of a folder and of those below it.
///
/// # Panics
/// When something cannot be read or written.
pub fn copy_folder(from: &Path, to: &Path) {
    let mut files = Vec::new();
    list(from, Path::new(""), &mut files);
    for file in files {
        let target = to.join(&file);
        fs::create_dir_all(target.parent().expect("a file lies in a folder")).expect("a folder");
        fs::copy(from.join(&file), &target)
            .unwrap_or_else(|error| panic!("{}: {error}", target.display()));
    }
}

/// The binary of the build that the running test belongs to.
///
/// # Panics
/// When it has not been built.
pub fn binary() -> PathBuf {
    let test = env::current_exe().expect("the test's own path");
    // Tests lie in `deps`, binaries beside it.
    let folder = test.parent().and_then(Path::parent).expect("a build folder");
    let binary = folder.join("pixart").with_extension(env::consts::EXE_EXTENSION);
    assert!(
        binary.is_file(),
        "{} has not been built: run the tests through `scripts/test`, or `cargo build --release` first",
        binary.display()
    );
    binary
}
