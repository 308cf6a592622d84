//! The path of one request, from prompts to pictures.

mod ask;
mod cancel;
mod component;
mod decode;
mod denoise;
mod event;
mod init;
mod inputs;
#[cfg(test)]
mod live_tests;
mod plan;
mod preview;
mod request;
mod run;
mod series;
mod shared;
mod start;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use image::RgbImage;
use ndarray::ArrayD;

pub use cancel::Cancel;
pub(crate) use component::{LazyComponent, LoadedComponent};
pub(crate) use event::StageProgress;
pub use event::{Event, Stage};
pub use init::{InitImage, Mask};
pub use inputs::size_inputs;
pub use request::{NoiseSeed, PictureSize, Reference, Request, Variation};
use run::Run;
pub use series::Series;
pub use shared::sample_shared;

use crate::{
    engine::{Engine, LARGE},
    lora::{Lora, LoraMatch, match_loras},
    model_folder::{ModelError, TransformerArchitecture, VaeDecoderArchitecture},
    sampler::{NoiseSchedule, SchedulerConfig},
    text::{CaptionEncoder, TextCache},
    vae::{
        PictureEncoder,
        tiles::{TilingMode, TilingOptions},
    },
};
pub use crate::{
    error::{PipelineError, RequestError},
    model_folder::ModelPaths,
};

/// How a pipeline works.
#[derive(Clone, Debug)]
pub struct PipelineOptions {
    /// Keep every component in memory after its stage. Faster for several requests, and more so with
    /// [`DeviceOptions::repack_weights`](crate::engine::provider::DeviceOptions::repack_weights); otherwise at most
    /// one component is loaded at a time, and a text encoder of more than a gigabyte not as a whole
    /// ([`CaptionEncoder::stream_above`]).
    pub keep_resident: bool,
    /// Spend time for memory: any text encoder, and a transformer of more than a gigabyte, have the weights of
    /// a few blocks in memory at a time and read them again in each run, and the VAE is given at most 1.7 GB to
    /// plan with ([`TilingOptions::sparing`](crate::vae::tiles::TilingOptions::sparing)). Parts on
    /// accelerators are loaded as a whole. Not together with `keep_resident`.
    pub low_memory: bool,
    /// How many bytes of weights a text encoder, and with `low_memory` a transformer, may have to be loaded as a whole.
    pub stream_above: u64,
    /// Where caption embeddings are kept. With it, the text encoder may be missing as long as all
    /// captions are there.
    pub text_cache: Option<TextCache>,
    /// How many pictures of one size the transformer computes at once, 1 or more. A picture does not
    /// depend on it but for rounding (about 1e-6 of its latents); memory does.
    pub batch_size: usize,
    /// After how much drawing what is drawn so far is decoded, so that no more is lost if the program
    /// dies. Each time, transformer and VAE decoder take turns in memory. With `keep_resident`, each
    /// batch is decoded at once.
    pub decode_interval: Duration,
    /// Whether and how pictures go through the VAE in tiles.
    pub vae_tiling: TilingOptions,
    /// Stops requests early.
    pub cancel: Cancel,
}

impl Default for PipelineOptions {
    /// One component in memory, one picture at a time, no text cache, decoding every two minutes.
    fn default() -> Self {
        Self {
            keep_resident: false,
            low_memory: false,
            stream_above: LARGE,
            text_cache: None,
            batch_size: 1,
            decode_interval: Duration::from_secs(120),
            vae_tiling: TilingOptions::default(),
            cancel: Cancel::new(),
        }
    }
}

/// What computes each part of a model.
#[derive(Clone)]
pub struct Engines {
    /// The text encoder.
    pub text_encoder: Arc<dyn Engine>,
    /// The transformer.
    pub transformer: Arc<dyn Engine>,
    /// The VAE, both its halves.
    pub vae: Arc<dyn Engine>,
}

impl From<Arc<dyn Engine>> for Engines {
    fn from(engine: Arc<dyn Engine>) -> Self {
        Self { text_encoder: engine.clone(), transformer: engine.clone(), vae: engine }
    }
}

