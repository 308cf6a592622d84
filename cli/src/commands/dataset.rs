//! `pixart dataset`: what pictures for training are worth.

mod report;
pub mod settings;

use crate::exit::{Failure, print_line};
use crate::progress::{Progress, Unit};
use clap::{Args, Subcommand};
use pixart_trainer::data::{CaptionLimit, CheckError, CheckOptions, check};
use serde_json::json;
use settings::Settings;
use std::path::PathBuf;

/// What is typed after `pixart dataset`.
#[derive(Args)]
pub struct DatasetArgs {
    #[command(subcommand)]
    command: DatasetCommand,
}

#[derive(Subcommand)]
enum DatasetCommand {
    /// Look at every label and picture before training begins
    #[command(after_help = AFTER_CHECK)]
    Check(Box<CheckArgs>),
}

const AFTER_CHECK: &str = "Exit codes: 0 every label can be trained on (but for what the filters leave \
                           out), 1 some cannot or none is usable, 2 the request was wrong";

#[derive(Args)]
struct CheckArgs {
    /// YAML file with the settings of training under the same names; flags win over it
    #[arg(short = 'c', long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object with everything that was found instead of a table
    #[arg(long)]
    json: bool,
    /// Do not decompress the pictures: finds neither those that are cut off nor copies under other names
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Runs the command.
pub fn run(args: DatasetArgs) -> Result<(), Failure> {
    match args.command {
        DatasetCommand::Check(args) => run_check(&args),
    }
}

fn run_check(args: &CheckArgs) -> Result<(), Failure> {
    let settings = settings::merge(args.config.as_deref(), &args.settings)?;
    let (source, columns, image_dir) = settings.source()?;
    let tokenizer = settings.tokenizer(args.settings.tokenizer_root.is_some())?;
    let (cleaning, max_length) = (settings.cleaning()?, settings.t5_max_length()?);
    let captions =
        tokenizer.as_ref().map(|tokenizer| CaptionLimit { tokenizer, cleaning, max_length });
    let data = settings.data(args.quick)?;
    let options = CheckOptions { data, batch_size: settings.batch_size()?, captions };
    let mut bar = None;
    let result = check(&source, &columns, &image_dir, &options, &mut |done, total| {
        bar.get_or_insert_with(|| Progress::start("check", total as u64, Unit::Count("picture")))
            .update(done as u64, total as u64);
    });
    if let Some(bar) = bar {
        bar.finish();
    }
    let found = result.map_err(|error| match error {
        CheckError::Labels(labels) if labels.is_request() => Failure::request(labels),
        error => Failure::from(error),
    })?;
    match args.json {
        true => print_line(format_args!("{:#}", json!(found)))?,
        false => report::print(&found, &options, args.quick)?,
    }
    let problems = found.problems();
    if found.usable == 0 {
        Err(Failure::Failed(anyhow::anyhow!(
            "none of {} labels can be trained on: each needs a picture in {} that can be read, and a \
             caption",
            found.entries,
            image_dir.display()
        )))
    } else if problems > 0 {
        Err(Failure::Failed(anyhow::anyhow!(
            "{problems} of {} labels cannot be trained on; correct or remove them, or train without them",
            found.entries
        )))
    } else {
        Ok(())
    }
}
