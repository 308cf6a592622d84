//! The sizes that pictures are drawn at.

use super::{PictureSize, Pipeline, Request};
use crate::{
    error::{PipelineError, RequestError},
    size::SizePlan,
};

impl Pipeline {
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
