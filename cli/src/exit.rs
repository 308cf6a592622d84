//! How a command ends: exit codes and the one place that prints an error.

use std::fmt::Display;
use std::process::ExitCode;

/// Shown under `pixart --help`.
pub const CODES: &str = "Exit codes: 0 done, 1 failed, 2 the request was wrong";

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// What was asked for cannot be done as asked: flags, config, sizes, paths. Exit code 2.
    Request(anyhow::Error),
    /// The request was fine, carrying it out failed: files, engine, disk. Exit code 1.
    Failed(anyhow::Error),
}

impl Failure {
    /// A wrong request with this message.
    pub fn request(message: impl Display) -> Self {
        Self::Request(anyhow::anyhow!("{message}"))
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Prints the error, if there is one, and gives the exit code.
pub fn report(result: Result<(), Failure>) -> ExitCode {
    let (error, code) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Request(error)) => (error, 2),
        Err(Failure::Failed(error)) => (error, 1),
    };
    // A reader that went away (`pixart … | head`) is no failure worth words.
    let gone = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    if !error.downcast_ref().is_some_and(gone) {
        eprintln!("error: {error:#}");
    }
    ExitCode::from(code)
}
