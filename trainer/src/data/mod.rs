//! Pictures and captions for training: labels in, batches out.
//!
//! [`Labels::read`] reads what the pictures show, [`Dataset::open`] looks at the pictures and sorts them into
//! aspect buckets, [`Sampler`] deals them out in batches that repeat for a seed and go on where they were
//! interrupted, and [`Loader`] brings the batches' pictures to their size ahead of time. A [`BatchEncoder`] gives
//! batches as the transformer reads them: [`CachedEncoder`] from an [`EncodingCache`] that [`Filling`] has filled
//! (`pixart train cache`), [`LiveEncoder`] with text encoder and VAE, or from [`Features`] of the official tools. [`check`](fn@check) is
//! `pixart dataset check`.

mod ahead;
mod cache;
mod caption;
mod check;
mod dataset;
mod encoded;
mod features;
mod labels;
mod loader;
mod picture;
mod random;
mod sampler;
mod scan;

pub use ahead::{Ahead, OfPlan, Stopped};
pub use cache::{
    CacheError, CaptionCache, CaptionSettings, CaptionStates, CaptionType, Description,
    EncodingCache, FillOptions, Filled, Filling, Lack, Lacks, MomentCache, TextDescription,
    VaeDescription,
};
pub use caption::{Caption, CaptionKind, CaptionOptions, Captions};
pub use check::{
    BucketCount, CaptionLimit, CheckError, CheckOptions, CheckReport, Enlarged, LeftOutEntry,
    LongCaption, Mislabelled, check,
};
pub use dataset::{Bucket, DataOptions, Dataset, Item, LeftOut, Reason};
pub use encoded::{
    BatchEncoder, CachedEncoder, CaptionSource, Conditions, EncodeError, EncodeOptions,
    EncodedBatch, EncodedBatches, LiveEncoder, MomentSource, empty_caption,
};
pub use features::{FeatureError, Features};
pub use labels::{Columns, EXTENSIONS, LabelError, Labels, Place, Record, Source};
pub use loader::{Batch, LoadError, Loader, LoaderOptions, Skipped};
pub use picture::{
    Filter, PictureError, PictureLimits, Sizing, decode_picture, file_size, picture_size,
    read_file, training_tensor,
};
pub(crate) use random::Stream;
pub use sampler::{BatchOptions, BatchPlan, Dealt, Position, Sampler, SamplerError, Share};
pub use scan::Depth;
