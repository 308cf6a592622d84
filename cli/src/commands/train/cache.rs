//! `pixart train cache`: what text encoder and VAE make of captions and pictures, once.

use super::encoder::Roots;
use super::settings::EngineSettings;
use super::{data, dataset, open_engine};
use crate::config;
use crate::exit::{Failure, print_line};
use crate::interrupt::on_ctrl_c;
use crate::progress::{Progress, Unit};
use anyhow::Context;
use clap::Args;
use pixart_runtime::pipeline::Cancel;
use pixart_runtime::text::CaptionEncoder;
use pixart_runtime::vae::PictureEncoder;
use pixart_trainer::data::{
    CaptionSettings, CaptionType, Dataset, EncodingCache, FillOptions, Filled, Filling,
    SamplerError, TextDescription, VaeDescription,
};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::path::{Path, PathBuf};

/// Shown under the help.
pub const AFTER_HELP: &str = "Killed or interrupted, it goes on where it was. Exit codes: 0 everything is \
                              there (but for pictures that cannot be read, which are named), 1 something \
                              is not, 2 the request was wrong, 130 ended early by Ctrl-C";

/// What is typed after `pixart train cache`.
#[derive(Args)]
// A setting of training, which is taken along and means nothing here: encoders get what memory is meant for.
#[command(mut_arg("batch_size", |arg| arg.hide(true)))]
pub struct CacheArgs {
    /// YAML file with the settings of training under the same names; flags win over it
    #[arg(short = 'c', long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only look whether everything that training needs is there and sound; computes and writes nothing
    #[arg(long)]
    check: bool,
    /// Numbers captions are kept in: fp16, or fp32, which takes twice the room [default: fp16]
    #[arg(long = "caption_dtype", value_name = "NAME")]
    caption_dtype: Option<String>,
    #[command(flatten)]
    places: Places,
    #[command(flatten, next_help_heading = "Data")]
    data: data::Settings,
    #[command(flatten, next_help_heading = "Engine")]
    engine: EngineSettings,
}

/// Where the encoders are, and where to keep what they give.
#[derive(Args, Serialize, Deserialize, Default, Debug)]
#[serde(default)]
struct Places {
    /// Folder to keep it in, for --cache_dir of pixart train
    #[arg(long = "cache_dir", value_name = "FOLDER")]
    cache_dir: Option<PathBuf>,
    /// Folder of the text encoder, exported or in the diffusers layout
    #[arg(long = "text_encoder_root", value_name = "FOLDER")]
    text_encoder_root: Option<PathBuf>,
    /// Folder of the VAE, exported or in the diffusers layout
    #[arg(long = "vae_root", value_name = "FOLDER")]
    vae_root: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &CacheArgs) -> Result<(), Failure> {
    let known = super::settings::names();
    let path = args.config.as_deref();
    let places: Places = config::merge(path, &args.places, &known)?;
    let data: data::Settings = config::merge(path, &args.data, &known)?;
    let engine: EngineSettings = config::merge(path, &args.engine, &known)?;
    let Some(folder) = &places.cache_dir else {
        return Err(Failure::request(
            "cache_dir: nothing given; name the folder to keep captions and pictures in with --cache_dir",
        ));
    };
    let kept = match args.caption_dtype.as_deref() {
        None | Some("fp16") => CaptionType::F16,
        Some("fp32") => CaptionType::F32,
        Some(found) => {
            return Err(super::options::wrong("caption_dtype", found, "fp16 or fp32"));
        }
    };
    let settings =
        CaptionSettings { cleaning: data.cleaning()?, max_length: data.t5_max_length()? };
    let workers = data.data(true)?.threads;
    let dataset = dataset(&data)?;
    if dataset.items().is_empty() {
        return Err(SamplerError::NoPictures.into());
    }
    if args.check {
        return check(folder, &dataset, settings, workers);
    }
    let engine = open_engine(&engine, None, None)?.engine;
    let roots = Roots {
        text_encoder: places.text_encoder_root.as_deref(),
        tokenizer: data.tokenizer_root.as_deref(),
        vae: places.vae_root.as_deref(),
    };
    roots.check(true, true, [""; 2])?;
    let (text_encoder, tokenizer) = roots.text(&engine, None)?;
    let vae = roots.vae(&engine, None)?;
    let mut captions = CaptionEncoder::new(&engine, &text_encoder, &tokenizer, None)?;
    let mut pictures = PictureEncoder::open(&engine, &vae)?;
    let text = captions.folder().context("the text encoder is gone")?;
    let text = TextDescription::new(text, &tokenizer)
        .with_context(|| format!("{}: cannot read the tokenizer", tokenizer.display()))?;
    let vae = VaeDescription::new(pictures.folder());
    let mut filling = Filling::open(folder, text, vae)?;
    let cancel = on_ctrl_c()?;
    let options = FillOptions { settings, kept, workers, cancel: cancel.clone() };

    let texts = with_bar("captions", "caption", |progress, _| {
        filling.fill_captions(&dataset, &mut captions, &options, progress)
    })?;
    // The larger one of the two makes room before the other is loaded.
    drop(captions);
    told("captions", &texts, &cancel)?;
    let moments = with_bar("pictures", "picture", |progress, tell| {
        filling.fill_moments(&dataset, &mut pictures, &options, progress, tell)
    })?;
    for skipped in &moments.skipped {
        eprintln!("skipped {}: {}", skipped.file.display(), skipped.problem);
    }
    told("pictures", &moments, &cancel)?;
    print_line(folder.display())?;
    if moments.skipped.len() == moments.total {
        return Err(SamplerError::NoPictures.into());
    }
    Ok(())
}

