//! `pixart train`: pictures and captions in, weights out.

mod cache;
mod encoder;
mod features;
mod model;
mod options;
mod prior;
mod report;
pub mod settings;
mod watch;

use crate::commands::dataset::settings as data;
use crate::commands::engine::devices::device_options;
use crate::commands::sample::devices::{device_of, left_over, not_opened};
use crate::exit::{Failure, print_line};
use crate::interrupt::on_ctrl_c;
use crate::progress::{Progress, Unit, note};
use crate::ranks::{self, Traffic};
use crate::upstream::Upstream;
use clap::{Args, Subcommand};
use pixart_runtime::engine::{self, EngineChoice, EngineOptions, Opened};
use pixart_trainer::checkpoint::{self, CheckpointError, Saved};
use pixart_trainer::data::{Dataset, LabelError, Labels, Sampler, SamplerError};
use pixart_trainer::lora::AdapterError;
use pixart_trainer::loss::LossError;
use pixart_trainer::optimizer::OptimizerError;
use pixart_trainer::ranks::Ranks;
use pixart_trainer::run::{Event, Outcome, Run, RunError};
use settings::Settings;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use watch::Watch;

/// What is typed after `pixart train`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct TrainArgs {
    #[command(subcommand)]
    command: Option<TrainCommand>,
    /// YAML file with settings under the names of the flags; flags win over it
    #[arg(short = 'c', long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Subcommand)]
enum TrainCommand {
    /// Encode pictures and captions once, so that training needs neither text encoder nor VAE
    #[command(after_help = cache::AFTER_HELP)]
    Cache(Box<cache::CacheArgs>),
}

/// Runs the command.
pub fn run(args: TrainArgs) -> Result<(), Failure> {
    if let Some(TrainCommand::Cache(args)) = &args.command {
        return cache::run(args);
    }
    let settings = settings::merge(args.config.as_deref(), &args.settings)?;
    ranks::together(settings.upstream.use_parallel, |ranks| train(&settings, ranks))
}

/// Trains, alone or as one of several.
fn train(settings: &Settings, ranks: Option<&Arc<Ranks>>) -> Result<(), Failure> {
    let notes = upstream_notes(settings)?;
    let mut options = options::run(settings, ranks)?;
    let prior = settings.prior.prior(settings)?;
    let read = settings.features()?;
    let batches = options::batches(settings, ranks)?;
    let saved = begin(settings, &options.save.folder)?;
    settings.run.log_interval()?;
    settings.validation.request(settings.run.seed())?;

    let dataset = dataset(&settings.data)?;
    let opened = open_engine(&settings.engine, settings.upstream.device_target.as_deref(), ranks)?;
    notes.iter().for_each(note);
    let start = model::starting_point(settings, saved.as_ref())?;
    let (mut dataset, features) = match read {
        None => (dataset, None),
        Some(read) => {
            let (dataset, features) = features::of(settings, read, dataset, &start.config)?;
            (dataset, Some((read, features)))
        }
    };
    let sampler = match &saved {
        None => Sampler::new(&dataset, batches),
        Some(saved) => {
            let position = Run::position(saved).map_err(failure)?;
            Sampler::resume(&dataset, batches, &position)
        }
    };
    let sampler = sampler.map_err(|error| failure(error.into()))?;
    if let Some(ranks) = ranks {
        let data = sampler.position().data.clone();
        ranks::compare(ranks, &settings.told(data, saved.as_ref().map(Saved::step))?)?;
    }
    if let Some(prior) = &prior {
        let began = match &saved {
            // One draws what is missing for all.
            None => {
                ranks::in_turn(ranks, || prior.draw(settings, &opened.engine, &start))?;
                None
            }
            Some(saved) => {
                let began = Run::prior(saved).map_err(failure)?;
                prior.check_began(began.as_ref())?;
                began
            }
        };
        (dataset, options.prior) = prior.join(&settings.data, &dataset, began.as_ref())?;
    }
    if let Some(saved) = &saved {
        Run::check(&start, &options, saved).map_err(failure)?;
    }
    let (engine, config) = (&opened.engine, start.config.clone());
    let dataset = Arc::new(dataset);
    let encoder =
        ranks::in_turn(ranks, || encoder::open(settings, engine, dataset, features, &config))?;
    let run = match &saved {
        None => Run::new(engine, start, sampler, options),
        Some(saved) => Run::resume(engine, start, sampler, options, saved),
    };
    let run = run.map_err(failure)?;
    let cancel = on_ctrl_c()?;
    if let Some(ranks) = ranks.filter(|ranks| !ranks.is_first()) {
        let outcome = run.go(encoder, &cancel, &mut |event| {
            if let Event::Unreadable(unreadable) = event {
                eprintln!(
                    "{}: skipped {}: {}",
                    ranks::name(ranks),
                    unreadable.file.display(),
                    unreadable.problem
                );
            }
            Ok(())
        });
        // The first process tells how it ended.
        return outcome.map(drop).map_err(failure);
    }
    let shown = watch::shown(settings, &opened.engine, &config, &cancel)?;
    let mut watch = Watch::begin(settings, saved.map(|saved| saved.step()), shown)?;
    let mut traffic = Traffic::default();
    let outcome = run.go(encoder, &cancel, &mut |event| {
        if let (Some(ranks), Event::Step(_)) = (ranks, &event) {
            traffic.note(ranks);
        }
        watch.tell(event);
        Ok(())
    });
    watch.finish();
    for warning in opened.engine.placements().iter().filter_map(left_over) {
        note(format_args!("warning: {warning}"));
    }
    let outcome = outcome.map_err(failure)?;
    if let Some(ranks) = ranks {
        let sent = traffic.per_step().map(|sent| format!(", {sent:.2} MB sent a step by each"));
        note(format_args!("{} processes{}", ranks.place().world, sent.unwrap_or_default()));
    }
    finish(&outcome, &opened.engine.describe())
}

