//! `pixart export`: a checkpoint in, ONNX folders out.

mod check;
mod verify;

use crate::exit::{Failure, print_line};
use crate::progress::{Progress, Unit};
use crate::variant::{OpenArgs, VariantArgs};
use clap::{Args, ValueEnum};
use pixart_exporter::{
    Component, ExportError, ExportOptions, Exported, Int8Mode, PipelineSource, Precision, Profile,
    Staged, Verdict, export_component_checked, export_pipeline_checked,
};
use std::path::{Path, PathBuf};

/// What is typed after `pixart export`.
#[derive(Args)]
#[command(override_usage = "pixart export <PART> --source <DIR> --output <DIR> [OPTIONS]\n       \
                            pixart export --verify <DIR> [--numeric]")]
pub struct ExportArgs {
    /// Which part to write
    #[arg(required_unless_present = "verify")]
    part: Option<Part>,
    /// Diffusers pipeline folder, or the part's own folder; for the transformer also a file or a folder
    /// without config.json, under diffusers' names or the original ones
    #[arg(short, long, value_name = "PATH", required_unless_present = "verify",
        required_unless_present_all = PARTS)]
    source: Option<PathBuf>,
    /// Folder to write into; each part gets a folder of its own there
    #[arg(short, long, value_name = "DIR", required_unless_present = "verify")]
    output: Option<PathBuf>,
    /// Precision of the weights: fp32, fp16, bf16, int8 or int4. With `all`, the VAE stays in fp32
    #[arg(long, value_name = "TYPE", default_value = "fp32")]
    precision: Precision,
    /// How int8 computes: `weight_only` (the smaller error) or `dynamic`, which quantises the
    /// transformer's activations as well (W8A8, faster on processors) [default: weight_only]
    #[arg(long = "int8_mode", value_name = "MODE")]
    int8_mode: Option<Int8Mode>,
    /// Precision of the VAE: fp32, fp16 (only for weights that were fine-tuned for it) or bf16
    /// [default: fp32 with `all`, else that of --precision]
    #[arg(long = "vae_precision", value_name = "TYPE")]
    vae_precision: Option<Precision>,
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
        conflicts_with_all = ["part", "source", "output", "precision", "int8_mode", "vae_precision", "profile", "force",
            "no_verify",
            "PartSources", "OpenArgs", "VariantArgs"])]
    verify: Option<PathBuf>,
    /// With --verify: also run every part on random inputs on two engines and compare the outputs;
    /// needs ONNX Runtime
    #[arg(long, requires = "verify", conflicts_with_all = ["part", "source", "output"])]
    numeric: bool,
    #[command(flatten)]
    sources: PartSources,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    variant: VariantArgs,
}

/// Where single parts of a pipeline are.
#[derive(Args)]
#[command(next_help_heading = "With `all`: parts that are not in the source's folder")]
struct PartSources {
    /// The transformer: its folder, its pipeline's, or a file
    #[arg(long, value_name = "PATH")]
    transformer: Option<PathBuf>,
    /// The text encoder: its folder or its pipeline's
    #[arg(long = "text_encoder", value_name = "DIR")]
    text_encoder: Option<PathBuf>,
    /// The VAE: its folder or its pipeline's
    #[arg(long, value_name = "DIR")]
    vae: Option<PathBuf>,
    /// The tokenizer: its folder or its pipeline's
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// The scheduler's configuration: its folder or its pipeline's
    #[arg(long, value_name = "DIR")]
    scheduler: Option<PathBuf>,
}

/// The flags of [`PartSources`].
const PARTS: [&str; 5] = ["transformer", "text_encoder", "vae", "tokenizer", "scheduler"];

impl PartSources {
    /// All parts, from their own paths where given, else from the pipeline's folder.
    fn in_pipeline(&self, folder: Option<&Path>) -> Result<PipelineSource, ExportError> {
        let mut source = PipelineSource::in_folder(folder.unwrap_or(Path::new("")));
        let fields = [
            &mut source.transformer,
            &mut source.text_encoder,
            &mut source.vae,
            &mut source.tokenizer,
            &mut source.scheduler,
        ];
        for (field, (name, given)) in fields.into_iter().zip(self.given()) {
            let Some(given) = given else { continue };
            let inner = given.join(name);
            *field = if inner.is_dir() { inner } else { given.clone() };
        }
        if self.first().is_some() {
            // It speaks of the parts that lie beside it.
            source.model_index = None;
        }
        source.check()?;
        Ok(source)
    }

    /// Every part's flag and value.
    fn given(&self) -> impl Iterator<Item = (&'static str, Option<&PathBuf>)> {
        let given =
            [&self.transformer, &self.text_encoder, &self.vae, &self.tokenizer, &self.scheduler];
        PARTS.into_iter().zip(given.map(Option::as_ref))
    }

    /// The first part that is given.
    fn first(&self) -> Option<&'static str> {
        self.given().find_map(|(name, given)| given.is_some().then_some(name))
    }
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

impl ExportArgs {
    /// How to export; refuses flags that the part does not have.
    fn options(&self, part: Part) -> Result<ExportOptions, Failure> {
        let variant = self.variant.flags();
        match (part, self.sources.first(), variant.first_set()) {
            (Part::All, _, _) | (Part::Transformer, None, _) | (_, None, None) => {}
            (_, Some(part), _) => {
                return Err(Failure::request(format!(
                    "--{part}: only `export all` takes parts from several places; name the part's \
                     own with --source"
                )));
            }
            (_, None, Some(flag)) => {
                return Err(Failure::request(format!(
                    "{flag}: only the transformer has this; leave it out, or export `transformer` \
                     or `all`"
                )));
            }
        }
        Ok(ExportOptions {
            profile: self.profile,
            precision: self.precision,
            int8_mode: self.int8_mode,
            vae_precision: self.vae_precision,
            force: self.force,
            variant,
            open: self.open.options(),
        })
    }
}

/// Runs the command.
pub fn run(args: ExportArgs) -> Result<(), Failure> {
    if let Some(folder) = &args.verify {
        return verify::run(folder, args.numeric);
    }
    let (Some(part), Some(output)) = (args.part, &args.output) else {
        // The parser requires both.
        return Err(Failure::request("export: a part and --output are needed"));
    };
    let options = args.options(part)?;
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
    let result = match (component, &args.source) {
        (Some(component), Some(source)) => {
            export_component_checked(source, component, output, &options, &mut report, &mut check)
                .map(|exported| vec![exported])
        }
        (_, source) => args.sources.in_pipeline(source.as_deref()).and_then(|source| {
            export_pipeline_checked(&source, output, &options, &mut report, &mut check)
        }),
    };
    if let Some((_, bar)) = bar {
        bar.finish();
    }
    for Exported { component, folder, notes, warnings, .. } in result? {
        for warning in warnings {
            eprintln!("warning: {warning}");
        }
        print_line(folder.display())?;
        for note in notes {
            eprintln!("note: {component}: {note}");
        }
    }
    Ok(())
}
