//! What a training tells on stderr: a bar on a terminal, plain lines elsewhere.

use crate::progress::Clock;
use indicatif::{ProgressBar, ProgressStyle};
use pixart_trainer::run::{Began, EpochReport, Event, StepReport};
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::Duration;

/// Steps that the time left is estimated from.
const RECENT: usize = 50;

/// The bar of the steps, or lines for everything that happens.
pub struct Reporter {
    /// Without a terminal, a line for every so many steps.
    interval: u64,
    total_steps: u64,
    /// Seconds of the last steps.
    recent: VecDeque<f64>,
    bar: Option<ProgressBar>,
}

impl Reporter {
    pub fn new(interval: u64) -> Self {
        Self { interval, total_steps: 0, recent: VecDeque::new(), bar: None }
    }

    pub fn tell(&mut self, event: &Event<'_>) {
        match event {
            Event::Began(began) => self.began(began),
            Event::Step(step) => self.step(step),
            Event::Skipped(skipped) => self.line(&format!(
                "epoch {}, batch {}: {}, so it is left out; the loss scale is {}",
                skipped.epoch, skipped.batch, skipped.what, skipped.loss_scale
            )),
            Event::Unreadable(picture) => self.line(&format!(
                "{} cannot be read any more, another one stands for it: {}",
                picture.file.display(),
                picture.problem
            )),
            Event::Epoch(EpochReport { epoch, loss, seconds, steps, .. }, _) => {
                let loss = loss.map_or("none".to_owned(), |loss| format!("{loss:.4}"));
                let each = seconds / (*steps).max(1) as f64;
                self.line(&format!(
                    "epoch {epoch} took {seconds:.1} s, {each:.3} s/step, mean loss {loss}"
                ));
            }
            Event::Saved { folder, removed, .. } => {
                let removed = match removed.len() {
                    0 => String::new(),
                    count => format!(", {count} older removed"),
                };
                self.line(&format!("saved {}{removed}", folder.display()));
            }
            Event::Ended(_) => self.finish(),
            _ => {}
        }
    }

    /// A line above the bar.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Removes the bar.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn began(&mut self, began: &Began) {
        let Began { step, total_steps, batches_per_epoch, parameters, .. } = began;
        self.total_steps = *total_steps;
        let at = if *step > 0 { format!("going on after step {step}, ") } else { String::new() };
        let millions = *parameters as f64 / 1e6;
        eprintln!(
            "{at}{total_steps} steps in all, {batches_per_epoch} batches an epoch, {millions:.2} million \
             numbers are trained"
        );
        self.bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("[{bar:24}] {pos}/{len}{msg}");
            let style = style.expect("the template is constant").progress_chars("=> ");
            let bar = ProgressBar::new(*total_steps).with_style(style).with_position(*step);
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
    }

    fn step(&mut self, report: &StepReport) {
        let StepReport { step, epoch, loss, learning_rate, loss_scale, gradient_norm, .. } = report;
        let StepReport { seconds, images, .. } = report;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(*seconds);
        let rate = *images as f64 / seconds.max(1e-9);
        let left = Clock(self.left(*step));
        if let Some(bar) = &self.bar {
            bar.set_position(*step);
            bar.set_message(format!(
                "  epoch {epoch}, loss {loss:.4}, lr {learning_rate:.2e}, {seconds:.2} s/step, {rate:.1} \
                 images/s, {left} left"
            ));
        } else if step.is_multiple_of(self.interval) {
            eprintln!(
                "epoch {epoch}, step {step}/{}: loss {loss:.4}, lr {learning_rate:.3e}, loss scale \
                 {loss_scale}, gradient norm {gradient_norm:.3e}, {seconds:.3} s/step, {rate:.1} images/s, \
                 {left} left",
                self.total_steps,
            );
        }
    }

    /// Seconds to the end at the rate of the last steps.
    fn left(&self, step: u64) -> f64 {
        let each = self.recent.iter().sum::<f64>() / self.recent.len().max(1) as f64;
        each * self.total_steps.saturating_sub(step) as f64
    }
}
