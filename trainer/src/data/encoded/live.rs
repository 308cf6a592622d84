//! Batches encoded as they are needed, or put together of what the official tools have extracted.

use super::super::cache::{at_once, encoded};
use super::super::loader::{gathered, item_pixels};
use super::{BatchEncoder, EncodeError, EncodeOptions, EncodedBatch, batch};
use crate::data::{BatchPlan, CaptionSettings, CaptionStates, Dataset, Features};
use ndarray::{Array2, Array4, Axis, concatenate, stack};
use pixart_runtime::error::PipelineError;
use pixart_runtime::text::CaptionEncoder;
use pixart_runtime::vae::{PictureEncoder, tiles::TilingOptions};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Runs text encoder and VAE on every batch, or reads what they gave elsewhere. What runs stays loaded;
/// [`CachedEncoder`](super::CachedEncoder) needs neither.
///
/// Captions are encoded one by one, so that what a caption gives does not depend on what is beside it, and a run that
/// goes on after an interruption computes the same.
pub struct LiveEncoder {
    dataset: Arc<Dataset>,
    captions: Captions,
    moments: MomentSource,
    options: EncodeOptions,
    null: CaptionStates,
    bad: BTreeMap<usize, String>,
}

/// Where the states of captions come from.
pub enum CaptionSource {
    /// A text encoder.
    Encoder(Box<CaptionEncoder>),
    /// Files.
    Features {
        /// Where they are.
        features: Arc<Features>,
        /// What [`empty_caption`] gives, which dropped captions become; not needed where none is dropped.
        empty: Option<CaptionStates>,
    },
}

/// Where the moments of pictures come from.
pub enum MomentSource {
    /// A VAE's encoder.
    Encoder(Box<PictureEncoder>),
    /// Files.
    Features(Arc<Features>),
}

impl From<CaptionEncoder> for CaptionSource {
    fn from(encoder: CaptionEncoder) -> Self {
        Self::Encoder(Box::new(encoder))
    }
}

impl From<PictureEncoder> for MomentSource {
    fn from(encoder: PictureEncoder) -> Self {
        Self::Encoder(Box::new(encoder))
    }
}

/// What a text encoder makes of the empty caption.
///
/// # Errors
/// When it fails.
pub fn empty_caption(
    encoder: &mut CaptionEncoder,
    settings: CaptionSettings,
) -> Result<CaptionStates, PipelineError> {
    one("", settings, encoder)
}

impl LiveEncoder {
    /// Encodes the empty caption.
    ///
    /// # Errors
    /// When it cannot be encoded, or is not there and needed.
    pub fn new(
        dataset: Arc<Dataset>,
        captions: impl Into<CaptionSource>,
        moments: impl Into<MomentSource>,
        options: EncodeOptions,
    ) -> Result<Self, EncodeError> {
        let dropped = options.captions.class_dropout_prob;
        let (captions, null) = match captions.into() {
            CaptionSource::Encoder(encoder) => {
                let mut encoder = Remembering { encoder, memory: HashMap::new(), numbers: 0 };
                let null = encoder.encoded("", options.settings)?;
                (Captions::Encoder(encoder), null)
            }
            CaptionSource::Features { features, empty } => {
                let null = match empty {
                    Some(empty) => empty,
                    // No caption becomes it; only its width counts.
                    None if dropped == 0.0 => {
                        let states = Array2::zeros((0, features.caption_width()));
                        CaptionStates { states, tokens: 0 }
                    }
                    None => return Err(EncodeError::NoEmptyCaption(dropped)),
                };
                (Captions::Features(features), null)
            }
        };
        let moments = moments.into();
        Ok(Self { dataset, captions, moments, options, null, bad: BTreeMap::new() })
    }
}

impl BatchEncoder for LiveEncoder {
    fn encode(&mut self, mut plan: BatchPlan) -> Result<EncodedBatch, EncodeError> {
        let Self { dataset, captions, moments, options, null, bad } = self;
        let (epoch, seed, settings) = (plan.epoch, plan.after.seed, options.settings);
        let moments_of = match moments {
            MomentSource::Encoder(_) => None,
            MomentSource::Features(features) => Some(features.clone()),
        };
        let captions_of = match captions {
            Captions::Encoder(_) => None,
            Captions::Features(features) => Some(features.clone()),
        };
        // Moments where they are read, else pixels; and captions where they are read.
        let (gathered, skipped) = gathered(dataset, &mut plan, options.workers, bad, |item| {
            let chosen = dataset.items()[item].captions.choose(options.captions, seed, epoch, item);
            let picture = match &moments_of {
                None => item_pixels(dataset, item).map_err(|error| error.to_string()),
                Some(features) => {
                    features.moments(dataset, item).map_err(|error| error.to_string())
                }
            };
            let caption = captions_of.as_ref().map(|features| {
                let read = features.caption(dataset, item, chosen.kind, settings.max_length);
                read.map_err(|error| error.to_string())
            });
            let caption = caption.transpose()?;
            Ok((picture?, caption, chosen))
        })?;
        let mut pictures = Vec::with_capacity(gathered.len());
        let mut states = Vec::with_capacity(gathered.len());
        for (picture, caption, chosen) in gathered {
            let caption = match captions {
                Captions::Encoder(encoder) => encoder.encoded(&chosen.text, settings)?,
                Captions::Features(_) => caption.expect("it was read with the picture"),
            };
            states.push((caption, chosen.dropped));
            pictures.push(picture);
        }
        let views: Vec<_> = pictures.iter().map(|picture| picture.view()).collect();
        let pictures = stack(Axis(0), &views).expect("pictures of a bucket have one size");
        let moments = match moments {
            MomentSource::Encoder(vae) => encoded_pictures(vae, &pictures)?,
            MomentSource::Features(_) => pictures,
        };
        Ok(batch(dataset, plan, &moments, &states, (&*null, settings), skipped))
    }
}

/// The moments of pixels, some pictures at a time.
fn encoded_pictures(
    vae: &mut PictureEncoder,
    pixels: &Array4<f32>,
) -> Result<Array4<f32>, EncodeError> {
    let (.., height, width) = pixels.dim();
    let mut moments = Vec::new();
    for pictures in pixels.axis_chunks_iter(Axis(0), at_once(height * width)) {
        let tiling = TilingOptions::default();
        let pictures = pictures.to_owned().into_dyn();
        moments.push(failing(vae.moments(pictures, &tiling, &mut |_| {}))?);
    }
    let views: Vec<_> = moments.iter().map(|moments| moments.view()).collect();
    let moments = concatenate(Axis(0), &views).expect("moments of a bucket have one size");
    Ok(moments.into_dimensionality().expect("the encoder's shape was checked"))
}

/// How the states of captions are had.
enum Captions {
    Encoder(Remembering),
    Features(Arc<Features>),
}

/// A text encoder, and as many of its captions as memory is meant for.
struct Remembering {
    encoder: Box<CaptionEncoder>,
    memory: HashMap<String, CaptionStates>,
    /// Floats in `memory`.
    numbers: usize,
}

/// 256 MiB.
const MOST_NUMBERS: usize = 64 << 20;

impl Remembering {
    fn encoded(
        &mut self,
        text: &str,
        settings: CaptionSettings,
    ) -> Result<CaptionStates, EncodeError> {
        if let Some(caption) = self.memory.get(text) {
            return Ok(caption.clone());
        }
        let caption = failing(one(text, settings, &mut self.encoder))?;
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
