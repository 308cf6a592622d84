//! `pixart convert`: a checkpoint in, safetensors out.

use crate::exit::{Failure, print_line};
use crate::progress::{Progress, Unit};
use crate::variant::{OpenArgs, VariantArgs};
use clap::Args;
use pixart_exporter::convert::{ConvertOptions, TargetNaming, convert};
use std::path::PathBuf;

/// What is typed after `pixart convert`.
#[derive(Args)]
pub struct ConvertArgs {
    /// Checkpoint: a file (PyTorch, safetensors, MindSpore) or a folder
    #[arg(short, long, value_name = "PATH")]
    source: PathBuf,
    /// What to write: a name that ends in .safetensors, or a folder in the diffusers layout
    #[arg(short, long, value_name = "PATH")]
    target: PathBuf,
    /// Names of the tensors: official, diffusers or keep [default: keep in a file, diffusers in a
    /// folder]
    #[arg(long, value_name = "NAME")]
    naming: Option<TargetNaming>,
    /// Replace what is there already
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    variant: VariantArgs,
}

/// Runs the command.
pub fn run(args: ConvertArgs) -> Result<(), Failure> {
    let options = ConvertOptions {
        naming: args.naming,
        variant: args.variant.flags(),
        open: args.open.options(),
        force: args.force,
    };
    let mut bar = None;
    let result = convert(&args.source, &args.target, &options, &mut |done, total| {
        bar.get_or_insert_with(|| Progress::start("convert", total, Unit::Bytes))
            .update(done, total);
    });
    if let Some(bar) = bar {
        bar.finish();
    }
    let converted = result?;
    for note in &converted.notes {
        eprintln!("note: {note}");
    }
    print_line(converted.target.display())?;
    Ok(())
}
