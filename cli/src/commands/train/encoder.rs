//! What turns pictures and captions into latents and states: a cache, or text encoder and VAE.

use super::options::wrong;
use super::settings::Settings;
use crate::commands::sample::devices::{Providers, profile_for};
use crate::exit::Failure;
use crate::model::{Wanted, text_side, vae_side};
use pixart_exporter::Precision;
use pixart_exporter::naming::TransformerConfig;
use pixart_runtime::engine::Engine;
use pixart_runtime::text::CaptionEncoder;
use pixart_runtime::vae::PictureEncoder;
use pixart_trainer::data::{
    BatchEncoder, CachedEncoder, CaptionSettings, Dataset, EncodeOptions, EncodingCache,
    LiveEncoder,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The encoder of batches for a model.
pub fn open(
    settings: &Settings,
    engine: &Arc<dyn Engine>,
    dataset: Arc<Dataset>,
    config: &TransformerConfig,
) -> Result<Box<dyn BatchEncoder>, Failure> {
    let options = options(settings)?;
    if let Some(folder) = &settings.encoders.cache_dir {
        let cache = EncodingCache::open(folder)?;
        let description = cache.description();
        let found = [description.text_encoder.width, description.vae.latent_channels];
        check(&format!("cache_dir: {}", folder.display()), found, config)?;
        check_scale(settings, description.vae.scaling_factor)?;
        return Ok(Box::new(CachedEncoder::new(cache, dataset, options)?));
    }
    let encoders = &settings.encoders;
    let roots = Roots {
        text_encoder: encoders.text_encoder_root.as_deref(),
        tokenizer: settings.data.tokenizer_root.as_deref(),
        vae: encoders.vae_root.as_deref(),
    };
    // Captions are encoded in the precision that the model is computed in, as upstream.
    let precision = settings.precision.dtype.as_deref().map(str::parse);
    let precision = precision.transpose().map_err(Failure::request)?;
    let or = ", or with --cache_dir what `pixart train cache` has made of pictures and captions";
    let Folders { text_encoder, tokenizer, vae } = roots.exported(engine, precision, or)?;
    let captions = CaptionEncoder::new(engine, &text_encoder, &tokenizer, None)?;
    let pictures = PictureEncoder::open(engine, &vae)?;
    let width = captions.width().unwrap_or(config.caption_channels);
    let channels = pictures.folder().architecture.latent_channels;
    check("text_encoder_root and vae_root", [width, channels], config)?;
    check_scale(settings, pictures.folder().architecture.scaling_factor)?;
    let encoder = LiveEncoder::new(dataset, captions, pictures, options, None);
    Ok(Box::new(encoder.map_err(anyhow::Error::from)?))
}

/// Where the encoders come from.
pub struct Roots<'a> {
    pub text_encoder: Option<&'a Path>,
    pub tokenizer: Option<&'a Path>,
    pub vae: Option<&'a Path>,
}

/// Where they are, ready to be run.
pub struct Folders {
    pub text_encoder: PathBuf,
    pub tokenizer: PathBuf,
    pub vae: PathBuf,
}

impl Roots<'_> {
    /// Exports what is not exported yet. `or` ends the message about one that was not given.
    pub fn exported(
        &self,
        engine: &Arc<dyn Engine>,
        precision: Option<Precision>,
        or: &str,
    ) -> Result<Folders, Failure> {
        for (name, given) in [
            ("text_encoder_root", self.text_encoder),
            ("tokenizer_root", self.tokenizer),
            ("vae_root", self.vae),
        ] {
            if given.is_none() {
                return Err(Failure::request(format!(
                    "{name}: nothing given; name its folder with --{name}{or}"
                )));
            }
        }
        let providers = Providers::on_processor(engine.name());
        let profile = profile_for(providers.text_encoder);
        let wanted = Wanted::new(precision, providers)?;
        let (text_encoder, tokenizer) =
            text_side(None, self.text_encoder, self.tokenizer, profile, wanted)?;
        let vae = vae_side(None, self.vae, "training", profile, wanted)?;
        Ok(Folders { text_encoder, tokenizer, vae })
    }
}

/// How batches are encoded.
fn options(settings: &Settings) -> Result<EncodeOptions, Failure> {
    let data = &settings.data;
    let tokens = CaptionSettings { cleaning: data.cleaning()?, max_length: data.t5_max_length()? };
    let usual = EncodeOptions::default();
    let workers = data.num_parallel_workers.unwrap_or(usual.workers);
    Ok(EncodeOptions { captions: settings.encoders.captions()?, settings: tokens, workers })
}

/// Whether numbers of a caption's token and channels of latents are those that the model takes.
fn check(from: &str, found: [usize; 2], config: &TransformerConfig) -> Result<(), Failure> {
    let expected = [config.caption_channels, config.in_channels];
    if found == expected {
        return Ok(());
    }
    let told = |[width, channels]: [usize; 2]| {
        format!("captions of {width} numbers a token and latents of {channels} channels")
    };
    Err(wrong(from, told(found), &format!("{}, which the model takes", told(expected))))
}

/// Whether latents are scaled as the VAE says; pictures are decoded with its own factor.
fn check_scale(settings: &Settings, expected: f32) -> Result<(), Failure> {
    match settings.encoders.latent_scale()? {
        found if found == expected => Ok(()),
        found => Err(wrong("sd_scale_factor", found, &format!("{expected}, which is the VAE's"))),
    }
}
