//! `pixart export`: a checkpoint folder in, ONNX folders out.

mod check;
mod verify;

use crate::exit::{Failure, print_line};
use crate::progress::{Progress, Unit};
use clap::{Args, ValueEnum};
use pixart_exporter::{
    Component, ExportOptions, Exported, PipelineSource, Precision, Profile, Staged, Verdict,
    export_component_checked, export_pipeline_checked,
};
use std::path::PathBuf;

/// What is typed after `pixart export`.
#[derive(Args)]
#[command(override_usage = "pixart export <PART> --source <DIR> --output <DIR> [OPTIONS]\n       \
                            pixart export --verify <DIR> [--numeric]")]
pub struct ExportArgs {
    /// Which part to write
    #[arg(required_unless_present = "verify")]
    part: Option<Part>,
    /// Diffusers pipeline folder, or the part's own folder
    #[arg(short, long, value_name = "DIR", required_unless_present = "verify")]
    source: Option<PathBuf>,
    /// Folder to write into; each part gets a folder of its own there
    #[arg(short, long, value_name = "DIR", required_unless_present = "verify")]
    output: Option<PathBuf>,
    /// Precision of the weights
    #[arg(long, value_name = "TYPE", default_value = "fp32")]
    precision: Precision,
    /// Operators to use: `ort` for ONNX Runtime (fused attention), `portable` for any engine
    /// (standard operators only), `cann` for Ascend accelerators (primitive operators of an old
    /// set; not yet tried on one)
    #[arg(long, value_name = "NAME", default_value = "ort")]
    profile: Profile,
    /// Replace what is there already
    #[arg(long)]
    force: bool,
    /// Do not compare what was written with fp32; without this, other precisions are compared on
    /// ONNX Runtime, and one that is too far off is not kept
    #[arg(long)]
    no_verify: bool,
    /// Write nothing, but compare every file of the export in DIR (all of it, or one part's folder)
    /// with the hashes in its manifest.json
    #[arg(long, value_name = "DIR",
        conflicts_with_all = ["part", "source", "output", "precision", "profile", "force", "no_verify"])]
    verify: Option<PathBuf>,
    /// With --verify: also run every part on random inputs on two engines and compare the outputs;
    /// needs ONNX Runtime
    #[arg(long, requires = "verify", conflicts_with_all = ["part", "source", "output"])]
    numeric: bool,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Part {
    /// The four below, with tokenizer and scheduler: a folder that `sample --model` takes
    All,
    /// The diffusion transformer
    Transformer,
    /// The T5 encoder
    TextEncoder,
    /// Latents to pictures
    VaeDecoder,
    /// Pictures to the distribution of their latents
    VaeEncoder,
}

/// Runs the command.
pub fn run(args: ExportArgs) -> Result<(), Failure> {
    if let Some(folder) = &args.verify {
        return verify::run(folder, args.numeric);
    }
    let (Some(part), Some(source), Some(output)) = (args.part, &args.source, &args.output) else {
        // The parser requires all three.
        return Err(Failure::request("export: a part, --source and --output are needed"));
    };
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
    let mut check: Box<dyn FnMut(&Staged<'_>) -> Verdict> = match args.no_verify {
        true => Box::new(|_| Ok(None)),
        false => Box::new(check::against_fp32),
    };
    let component = match part {
        Part::All => None,
        Part::Transformer => Some(Component::Transformer),
        Part::TextEncoder => Some(Component::TextEncoder),
        Part::VaeDecoder => Some(Component::VaeDecoder),
        Part::VaeEncoder => Some(Component::VaeEncoder),
    };
    let result = match component {
        Some(component) => {
            export_component_checked(source, component, output, &options, &mut report, &mut check)
                .map(|exported| vec![exported])
        }
        None => PipelineSource::from_folder(source).and_then(|source| {
            export_pipeline_checked(&source, output, &options, &mut report, &mut check)
        }),
    };
    if let Some((_, bar)) = bar {
        bar.finish();
    }
    for Exported { component, folder, notes, .. } in result? {
        print_line(folder.display())?;
        for note in notes {
            eprintln!("note: {component}: {note}");
        }
    }
    Ok(())
}
