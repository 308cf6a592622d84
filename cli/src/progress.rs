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
    unit: Unit,
    started: Instant,
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
                Unit::Bytes => {
                    "{msg:>24} [{bar:30}] {bytes}/{total_bytes}  {bytes_per_sec}, {eta} left"
                }
            };
            let style = ProgressStyle::with_template(template).expect("the template is constant");
            ProgressBar::new(total)
                .with_style(style.progress_chars("=> "))
                .with_message(label.clone())
        });
        if let Some(bar) = &bar {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        let now = Instant::now();
        Self { bar, label, unit, started: now, last_line: now }
    }

    /// `done` of `total` units are done.
    pub fn update(&mut self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        } else if self.last_line.elapsed() >= PLAIN_INTERVAL {
            let percent = done * 100 / total.max(1);
            match self.unit {
                Unit::Count => eprintln!("{}: {percent}%", self.label),
                Unit::Bytes => {
                    let speed = Speed::new(done, total, self.started.elapsed());
                    eprintln!("{}: {percent}%, {speed}", self.label);
                }
            }
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

/// How fast bytes have been done so far, and how long the rest takes at that rate.
struct Speed {
    bytes_per_second: f64,
    seconds_left: f64,
}

impl Speed {
    fn new(done: u64, total: u64, elapsed: Duration) -> Self {
        let bytes_per_second = done as f64 / elapsed.as_secs_f64().max(1e-3);
        let left = total.saturating_sub(done) as f64;
        Self { bytes_per_second, seconds_left: left / bytes_per_second.max(1.0) }
    }
}

impl std::fmt::Display for Speed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let megabytes = self.bytes_per_second / 1e6;
        write!(f, "{megabytes:.0} MB/s, {:.0} s left", self.seconds_left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_from_the_rate() {
        let speed = Speed::new(300_000_000, 1_200_000_000, Duration::from_secs(2));
        assert_eq!(speed.to_string(), "150 MB/s, 6 s left");
        // Nothing done yet, and nothing to do.
        assert!(Speed::new(0, 10, Duration::ZERO).to_string().starts_with("0 MB/s"));
        assert_eq!(Speed::new(0, 0, Duration::ZERO).seconds_left, 0.0);
    }
}
