//! A small picture of what is being drawn, in a file or on the terminal.

use super::terminal::Terminal;
use crate::exit::Failure;
use anyhow::Context;
use image::RgbImage;
use image::imageops::{self, FilterType};
use ndarray::{ArrayD, s};
use pixart_runtime::image::{grid, write_png};
use pixart_runtime::vae::LatentPreview;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

/// Where a preview goes.
pub enum Target {
    File(PathBuf),
    Terminal(Terminal),
}

impl Target {
    /// Reads the setting, and finds out that there will be a preview before the long work starts.
    pub fn parse(name: &str) -> Result<Self, Failure> {
        if name == "terminal" {
            if !std::io::stderr().is_terminal() {
                return Err(Failure::request(
                    "preview: found `terminal`, but stderr is none; name a file, --preview FILE.png",
                ));
            }
            return Ok(Self::Terminal(Terminal::detect(|name| std::env::var(name).ok())));
        }
        let path = PathBuf::from(name);
        if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
            return Err(Failure::request(format!(
                "preview: found `{name}`, expected `terminal` or a file whose name ends in .png"
            )));
        }
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => ".".as_ref(),
        };
        tempfile::tempfile_in(folder)
            .with_context(|| format!("preview: cannot write into {}", folder.display()))?;
        Ok(Self::File(path))
    }
}

/// Shows the pictures that are being drawn, side by side where they are several.
pub struct Preview {
    target: Target,
    map: LatentPreview,
    interval: usize,
    /// The pictures of the batch by their number, as they were last seen.
    batch: BTreeMap<usize, RgbImage>,
    /// The step they are at, of how many, and whether that is shown already.
    step: usize,
    steps: usize,
    shown: bool,
    failed: bool,
}

impl Preview {
    /// A preview every `interval` steps.
    pub fn new(target: Target, map: LatentPreview, interval: usize) -> Self {
        Self {
            target,
            map,
            interval,
            batch: BTreeMap::new(),
            step: 0,
            steps: 0,
            shown: true,
            failed: false,
        }
    }

    /// Notes what a picture will look like after `step` of `steps`.
    pub fn note(&mut self, index: usize, step: usize, steps: usize, predicted: &ArrayD<f32>) {
        if self.shown && step <= self.step {
            // Another batch has begun.
            self.batch.clear();
        }
        (self.step, self.steps, self.shown) = (step, steps, false);
        if step.is_multiple_of(self.interval) || step == steps {
            self.batch.insert(index, self.map.picture(predicted.slice(s![0, .., .., ..])));
        }
    }

    /// Shows the batch, once all its pictures have come as far. What cannot be shown is told once.
    pub fn show(&mut self) {
        let due = self.step.is_multiple_of(self.interval) || self.step == self.steps;
        if std::mem::replace(&mut self.shown, true) || !due || self.failed {
            return;
        }
        let columns: Vec<Vec<&RgbImage>> = self.batch.values().map(|image| vec![image]).collect();
        let whole = grid(&columns);
        let result = match &mut self.target {
            Target::File(path) => {
                write_png(path, &enlarged(&whole)).map_err(|error| error.to_string())
            }
            Target::Terminal(terminal) => {
                let drawn = terminal.draw(&whole);
                std::io::stderr().write_all(&drawn).map_err(|error| error.to_string())
            }
        };
        if let Err(error) = result {
            self.failed = true;
            eprintln!("warning: preview: {error}; there is none from here on");
        }
    }
}

/// Latents are an eighth of the picture; a viewer shows more of twice that.
fn enlarged(image: &RgbImage) -> RgbImage {
    let (width, height) = image.dimensions();
    let factor = 256u32.div_ceil(width.max(height).max(1)).clamp(2, 8);
    imageops::resize(image, factor * width, factor * height, FilterType::CatmullRom)
}
