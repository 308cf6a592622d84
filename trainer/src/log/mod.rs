//! What a training run leaves to be looked at: its settings, a record of every step, TensorBoard's
//! events, pictures, and the curve of the loss.
//!
//! ```text
//! output/
//!   args.yaml               the settings in force
//!   logs/training.jsonl     one JSON object a step
//!   logs/events.out.tfevents.*
//!   logs/loss.png           written by `finish`
//!   logs/run_1/…            the logs of a run that another one in the same folder has replaced
//! ```

mod curve;
mod events;
pub mod glyphs;
mod steps;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use image::RgbImage;
use pixart_runtime::image::{SaveOptions, save_image};

pub use steps::StepRecord;

use events::{Events, Value};
use steps::Steps;

/// The steps' file in the folder of the logs.
const STEPS_FILE: &str = "training.jsonl";

/// The curve's file in the folder of the logs.
const CURVE_FILE: &str = "loss.png";

/// A log cannot be written or gone on with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// A file or folder cannot be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What failed: `write the log`, …
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A line of the log to go on with is no record of a step.
    #[error(
        "{}: line {line}: {reason}; expected the record of a step; correct the line or move the file away",
        path.display()
    )]
    Record {
        /// The log.
        path: PathBuf,
        /// Its line, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

impl LogError {
    fn file(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File { path, action, source }
    }
}

/// The log of a run.
pub struct TrainingLog {
    folder: PathBuf,
    steps: Steps,
    events: Events,
}

impl TrainingLog {
    /// Begins the log of a run whose output is `folder`, or goes on with it behind step `resume`: what
    /// was logged of later steps is dropped. `settings` is the text of `args.yaml`. A run that does
    /// not go on puts the logs of an earlier one in `folder` aside.
    ///
    /// # Errors
    /// When a file cannot be written, or the log to go on with is damaged.
    pub fn open(folder: &Path, settings: &str, resume: Option<u64>) -> Result<Self, LogError> {
        let logs = folder.join("logs");
        std::fs::create_dir_all(&logs).map_err(LogError::file(&logs, "create this folder"))?;
        write_whole(&folder.join("args.yaml"), settings.as_bytes())?;
        if resume.is_none() {
            put_aside(&logs)?;
        }
        let steps = Steps::open(&logs.join(STEPS_FILE), resume)?;
        let events = Events::create(&logs, resume)?;
        Ok(Self { folder: logs, steps, events })
    }

    /// Logs a step. What is written is there when this returns, also if the program is killed then.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn step(&mut self, record: &StepRecord) -> Result<(), LogError> {
        self.steps.add(record)?;
        let values = [
            ("loss", record.loss),
            ("learning_rate", record.learning_rate),
            ("loss_scale", record.loss_scale),
            ("epoch", record.epoch as f64),
            ("seconds_per_step", record.seconds),
            ("images_per_second", record.images_per_second()),
            ("gradient_norm", record.gradient_norm),
        ];
        let values = values.into_iter().map(|(tag, value)| Value::of_number(tag, value as f32));
        self.events.write(record.step, values.collect())
    }

    /// Logs pictures that were made with the weights of a step, for TensorBoard; they are not written
    /// as files.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn pictures(&mut self, step: u64, pictures: &[(String, RgbImage)]) -> Result<(), LogError> {
        let values = pictures.iter().enumerate().map(|(index, (prompt, picture))| {
            // By number, so that the pictures of all steps are one row, whatever the prompt holds.
            Value::of_picture(&format!("samples/{index:02}"), prompt, picture)
        });
        let values = values.collect::<io::Result<Vec<_>>>();
        let values = values.map_err(LogError::file(&self.folder, "compress a picture"))?;
        self.events.write(step, values)
    }

    /// Writes the curve of the loss, and returns its path; none where no step has a loss. A run may
    /// go on afterwards.
    ///
    /// # Errors
    /// When the picture cannot be written.
    pub fn finish(&mut self) -> Result<Option<PathBuf>, LogError> {
        let losses = self.steps.losses();
        if losses.is_empty() {
            return Ok(None);
        }
        let path = self.folder.join(CURVE_FILE);
        save_image(&path, &curve::draw(losses), &SaveOptions::default()).map_err(|error| {
            LogError::File {
                path: error.path,
                action: "write the loss curve",
                source: error.source,
            }
        })?;
        Ok(Some(path))
    }
}

/// Writes a file that appears complete or not at all.
fn write_whole(path: &Path, content: &[u8]) -> Result<(), LogError> {
    let write = || {
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new();
        file.prefix(".pixart-");
        // A temporary file is private by default; the result is an ordinary file.
        #[cfg(unix)]
        file.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = file.tempfile_in(folder)?;
        file.write_all(content)?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(LogError::file(path, "write this file"))
}

/// Moves the logs of an earlier run into a folder of their own, which TensorBoard shows as another run.
fn put_aside(logs: &Path) -> Result<(), LogError> {
    let failed = |path: &Path| LogError::file(path, "put the logs of an earlier run aside");
    let is_log = |name: &str| {
        name == STEPS_FILE || name == CURVE_FILE || name.starts_with(events::FILE_PREFIX)
    };
    let mut old = Vec::new();
    for entry in std::fs::read_dir(logs).map_err(failed(logs))? {
        let name = entry.map_err(failed(logs))?.file_name();
        if name.to_str().is_some_and(is_log) {
            old.push(name);
        }
    }
    if old.is_empty() {
        return Ok(());
    }
    let aside = (1..).map(|k| logs.join(format!("run_{k}"))).find(|path| !path.exists());
    let aside = aside.unwrap_or_else(|| logs.join("run"));
    std::fs::create_dir(&aside).map_err(failed(&aside))?;
    for name in old {
        let from = logs.join(&name);
        std::fs::rename(&from, aside.join(&name)).map_err(failed(&from))?;
    }
    Ok(())
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}