/// A finished picture.
#[derive(Clone, Debug)]
pub struct Picture {
    /// The pixels, in the size asked for.
    pub image: RgbImage,
    /// The final latents as they left the sampler, before the division by the VAE's scaling
    /// factor: f32 [1, 4, height / 8, width / 8] of the size generated.
    pub latents: ArrayD<f32>,
    /// The seed of its noise; [`Request::noise_seed`] tells the variation too.
    pub seed: u64,
    /// Its prompt.
    pub prompt: String,
    /// How the VAE decoded it; what [`TilingMode::Auto`] came to.
    pub vae_tiling: TilingMode,
    /// How many of its steps were carried over from others ([`Request::easycache`]).
    pub reused_steps: usize,
}

/// A model and an engine, ready for requests.
pub struct Pipeline {
    captions: CaptionEncoder,
    transformer: LazyComponent<TransformerArchitecture>,
    vae_decoder: LazyComponent<VaeDecoderArchitecture>,
    vae_encoder: Option<PictureEncoder>,
    scheduler: SchedulerConfig,
    schedule: NoiseSchedule,
    options: PipelineOptions,
}

impl Pipeline {
    /// Reads what is small: manifests, tokenizer, scheduler. The networks are loaded when a request
    /// needs them.
    ///
    /// # Errors
    /// When a folder or file is missing, broken or of another version, or when the parts do not
    /// belong together.
    pub fn new(
        engine: Arc<dyn Engine>,
        paths: ModelPaths,
        options: PipelineOptions,
    ) -> Result<Self, PipelineError> {
        Self::with_engines(engine.into(), paths, options)
    }

    /// The same with an engine for each part.
    ///
    /// # Errors
    /// As [`Pipeline::new`].
    pub fn with_engines(
        engines: Engines,
        paths: ModelPaths,
        options: PipelineOptions,
    ) -> Result<Self, PipelineError> {
        let mut transformer = LazyComponent::open(&engines.transformer, &paths.transformer)?;
        if options.low_memory {
            transformer.stream_above(options.stream_above);
        }
        Self::around(transformer, &engines, &paths, options)
    }

    /// The parts of a model around a transformer.
    fn around(
        transformer: LazyComponent<TransformerArchitecture>,
        engines: &Engines,
        paths: &ModelPaths,
        options: PipelineOptions,
    ) -> Result<Self, PipelineError> {
        if options.low_memory && options.keep_resident {
            return Err(RequestError::LowMemoryResident.into());
        }
        let (text_encoder, cache) = (&paths.text_encoder, options.text_cache.clone());
        let mut captions =
            CaptionEncoder::new(&engines.text_encoder, text_encoder, &paths.tokenizer, cache)?;
        captions.set_cancel(options.cancel.clone());
        if !options.keep_resident {
            captions.stream_above(if options.low_memory { 0 } else { options.stream_above });
        }
        let vae_decoder = LazyComponent::open(&engines.vae, &paths.vae_decoder)?;
        let vae_encoder = paths.vae_encoder.as_ref();
        let vae_encoder =
            vae_encoder.map(|folder| PictureEncoder::open(&engines.vae, folder)).transpose()?;
        let scheduler = match &paths.scheduler {
            Some(folder) => SchedulerConfig::from_file(&folder.join("scheduler_config.json"))?,
            None => SchedulerConfig::default(),
        };
        let schedule = NoiseSchedule::new(&scheduler);
        let pipeline =
            Self { captions, transformer, vae_decoder, vae_encoder, scheduler, schedule, options };
        pipeline.check_parts()?;
        Ok(pipeline)
    }

    /// Applies LoRAs, in this order, from the next request on, in place of those set before; none
    /// takes all away. They change the transformer and, where they have keys for it, the text encoder.
    ///
    /// # Errors
    /// When a LoRA does not fit the model, or has keys that belong to no layer and `allow_unmatched` is
    /// not set. Those set before stay then.
    pub fn set_loras(
        &mut self,
        loras: &[Arc<Lora>],
        allow_unmatched: bool,
    ) -> Result<Vec<LoraMatch>, PipelineError> {
        let (transformer, encoder) = (self.transformer.exported(), self.captions.exported());
        let ([transformer, encoder], matches) =
            match_loras(loras, Some(transformer), encoder, allow_unmatched)?;
        self.transformer.set_lora(transformer);
        self.captions.set_lora(encoder);
        Ok(matches)
    }

