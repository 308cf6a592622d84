//! Batches as the transformer is trained on them: latents' distributions and caption states.

use super::ahead::{Ahead, OfPlan, Stopped};
use super::{BatchPlan, LoadError, Sampler, Skipped};
use ndarray::{Array2, Array3, Array4};
use pixart_runtime::size::Size;

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
    /// The pictures' own sizes, before they were brought to the bucket's.
    pub sizes: Vec<Size>,
    /// Pictures of this batch that could not be had, for which others stand.
    pub skipped: Vec<Skipped>,
}

/// A batch cannot be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// Its pictures cannot be had.
    #[error(transparent)]
    Load(#[from] LoadError),
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
