//! Progress on stderr: a bar on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Where there is no terminal, a line at most this often.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// One task at a time, counted in steps or bytes.
pub struct Progress {
    bar: Option<ProgressBar>,
    label: String,
    last_line: Instant,
}

/// What a count means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Solver steps, pictures
    Count,
    /// Bytes of a file
    Bytes,
}

impl Progress {
    /// Starts a task of `total` units.
    pub fn start(label: impl Into<String>, total: u64, unit: Unit) -> Self {
        let label = label.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = match unit {
                Unit::Count => "{msg:>24} [{bar:30}] {pos}/{len}  {elapsed} elapsed, {eta} left",
                Unit::Bytes => "{msg:>24} [{bar:30}] {bytes}/{total_bytes}  {bytes_per_sec}",
            };
            let style = ProgressStyle::with_template(template).expect("the template is constant");
            ProgressBar::new(total)
                .with_style(style.progress_chars("=> "))
                .with_message(label.clone())
        });
        if let Some(bar) = &bar {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self { bar, label, last_line: Instant::now() }
    }

    /// `done` of `total` units are done.
    pub fn update(&mut self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        } else if self.last_line.elapsed() >= PLAIN_INTERVAL {
            eprintln!("{}: {}%", self.label, done * 100 / total.max(1));
            self.last_line = Instant::now();
        }
    }

    /// Removes the bar; what follows is the caller's line.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
