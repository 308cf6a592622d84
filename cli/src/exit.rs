//! How a command ends: exit codes and the one place that prints an error.

use crate::progress;
use anyhow::Error;
use pixart_exporter::ExportError;
use pixart_exporter::naming::ConfigError;
use pixart_exporter::write::WriteError;
use pixart_runtime::bundle::BundleError;
use pixart_runtime::engine::EngineError;
use pixart_runtime::engine::install::InstallError;
use pixart_runtime::lora::LoraError;
use pixart_runtime::pipeline::PipelineError;
use pixart_trainer::data::CacheError;
use std::fmt::Display;
use std::io;
use std::process::ExitCode;

/// Shown under `pixart --help`.
pub const CODES: &str =
    "Exit codes: 0 done, 1 failed, 2 the request was wrong, 130 ended early by Ctrl-C";

/// The exit code of what Ctrl-C ended: 128 and the number of its signal, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// What was asked for cannot be done as asked: flags, config, sizes, paths. Exit code 2.
    Request(Error),
    /// The request was fine, carrying it out failed: files, engine, disk. Exit code 1.
    Failed(Error),
    /// Ctrl-C ended it early; what was done by then is there. Exit code 130.
    Interrupted(String),
}

impl Failure {
    /// A wrong request with this message.
    pub fn request(message: impl Display) -> Self {
        Self::Request(anyhow::anyhow!("{message}"))
    }
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        if is_request(&error) { Self::Request(error) } else { Self::Failed(error) }
    }
}

/// Whether a library's error is about what was asked for.
fn is_request(error: &Error) -> bool {
    let lora = match error.downcast_ref() {
        Some(PipelineError::Lora(error)) => Some(error),
        _ => error.downcast_ref::<LoraError>(),
    };
    lora.is_some_and(LoraError::is_request)
        || matches!(error.downcast_ref(), Some(PipelineError::Request(_)))
        || matches!(
            error.downcast_ref(),
            Some(
                CacheError::NoCache { .. }
                    | CacheError::OtherEncoder { .. }
                    | CacheError::NotShared { .. }
            )
        )
        || matches!(
            error.downcast_ref(),
            Some(
                EngineError::UnknownEngine { .. }
                    | EngineError::UnknownDevice { .. }
                    | EngineError::DeviceSuffix { .. }
                    | EngineError::DeviceEngine { .. }
                    | EngineError::UnknownOption { .. }
                    | EngineError::OptionValue { .. }
                    | EngineError::StaticShapes
            )
        )
        || matches!(
            error.downcast_ref(),
            Some(InstallError::UnknownBuild { .. } | InstallError::NoBuild { .. })
        )
        || matches!(
            error.downcast_ref(),
            Some(
                BundleError::Exists { .. }
                    | BundleError::Nested { .. }
                    | BundleError::NotOne { .. }
                    | BundleError::NoEngine { .. }
                    | BundleError::EngineInParts { .. }
            )
        )
        || matches!(
            error.downcast_ref(),
            Some(
                ExportError::Config(
                    ConfigError::FlagConflict { .. } | ConfigError::FlagInvalid { .. }
                ) | ExportError::BadTarget { .. }
                    | ExportError::SourceNotFound { .. }
                    | ExportError::SourceIsFile { .. }
                    | ExportError::Precision(_)
                    | ExportError::Write(
                        WriteError::Exists { .. }
                            | WriteError::NotAnExport { .. }
                            | WriteError::WouldReplaceSource { .. }
                    )
            )
        )
}

/// Prints the error, if there is one, and gives the exit code.
pub fn report(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(tell(failure, "")),
    }
}

/// Prints a failure, after `who` says whose it is, and gives the exit code.
pub fn tell(failure: Failure, who: &str) -> u8 {
    let (error, code) = match failure {
        Failure::Request(error) => (error, 2),
        Failure::Failed(error) => (error, 1),
        Failure::Interrupted(done) => {
            progress::tell(format_args!("interrupted: {who}{done}"));
            return INTERRUPTED;
        }
    };
    progress::tell(format_args!("error: {who}{error:#}"));
    code
}

/// Prints a line of results. A reader that went away (`pixart … | head`) is no failure.
pub fn print_line(line: impl Display) -> io::Result<()> {
    use std::io::Write;
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
