//! A training from its first step to its last.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use pixart_runtime::{engine::Engine, pipeline::Cancel};
//! use pixart_trainer::{
//!     data::{BatchEncoder, Sampler},
//!     run::{Event, Run, RunOptions, StartingPoint},
//! };
//!
//! # fn train(
//! #     engine: &Arc<dyn Engine>, start: StartingPoint, sampler: Sampler, encoder: Box<dyn BatchEncoder>,
//! #     options: RunOptions,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! let run = Run::new(engine, start, sampler, options)?;
//! let outcome = run.go(encoder, &Cancel::new(), &mut |event| {
//!     if let Event::Step(step) = event {
//!         println!("{} {}", step.step, step.loss);
//!     }
//!     Ok(())
//! })?;
//! println!("{} steps, saved in {:?}", outcome.step, outcome.checkpoint);
//! # Ok(())
//! # }
//! ```
//!
//! Batches are encoded and drawn on a thread of their own while the engine computes. A step is
//! `gradient_accumulation_steps` batches; steps go on across the ends of epochs. Checkpoints lie between steps
//! and have all that is needed to go on bit for bit.

mod draws;
mod error;
mod event;
mod initial;
mod learner;
mod options;
mod origin;
mod prepare;
mod progress;
mod start;
mod state;
mod validation;

use std::{path::PathBuf, sync::Arc, time::Instant};

use pixart_runtime::{
    engine::Engine,
    pipeline::Cancel,
    sampler::{NoiseSchedule, SchedulerConfig},
};

pub use error::{NotFinite, RunError};
pub use event::{Began, EpochReport, Event, SkippedBatch, StepReport};
use learner::Learned;
pub use learner::{Learner, Lent, Untrained};
pub use options::{
    AverageOptions, Length, MOST_SKIPPED, Policy, PriorOptions, RunOptions, SaveOptions,
    TogetherOptions,
};
use origin::Origin;
pub use origin::PriorPictures;
use prepare::{Prepared, Recipe};
use progress::Progress;
pub use start::StartingPoint;
use state::State;
pub use validation::Validation;

use crate::{
    checkpoint::{Saved, prune},
    data::{BatchEncoder, BatchPlan, Sampler},
    loss::Diffusion,
    optimizer::{Accumulated, Mean, Step, clip_factor},
    scaler::LossScaler,
    schedule::Schedule,
};

