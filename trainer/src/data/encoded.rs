//! Batches as the transformer is trained on them: latents' distributions and caption states.

mod cached;
mod live;

pub use cached::CachedEncoder;
pub use live::{CaptionSource, LiveEncoder, MomentSource, empty_caption};

use super::ahead::{Ahead, OfPlan, Stopped};
use super::{
    BatchPlan, CaptionOptions, CaptionSettings, CaptionStates, Dataset, LoadError, Sampler, Skipped,
};
use ndarray::{Array2, Array3, Array4, Axis, Slice, s};
use pixart_runtime::engine::Value;
use pixart_runtime::error::PipelineError;
use pixart_runtime::text::LENGTH_MULTIPLE;
use pixart_runtime::vae::LOG_VARIANCE;

/// A batch as the transformer reads it, before latents are sampled and noise is added.
#[derive(Clone, Debug)]
pub struct EncodedBatch {
    /// Its place in the run; `plan.after` is what to save once it is done. `plan.items` are the pictures in
    /// it, in which another may stand for one that has become unreadable.
    pub plan: BatchPlan,
    /// Means of the latents: f32 [pictures, 4, height / 8, width / 8], before the multiplication by the
    /// VAE's scaling factor.
    pub mean: Array4<f32>,
    /// Logarithms of the latents' variances, in the same shape, cut off at −30 and 20. A latent is
    /// `mean + exp(log_variance / 2) · z`, times the scaling factor.
    pub log_variance: Array4<f32>,
    /// What the text encoder makes of the captions: f32 [pictures, tokens, width]. `tokens` is the longest
    /// caption's number of them, rounded up to a multiple of 8; more would have no weight. The rows of
    /// dropped captions are the empty prompt's.
    pub captions: Array3<f32>,
    /// int64 [pictures, tokens]: 1 where the transformer may attend. A dropped caption keeps the mask of its
    /// text, as upstream (facts 5.3).
    pub mask: Array2<i64>,
    /// Sizes and ratios of the pictures, for models that are told them.
    pub conditions: Conditions,
    /// Pictures of this batch that could not be had, for which others stand.
    pub skipped: Vec<Skipped>,
}

/// What PixArt-α is told of pictures in training, see [`Sizing::conditions`](super::Sizing::conditions).
#[derive(Clone, Debug, PartialEq)]
pub struct Conditions {
    /// f32 [pictures, 2]: height and width in pixels.
    pub resolution: Array2<f32>,
    /// f32 [pictures, 1]: height over width.
    pub aspect_ratio: Array2<f32>,
}

impl Conditions {
    /// Of pictures of a data set.
    pub fn of(dataset: &Dataset, items: &[usize]) -> Self {
        let mut resolution = Array2::zeros((items.len(), 2));
        let mut aspect_ratio = Array2::zeros((items.len(), 1));
        for (k, &item) in items.iter().enumerate() {
            let (sides, ratio) = dataset.sizing().conditions(dataset.items()[item].size);
            resolution.row_mut(k).assign(&ndarray::arr1(&sides));
            aspect_ratio[[k, 0]] = ratio;
        }
        Self { resolution, aspect_ratio }
    }

    /// As the transformer takes them.
    pub(crate) fn into_inputs(self) -> [Value; 2] {
        [self.resolution.into(), self.aspect_ratio.into()]
    }
}

/// How batches are encoded.
#[derive(Clone, Copy, Debug)]
pub struct EncodeOptions {
    /// How captions are chosen. The seed is the sampler's.
    pub captions: CaptionOptions,
    /// How captions become tokens.
    pub settings: CaptionSettings,
    /// Threads that read files.
    pub workers: usize,
}

impl Default for EncodeOptions {
    /// The seed's, with four threads.
    fn default() -> Self {
        let (captions, settings) = (CaptionOptions::default(), CaptionSettings::default());
        Self { captions, settings, workers: 4 }
    }
}

/// A batch cannot be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// Its pictures cannot be had.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Text encoder or VAE failed.
    #[error(transparent)]
    Encoder(#[from] Box<PipelineError>),
    /// Captions are to be dropped, and nobody knows what the text encoder makes of the empty one.
    #[error(
        "class_dropout_prob: found {0}, but without the text encoder there is no empty caption, which dropped \
         ones become; expected 0, or the text encoder"
    )]
    NoEmptyCaption(f64),
    /// The thread that makes batches is gone.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Makes batches of plans: from what was kept, or with the encoders themselves.
pub trait BatchEncoder: Send {
    /// The batch of a plan. The same plan gives the same batch.
    ///
    /// # Errors
    /// When pictures or captions cannot be had or not be encoded.
    fn encode(&mut self, plan: BatchPlan) -> Result<EncodedBatch, EncodeError>;
}

/// Encoded batches in the sampler's order, made ahead while the one before is trained on.
pub type EncodedBatches = Ahead<EncodedBatch, EncodeError>;

impl EncodedBatches {
    /// Makes the batches from where `sampler` is to the end of the epoch before `end_epoch`, `ahead` of
    /// them before they are asked for.
    pub fn start(
        mut encoder: Box<dyn BatchEncoder>,
        sampler: Sampler,
        end_epoch: u64,
        ahead: usize,
    ) -> Self {
        Self::making(sampler, end_epoch, ahead, move |plan| encoder.encode(plan))
    }
}

impl OfPlan for EncodedBatch {
    fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }
}

/// The parts of a batch, put together. `moments` is f32 [pictures, 2 × channels, h, w]; of each caption there is
/// whether it is dropped.
fn batch(
    dataset: &Dataset,
    plan: BatchPlan,
    moments: &Array4<f32>,
    captions: &[(CaptionStates, bool)],
    (null, settings): (&CaptionStates, CaptionSettings),
    skipped: Vec<Skipped>,
) -> EncodedBatch {
    let (mean, log_variance) = halves(moments);
    let (captions, mask) = put_together(captions, null, settings.max_length);
    let conditions = Conditions::of(dataset, &plan.items);
    EncodedBatch { mean, log_variance, captions, mask, conditions, plan, skipped }
}

/// Means and logarithms of variances, cut off.
fn halves(moments: &Array4<f32>) -> (Array4<f32>, Array4<f32>) {
    let (half, (low, high)) = (moments.shape()[1] as isize / 2, LOG_VARIANCE);
    let part = |slice| moments.slice_axis(Axis(1), slice).to_owned();
    let log_variance = part(Slice::from(half..));
    (part(Slice::from(..half)), log_variance.mapv_into(|value| value.clamp(low, high)))
}

/// States f32 [captions, tokens, width] and mask int64 [captions, tokens]. Where the mask is 0, states are 0: the
/// transformer gives these places no weight at all.
fn put_together(
    captions: &[(CaptionStates, bool)],
    null: &CaptionStates,
    max_length: usize,
) -> (Array3<f32>, Array2<i64>) {
    let longest = captions.iter().map(|(caption, _)| caption.tokens).max().unwrap_or(0);
    let length = longest.next_multiple_of(LENGTH_MULTIPLE).min(max_length).max(longest);
    let mut states = Array3::zeros((captions.len(), length, null.states.ncols()));
    let mut mask = Array2::zeros((captions.len(), length));
    for (k, (caption, dropped)) in captions.iter().enumerate() {
        let source = if *dropped { &null.states } else { &caption.states };
        states
            .slice_mut(s![k, ..caption.tokens, ..])
            .assign(&source.slice(s![..caption.tokens, ..]));
        mask.slice_mut(s![k, ..caption.tokens]).fill(1);
    }
    (states, mask)
}

#[cfg(test)]
mod tests;
