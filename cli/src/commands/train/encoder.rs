//! What turns pictures and captions into latents and states: a cache, text encoder and VAE, or what the official
//! tools have extracted.

use super::features::Read;
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
    BatchEncoder, CachedEncoder, CaptionSettings, CaptionSource, Dataset, EncodeOptions,
    EncodingCache, Features, LiveEncoder, MomentSource, empty_caption,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The encoder of batches for a model.
pub fn open(
    settings: &Settings,
    engine: &Arc<dyn Engine>,
    dataset: Arc<Dataset>,
    features: Option<(Read, Arc<Features>)>,
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
    let (of_captions, of_moments) = match features {
        None => (None, None),
        Some((Read { captions, moments }, features)) => {
            (captions.then(|| features.clone()), moments.then_some(features))
        }
    };
    // Dropped captions become the empty one, which the official tools do not extract.
    let drops = options.captions.class_dropout_prob > 0.0;
    let or = match (&of_captions, &of_moments) {
        (None, None) if settings.prior.prior_image_dir.is_some() => [""; 2],
        (None, None) => {
            [", or with --cache_dir what `pixart train cache` has made of pictures and captions"; 2]
        }
        (of_captions, _) => [
            match of_captions {
                Some(_) => {
                    ", which makes the empty caption that dropped ones become, or drop none: \
                     --class_dropout_prob 0"
                }
                None => {
                    ", or read what the official tools have made of captions with --load_t5_feat True"
                }
            },
            ", or read what the official tools have made of pictures with --load_vae_feat True",
        ],
    };
    roots.check(of_captions.is_none() || drops, of_moments.is_none(), or)?;
    // Captions are encoded in the precision that the model is computed in, as upstream.
    let precision = settings.precision.dtype.as_deref().map(str::parse);
    let precision = precision.transpose().map_err(Failure::request)?;
    let text_encoder = || -> Result<CaptionEncoder, Failure> {
        let (text_encoder, tokenizer) = roots.text(engine, precision)?;
        let encoder = CaptionEncoder::new(engine, &text_encoder, &tokenizer, None)?;
        let width = encoder.width().unwrap_or(config.caption_channels);
        check("text_encoder_root", [width, config.in_channels], config)?;
        Ok(encoder)
    };
    let moments: MomentSource = match of_moments {
        Some(features) => MomentSource::Features(features),
        None => {
            let encoder = PictureEncoder::open(engine, &roots.vae(engine, precision)?)?;
            let architecture = &encoder.folder().architecture;
            check("vae_root", [config.caption_channels, architecture.latent_channels], config)?;
            check_scale(settings, architecture.scaling_factor)?;
            encoder.into()
        }
    };
    let captions: CaptionSource = match of_captions {
        None => text_encoder()?.into(),
        Some(features) => {
            let empty = match drops {
                // The encoder goes with its end.
                true => Some(empty_caption(&mut text_encoder()?, options.settings)?),
                false => None,
            };
            CaptionSource::Features { features, empty }
        }
    };
    let encoder = LiveEncoder::new(dataset, captions, moments, options);
    Ok(Box::new(encoder.map_err(anyhow::Error::from)?))
}

/// Where the encoders come from.
pub struct Roots<'a> {
    pub text_encoder: Option<&'a Path>,
    pub tokenizer: Option<&'a Path>,
    pub vae: Option<&'a Path>,
}

impl Roots<'_> {
    /// Whether those that are needed are given. `or` ends the message about one that is not: of the text's side, and
    /// of the VAE's.
    pub fn check(&self, text: bool, vae: bool, or: [&str; 2]) -> Result<(), Failure> {
        for (name, given, needed, or) in [
            ("text_encoder_root", self.text_encoder, text, or[0]),
            ("tokenizer_root", self.tokenizer, text, or[0]),
            ("vae_root", self.vae, vae, or[1]),
        ] {
            if needed && given.is_none() {
                return Err(missing(name, or));
            }
        }
        Ok(())
    }

    /// The text encoder, exported if it is not yet, and the tokenizer.
    pub fn text(
        &self,
        engine: &Arc<dyn Engine>,
        precision: Option<Precision>,
    ) -> Result<(PathBuf, PathBuf), Failure> {
        let providers = Providers::on_processor(engine.name());
        let profile = profile_for(providers.text_encoder);
        let wanted = Wanted::new(precision, providers)?;
        text_side(None, self.text_encoder, self.tokenizer, profile, wanted)
    }

    /// The VAE's encoder, exported if it is not yet.
    pub fn vae(
        &self,
        engine: &Arc<dyn Engine>,
        precision: Option<Precision>,
    ) -> Result<PathBuf, Failure> {
        let providers = Providers::on_processor(engine.name());
        let profile = profile_for(providers.vae);
        vae_side(None, self.vae, "training", profile, Wanted::new(precision, providers)?)
    }
}

fn missing(name: &str, or: &str) -> Failure {
    Failure::request(format!("{name}: nothing given; name its folder with --{name}{or}"))
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
