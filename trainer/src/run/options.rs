//! The settings of a run.

use std::{ops::Range, path::PathBuf, sync::Arc};

use super::PriorPictures;
use crate::{
    ema::Warmup, gradient::Precision, lora::AdapterSettings, loss::LossKind, optimizer::Algorithm,
    ranks::Ranks, scaler::Scaling, schedule::Shape,
};

/// How long and how a model is trained. Data and their order are the sampler's and the encoder's.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Of the noise, of the times and of what is drawn from the VAE's distribution.
    pub seed: u64,
    /// When it ends.
    pub length: Length,
    /// Batches of a step, at least 1.
    pub accumulation: u32,
    /// What the loss counts.
    pub loss: LossKind,
    /// What products of matrices are computed in.
    pub precision: Precision,
    /// The limit of the min-SNR weighting, above 0; without one, all times count alike.
    pub snr_gamma: Option<f64>,
    /// Pictures beside those that are to be learnt, if there are any.
    pub prior: Option<PriorOptions>,
    /// Latents are multiplied by this, above 0.
    pub latent_scale: f32,
    /// What turns gradients into steps.
    pub algorithm: Algorithm,
    /// The learning rate after the warm-up, already scaled with the batch.
    pub learning_rate: f64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// How the learning rate goes on.
    pub scheduler: Shape,
    /// The weight decay, at least 0.
    pub weight_decay: f64,
    /// The largest norm of all gradients together; longer ones are shortened to it.
    pub largest_norm: Option<f64>,
    /// The factor on the loss.
    pub scaling: Scaling,
    /// What follows from gradients that are not finite where a smaller loss scale may help.
    pub on_overflow: Policy,
    /// What follows from a loss that is not finite, and from gradients that are not where no loss scale helps.
    pub on_nan: Policy,
    /// The average of the weights, if there is one.
    pub average: Option<AverageOptions>,
    /// A LoRA is trained in the place of the weights.
    pub lora: Option<AdapterSettings>,
    /// Checkpoints.
    pub save: SaveOptions,
    /// The others, if several processes train one model.
    pub together: Option<TogetherOptions>,
}

/// Several processes that train one model. All have the same options, the sampler of their own share, and see
/// the checkpoints of the first one.
#[derive(Clone, Debug)]
pub struct TogetherOptions {
    /// They.
    pub ranks: Arc<Ranks>,
    /// Each keeps the optimizer's state of a share of the weights, and moves those. Else each has all of it.
    pub shard_optimizer: bool,
}

/// Pictures of what a model can draw already, such as other things of the kind that it is to learn one of
/// (Ruiz et al., "DreamBooth", 2022). Each batch gets as many of them as it has pictures of its own, and its
/// loss is the mean over its own plus `weight` times the mean over these.
#[derive(Clone, Debug, PartialEq)]
pub struct PriorOptions {
    /// Their numbers in the data set of the encoder; the sampler deals out what comes before. All have
    /// the size of every batch: there is one bucket only. Not empty.
    pub items: Range<usize>,
    /// What their loss counts, at least 0; 1 is usual.
    pub weight: f64,
    /// Tells these pictures from others ([`Dataset::fingerprint`](crate::data::Dataset::fingerprint)): a run
    /// goes on with the same.
    pub fingerprint: String,
    /// Which they are: what a run that goes on looks for.
    pub pictures: PriorPictures,
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Times every picture is seen.
    Epochs(u64),
    /// Steps of the optimizer, however many epochs that takes.
    Steps(u64),
}

/// What follows from numbers that are not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The run ends with an error; what was saved stays.
    Stop,
    /// The batch is left out. After [`MOST_SKIPPED`] in a row the run ends nevertheless.
    Skip,
}

/// Batches in a row that may be left out.
pub const MOST_SKIPPED: u32 = 100;

/// The average of the weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AverageOptions {
    /// The share of the old average in the new one, from 0 to below 1.
    pub decay: f64,
    /// How it rises to that.
    pub warmup: Warmup,
}

/// When and where checkpoints are saved. One is always saved at the end.
#[derive(Clone, Debug)]
pub struct SaveOptions {
    /// The folder of the checkpoints.
    pub folder: PathBuf,
    /// At the end of every so many epochs, at least 1.
    pub every_epochs: Option<u64>,
    /// After every so many steps, at least 1.
    pub every_steps: Option<u64>,
    /// The newest so many are kept, at least 1.
    pub keep: usize,
}
