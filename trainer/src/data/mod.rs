//! Pictures and captions for training: labels in, batches out.
//!
//! [`Labels::read`] reads what the pictures show, [`Dataset::open`] looks at the pictures and sorts them into
//! aspect buckets, [`Sampler`] deals them out in batches that repeat for a seed and go on where they were
//! interrupted, and [`Loader`] brings the batches' pictures to their size ahead of time. A [`BatchEncoder`] gives
//! batches as the transformer reads them: [`CachedEncoder`] from an [`EncodingCache`] that [`Filling`] has filled
//! (`pixart train cache`), [`LiveEncoder`] with text encoder and VAE. [`check`](fn@check) is
//! `pixart dataset check`.

mod ahead;
mod cache;
mod caption;
mod check;
mod dataset;
mod encoded;
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
pub use caption::{Caption, CaptionOptions, Captions};
pub use check::{
    BucketCount, CaptionLimit, CheckError, CheckOptions, CheckReport, Enlarged, LeftOutEntry,
    LongCaption, Mislabelled, check,
};
pub use dataset::{Bucket, DataOptions, Dataset, Item, LeftOut, Reason};
pub use encoded::{
    BatchEncoder, CachedEncoder, EncodeError, EncodeOptions, EncodedBatch, EncodedBatches,
    LiveEncoder,
};
pub use labels::{Columns, EXTENSIONS, LabelError, Labels, Place, Record, Source};
pub use loader::{Batch, LoadError, Loader, LoaderOptions, Skipped};
pub use picture::{
    Filter, PictureError, PictureLimits, Sizing, decode_picture, file_size, picture_size,
    read_file, training_tensor,
};
pub(crate) use random::Stream;
pub use sampler::{BatchOptions, BatchPlan, Dealt, Position, Sampler, SamplerError, Share};
pub use scan::Depth;
