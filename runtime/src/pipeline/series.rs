//! The same pictures again and again, by a transformer that changes in between.

use std::sync::Arc;

use super::{
    Event, LazyComponent, ModelPaths, Picture, Pipeline, PipelineOptions, Request, run::Run,
};
use crate::{
    engine::{Engine, Session},
    error::PipelineError,
    model_folder::TransformerArchitecture,
    size::SizePlan,
    text::Conditioning,
};

/// A request that is drawn by transformers that are somebody else's, such as one in training. All that can
/// be wrong with it is found when it is made, and the captions are encoded then, once.
pub struct Series {
    pipeline: Pipeline,
    request: Request,
    sizes: Vec<SizePlan>,
    captions: Vec<Conditioning>,
}

impl Series {
    /// Reads what is small, checks `request`, and encodes its captions; `progress` is told of it. The
    /// transformer of `paths` is not read, nor is its VAE encoder.
    ///
    /// # Errors
    /// Those of [`Pipeline::new`] and [`Pipeline::sample`], but for what only drawing can tell; a picture
    /// to begin from is refused.
    pub fn new(
        engine: Arc<dyn Engine>,
        transformer: TransformerArchitecture,
        paths: &ModelPaths,
        options: PipelineOptions,
        request: Request,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self, PipelineError> {
        let transformer = LazyComponent::elsewhere(&engine, transformer);
        let paths = ModelPaths { vae_encoder: None, ..paths.clone() };
        let mut pipeline = Pipeline::around(transformer, &engine.into(), &paths, options)?;
        request.check()?;
        pipeline.check_solver(&request)?;
        pipeline.check_batch()?;
        pipeline.check_init(&request)?;
        let sizes = pipeline.plan_sizes(&request)?;
        let width = pipeline.transformer().caption_channels;
        let captions = pipeline.captions.encode(&request, width, progress)?;
        // Needed no more, whatever else stays.
        pipeline.captions.unload();
        Ok(Self { pipeline, request, sizes, captions })
    }

    /// What is drawn.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Draws the pictures. `transformer` has the inputs and the output of an exported one; it is told
    /// latents, times, captions and masks under those names.
    ///
    /// # Errors
    /// Those of [`Pipeline::sample`] that concern drawing and decoding.
    pub fn draw(
        &mut self,
        transformer: &mut dyn Session,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<Picture>, PipelineError> {
        let mut run = Run::new(&self.request, &self.sizes, &self.captions, None);
        run.transformer = Some(transformer);
        self.pipeline.make(run, progress)
    }
}
