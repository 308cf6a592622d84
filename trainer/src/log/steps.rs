//! The steps of a run as lines of JSON.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{LogError, now, write_whole};

/// What is known about one step of the optimizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepRecord {
    /// Counted from 1 over the whole training.
    pub step: u64,
    /// Counted from 1.
    pub epoch: u64,
    /// The mean over the step's pictures.
    pub loss: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// What the loss was multiplied by.
    pub loss_scale: f64,
    /// The norm of all gradients before clipping.
    pub gradient_norm: f64,
    /// How long the step took.
    pub seconds: f64,
    /// Pictures of the step, those of all accumulated batches.
    pub images: u64,
}

impl StepRecord {
    /// Pictures a second; 0 for a step that took no time.
    pub fn images_per_second(&self) -> f64 {
        match self.seconds > 0.0 {
            true => self.images as f64 / self.seconds,
            false => 0.0,
        }
    }
}

/// A record as it is written. What is not finite is `null`: JSON has no other way.
#[derive(Serialize, Deserialize)]
struct Line {
    step: u64,
    epoch: u64,
    loss: Option<f64>,
    learning_rate: f64,
    loss_scale: f64,
    gradient_norm: Option<f64>,
    seconds: f64,
    images_per_second: f64,
    /// Seconds since 1970.
    time: f64,
}

/// The file of the steps, and their losses.
pub(super) struct Steps {
    path: PathBuf,
    file: File,
    losses: Vec<(u64, f64)>,
}

impl Steps {
    /// Begins anew, or keeps what is there up to and including step `resume`.
    pub fn open(path: &Path, resume: Option<u64>) -> Result<Self, LogError> {
        let mut losses = Vec::new();
        if let Some(last) = resume
            && path.exists()
        {
            let kept = kept(path, last)?;
            let text: String = kept.iter().map(|(text, _)| format!("{text}\n")).collect();
            write_whole(path, text.as_bytes())?;
            losses = kept.iter().filter_map(|(_, line)| Some((line.step, line.loss?))).collect();
        }
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(LogError::file(path, "write the log"))?;
        Ok(Self { path: path.to_owned(), file, losses })
    }

    /// Writes a step, in one piece.
    pub fn add(&mut self, record: &StepRecord) -> Result<(), LogError> {
        let finite = |value: f64| value.is_finite().then_some(value);
        let line = Line {
            step: record.step,
            epoch: record.epoch,
            loss: finite(record.loss),
            learning_rate: record.learning_rate,
            loss_scale: record.loss_scale,
            gradient_norm: finite(record.gradient_norm),
            seconds: record.seconds,
            images_per_second: record.images_per_second(),
            time: now(),
        };
        self.losses.extend(line.loss.map(|loss| (line.step, loss)));
        let failed = || LogError::file(&self.path, "write the log");
        let text = serde_json::to_string(&line).map_err(|error| failed()(error.into()))?;
        self.file.write_all(format!("{text}\n").as_bytes()).map_err(failed())
    }

    /// The loss of each step that has one.
    pub fn losses(&self) -> &[(u64, f64)] {
        &self.losses
    }
}

/// The lines of the steps up to `last`. A last line without an end is what a killed program leaves.
fn kept(path: &Path, last: u64) -> Result<Vec<(String, Line)>, LogError> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(LogError::file(path, "read the log to go on with"))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut kept = Vec::new();
    for (index, text) in whole.lines().enumerate() {
        let line: Line = serde_json::from_str(text).map_err(|error| {
            let (path, line, reason) = (path.to_owned(), index + 1, error.to_string());
            LogError::Record { path, line, reason }
        })?;
        if line.step <= last {
            kept.push((text.to_owned(), line));
        }
    }
    Ok(kept)
}
