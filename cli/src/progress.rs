//! Progress on stderr: a bar on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Where there is no terminal, a line at most this often at first, and ever more seldom: twenty lines for
/// the time gone by, until they come once a minute.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

/// Whether this process keeps quiet, because another one tells how the work goes.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Tells nothing of the work from now on, as another process does it.
pub fn keep_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// A line about the work.
pub fn note(line: impl fmt::Display) {
    if !QUIET.load(Ordering::Relaxed) {
        tell(line);
    }
}

/// A line on stderr, written at once: launchers put the pieces of several processes' lines between each other.
pub fn tell(line: impl fmt::Display) {
    // Whoever does not listen is told nothing.
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// One task at a time, counted in steps or bytes.
pub struct Progress {
    bar: Option<ProgressBar>,
    label: String,
    unit: Unit,
    rate: Rate,
    started: Instant,
    last_line: Instant,
}

/// What a count means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Solver steps, pictures: by their name.
    Count(&'static str),
    /// Bytes of a file
    Bytes,
}

impl Progress {
    /// Starts a task of `total` units.
    pub fn start(label: impl Into<String>, total: u64, unit: Unit) -> Self {
        let label = label.into();
        let is_shown = std::io::stderr().is_terminal() && !QUIET.load(Ordering::Relaxed);
        let bar = is_shown.then(|| {
            let template = match unit {
                Unit::Count(_) => "{msg:>24} [{bar:30}] {pos}/{len}{prefix}",
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
        Self { bar, label, unit, rate: Rate::default(), started: now, last_line: now }
    }

    /// `done` of `total` units are done.
    pub fn update(&mut self, done: u64, total: u64) {
        let elapsed = self.started.elapsed();
        self.rate.note(done, elapsed);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            if let Unit::Count(unit) = self.unit {
                bar.set_prefix(self.rate.told(unit, total));
            }
            return;
        }
        let interval = (elapsed / 20).clamp(PLAIN_INTERVAL, LONGEST_INTERVAL);
        if self.last_line.elapsed() < interval {
            return;
        }
        match self.unit {
            Unit::Count(unit) => {
                let rate = self.rate.told(unit, total);
                note(format_args!("{}: {unit} {done}/{total}{rate}", self.label));
            }
            Unit::Bytes => {
                let percent = done * 100 / total.max(1);
                let speed = Speed::new(done, total, elapsed);
                note(format_args!("{}: {percent}%, {speed}", self.label));
            }
        }
        self.last_line = Instant::now();
    }

    /// Does something that writes to the terminal, with the bar out of the way.
    pub fn suspend(&self, write: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Removes the bar; what follows is the caller's line.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How fast counts go by. What happens before the first one, loading, is left out, and so is what was done
/// before this.
#[derive(Default)]
struct Rate {
    first: Option<(u64, Duration)>,
    last: (u64, Duration),
}

impl Rate {
    fn note(&mut self, done: u64, elapsed: Duration) {
        self.first.get_or_insert((done, elapsed));
        self.last = (done, elapsed);
    }

    /// Seconds each, and seconds left, once two counts have come.
    fn seconds(&self, total: u64) -> Option<(f64, f64)> {
        let (first, (done, elapsed)) = (self.first?, self.last);
        let count = done.checked_sub(first.0).filter(|count| *count > 0)?;
        let each = elapsed.saturating_sub(first.1).as_secs_f64() / count as f64;
        Some((each, each * total.saturating_sub(done) as f64))
    }

    fn told(&self, unit: &str, total: u64) -> String {
        match self.seconds(total) {
            Some((each, left)) => format!(", {each:.2} s/{unit}, {} left", Clock(left)),
            None => String::new(),
        }
    }
}

/// Seconds as a person reads them.
pub struct Clock(pub f64);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.round() as u64;
        match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
            (0, 0, s) => write!(f, "{s} s"),
            (0, m, s) => write!(f, "{m} min {s} s"),
            (h, m, _) => write!(f, "{h} h {m} min"),
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

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

    #[test]
    fn loading_does_not_count_as_a_step() {
        let mut rate = Rate::default();
        let second = Duration::from_secs(1);
        assert_eq!(rate.told("step", 100), "");
        // Goes on after 40 steps, and loads for a minute.
        rate.note(41, 60 * second);
        assert_eq!(rate.told("step", 100), "");
        rate.note(43, 63 * second);
        assert_eq!(rate.told("step", 100), ", 1.50 s/step, 1 min 26 s left");
        rate.note(100, 120 * second);
        assert_eq!(rate.told("step", 100), ", 1.02 s/step, 0 s left");
        assert_eq!(Clock(59.4).to_string(), "59 s");
        assert_eq!(Clock(7384.0).to_string(), "2 h 3 min");
    }
}
