//! `pixart sample`: prompts in, pictures out.

pub(crate) mod devices;
mod facts;
mod files;
mod from;
mod listing;
mod live;
pub(super) mod lora;
mod name;
mod output;
mod paths;
mod pictures;
mod preview;
mod prompts;
pub(super) mod record;
mod sampling;
pub(super) mod settings;
mod style;
mod terminal;
mod tiling;
mod together;
mod upstream;
mod values;

use crate::exit::Failure;
use crate::interrupt::on_ctrl_c;
use crate::model::Wanted;
use crate::progress::{self, Progress, Unit, note};
use crate::ranks;
use clap::Args;
use devices::OpenEngines;
use from::Origin;
use output::Output;
use pixart_runtime::pipeline::{Event, ModelPaths, Pipeline, Stage, sample_shared};
use pixart_trainer::ranks::Ranks;
use preview::Preview;
use record::Record;
use settings::Settings;
use std::path::PathBuf;
use std::sync::Arc;
use together::Together;

/// What is typed after `pixart sample`.
#[derive(Args)]
pub struct SampleArgs {
    /// YAML file with the settings below under the same names; flags win over it
    #[arg(short = 'c', long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Make a picture again: take the settings it carries; flags win over them
    #[arg(long, value_name = "PICTURE", conflicts_with = "config")]
    from: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// Runs the command.
pub fn run(args: SampleArgs) -> Result<(), Failure> {
    let (settings, origin) = match &args.from {
        Some(picture) => {
            let (settings, origin) = from::read(picture, &args.settings)?;
            (settings, Some(origin))
        }
        None => {
            let config = args.config.as_deref();
            (crate::config::merge(config, &args.settings, &settings::names())?, None)
        }
    };
    ranks::together(settings.use_parallel()?, |ranks| sample(settings, origin, ranks))
}

/// Draws, alone or as one of several processes.
fn sample(
    mut settings: Settings,
    origin: Option<Origin>,
    ranks: Option<&Arc<Ranks>>,
) -> Result<(), Failure> {
    // Everything that can be wrong with the request is found before the long work starts.
    let notes = settings.upstream_notes()?;
    let together = ranks.map(|ranks| Together::join(ranks, &mut settings)).transpose()?;
    let mut request = settings.request()?;
    settings.read_pictures(&mut request)?;
    let loras = lora::read(&settings.lora)?;
    let sources = settings.sources()?;
    let preview = settings.preview_target()?;
    let mut options = settings.options()?;
    let opened = settings.open_each()?;
    let precision = settings.precision()?;
    let wanted: Result<Vec<Wanted>, Failure> =
        opened.iter().map(|each| Wanted::new(precision, each.providers)).collect();
    let wanted = wanted?;
    let mut output = Output::prepare(&settings)?;

    opened.iter().flat_map(|each| &each.notes).chain(&notes).for_each(note);
    let begins = request.init.is_some();
    let resolve = || -> Result<Vec<ModelPaths>, Failure> {
        let each = opened.iter().zip(&wanted);
        each.map(|(each, wanted)| sources.resolve(each.providers, *wanted, begins)).collect()
    };
    let paths = match &together {
        None => resolve()?,
        // What is not exported yet, one exports for all.
        Some(together) => together.in_turn(resolve)?,
    };
    let (Some(first), Some(first_paths)) = (opened.first(), paths.first()) else {
        return Err(Failure::request("devices: none are given"));
    };
    let facts = facts::gather(&sources, first_paths, first.main().as_ref(), &loras);
    let record = Record::new(&settings, &request, facts)?;
    origin.iter().flat_map(|origin| origin.warnings(record.facts())).for_each(|warning| {
        note(format_args!("warning: {warning}"));
    });
    if let Some(together) = &together {
        together.compare(&request, record.facts(), ranks::engine(first.main().as_ref()))?;
    }
    // Until here, Ctrl-C ends the program at once; exports are written so that nothing is lost by it.
    let cancel = on_ctrl_c()?;
    options.cancel = cancel.clone();
    let mut pipelines = Vec::new();
    for (each, paths) in opened.iter().zip(paths) {
        let mut pipeline = Pipeline::with_engines(each.engines(), paths, options.clone())?;
        settings.check_model(&pipeline)?;
        lora::apply(&mut pipeline, &loras, settings.lora_allow_unmatched.unwrap_or(false))?;
        pipelines.push(pipeline);
    }
    let preview = match pipelines.as_mut_slice() {
        [pipeline] => settings.preview(preview, pipeline)?,
        _ => None,
    };
    let own = match (&together, pipelines.first()) {
        (Some(together), Some(pipeline)) => {
            together.share(pipeline, &request, record.model(), &mut output)?
        }
        _ => 0..request.prompts.len(),
    };
    let part = request.part(own.clone());
    let who = together.as_ref().map(Together::name);
    let mut reporter = Reporter { preview, who, ..Reporter::default() };
    let mut unwritten = None;
    let mut on_event = |event: Event<'_>| {
        // A finished picture is kept even if a later one fails.
        if let Event::Picture { picture, index } = event
            && unwritten.is_none()
        {
            let index = own.start + index;
            reporter.aside(|| unwritten = output.write(picture, index, &request, &record).err());
            if unwritten.is_some() {
                // Whatever comes could not be written either.
                cancel.cancel();
            }
        }
        reporter.report(event);
    };
    let result = match pipelines.as_mut_slice() {
        // Of many processes, some may have nothing to draw.
        [_] if own.is_empty() => Ok(Vec::new()),
        [pipeline] => pipeline.sample(&part, &mut on_event),
        many => sample_shared(many, &part, &mut on_event),
    };
    reporter.clear();
    for warning in opened.iter().flat_map(OpenEngines::warnings) {
        reporter.warn(&warning);
    }
    if let Some(failure) = unwritten {
        return Err(failure);
    }
    let pictures = result.inspect_err(|_| output.tell_kept())?;
    let (mut count, mut cancelled) = (pictures.len(), cancel.is_cancelled());
    let mut reused = pictures.iter().map(|picture| picture.reused_steps).sum();
    match &together {
        Some(together) => {
            (count, reused, cancelled) =
                together.finish(&pictures, &request, &mut output, cancelled)?;
        }
        None if pictures.is_empty() => {}
        None => output.finish(&pictures)?,
    }
    let (seed, wanted) = (request.seed, request.prompts.len());
    if cancelled {
        let made = output.summary();
        return Err(Failure::Interrupted(format!("{made}, {count} of {wanted}, seed {seed}")));
    }
    if request.easycache.is_some() {
        let steps = count * request.steps_taken();
        note(format_args!("easycache: {} of {steps} steps computed", steps - reused));
    }
    let engines = opened.iter().map(OpenEngines::describe).collect::<Vec<_>>().join(" and ");
    let several = together.map(|together| format!(", {} processes", together.count()));
    note(format_args!(
        "{}, seed {seed}, {}, {engines}{}",
        output.summary(),
        reporter.summary(),
        several.unwrap_or_default()
    ));
    Ok(())
}

