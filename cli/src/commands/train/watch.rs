//! What a training leaves to be looked at beside checkpoints: the log, and pictures of what it can draw.

use super::options::wrong;
use super::report::Reporter;
use super::settings::{Settings, ValidationSettings};
use crate::commands::sample::devices::{Providers, profile_for};
use crate::exit::Failure;
use crate::model::{Wanted, cache_folder, text_parts, vae_decoder};
use pixart_exporter::naming::TransformerConfig;
use pixart_runtime::engine::Engine;
use pixart_runtime::image::{Metadata, SaveOptions, save_image};
use pixart_runtime::pipeline::{Cancel, ModelPaths, PipelineOptions, Request};
use pixart_runtime::text::TextCache;
use pixart_trainer::log::{StepRecord, TrainingLog};
use pixart_trainer::run::{EpochReport, Event, Learner, StepReport, Validation};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most bytes of the cache of the captions of validation pictures.
const TEXT_CACHE: u64 = 1 << 30;

/// Everybody who watches a run.
pub struct Watch {
    reporter: Reporter,
    log: Option<TrainingLog>,
    shown: Option<Shown>,
    /// The newest step.
    step: u64,
}

/// Pictures that are drawn now and then.
pub struct Shown {
    validation: Validation,
    /// How many are drawn.
    count: usize,
    every: u64,
    folder: PathBuf,
    /// The step they were drawn after last, all of them.
    last: Option<u64>,
}

impl Watch {
    /// Begins the log, or goes on with it behind step `resume`.
    pub fn begin(
        settings: &Settings,
        resume: Option<u64>,
        shown: Option<Shown>,
    ) -> Result<Self, Failure> {
        let reporter = Reporter::new(settings.run.log_interval()?);
        let log = TrainingLog::open(&settings.run.output(), &settings.to_yaml()?, resume)?;
        Ok(Self { reporter, log: Some(log), shown, step: resume.unwrap_or(0) })
    }

    /// Takes note of an event. Neither a log that cannot be written nor a picture that cannot be drawn
    /// ends a training.
    pub fn tell(&mut self, event: Event<'_>) {
        self.reporter.tell(&event);
        match event {
            Event::Step(report) => {
                self.step = report.step;
                self.log(|log| log.step(&record(&report)));
            }
            Event::Epoch(EpochReport { epoch, last, .. }, learner) => {
                let due = |shown: &Shown| epoch.is_multiple_of(shown.every) && !last;
                if self.shown.as_ref().is_some_and(due) {
                    self.show(learner);
                }
            }
            Event::Ended(learner) => self.show(learner),
            _ => {}
        }
    }

    /// The run is over, however it ended.
    pub fn finish(&mut self) {
        self.reporter.finish();
        self.log(|log| log.finish().map(drop));
    }

    fn log<E: std::fmt::Display>(&mut self, write: impl FnOnce(&mut TrainingLog) -> Result<(), E>) {
        if let Some(log) = &mut self.log
            && let Err(error) = write(log)
        {
            self.reporter.line(&format!("warning: {error}; training goes on without a log"));
            self.log = None;
        }
    }

    fn show(&mut self, learner: &mut Learner) {
        let step = self.step;
        let Some(shown) = &mut self.shown else { return };
        if step == 0 || shown.last == Some(step) {
            return;
        }
        match shown.draw(step, learner) {
            Ok(pictures) => {
                let folder = shown.folder.display();
                let count = pictures.len();
                if count < shown.count {
                    // Ctrl-C ended it.
                    self.reporter.line(&format!(
                        "drew {count} of {} validation pictures after step {step}, {folder}",
                        shown.count
                    ));
                    return;
                }
                self.reporter.line(&format!("drew {count} validation pictures, {folder}"));
                shown.last = Some(step);
                self.log(|log| log.pictures(step, &pictures));
            }
            Err(error) => {
                shown.last = Some(step);
                self.reporter.line(&format!(
                    "warning: validation pictures after step {step}: {error:#}; training goes on without them"
                ));
            }
        }
    }
}

impl Shown {
    /// What is drawn and written, with its prompts.
    fn draw(
        &mut self,
        step: u64,
        learner: &mut Learner,
    ) -> anyhow::Result<Vec<(String, image::RgbImage)>> {
        let pictures = self.validation.draw(&mut learner.lend(), &mut |_| ())?;
        std::fs::create_dir_all(&self.folder)?;
        let mut named = Vec::new();
        for (index, picture) in pictures.into_iter().enumerate() {
            let path = self.folder.join(format!("step_{step:08}_{index:02}.png"));
            let parameters =
                format!("{}\nSeed: {}, Training step: {step}", picture.prompt, picture.seed);
            let metadata = Metadata { parameters, ..Metadata::default() };
            let options = SaveOptions { metadata: Some(&metadata), ..SaveOptions::default() };
            save_image(&path, &picture.image, &options)?;
            named.push((picture.prompt, picture.image));
        }
        Ok(named)
    }
}

