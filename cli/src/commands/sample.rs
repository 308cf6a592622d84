//! `pixart sample`: prompts in, pictures out.

mod listing;
pub(super) mod lora;
mod output;
mod prompts;
mod sampling;
pub(super) mod settings;
mod style;
mod tiling;
mod upstream;

use crate::exit::Failure;
use crate::model::profile_for;
use crate::progress::{Progress, Unit};
use clap::Args;
use output::Output;
use pixart_runtime::engine::{self, EngineOptions};
use pixart_runtime::pipeline::{Event, Pipeline, PipelineOptions, Stage};
use settings::Settings;
use std::path::PathBuf;

/// What is typed after `pixart sample`.
#[derive(Args)]
pub struct SampleArgs {
    /// YAML file with the settings below under the same names; flags win over it
    #[arg(short = 'c', long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// Runs the command.
pub fn run(args: SampleArgs) -> Result<(), Failure> {
    let settings =
        crate::config::merge(args.config.as_deref(), &args.settings, &settings::names())?;
    // Everything that can be wrong with the request is found before the long work starts.
    let notes = settings.upstream_notes()?;
    let vae_tiling = settings.vae_tiling()?;
    let request = settings.request()?;
    let loras = lora::read(&settings.lora)?;
    let sources = settings.sources()?;
    let options = EngineOptions { threads: settings.threads()?, ..EngineOptions::default() };
    let opened = engine::open(settings.engine()?, &options)?;
    let mut output = Output::prepare(&settings)?;

    for note in opened.note.iter().chain(&notes) {
        eprintln!("{note}");
    }
    let paths = sources.resolve(profile_for(opened.engine.name()))?;
    let options = PipelineOptions {
        keep_resident: settings.keep_resident.unwrap_or(false),
        text_cache: settings.text_cache()?,
        vae_tiling,
    };
    let mut pipeline = Pipeline::new(opened.engine.clone(), paths, options)?;
    settings.check_model(&pipeline)?;
    lora::apply(&mut pipeline, &loras, settings.lora_allow_unmatched.unwrap_or(false))?;

    let mut reporter = Reporter::default();
    let mut unwritten = None;
    let pictures = pipeline.sample(&request, &mut |event| {
        // A finished picture is kept even if a later one fails.
        if let Event::Picture { picture, index } = event
            && unwritten.is_none()
        {
            let negative = request.negative_prompts.get(index).map_or("", String::as_str);
            unwritten = output.write(picture, negative).err();
        }
        reporter.report(event);
    })?;
    if let Some(failure) = unwritten {
        return Err(failure);
    }
    output.finish(&pictures)?;
    eprintln!(
        "{}, seed {}, {}, {}",
        output.summary(),
        request.seed,
        reporter.summary(),
        opened.engine.describe()
    );
    Ok(())
}

/// Turns the pipeline's events into bars or lines, and remembers the seconds of each stage.
#[derive(Default)]
pub(super) struct Reporter {
    bar: Option<Progress>,
    seconds: Vec<(Stage, f64)>,
}

impl Reporter {
    pub(super) fn report(&mut self, event: Event<'_>) {
        match event {
            Event::StageStarted { stage, total } => {
                self.bar = Some(Progress::start(stage.to_string(), total as u64, Unit::Count));
            }
            Event::Step { index, total } => {
                if let Some(bar) = &mut self.bar {
                    bar.update(index as u64, total as u64);
                }
            }
            Event::StageFinished { stage, seconds } => {
                if let Some(bar) = self.bar.take() {
                    bar.finish();
                }
                self.seconds.push((stage, seconds));
            }
            Event::Note { text } => eprintln!("warning: {text}"),
            Event::Info { text } => eprintln!("{text}"),
            _ => {}
        }
    }

    pub(super) fn summary(&self) -> String {
        let stages = self.seconds.iter().map(|(stage, seconds)| format!("{stage} {seconds:.2} s"));
        stages.collect::<Vec<_>>().join(", ")
    }
}