/// The engine that is asked for.
fn open_engine(
    settings: &settings::EngineSettings,
    device_target: Option<&str>,
    ranks: Option<&Arc<Ranks>>,
) -> Result<Opened, Failure> {
    let threads = match settings.threads {
        Some(0) => return Err(options::wrong("threads", 0, "1 or more")),
        threads => ranks::threads(ranks, threads)?,
    };
    let choice = settings.engine.as_deref().map_or(Ok(EngineChoice::Auto), str::parse)?;
    let device = device_of(settings.device.as_deref(), device_target)?;
    let device = ranks.map_or(device.clone(), |ranks| ranks::device(ranks, device));
    let mut device =
        device_options(device, &settings.device_option, settings.device_plugin.as_deref())?;
    device.allow_cpu_fallback = settings.allow_cpu_fallback.unwrap_or(false);
    let options = EngineOptions { threads, device, ..EngineOptions::default() };
    let opened = engine::open(choice, &options).map_err(not_opened)?;
    opened.note.iter().for_each(note);
    Ok(opened)
}

/// The end: the newest checkpoint is the result.
fn finish(outcome: &Outcome, engine: &str) -> Result<(), Failure> {
    let Outcome { step, skipped, unreadable, unused, .. } = outcome;
    let mut told = format!("{step} steps");
    for (count, what) in [
        (*skipped, "batches left out because of numbers that are not finite"),
        (*unreadable as u64, "pictures that could not be read any more"),
        (u64::from(*unused), "batches at the end that were too few for a step"),
    ] {
        if count > 0 {
            told += &format!(", {count} {what}");
        }
    }
    let saved = match &outcome.checkpoint {
        Some(folder) => {
            print_line(folder.display())?;
            format!("{told}, saved in {}", folder.display())
        }
        None => format!("{told}, nothing to save"),
    };
    if outcome.interrupted {
        return Err(Failure::Interrupted(format!("{saved}; go on with --resume")));
    }
    eprintln!("{told}, {engine}");
    Ok(())
}

