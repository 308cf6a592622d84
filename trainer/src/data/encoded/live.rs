//! Batches encoded as they are needed.

use super::super::cache::{at_once, encoded};
use super::super::loader::load;
use super::{BatchEncoder, EncodeError, EncodeOptions, EncodedBatch, batch};
use crate::data::{
    BatchPlan, CaptionSettings, CaptionStates, CaptionType, Dataset, Filling, LoaderOptions,
};
use ndarray::{ArrayD, Axis, concatenate};
use pixart_runtime::error::PipelineError;
use pixart_runtime::text::CaptionEncoder;
use pixart_runtime::vae::{PictureEncoder, tiles::TilingOptions};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Runs text encoder and VAE on every batch. Both stay loaded; [`CachedEncoder`](super::CachedEncoder) needs
/// neither.
///
/// Captions are encoded one by one, so that what a caption gives does not depend on what is beside it, and a run that
/// goes on after an interruption computes the same.
pub struct LiveEncoder {
    dataset: Arc<Dataset>,
    text: CaptionEncoder,
    vae: PictureEncoder,
    options: EncodeOptions,
    captions: Captions,
    null: CaptionStates,
    bad: BTreeMap<usize, String>,
}

impl LiveEncoder {
    /// With a cache, captions are read from it and those that are missing put in.
    ///
    /// # Errors
    /// When the empty caption cannot be encoded or kept.
    pub fn new(
        dataset: Arc<Dataset>,
        mut text: CaptionEncoder,
        vae: PictureEncoder,
        options: EncodeOptions,
        cache: Option<(Filling, CaptionType)>,
    ) -> Result<Self, EncodeError> {
        let mut captions = Captions { cache, memory: HashMap::new(), numbers: 0 };
        let null = captions.get("", options.settings, &mut text)?;
        Ok(Self { dataset, text, vae, options, captions, null, bad: BTreeMap::new() })
    }
}

impl BatchEncoder for LiveEncoder {
    fn encode(&mut self, plan: BatchPlan) -> Result<EncodedBatch, EncodeError> {
        let Self { dataset, text, vae, options, captions, null, bad } = self;
        let loader = LoaderOptions {
            captions: options.captions,
            workers: options.workers,
            ..LoaderOptions::default()
        };
        let loaded = load(dataset, plan, &loader, bad)?;
        let mut states = Vec::with_capacity(loaded.captions.len());
        for caption in &loaded.captions {
            states.push((captions.get(&caption.text, options.settings, text)?, caption.dropped));
        }
        let pixels = loaded.pixels.into_dyn();
        let count = at_once(pixels.shape()[2] * pixels.shape()[3]);
        let mut moments: Vec<ArrayD<f32>> = Vec::new();
        for pictures in pixels.axis_chunks_iter(Axis(0), count) {
            let tiling = TilingOptions::default();
            moments.push(failing(vae.moments(pictures.to_owned(), &tiling, &mut |_| {}))?);
        }
        let views: Vec<_> = moments.iter().map(|moments| moments.view()).collect();
        let moments = concatenate(Axis(0), &views).expect("moments of a bucket have one size");
        let moments = moments.into_dimensionality().expect("the encoder's shape was checked");
        let null = (&*null, options.settings);
        Ok(batch(loaded.plan, &moments, &states, null, loaded.skipped))
    }
}

/// Captions that were encoded: in a cache, or as many as memory is meant for.
struct Captions {
    cache: Option<(Filling, CaptionType)>,
    memory: HashMap<String, CaptionStates>,
    /// Floats in `memory`.
    numbers: usize,
}

/// 256 MiB.
const MOST_NUMBERS: usize = 64 << 20;

impl Captions {
    fn get(
        &mut self,
        text: &str,
        settings: CaptionSettings,
        encoder: &mut CaptionEncoder,
    ) -> Result<CaptionStates, EncodeError> {
        if let Some(caption) = self.memory.get(text) {
            return Ok(caption.clone());
        }
        let caption = match &self.cache {
            None => failing(one(text, settings, encoder))?,
            Some((filling, kept)) => {
                let cache = filling.cache().captions();
                match cache.get(text, settings) {
                    Ok(caption) => caption,
                    Err(_) => {
                        let caption = failing(one(text, settings, encoder))?;
                        cache.put(text, settings, *kept, &caption)?;
                        // What is read later is what is trained on now.
                        kept.rounded(caption)
                    }
                }
            }
        };
        if self.numbers + caption.states.len() <= MOST_NUMBERS {
            self.numbers += caption.states.len();
            self.memory.insert(text.to_owned(), caption.clone());
        }
        Ok(caption)
    }
}

fn one(
    text: &str,
    settings: CaptionSettings,
    encoder: &mut CaptionEncoder,
) -> Result<CaptionStates, PipelineError> {
    Ok(encoded(encoder, &[text], settings)?.swap_remove(0))
}

fn failing<T>(result: Result<T, PipelineError>) -> Result<T, EncodeError> {
    result.map_err(|error| Box::new(error).into())
}