    /// Makes one picture for each prompt and tells `progress` about it. Cancelled, it gives the pictures
    /// of the first prompts: those that were drawn by then.
    ///
    /// # Errors
    /// When the request cannot be fulfilled (before any work is done), or a component cannot be
    /// loaded, fails, or computes something that is not a number. Pictures drawn before that are decoded
    /// first, and told as [`Event::Picture`].
    pub fn sample(
        &mut self,
        request: &Request,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<Picture>, PipelineError> {
        request.check()?;
        self.check_solver(request)?;
        self.check_batch()?;
        self.check_init(request)?;
        let sizes = self.plan_sizes(request)?;
        let width = self.transformer().caption_channels;
        let captions = self.captions.encode(request, width, progress)?;
        self.free(|pipeline| pipeline.captions.unload());

        let init = self.encode_init(request, &sizes, progress)?;

        let run = Run::new(request, &sizes, &captions, init.as_ref());
        self.make(run, progress)
    }

    /// The latent side the transformer was trained at: an eighth of its own picture size.
    pub fn sample_size(&self) -> u32 {
        self.transformer.folder.architecture.sample_size
    }

    /// What the transformer's manifest says about it.
    pub fn transformer(&self) -> &TransformerArchitecture {
        &self.transformer.folder.architecture
    }

    /// What latents are divided by before the VAE decodes them.
    pub fn scaling_factor(&self) -> f32 {
        self.vae_decoder.folder.architecture.scaling_factor
    }

    /// How pictures go through the VAE.
    fn tiling(&self) -> TilingOptions {
        let given = &self.options.vae_tiling;
        TilingOptions { sparing: given.sparing || self.options.low_memory, ..given.clone() }
    }

    fn free(&mut self, unload: impl FnOnce(&mut Self)) {
        if !self.options.keep_resident {
            unload(self);
        }
    }

    /// Whether the parts fit together.
    fn check_parts(&self) -> Result<(), ModelError> {
        let text = self.captions.width();
        let transformer = &self.transformer.folder.architecture;
        let vae = &self.vae_decoder.folder.architecture;
        let fit = |fits: bool, problem: String| match fits {
            true => Ok(()),
            false => Err(ModelError::Mismatch(problem)),
        };
        fit(
            text.is_none_or(|width| width == transformer.caption_channels),
            format!(
                "the text encoder gives {} numbers a token but the transformer takes {}; take both \
                 from the same checkpoint",
                text.unwrap_or_default(),
                transformer.caption_channels
            ),
        )?;
        fit(
            vae.latent_channels == transformer.in_channels && vae.scale_factor == 8,
            format!(
                "the VAE decodes latents of {} channels, {} pixels each, but the transformer makes \
                 {} channels, 8 pixels each; take both from the same checkpoint",
                vae.latent_channels, vae.scale_factor, transformer.in_channels
            ),
        )?;
        if let Some(encoder) = &self.vae_encoder {
            let encoder = &encoder.folder().architecture;
            let numbers = |channels, pixels, factor| {
                format!("{channels} channels of {pixels} pixels and the scaling factor {factor}")
            };
            let of = (encoder.latent_channels, encoder.scale_factor, encoder.scaling_factor);
            let to = (vae.latent_channels, vae.scale_factor, vae.scaling_factor);
            fit(
                of == to,
                format!(
                    "the VAE encoder has {}, the VAE decoder {}; export both from the same checkpoint",
                    numbers(of.0, of.1, of.2),
                    numbers(to.0, to.1, to.2)
                ),
            )?;
        }
        let (inputs, outputs) = (transformer.in_channels, transformer.out_channels);
        fit(
            outputs == inputs || outputs == 2 * inputs,
            format!(
                "the transformer gives {outputs} channels for {inputs}, expected {inputs}, or \
                 {} with learned variance",
                2 * inputs
            ),
        )
    }
}
