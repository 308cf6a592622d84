//! Batches of what was kept: neither text encoder nor VAE is needed, and no picture is decoded.

use super::super::loader::gathered;
use super::{BatchEncoder, EncodeError, EncodeOptions, EncodedBatch, batch};
use crate::data::{BatchPlan, CacheError, CaptionStates, Dataset, EncodingCache, Lack};
use ndarray::{Axis, stack};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Reads moments and captions from a cache.
///
/// A picture whose moments or caption have become unreadable is skipped, counted and named as one that has become
/// unreadable itself: the next one of its bucket stands for it.
pub struct CachedEncoder {
    cache: EncodingCache,
    dataset: Arc<Dataset>,
    options: EncodeOptions,
    null: CaptionStates,
    bad: BTreeMap<usize, String>,
}

impl CachedEncoder {
    /// Looks whether the cache has all that is needed.
    ///
    /// # Errors
    /// When something is missing, other than pictures that could not be read when the cache was filled, or the
    /// empty caption is damaged.
    pub fn new(
        cache: EncodingCache,
        dataset: Arc<Dataset>,
        options: EncodeOptions,
    ) -> Result<Self, CacheError> {
        cache.check_complete(&dataset, options.settings)?;
        let null = cache.null(options.settings)?;
        Ok(Self { cache, dataset, options, null, bad: BTreeMap::new() })
    }

    /// The cache.
    pub fn cache(&self) -> &EncodingCache {
        &self.cache
    }
}

impl BatchEncoder for CachedEncoder {
    fn encode(&mut self, mut plan: BatchPlan) -> Result<EncodedBatch, EncodeError> {
        let Self { cache, dataset, options, null, bad } = self;
        let folder = cache.folder().display();
        let lacks = |what: &'static str| {
            let folder = &folder;
            move |why: Lack| match why {
                Lack::Unreadable(problem) => problem,
                why => format!("{what} in {folder}: {why}; run `pixart train cache` again"),
            }
        };
        let (epoch, seed) = (plan.epoch, plan.after.seed);
        let (encoded, skipped) = gathered(dataset, &mut plan, options.workers, bad, |item| {
            let captions = &dataset.items()[item].captions;
            let chosen = captions.choose(options.captions, seed, epoch, item);
            let moments = cache.moments().get(dataset, item).map_err(lacks("its moments"))?;
            let caption = cache.captions().get(&chosen.text, options.settings);
            let caption = caption.and_then(|caption| caption.of_width(null.states.ncols()));
            Ok((moments, (caption.map_err(lacks("its caption"))?, chosen.dropped)))
        })?;
        let (moments, captions): (Vec<_>, Vec<_>) = encoded.into_iter().unzip();
        let views: Vec<_> = moments.iter().map(|moments| moments.view()).collect();
        let moments = stack(Axis(0), &views).expect("moments of a bucket have one size");
        let null = (&*null, options.settings);
        Ok(batch(dataset, plan, &moments, &captions, null, skipped))
    }
}