fn record(report: &StepReport) -> StepRecord {
    StepRecord {
        step: report.step,
        epoch: report.epoch,
        loss: report.loss,
        learning_rate: report.learning_rate,
        loss_scale: report.loss_scale,
        gradient_norm: report.gradient_norm,
        seconds: report.seconds,
        images: report.images as u64,
    }
}

impl ValidationSettings {
    /// What is drawn, if anything is, and after how many epochs.
    pub fn request(&self, seed: u64) -> Result<Option<(Request, u64)>, Failure> {
        if !self.visualize.unwrap_or(false) {
            return Ok(None);
        }
        let every = match self.visualize_interval.unwrap_or(1) {
            0 => return Err(wrong("visualize_interval", 0, "1 or more")),
            every => every,
        };
        if self.validation_prompts.is_empty() {
            return Err(Failure::request(
                "validation_prompts: found none with visualize; say what to draw, or leave visualize out",
            ));
        }
        let request = Request {
            prompts: self.validation_prompts.clone(),
            negative_prompts: self.validation_negative_prompts.clone(),
            seed,
            ..self.sampling()?
        };
        request.check().map_err(|error| Failure::request(format!("validation: {error}")))?;
        Ok(Some((request, every)))
    }

    /// How pictures are drawn.
    pub fn sampling(&self) -> Result<Request, Failure> {
        let method = self.sampling_method.as_deref().unwrap_or("iddpm").parse();
        Ok(Request {
            sampling_method: method
                .map_err(|error| Failure::request(format!("sampling_method: {error}")))?,
            sampling_steps: self.sampling_steps.unwrap_or(100),
            guidance_scale: self.guidance_scale.unwrap_or(4.5),
            // The model's own size needs no bin.
            use_resolution_binning: false,
            ..Request::default()
        })
    }
}

/// Prepares validation pictures, if they are asked for: encodes their captions, and looks for the VAE.
pub fn shown(
    settings: &Settings,
    engine: &Arc<dyn Engine>,
    config: &TransformerConfig,
    cancel: &Cancel,
) -> Result<Option<Shown>, Failure> {
    let Some((request, every)) = settings.validation.request(settings.run.seed())? else {
        return Ok(None);
    };
    let (count, cancel) = (request.prompts.len(), Some(cancel.clone()));
    let validation = validation(settings, engine, config, request, cancel)?;
    let folder = settings.run.output().join("samples");
    Ok(Some(Shown { validation, count, every, folder, last: None }))
}

/// What draws a request with a model in training.
pub fn validation(
    settings: &Settings,
    engine: &Arc<dyn Engine>,
    config: &TransformerConfig,
    request: Request,
    cancel: Option<Cancel>,
) -> Result<Validation, Failure> {
    let request = Request {
        cleaning: Some(settings.data.cleaning()?),
        max_length: settings.data.t5_max_length()?,
        ..request
    };
    let paths = paths(settings, engine.as_ref())?;
    let options = PipelineOptions {
        text_cache: Some(TextCache::new(cache_folder()?.join("text"), TEXT_CACHE)),
        cancel: cancel.unwrap_or_default(),
        ..PipelineOptions::default()
    };
    Ok(Validation::new(engine.clone(), config, &paths, options, request, &mut |_| ())?)
}

/// The parts beside the transformer.
fn paths(settings: &Settings, engine: &dyn Engine) -> Result<ModelPaths, Failure> {
    let needed = |name: &str, given: &Option<PathBuf>| -> Result<PathBuf, Failure> {
        given.clone().ok_or_else(|| {
            Failure::request(format!(
                "{name}: nothing given, but pictures that are drawn need it; name its folder with --{name}, or leave \
                 visualize and num_prior_images out"
            ))
        })
    };
    let text_encoder = needed("text_encoder_root", &settings.encoders.text_encoder_root)?;
    let tokenizer = needed("tokenizer_root", &settings.data.tokenizer_root)?;
    let vae = needed("vae_root", &settings.encoders.vae_root)?;
    let providers = Providers::on_processor(engine.name());
    let profile = profile_for(providers.vae);
    let wanted = Wanted::new(None, providers)?;
    let (text_encoder, tokenizer) = text_parts(&text_encoder, &tokenizer, profile, wanted)?;
    Ok(ModelPaths {
        transformer: PathBuf::new(),
        text_encoder,
        vae_decoder: vae_decoder(&vae, profile, wanted)?,
        vae_encoder: None,
        tokenizer,
        scheduler: scheduler(settings),
    })
}

/// The scheduler beside the model that is trained.
fn scheduler(settings: &Settings) -> Option<PathBuf> {
    let checkpoint = settings.model.checkpoint.as_deref().filter(|path| path.is_dir())?;
    let beside = [
        checkpoint.join("scheduler"),
        checkpoint.parent().unwrap_or(Path::new("")).join("scheduler"),
    ];
    beside.into_iter().find(|folder| folder.is_dir())
}
