//! `pixart sample`: prompts in, pictures out.

mod output;
mod settings;

use crate::exit::Failure;
use crate::model;
use crate::progress::{Progress, Unit};
use clap::Args;
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
    let settings = crate::config::merge(args.config.as_deref(), &args.settings, &settings::names())?;
    // Everything that can be wrong with the request is found before the long work starts.
    let request = settings.request()?;
    let sources = settings.sources()?;
    let mut output = output::Output::prepare(&settings)?;

    let options = EngineOptions { threads: settings.threads, ..EngineOptions::default() };
    let opened = engine::open(settings.engine()?, &options)?;
    if let Some(note) = &opened.note {
        eprintln!("{note}");
    }
    let profile = model::profile_for(opened.engine.name());
    let paths = model::resolve(&sources, profile)?;
    settings.check_against(&paths)?;

    let options = PipelineOptions { keep_resident: settings.keep_resident(), ..Default::default() };
    let mut pipeline = Pipeline::new(opened.engine.clone(), paths, options)?;
    let mut reporter = Reporter::default();
    let mut unwritten = None;
    let pictures = pipeline.sample(&request, &mut |event| {
        reporter.report(&event);
        if let Event::Picture { picture, .. } = event {
            // A finished picture is kept even if a later one fails.
            unwritten = unwritten.take().or(output.write(picture).err());
        }
    });
    reporter.finish();
    let pictures = pictures?;
    if let Some(failure) = unwritten {
        return Err(failure);
    }
    output.finish(&pictures)?;
    eprintln!("{} · {} · {}", output.summary(), opened.engine.describe(), reporter.summary());
    Ok(())
}

/// Turns the pipeline's events into bars or lines and remembers the seconds per stage.
#[derive(Default)]
struct Reporter {
    bar: Option<Progress>,
    seconds: Vec<(Stage, f64)>,
}
