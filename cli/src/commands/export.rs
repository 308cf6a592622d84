//! `pixart export`: a checkpoint folder in, ONNX folders out.

use crate::exit::{Failure, print_line};
use crate::progress::{Progress, Unit};
use clap::{Args, ValueEnum};
use pixart_exporter::{
    Component, ExportOptions, Exported, PipelineSource, Precision, Profile, export_component,
    export_pipeline,
};
use std::path::PathBuf;

/// What is typed after `pixart export`.
#[derive(Args)]
pub struct ExportArgs {
    /// Which part to write
    part: Part,
    /// Diffusers pipeline folder, or the part's own folder
    #[arg(short, long, value_name = "DIR")]
    source: PathBuf,
    /// Folder to write into; each part gets a folder of its own there
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Precision of the weights
    #[arg(long, value_name = "TYPE", default_value = "fp32")]
    precision: Precision,
    /// Operators to use: `ort` for ONNX Runtime (fused attention), `portable` for any engine
    /// (standard operators only)
    #[arg(long, value_name = "NAME", default_value = "ort")]
    profile: Profile,
    /// Replace what is there already
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Part {
    /// The three below, with tokenizer and scheduler: a folder that `sample --model` takes
    All,
    /// The diffusion transformer
    Transformer,
    /// The T5 encoder
    TextEncoder,
    /// Latents to pictures
    VaeDecoder,
}

/// Runs the command.
pub fn run(args: ExportArgs) -> Result<(), Failure> {
    let options = ExportOptions {
        profile: args.profile,
        precision: args.precision,
        force: args.force,
        ..Default::default()
    };
    let mut bar: Option<(Component, Progress)> = None;
    let mut report = |progress: pixart_exporter::Progress| {
        if bar.as_ref().is_none_or(|(component, _)| *component != progress.component) {
            if let Some((_, done)) = bar.take() {
                done.finish();
            }
            let label = format!("export {}", progress.component);
            bar = Some((progress.component, Progress::start(label, 0, Unit::Bytes)));
        }
        if let Some((_, bar)) = &mut bar {
            bar.update(progress.bytes_done, progress.bytes_total);
        }
    };
    let component = match args.part {
        Part::All => None,
        Part::Transformer => Some(Component::Transformer),
        Part::TextEncoder => Some(Component::TextEncoder),
        Part::VaeDecoder => Some(Component::VaeDecoder),
    };
    let result = match component {
        Some(component) => {
            export_component(&args.source, component, &args.output, &options, &mut report)
                .map(|exported| vec![exported])
        }
        None => PipelineSource::from_folder(&args.source)
            .and_then(|source| export_pipeline(&source, &args.output, &options, &mut report)),
    };
    if let Some((_, bar)) = bar {
        bar.finish();
    }
    for Exported { folder, .. } in result? {
        print_line(folder.display())?;
    }
    Ok(())
}
