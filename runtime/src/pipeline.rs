//! The path of one request, from prompts to pictures.

mod component;
mod decode;
mod denoise;
mod event;
mod plan;
mod request;
mod start;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use image::RgbImage;
use ndarray::ArrayD;

pub(crate) use component::{LazyComponent, LoadedComponent};
pub(crate) use event::StageProgress;
pub use event::{Event, Stage};
pub use request::{PictureSize, Reference, Request};

use crate::{
    engine::Engine,
    lora::{Lora, LoraMatch, match_loras},
    model_folder::{ModelError, TransformerArchitecture, VaeDecoderArchitecture},
    noise::TorchGenerator,
    sampler::{NoiseSchedule, SchedulerConfig},
    text::{CaptionEncoder, TextCache},
    vae::tiles::TilingOptions,
};
pub use crate::{
    error::{PipelineError, RequestError},
    model_folder::ModelPaths,
};

/// How a pipeline works.
#[derive(Clone, Debug, Default)]
pub struct PipelineOptions {
    /// Keep every component in memory after its stage. Faster for several requests; otherwise at
    /// most one component is loaded at a time.
    pub keep_resident: bool,
    /// Where caption embeddings are kept. With it, the text encoder may be missing as long as all
    /// captions are there.
    pub text_cache: Option<TextCache>,
    /// Whether and how pictures go through the VAE in tiles.
    pub vae_tiling: TilingOptions,
}

/// A finished picture.
#[derive(Clone, Debug)]
pub struct Picture {
    /// The pixels, in the size asked for.
    pub image: RgbImage,
    /// The final latents as they left the sampler, before the division by the VAE's scaling
    /// factor: f32 [1, 4, height / 8, width / 8] of the size generated.
    pub latents: ArrayD<f32>,
    /// The seed of its noise.
    pub seed: u64,
    /// Its prompt.
    pub prompt: String,
}

/// A model and an engine, ready for requests.
pub struct Pipeline {
    captions: CaptionEncoder,
    transformer: LazyComponent<TransformerArchitecture>,
    vae_decoder: LazyComponent<VaeDecoderArchitecture>,
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
        let (text_encoder, cache) = (&paths.text_encoder, options.text_cache.clone());
        let captions = CaptionEncoder::new(&engine, text_encoder, &paths.tokenizer, cache)?;
        let transformer = LazyComponent::open(&engine, &paths.transformer)?;
        let vae_decoder = LazyComponent::open(&engine, &paths.vae_decoder)?;
        let scheduler = match &paths.scheduler {
            Some(folder) => SchedulerConfig::from_file(&folder.join("scheduler_config.json"))?,
            None => SchedulerConfig::default(),
        };
        let schedule = NoiseSchedule::new(&scheduler);
        let pipeline = Self { captions, transformer, vae_decoder, scheduler, schedule, options };
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

    /// Makes one picture for each prompt and tells `progress` about it.
    ///
    /// # Errors
    /// When the request cannot be fulfilled (before any work is done), or a component cannot be
    /// loaded, fails, or computes something that is not a number.
    pub fn sample(
        &mut self,
        request: &Request,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<Picture>, PipelineError> {
        request.check()?;
        self.check_solver(request)?;
        let sizes = self.plan_sizes(request)?;
        let width = self.transformer().caption_channels;
        let captions = self.captions.encode(request, width, progress)?;
        self.free(|pipeline| pipeline.captions.unload());

        let total = captions.len() * request.sampling_steps;
        let mut stage = StageProgress::start(Stage::Denoise, total, progress);
        let mut latents = Vec::with_capacity(captions.len());
        for (k, caption) in captions.iter().enumerate() {
            let (generator, size) = (TorchGenerator::new(seed_of(request, k)), &sizes[k]);
            latents.push(self.denoise(generator, size, caption, request, &mut || stage.step())?);
        }
        stage.finish();
        self.free(|pipeline| pipeline.transformer.unload());

        let mut stage = StageProgress::start(Stage::Decode, latents.len(), progress);
        let mut pictures = Vec::with_capacity(latents.len());
        for (k, (latents, prompt)) in latents.into_iter().zip(&request.prompts).enumerate() {
            let mut told = None;
            let tell = &mut |text: &str| told = Some(text.to_owned());
            let image = self.decode(&latents, &sizes[k], request.reference, tell)?;
            // The first of a run says it for all.
            if let Some(text) = told.as_deref().filter(|_| k == 0) {
                stage.tell(Event::Info { text });
            }
            let (seed, prompt) = (seed_of(request, k), prompt.clone());
            pictures.push(Picture { image, latents, seed, prompt });
            stage.step();
            stage.tell(Event::Picture { index: k, picture: &pictures[k] });
        }
        stage.finish();
        self.free(|pipeline| pipeline.vae_decoder.unload());
        Ok(pictures)
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

/// Picture k has its own generator, so that it can be made again alone.
fn seed_of(request: &Request, k: usize) -> u64 {
    request.seed.wrapping_add(k as u64)
}
