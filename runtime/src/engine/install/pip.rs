//! The user's own pip.

use std::{
    env, fmt, io,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use super::{Build, InstallError};

/// Ways to run pip, the likeliest first.
const CANDIDATES: [&[&str]; 5] = [
    &["python3", "-m", "pip"],
    &["python", "-m", "pip"],
    &["pip3"],
    &["pip"],
    // uv's own pip cannot download; the real one can be run through it.
    &["uv", "tool", "run", "pip"],
];

/// Lines of pip's output that an error shows.
const TAIL_LINES: usize = 12;

/// A command that runs pip.
pub(super) struct Pip {
    words: Vec<String>,
}

impl fmt::Display for Pip {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.words.join(" "))
    }
}

/// `PIXART_PIP` where set, else the first candidate that answers.
pub(super) fn find() -> Result<Pip, InstallError> {
    let named = env::var("PIXART_PIP").ok().filter(|command| !command.trim().is_empty());
    let candidates = match named {
        Some(command) => vec![split(&command)],
        None => CANDIDATES
            .iter()
            .map(|words| words.iter().map(|word| (*word).to_owned()).collect())
            .collect(),
    };
    first_working(candidates)
}

fn first_working(candidates: Vec<Vec<String>>) -> Result<Pip, InstallError> {
    let mut tried = Vec::new();
    for words in candidates {
        let pip = Pip { words };
        match pip.run(&["--version"]) {
            Ok(output) if output.status.success() => return Ok(pip),
            Ok(output) => {
                let last = tail(&output, 1);
                tried.push(format!("`{pip}`: {last}"));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tried.push(format!("`{pip}`: no such program"));
            }
            Err(error) => tried.push(format!("`{pip}`: {error}")),
        }
    }
    Err(InstallError::NoPip { tried })
}

/// A command line into words; a path with spaces that exists is one word.
fn split(command: &str) -> Vec<String> {
    if Path::new(command).is_file() {
        return vec![command.to_owned()];
    }
    command.split_whitespace().map(str::to_owned).collect()
}

impl Pip {
    /// Downloads the wheel that fits this machine into `folder` and returns its path.
    pub fn download(
        &self,
        build: &Build,
        version: Option<&str>,
        folder: &Path,
    ) -> Result<PathBuf, InstallError> {
        build.check_version(version)?;
        let requirement = build.requirement(version);
        let shown = format!("{self} download {requirement}");
        let folder_text = folder.to_string_lossy();
        let arguments = [
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--disable-pip-version-check",
            "--no-input",
            "--progress-bar=off",
            "--dest",
            &folder_text,
            &requirement,
        ];
        let output = self.run(&arguments).map_err(|error| InstallError::Pip {
            command: shown.clone(),
            status: "not started".to_owned(),
            tail: error.to_string(),
        })?;
        if !output.status.success() {
            return Err(InstallError::Pip {
                command: shown,
                status: output.status.to_string(),
                tail: tail(&output, TAIL_LINES),
            });
        }
        let wheels = wheels_in(folder)?;
        match <[PathBuf; 1]>::try_from(wheels) {
            Ok([wheel]) => Ok(wheel),
            Err(wheels) => Err(InstallError::WheelCount { command: shown, found: wheels.len() }),
        }
    }

    /// Runs pip with its output caught: standard output belongs to this program.
    fn run(&self, arguments: &[&str]) -> io::Result<Output> {
        let (program, rest) = self
            .words
            .split_first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "empty command"))?;
        Command::new(program).args(rest).args(arguments).stdin(Stdio::null()).output()
    }
}

fn wheels_in(folder: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let failed = |source| InstallError::Folder { path: folder.to_path_buf(), source };
    let mut wheels = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            wheels.push(path);
        }
    }
    Ok(wheels)
}

/// The last lines of what was written; complaints go to standard error.
fn tail(output: &Output, lines: usize) -> String {
    let text = match output.stderr.is_empty() {
        true => String::from_utf8_lossy(&output.stdout),
        false => String::from_utf8_lossy(&output.stderr),
    };
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    match all.len() {
        0 => "it wrote nothing".to_owned(),
        count => all[count.saturating_sub(lines)..].join("\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(unix)]
    use crate::engine::provider::BUILDS;

    fn words(command: &str) -> Vec<String> {
        command.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn commands_that_are_absent_are_listed() {
        let candidates = vec![words("no-such-python -m pip"), words("no-such-pip")];
        let error = first_working(candidates).err().expect("nothing works").to_string();
        assert!(error.contains("no-such-python -m pip"), "{error}");
        assert!(error.contains("no-such-pip"), "{error}");
        assert!(error.contains("PIXART_PIP"), "{error}");
    }

    #[test]
    fn a_command_is_split_at_spaces_unless_it_is_a_file() {
        assert_eq!(split("a/python -m  pip"), ["a/python", "-m", "pip"]);
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("my pip");
        std::fs::write(&path, "").expect("file");
        let path = path.to_string_lossy();
        assert_eq!(split(&path), [path.as_ref()]);
    }

    #[cfg(unix)]
    mod with_a_script {
        use super::*;

        /// A stand-in for pip that runs `body`. The shell reads it, because a file that was just
        /// written cannot always be executed while other tests start processes.
        fn script(folder: &Path, body: &str) -> Pip {
            let path = folder.join("pip.sh");
            std::fs::write(&path, body).expect("script");
            Pip { words: vec!["sh".to_owned(), path.to_string_lossy().into_owned()] }
        }

        #[test]
        fn the_last_lines_of_a_failure_are_told() {
            let folder = tempfile::tempdir().expect("folder");
            let body = "for i in 1 2 3; do echo \"line $i\" >&2; done; echo chatter; exit 7";
            let pip = script(folder.path(), body);
            let error = pip.download(&BUILDS[0], None, folder.path()).expect_err("fails");
            let text = error.to_string();
            assert!(text.contains("line 3") && text.contains('7'), "{text}");
            assert!(text.contains("download onnxruntime>=1.24"), "{text}");
        }

        #[test]
        fn exactly_one_wheel_must_arrive() {
            let folder = tempfile::tempdir().expect("folder");
            for (body, found) in [("exit 0", 0), ("touch \"$8/a.whl\" \"$8/b.whl\"", 2)] {
                let target = tempfile::tempdir().expect("target");
                let pip = script(folder.path(), body);
                let error = pip.download(&BUILDS[0], None, target.path()).expect_err(body);
                let right =
                    matches!(error, InstallError::WheelCount { found: n, .. } if n == found);
                assert!(right, "{error:?}");
            }
            let target = tempfile::tempdir().expect("target");
            let pip = script(folder.path(), "touch \"$8/a.whl\"");
            let wheel = pip.download(&BUILDS[0], None, target.path()).expect("one");
            assert_eq!(wheel, target.path().join("a.whl"));
        }
    }
}