/// The checkpoint to go on from, if that is asked for. Checkpoints of two trainings do not get into one
/// folder.
fn begin(settings: &Settings, folder: &Path) -> Result<Option<Saved>, Failure> {
    let there = checkpoint::latest(folder)?;
    let another = |saved: &Saved| {
        Failure::request(format!(
            "output_path: {} is a checkpoint of another training; go on from it with --resume, or name \
             another folder with --output_path",
            saved.folder().display()
        ))
    };
    let Some(resume) = &settings.run.resume else {
        return there.map_or(Ok(None), |saved| Err(another(&saved)));
    };
    let path = if resume.as_os_str().is_empty() { folder } else { resume };
    let saved = Saved::open(path).map_err(|error| Failure::request(format!("resume: {error}")))?;
    let parent = |folder: &Path| folder.canonicalize().ok()?.parent().map(Path::to_owned);
    if let Some(there) = there.filter(|there| parent(there.folder()) != parent(saved.folder())) {
        return Err(another(&there));
    }
    saved.check_kind(settings.lora.lora_rank.is_some()).map_err(Failure::request)?;
    note(format_args!("going on from {}", saved.folder().display()));
    Ok(Some(saved))
}

/// The pictures that can be trained on; says what is left out.
fn dataset(settings: &data::Settings) -> Result<Dataset, Failure> {
    let (source, columns, image_dir) = settings.source()?;
    let options = settings.data(true)?;
    let labels = Labels::read(&source, &columns, &image_dir).map_err(|error: LabelError| {
        match error.is_request() {
            true => Failure::request(error),
            false => Failure::from(error),
        }
    })?;
    let entries = labels.records.len();
    let dataset = looking("look", |progress| Dataset::open(labels, &image_dir, &options, progress));
    if !dataset.left_out().is_empty() {
        note(format_args!(
            "{} of {entries} labels are not trained on ({}); `pixart dataset check` tells which",
            dataset.left_out().len(),
            counts(dataset.left_out().iter().map(|left_out| left_out.reason.kind()))
        ));
    }
    Ok(dataset)
}

/// Does `work` with a bar that counts pictures.
fn looking<T>(label: &str, work: impl FnOnce(&mut dyn FnMut(usize, usize)) -> T) -> T {
    let mut bar = Progress::start(label, 0, Unit::Count("picture"));
    let result = work(&mut |done, total| bar.update(done as u64, total as u64));
    bar.finish();
    result
}

/// How many there are of each kind.
fn counts<'a>(kinds: impl Iterator<Item = &'a str>) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    for kind in kinds {
        *counts.entry(kind).or_default() += 1;
    }
    let counts: Vec<String> =
        counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    counts.join(", ")
}

/// Notes about what has no effect here.
fn upstream_notes(settings: &Settings) -> Result<Vec<String>, Failure> {
    let own = &settings.upstream;
    let upstream = Upstream {
        enable_flash_attention: own.enable_flash_attention,
        mode: own.mode,
        jit_level: own.jit_level.as_deref(),
    };
    let mut notes = upstream.notes()?;
    if own.recompute == Some(false) {
        notes.push(
            "recompute: false has no effect; the inside of a block is always computed again on the way back"
                .to_owned(),
        );
    }
    Ok(notes)
}

/// Whether an error of a run is about what was asked for.
fn failure(error: RunError) -> Failure {
    match error {
        RunError::Export(error) => Failure::from(*error),
        RunError::Setting { .. }
        | RunError::Scaler(_)
        | RunError::Loss(LossError::Gamma(_))
        | RunError::Optimizer(OptimizerError::Setting { .. })
        | RunError::Adapter(
            AdapterError::Setting { .. }
            | AdapterError::NoTarget { .. }
            | AdapterError::Layer { .. },
        )
        | RunError::Checkpoint(
            CheckpointError::Other { .. } | CheckpointError::Adapter(AdapterError::Factors { .. }),
        )
        | RunError::Sampler(
            SamplerError::OtherRun { .. }
            | SamplerError::Option { .. }
            | SamplerError::NoBatches { .. },
        ) => Failure::request(error),
        error => Failure::Failed(error.into()),
    }
}