/// Who watches a run: called with everything that happens, in order. An error ends the run.
pub type Watcher<'a> =
    dyn FnMut(Event<'_>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + 'a;

/// A training that has not begun, or not begun again.
pub struct Run {
    options: RunOptions,
    learner: Learner,
    sampler: Sampler,
    scaler: LossScaler,
    schedule: Schedule,
    diffusion: Arc<Diffusion>,
    /// As of the newest step.
    state: State,
    origin: Origin,
    /// The newest checkpoint.
    saved: Option<PathBuf>,
    total_steps: u64,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it was stopped before its end.
    pub interrupted: bool,
    /// Steps done in all.
    pub step: u64,
    /// Epochs that are over.
    pub epoch: u64,
    /// The newest checkpoint, which has everything up to this step; none before the first step.
    pub checkpoint: Option<PathBuf>,
    /// Batches that were left out.
    pub skipped: u64,
    /// Pictures that could not be read any more.
    pub unreadable: usize,
    /// Batches at the end that were too few for a step.
    pub unused: u32,
}

impl Run {
    /// A training from its first step.
    ///
    /// # Errors
    /// When a setting is out of its range, the model is one that is not trained, or the engine refuses it.
    pub fn new(
        engine: &Arc<dyn Engine>,
        start: StartingPoint,
        sampler: Sampler,
        options: RunOptions,
    ) -> Result<Self, RunError> {
        let total_steps = total_steps(&options, &sampler)?;
        check_save(&options)?;
        check_prior(&options)?;
        let schedule = Schedule {
            learning_rate: options.learning_rate,
            warmup_steps: options.warmup_steps,
            shape: options.scheduler,
            total_steps,
        };
        let scaler = LossScaler::new(options.scaling)?;
        let origin = Origin::new(&start, &options);
        let mut learner = Learner::new(engine, start, &options)?;
        learner.share_weights()?;
        let mut diffusion = Diffusion::new(&NoiseSchedule::new(&SchedulerConfig::default()));
        if let Some(gamma) = options.snr_gamma {
            diffusion = diffusion.with_min_snr(gamma)?;
        }
        Ok(Self {
            state: State::new(sampler.position(), &scaler),
            diffusion: Arc::new(diffusion),
            origin,
            saved: None,
            learner,
            options,
            sampler,
            scaler,
            schedule,
            total_steps,
        })
    }

    /// Goes on where a checkpoint stood. `sampler` must be at [`Run::position`] of the checkpoint, and `start`
    /// be the checkpoint's own folder, or for a LoRA the model it is trained on.
    ///
    /// # Errors
    /// As [`Run::new`], and when the checkpoint is of another training.
    pub fn resume(
        engine: &Arc<dyn Engine>,
        start: StartingPoint,
        sampler: Sampler,
        options: RunOptions,
        saved: &Saved,
    ) -> Result<Self, RunError> {
        Self::check(&start, &options, saved)?;
        let mut run = Self::new(engine, start, sampler, options)?;
        run.learner.restore(saved)?;
        run.learner.share_weights()?;
        run.state = State::read(saved)?;
        run.scaler.restore(run.state.scale)?;
        run.saved = Some(saved.folder().to_owned());
        Ok(run)
    }

    /// Whether a checkpoint is of a training that began with the same: the model that a LoRA is for, and the
    /// prior pictures. [`Run::resume`] looks, too; this is for those who have much to do before it.
    ///
    /// # Errors
    /// When it is of another training, or does not say it in words that are understood.
    pub fn check(
        start: &StartingPoint,
        options: &RunOptions,
        saved: &Saved,
    ) -> Result<(), RunError> {
        Origin::new(start, options).check(saved)
    }

    /// The prior pictures that a checkpoint's run began with, which one that goes on needs; none if it had none, or
    /// if the checkpoint does not tell which.
    ///
    /// # Errors
    /// When what the checkpoint says cannot be read.
    pub fn prior(saved: &Saved) -> Result<Option<PriorPictures>, RunError> {
        Origin::prior(saved)
    }

    /// Where a checkpoint stands in the data.
    ///
    /// # Errors
    /// When the checkpoint does not say.
    pub fn position(saved: &Saved) -> Result<crate::data::Position, RunError> {
        Ok(State::read(saved)?.position)
    }

    /// Trains to the end, or until `cancel` is used: then the step is finished, and a checkpoint saved.
    ///
    /// # Errors
    /// When a batch cannot be encoded (a checkpoint is saved before), a checkpoint cannot be saved, the engine
    /// fails, or numbers are not finite and the options say that this ends the run.
    pub fn go(
        mut self,
        encoder: Box<dyn BatchEncoder>,
        cancel: &Cancel,
        watcher: &mut Watcher<'_>,
    ) -> Result<Outcome, RunError> {
        let sampler = self.sampler.clone();
        let began = Began {
            step: self.learner.steps(),
            epoch: sampler.position().epoch,
            total_steps: self.total_steps,
            batches_per_epoch: sampler.batches_per_epoch(),
            parameters: self.learner.parameters(),
        };
        tell(watcher, Event::Began(began))?;
        let end_epoch = match self.options.length {
            Length::Epochs(epochs) => Some(epochs),
            Length::Steps(_) => None,
        };
        let mut progress = Progress::new(&self);
        let recipe = Recipe {
            seed: self.options.seed,
            latent_scale: self.options.latent_scale,
            size_conditions: self.learner.config().use_additional_conditions,
            diffusion: self.diffusion.clone(),
            prior: self.options.prior.clone(),
            workers: self.workers(),
        };
        // With nothing left to do, nothing is prepared.
        let mut ahead = match self.is_over(progress.epoch) {
            true => None,
            false => Some(recipe.start(encoder, sampler, end_epoch)),
        };
        while let Some(ahead) = &mut ahead
            && !self.is_over(progress.epoch)
            && (self.options.together.is_some() || !self.is_ended(cancel.is_cancelled()))
            && let Some(batch) = ahead.next()
        {
            let (failed, cancelled) = self.agreed(batch.is_err(), cancel.is_cancelled())?;
            let batch = match (batch, failed) {
                (Ok(batch), None) => batch,
                (batch, rank) => {
                    // What was learnt until now is sound.
                    let saved = self.save(&mut progress, watcher)?;
                    let rank = rank.unwrap_or_default();
                    return Err(batch.err().unwrap_or(RunError::OtherRank { rank, saved }));
                }
            };
            if self.is_ended(cancelled) {
                break;
            }
            self.batch(batch, &mut progress, watcher)?;
        }
        drop(ahead);
        let interrupted = !self.is_over(progress.epoch);
        let checkpoint = self.save(&mut progress, watcher)?;
        if !interrupted {
            tell(watcher, Event::Ended(&mut self.learner))?;
        }
        Ok(Outcome {
            interrupted,
            step: self.learner.steps(),
            epoch: progress.epoch,
            checkpoint,
            skipped: progress.skipped,
            unreadable: progress.unreadable.len(),
            unused: if interrupted { 0 } else { self.learner.pending() },
        })
    }

    /// How many share a batch.
    fn workers(&self) -> usize {
        self.options.together.as_ref().map_or(1, |together| together.ranks.place().world)
    }

    /// Whether it ends early: a step that has begun is finished.
    fn is_ended(&self, cancelled: bool) -> bool {
        cancelled && self.learner.pending() == 0
    }

    /// Of several: which one, if any, has no batch, and whether any was told to end.
    fn agreed(&self, failed: bool, cancelled: bool) -> Result<(Option<usize>, bool), RunError> {
        let Some(TogetherOptions { ranks, .. }) = &self.options.together else {
            return Ok((failed.then_some(0), cancelled));
        };
        let mut told = vec![0.0; 1 + ranks.place().world];
        told[0] = f64::from(u8::from(cancelled));
        told[1 + ranks.place().rank] = f64::from(u8::from(failed));
        let told = ranks.sum_f64(told)?;
        let failed = told[1..].iter().position(|&failed| failed > 0.0);
        Ok((failed, told[0] > 0.0))
    }

    fn is_over(&self, epoch: u64) -> bool {
        match self.options.length {
            Length::Epochs(epochs) => epoch >= epochs,
            Length::Steps(steps) => self.learner.steps() >= steps,
        }
    }

    /// One batch, and all that follows from it.
    fn batch(
        &mut self,
        batch: Prepared,
        progress: &mut Progress,
        watcher: &mut Watcher<'_>,
    ) -> Result<(), RunError> {
        for unreadable in &batch.skipped {
            if progress.unreadable.insert(unreadable.item) {
                tell(watcher, Event::Unreadable(unreadable.clone()))?;
            }
        }
        let scale = self.scaler.scale();
        let plan = batch.plan.clone();
        let learned = self.learner.learn(&self.diffusion, batch, scale)?;
        match learned {
            Learned::NotFinite(loss) => {
                let what = NotFinite::Loss(loss);
                self.skip(&plan, what, self.options.on_nan, progress, watcher)?;
            }
            Learned::Loss(_, Accumulated::Overflow) => {
                let policy = match self.scaler.update(true) {
                    true => self.options.on_nan,
                    false => self.options.on_overflow,
                };
                self.skip(&plan, NotFinite::Gradients, policy, progress, watcher)?;
            }
            Learned::Loss(loss, accumulated) => {
                self.scaler.update(false);
                let kinds = 1 + usize::from(self.options.prior.is_some());
                progress.learnt(loss, kinds * plan.share.whole);
                if let Accumulated::Complete(mean) = accumulated {
                    self.step(mean, scale, &plan, progress, watcher)?;
                }
            }
        }
        progress.epoch = plan.after.epoch;
        if self.learner.pending() == 0 {
            self.state = State::new(&plan.after, &self.scaler);
        }
        if plan.after.epoch > plan.epoch {
            let every = self.options.save.every_epochs;
            progress.due |= every.is_some_and(|every| plan.after.epoch.is_multiple_of(every));
            let report =
                progress.epoch_report(self.learner.steps(), self.is_over(plan.after.epoch));
            let told = Instant::now();
            tell(watcher, Event::Epoch(report, &mut self.learner))?;
            // What the watcher does with the model is no part of the coming step.
            progress.step_began += told.elapsed();
            progress.epoch_began += told.elapsed();
        }
        // Added-up gradients are not saved: it waits for the end of the step.
        if progress.due && self.learner.pending() == 0 {
            self.save(progress, watcher)?;
        }
        Ok(())
    }

    fn step(
        &mut self,
        mean: Mean,
        loss_scale: f64,
        plan: &BatchPlan,
        progress: &mut Progress,
        watcher: &mut Watcher<'_>,
    ) -> Result<(), RunError> {
        let gradient_norm = mean.norm;
        let clipped = self.options.largest_norm.map_or(1.0, |most| clip_factor(mean.norm, most));
        let learning_rate = self.schedule.learning_rate(self.learner.steps());
        let step = Step {
            learning_rate,
            weight_decay: self.options.weight_decay,
            gradient_scale: mean.scale * clipped,
        };
        self.learner.step(mean, &step)?;
        let step = self.learner.steps();
        let every = self.options.save.every_steps;
        progress.due |= every.is_some_and(|every| step.is_multiple_of(every));
        let (loss, images, seconds) = progress.stepped();
        let epoch = plan.epoch + 1;
        let report = StepReport {
            step,
            epoch,
            loss,
            learning_rate,
            loss_scale,
            gradient_norm,
            seconds,
            images,
        };
        tell(watcher, Event::Step(report))
    }

    /// A batch that nothing is learnt from, or the end.
    fn skip(
        &mut self,
        plan: &BatchPlan,
        what: NotFinite,
        policy: Policy,
        progress: &mut Progress,
        watcher: &mut Watcher<'_>,
    ) -> Result<(), RunError> {
        progress.skipped += 1;
        progress.in_a_row += 1;
        let (epoch, batch) = (plan.epoch + 1, plan.batch + 1);
        let step = self.learner.steps();
        if policy == Policy::Stop || progress.in_a_row > MOST_SKIPPED {
            let advice = match policy {
                Policy::Stop => {
                    "lower start_learning_rate or max_grad_norm and go on with --resume, or leave such \
                     batches out with --on_nan skip --drop_overflow_update true"
                }
                Policy::Skip => {
                    "this many batches in a row were left out for it; lower start_learning_rate or \
                     max_grad_norm and go on with --resume"
                }
            };
            let saved = self.saved.clone();
            return Err(RunError::NotFinite { step: step + 1, epoch, batch, what, saved, advice });
        }
        let loss_scale = self.scaler.scale();
        tell(watcher, Event::Skipped(SkippedBatch { step, epoch, batch, what, loss_scale }))
    }

    /// Saves what is there as of the newest step, unless it is saved already; gives the folder.
    fn save(
        &mut self,
        progress: &mut Progress,
        watcher: &mut Watcher<'_>,
    ) -> Result<Option<PathBuf>, RunError> {
        progress.due = false;
        if self.learner.steps() == 0 || progress.saved.as_ref() == Some(&self.state) {
            return Ok(self.saved.clone());
        }
        let SaveOptions { folder: root, keep, .. } = &self.options.save;
        let epoch = self.state.position.epoch;
        let mut state = self.state.to_json();
        self.origin.add_to(&mut state);
        let folder = self.learner.save(root, epoch, &state)?;
        let removed = if self.learner.is_first() { prune(root, *keep)? } else { Vec::new() };
        if let Some(TogetherOptions { ranks, .. }) = &self.options.together {
            // Nobody ends before it is written.
            ranks.meet()?;
        }
        self.saved = Some(folder.clone());
        progress.saved = Some(self.state.clone());
        let step = self.learner.steps();
        tell(watcher, Event::Saved { folder: folder.clone(), step, removed })?;
        Ok(Some(folder))
    }
}

fn tell(watcher: &mut Watcher<'_>, event: Event<'_>) -> Result<(), RunError> {
    watcher(event).map_err(RunError::Watcher)
}

/// Steps of the whole run, if no batch is left out.
fn total_steps(options: &RunOptions, sampler: &Sampler) -> Result<u64, RunError> {
    let zero = |setting| RunError::Setting {
        setting,
        found: "0".to_owned(),
        expected: "at least 1".to_owned(),
    };
    match options.length {
        Length::Epochs(0) => Err(zero("epochs")),
        Length::Steps(0) => Err(zero("max_train_steps")),
        Length::Steps(steps) => Ok(steps),
        Length::Epochs(epochs) => {
            let batches = epochs.saturating_mul(sampler.batches_per_epoch());
            let steps = batches / u64::from(options.accumulation.max(1));
            if steps > 0 {
                return Ok(steps);
            }
            Err(RunError::Setting {
                setting: "gradient_accumulation_steps",
                found: options.accumulation.to_string(),
                expected: format!("at most {batches}, the batches of all epochs"),
            })
        }
    }
}

/// Whether the prior pictures are some, and count something that can be.
fn check_prior(options: &RunOptions) -> Result<(), RunError> {
    let Some(PriorOptions { items, weight, .. }) = &options.prior else { return Ok(()) };
    let fail = |setting, found: String, expected: &str| {
        Err(RunError::Setting { setting, found, expected: expected.to_owned() })
    };
    if items.is_empty() {
        return fail("prior_image_dir", "no picture".to_owned(), "at least one");
    }
    if !(weight.is_finite() && *weight >= 0.0) {
        return fail("prior_loss_weight", weight.to_string(), "a finite number, at least 0");
    }
    Ok(())
}

fn check_save(options: &RunOptions) -> Result<(), RunError> {
    let SaveOptions { every_epochs, every_steps, keep, .. } = &options.save;
    let zero = [
        ("ckpt_save_interval", *every_epochs == Some(0)),
        ("ckpt_save_steps", *every_steps == Some(0)),
        ("ckpt_max_keep", *keep == 0),
    ];
    match zero.into_iter().find(|(_, zero)| *zero) {
        None => Ok(()),
        Some((setting, _)) => Err(RunError::Setting {
            setting,
            found: "0".to_owned(),
            expected: "at least 1".to_owned(),
        }),
    }
}
