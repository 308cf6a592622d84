//! `pixart bundle`: this program, an engine and a model in one executable.

use super::sample::devices::Providers;
use super::sample::settings::{self, Settings};
use crate::exit::{Failure, print_line};
use crate::model::Wanted;
use crate::progress::{Progress, Unit};
use clap::Args;
use pixart_runtime::bundle::{self, Bundle, Contents, store};
use std::path::{Path, PathBuf};

/// What is typed after `pixart bundle`.
#[derive(Args)]
#[command(override_usage = "pixart bundle --model <DIR>... --output <FILE> [OPTIONS]\n       \
                            pixart bundle --check [BUNDLE]\n       \
                            pixart bundle --extract <DIR> [BUNDLE]")]
pub struct BundleArgs {
    /// Model folder, exported or a diffusers pipeline, which is exported first; of several, each part comes
    /// from the first that has it [default: models/demo]
    #[arg(short, long, value_name = "DIR", num_args = 1..)]
    model: Vec<PathBuf>,
    /// YAML file that names the parts, as for `pixart sample`
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What runs the graphs: the name of an installed engine of one library (cpu), or tract, which is built
    /// in [default: what `pixart sample` uses here]
    #[arg(short, long, value_name = "NAME")]
    engine: Option<String>,
    /// Precision of what is not exported yet: fp32, fp16, bf16, int8 or int4 [default: fp32]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<String>,
    /// The executable to write
    #[arg(short, long, value_name = "FILE", required_unless_present_any = ["check", "extract"])]
    output: Option<PathBuf>,
    /// Replace what is there already
    #[arg(long)]
    force: bool,
    /// Compare every file in a bundle with its hash
    #[arg(long, conflicts_with_all = ["model", "config", "engine", "dtype", "output", "force"])]
    check: bool,
    /// Write the folders of a bundle into the new folder DIR
    #[arg(long, value_name = "DIR",
          conflicts_with_all = ["model", "config", "engine", "dtype", "output", "force"])]
    extract: Option<PathBuf>,
    /// The bundle to check or extract [default: this program]
    #[arg(value_name = "BUNDLE", conflicts_with = "output")]
    bundle: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: BundleArgs) -> Result<(), Failure> {
    if let Some(output) = &args.output {
        return make(&args, output);
    }
    let bundle = opened(args.bundle.as_deref())?;
    if args.check {
        with_bar("check", |bar| bundle.check(bar))?;
        print_line(format_args!("{}: unaltered", bundle.file().display()))?;
    }
    if let Some(folder) = &args.extract {
        with_bar("extract", |bar| bundle.extract(folder, bar))?;
        print_line(folder.display())?;
    }
    Ok(())
}

fn make(args: &BundleArgs, output: &Path) -> Result<(), Failure> {
    // All that needs no long work is looked at before it.
    if let Ok(Some(own)) = bundle::own() {
        return Err(bundle::BundleError::Nested { file: own.file().to_owned() }.into());
    }
    let program = std::env::current_exe()?;
    if !args.force && output.symlink_metadata().is_ok() {
        let advice = "choose another name, or replace it with --force";
        return Err(bundle::BundleError::Exists { path: output.to_owned(), advice }.into());
    }
    let flags = Settings { dtype: args.dtype.clone(), ..parts(&args.model)? };
    let settings = crate::config::merge(args.config.as_deref(), &flags, &settings::names())?;
    let library = bundle::engine(args.engine.as_deref())?;
    let engine = if library.is_some() { "ort" } else { "tract" };
    let sources = settings.sources()?;
    let providers = Providers::on_processor(engine);
    let wanted = Wanted::new(settings.precision()?, providers)?;
    let paths = sources.resolve(providers, wanted, sources.has_encoder())?;
    let mut contents = Contents::of_model(&paths)?;
    if let Some(library) = &library {
        contents = contents.with_engine(library)?;
    }
    let index =
        with_bar("bundle", |bar| bundle::write(output, &program, &contents, args.force, bar))?;
    let engine = match &index.engine {
        Some(engine) => format!("ONNX Runtime {} ({})", engine.version, engine.name),
        None => "tract, which is built in".to_owned(),
    };
    let bytes = std::fs::metadata(output)?.len();
    eprintln!("{} files, {:.1} MB, engine: {engine}", index.entries.len(), bytes as f64 / 1e6);
    Ok(print_line(output.display())?)
}

/// The settings that name the parts in the first of the folders that has them.
fn parts(folders: &[PathBuf]) -> Result<Settings, Failure> {
    if let [] | [_] = folders {
        return Ok(Settings { model: folders.first().cloned(), ..Settings::default() });
    }
    let find = |names: &[&str]| {
        let all = folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name)));
        all.into_iter().find(|path| store::is_dir(path)).ok_or_else(|| {
            let folders: Vec<_> = folders.iter().map(|f| f.display().to_string()).collect();
            Failure::request(format!(
                "model: found no {} in {}, expected it in one of them",
                names.join(" or "),
                folders.join(", ")
            ))
        })
    };
    Ok(Settings {
        checkpoint: Some(find(&["transformer"])?),
        text_encoder_root: Some(find(&["text_encoder"])?),
        vae_root: Some(find(&["vae_decoder", "vae"])?),
        tokenizer_root: Some(find(&["tokenizer"])?),
        ..Settings::default()
    })
}

/// The bundle at a path, or the one that was started.
fn opened(path: Option<&Path>) -> Result<Bundle, Failure> {
    let path = match (path, bundle::own()) {
        (Some(path), _) => path.to_owned(),
        // It finds itself where the system does not say where it is, too.
        (None, Ok(Some(own))) => own.file().to_owned(),
        (None, _) => std::env::current_exe()?,
    };
    let bundle = Bundle::open(&path)?;
    bundle.ok_or_else(|| Failure::request(bundle::BundleError::NotOne { file: path }))
}

fn with_bar<T, E>(
    label: &str,
    work: impl FnOnce(&mut dyn FnMut(u64, u64)) -> Result<T, E>,
) -> Result<T, E> {
    let mut bar = Progress::start(label, 0, Unit::Bytes);
    let result = work(&mut |done, total| bar.update(done, total));
    bar.finish();
    result
}