/// Turns the pipeline's events into bars or lines, and remembers the seconds of each stage.
#[derive(Default)]
pub(super) struct Reporter {
    bar: Option<Progress>,
    seconds: Vec<(Stage, f64)>,
    preview: Option<Preview>,
    /// Whose work it is, where several processes share it.
    who: Option<String>,
}

impl Reporter {
    pub(super) fn report(&mut self, event: Event<'_>) {
        match event {
            Event::StageStarted { stage, total } => {
                let unit = match stage {
                    Stage::EncodeText => Unit::Count("prompt"),
                    Stage::Denoise => Unit::Count("step"),
                    Stage::EncodePicture | Stage::Decode => Unit::Count("picture"),
                };
                let label = match &self.who {
                    None => stage.to_string(),
                    Some(who) => format!("{stage}, {who}"),
                };
                self.bar = Some(Progress::start(label, total as u64, unit));
            }
            Event::Latents { index, step, steps, predicted, .. } => {
                if let Some(preview) = &mut self.preview {
                    preview.note(index, step, steps, predicted);
                }
            }
            Event::Step { index, total } => {
                if let Some(bar) = &mut self.bar {
                    bar.update(index as u64, total as u64);
                    if let Some(preview) = &mut self.preview {
                        bar.suspend(|| preview.show());
                    }
                }
            }
            Event::StageFinished { stage, seconds } => {
                self.clear();
                // Where pictures are decoded in groups, a stage comes several times.
                match self.seconds.iter_mut().find(|(known, _)| *known == stage) {
                    Some((_, sum)) => *sum += seconds,
                    None => self.seconds.push((stage, seconds)),
                }
            }
            Event::Note { text } => self.aside(|| self.warn(text)),
            Event::Info { text } => self.aside(|| note(text)),
            _ => {}
        }
    }

    /// Does something that writes lines, with the bar out of the way.
    fn aside(&self, write: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Tells something that the user should know.
    fn warn(&self, text: &str) {
        match &self.who {
            None => progress::tell(format_args!("warning: {text}")),
            Some(who) => progress::tell(format_args!("warning: {who}: {text}")),
        }
    }

    /// Removes the bar.
    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }

    pub(super) fn summary(&self) -> String {
        let stages = self.seconds.iter().map(|(stage, seconds)| format!("{stage} {seconds:.2} s"));
        stages.collect::<Vec<_>>().join(", ")
    }
}
