//! `pixart train cache`: what text encoder and VAE make of captions and pictures, once.

use super::encoder::Roots;
use super::settings::EngineSettings;
use super::{data, dataset, open_engine};
use crate::config::{self, boolean};
use crate::exit::{Failure, print_line};
use crate::interrupt::on_ctrl_c;
use crate::progress::{Progress, Unit, note};
use crate::ranks;
use anyhow::Context;
use clap::{ArgAction, Args};
use pixart_runtime::text::CaptionEncoder;
use pixart_runtime::vae::PictureEncoder;
use pixart_trainer::data::{
    CaptionSettings, CaptionType, Dataset, EncodingCache, FillOptions, Filled, Filling,
    SamplerError, TextDescription, VaeDescription,
};
use pixart_trainer::ranks::Ranks;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    /// Fill it in several processes that `mpirun` has started, each its share [default: false]
    #[arg(long = "use_parallel", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    use_parallel: Option<bool>,
}

/// Everything that can be set.
struct Settings {
    places: Places,
    data: data::Settings,
    engine: EngineSettings,
    caption_dtype: Option<String>,
    check: bool,
}

impl Settings {
    /// What several processes must have in common, the data being `data`.
    fn told(&self, data: String) -> Result<BTreeMap<String, String>, Failure> {
        let groups =
            [config::given(&self.places), config::given(&self.data), config::given(&self.engine)];
        let mut all = serde_yaml::Mapping::new();
        for group in groups {
            all.extend(group.map_err(anyhow::Error::from)?);
        }
        let mut told = ranks::told(all)?;
        told.extend(self.caption_dtype.clone().map(|name| ("caption_dtype".to_owned(), name)));
        told.insert("pictures and captions".to_owned(), data);
        Ok(told)
    }
}

/// Runs the command.
pub fn run(args: &CacheArgs) -> Result<(), Failure> {
    let known = super::settings::names();
    let path = args.config.as_deref();
    let settings = Settings {
        places: config::merge(path, &args.places, &known)?,
        data: config::merge(path, &args.data, &known)?,
        engine: config::merge(path, &args.engine, &known)?,
        caption_dtype: args.caption_dtype.clone(),
        check: args.check,
    };
    let use_parallel = settings.places.use_parallel;
    if args.check && use_parallel == Some(true) {
        return Err(Failure::request(
            "check: found it with use_parallel; one process looks whether everything is there, so leave one of the \
             two out",
        ));
    }
    ranks::together(use_parallel, |ranks| cache(&settings, ranks))
}

/// Fills the cache, alone or as one of several.
fn cache(settings: &Settings, ranks: Option<&Arc<Ranks>>) -> Result<(), Failure> {
    let Settings { places, data, engine, .. } = settings;
    let Some(folder) = &places.cache_dir else {
        return Err(Failure::request(
            "cache_dir: nothing given; name the folder to keep captions and pictures in with --cache_dir",
        ));
    };
    let kept = match settings.caption_dtype.as_deref() {
        None | Some("fp16") => CaptionType::F16,
        Some("fp32") => CaptionType::F32,
        Some(found) => {
            return Err(super::options::wrong("caption_dtype", found, "fp16 or fp32"));
        }
    };
    let tokens = CaptionSettings { cleaning: data.cleaning()?, max_length: data.t5_max_length()? };
    let workers = data.data(true)?.threads;
    let dataset = dataset(data)?;
    if dataset.items().is_empty() {
        return Err(SamplerError::NoPictures.into());
    }
    if settings.check {
        return check(folder, &dataset, tokens, workers);
    }
    let engine = open_engine(engine, None, ranks)?.engine;
    if let Some(ranks) = ranks {
        let mut told = settings.told(dataset.fingerprint())?;
        told.insert("engine".to_owned(), ranks::engine(engine.as_ref()));
        ranks::compare(ranks, &told)?;
    }
    let roots = Roots {
        text_encoder: places.text_encoder_root.as_deref(),
        tokenizer: data.tokenizer_root.as_deref(),
        vae: places.vae_root.as_deref(),
    };
    roots.check(true, true, [""; 2])?;
    // What is not exported yet, one exports for all.
    let ((text_encoder, tokenizer), vae) =
        ranks::in_turn(ranks, || Ok((roots.text(&engine, None)?, roots.vae(&engine, None)?)))?;
    let mut captions = CaptionEncoder::new(&engine, &text_encoder, &tokenizer, None)?;
    let mut pictures = PictureEncoder::open(&engine, &vae)?;
    let text = captions.folder().context("the text encoder is gone")?;
    let text = TextDescription::new(text, &tokenizer)
        .with_context(|| format!("{}: cannot read the tokenizer", tokenizer.display()))?;
    let vae = VaeDescription::new(pictures.folder());
    if let Some(ranks) = ranks {
        let of = |origin: &str, precision: &str| format!("{origin} in {precision}");
        ranks::compare(
            ranks,
            &[
                ("text encoder", of(&text.origin, &text.precision)),
                ("tokenizer", text.tokenizer.clone()),
                ("VAE", of(&vae.origin, &vae.precision)),
            ]
            .map(|(name, what)| (name.to_owned(), what))
            .into(),
        )?;
    }
    let mut filling = Filling::open(folder, text, vae, ranks.cloned())?;
    let options = FillOptions { settings: tokens, kept, workers, cancel: on_ctrl_c()? };

    let who = ranks.map_or(String::new(), |ranks| format!(", {}", ranks::name(ranks)));
    let texts = with_bar(&format!("captions{who}"), "caption", |progress, _| {
        filling.fill_captions(&dataset, &mut captions, &options, progress)
    })?;
    // The larger one of the two makes room before the other is loaded.
    drop(captions);
    told("captions", &texts)?;
    let moments = with_bar(&format!("pictures{who}"), "picture", |progress, tell| {
        filling.fill_moments(&dataset, &mut pictures, &options, progress, tell)
    })?;
    for skipped in &moments.skipped {
        note(format_args!("skipped {}: {}", skipped.file.display(), skipped.problem));
    }
    told("pictures", &moments)?;
    if ranks.is_none_or(|ranks| ranks.is_first()) {
        print_line(folder.display())?;
    }
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
            bar.borrow().suspend(|| note(line))
        });
    bar.into_inner().finish();
    result
}

/// Tells what was done, or that it was ended early.
fn told(what: &str, filled: &Filled) -> Result<(), Failure> {
    let Filled { total, computed, present, skipped } = filled;
    let mut line = format!("{what}: {computed} encoded, {present} were there");
    if !skipped.is_empty() {
        line += &format!(", {} cannot be read and are passed over in training", skipped.len());
    }
    let done = computed + present + skipped.len();
    if done < *total {
        return Err(Failure::Interrupted(format!(
            "{line}, {} are missing; the same command goes on there",
            total - done
        )));
    }
    note(line);
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