/// Does `work` with a bar for its progress, and lines above it.
fn with_bar<T>(
    label: &str,
    unit: &'static str,
    work: impl FnOnce(&mut dyn FnMut(usize, usize), &mut dyn FnMut(&str)) -> T,
) -> T {
    let bar = RefCell::new(Progress::start(label, 0, Unit::Count(unit)));
    let result =
        work(&mut |done, total| bar.borrow_mut().update(done as u64, total as u64), &mut |line| {
            bar.borrow().suspend(|| eprintln!("{line}"))
        });
    bar.into_inner().finish();
    result
}

/// Tells what was done, or that it was ended early.
fn told(what: &str, filled: &Filled, cancel: &Cancel) -> Result<(), Failure> {
    let Filled { total, computed, present, skipped } = filled;
    let mut line = format!("{what}: {computed} encoded, {present} were there");
    if !skipped.is_empty() {
        line += &format!(", {} cannot be read and are passed over in training", skipped.len());
    }
    let done = computed + present + skipped.len();
    if cancel.is_cancelled() && done < *total {
        return Err(Failure::Interrupted(format!(
            "{line}, {} are missing; the same command goes on there",
            total - done
        )));
    }
    eprintln!("{line}");
    Ok(())
}

/// Reads everything that training would read.
fn check(
    folder: &Path,
    dataset: &Dataset,
    settings: CaptionSettings,
    workers: usize,
) -> Result<(), Failure> {
    let cache = EncodingCache::open(folder)?;
    let lacks =
        with_bar("check", "entry", |progress, _| cache.lacks(dataset, settings, workers, progress));
    for (name, why) in &lacks.list {
        print_line(format_args!("{name}: {why}"))?;
    }
    let count = lacks.list.len();
    eprintln!("{} captions and pictures looked at, {count} are not to be had", lacks.of);
    match lacks.list.iter().filter(|(_, why)| !why.is_noted()).count() {
        0 => Ok(()),
        count => Err(Failure::Failed(anyhow::anyhow!(
            "{}: {count} of {} captions and pictures are missing, damaged or of pictures that have changed; \
             `pixart train cache` without --check makes them anew",
            folder.display(),
            lacks.of
        ))),
    }
}
