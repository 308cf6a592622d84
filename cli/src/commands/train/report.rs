//! What a training tells on stderr.

use pixart_trainer::run::{Began, EpochReport, Event, StepReport};

/// Lines for everything that happens.
pub struct Reporter {
    /// A line for every so many steps.
    interval: u64,
    batches_per_epoch: u64,
    total_steps: u64,
}

impl Reporter {
    pub fn new(interval: u64) -> Self {
        Self { interval, batches_per_epoch: 0, total_steps: 0 }
    }

    pub fn tell(&mut self, event: &Event<'_>) {
        match event {
            Event::Began(began) => {
                let Began { step, total_steps, batches_per_epoch, parameters, .. } = began;
                (self.batches_per_epoch, self.total_steps) = (*batches_per_epoch, *total_steps);
                let at =
                    if *step > 0 { format!("going on after step {step}, ") } else { String::new() };
                let millions = *parameters as f64 / 1e6;
                eprintln!(
                    "{at}{total_steps} steps in all, {batches_per_epoch} batches an epoch, {millions:.2} \
                     million numbers are trained"
                );
            }
            Event::Step(step) => self.step(step),
            Event::Skipped(skipped) => eprintln!(
                "epoch {}, batch {}: {}, so it is left out; the loss scale is {}",
                skipped.epoch, skipped.batch, skipped.what, skipped.loss_scale
            ),
            Event::Unreadable(picture) => eprintln!(
                "{} cannot be read any more, another one stands for it: {}",
                picture.file.display(),
                picture.problem
            ),
            Event::Epoch(EpochReport { epoch, loss, seconds, steps, .. }, _) => {
                let loss = loss.map_or("none".to_owned(), |loss| format!("{loss:.4}"));
                let each = seconds / (*steps).max(1) as f64;
                eprintln!("epoch {epoch} took {seconds:.1} s, {each:.3} s/step, mean loss {loss}");
            }
            Event::Saved { folder, removed, .. } => {
                let removed = match removed.len() {
                    0 => String::new(),
                    count => format!(", {count} older removed"),
                };
                eprintln!("saved {}{removed}", folder.display());
            }
            _ => {}
        }
    }

    fn step(&self, report: &StepReport) {
        let StepReport { step, epoch, loss, learning_rate, loss_scale, gradient_norm, .. } = report;
        if step % self.interval != 0 {
            return;
        }
        let StepReport { seconds, images, .. } = report;
        let rate = *images as f64 / seconds.max(1e-9);
        let left = self.total_steps.saturating_sub(*step) as f64 * seconds;
        eprintln!(
            "epoch {epoch}, step {step}/{}: loss {loss:.4}, lr {learning_rate:.3e}, loss scale {loss_scale}, \
             gradient norm {gradient_norm:.3e}, {seconds:.3} s/step, {rate:.1} images/s, {:.0} min left",
            self.total_steps,
            left / 60.0
        );
    }
}
