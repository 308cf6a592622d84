//! The sizes that pictures are drawn at.

use std::{iter, ops::Range};

use super::{PictureSize, Pipeline, Request, run::batch_from};
use crate::{
    error::{PipelineError, RequestError},
    size::{Size, SizePlan},
};

impl Pipeline {
    /// The size of every picture, as it will be returned.
    ///
    /// # Errors
    /// When a size cannot be drawn.
    pub fn picture_sizes(&self, request: &Request) -> Result<Vec<Size>, PipelineError> {
        Ok(self.plan_sizes(request)?.iter().map(|plan| plan.requested).collect())
    }

    /// The pictures that are computed at once, by their numbers, in order: neighbours of one size, at most
    /// [`batch_size`](super::PipelineOptions::batch_size). Whoever shares a request out and leaves them whole gets the
    /// same pictures bit for bit.
    ///
    /// # Errors
    /// When a size cannot be drawn.
    pub fn batches(&self, request: &Request) -> Result<Vec<Range<usize>>, PipelineError> {
        let (sizes, most) = (self.plan_sizes(request)?, self.options.batch_size);
        let first = batch_from(&sizes, 0, most);
        let next = |batch: &Range<usize>| batch_from(&sizes, batch.end, most);
        Ok(iter::successors(first, next).collect())
    }

    /// The size of every picture.
    pub(super) fn plan_sizes(&self, request: &Request) -> Result<Vec<SizePlan>, PipelineError> {
        (0..request.prompts.len()).map(|k| self.plan_size(request, request.size(k))).collect()
    }

    fn plan_size(&self, request: &Request, size: PictureSize) -> Result<SizePlan, PipelineError> {
        let PictureSize { width, height, aspect_ratio } = size;
        let own = self.sample_size();
        let plan = match aspect_ratio {
            Some(ratio) => SizePlan::with_ratio(ratio, width, height, own)?,
            None => SizePlan::new(width, height, own, request.use_resolution_binning)?,
        };
        // Pixels of a token: 8 of the VAE, 2 of a patch.
        const TOKEN: usize = 16;
        let factor = self.transformer().kv_compression.as_ref().map_or(1, |kv| kv.scale_factor);
        let (width, height) = (plan.generated.width, plan.generated.height);
        let least = TOKEN * factor;
        if (width.min(height) as usize) < least {
            return Err(RequestError::TooSmall { width, height, least }.into());
        }
        Ok(plan)
    }
}
