//! The settings of a run under way: batches, previews, when pictures are decoded.

use super::preview::{Preview, Target};
use super::settings::Settings;
use crate::exit::Failure;
use crate::model::cache_folder;
use pixart_exporter::Precision;
use pixart_runtime::pipeline::{Pipeline, PipelineOptions, RequestError};
use std::time::Duration;

impl Settings {
    /// How the pipeline works.
    pub fn options(&self) -> Result<PipelineOptions, Failure> {
        let default = PipelineOptions::default();
        Ok(PipelineOptions {
            keep_resident: self.keep_resident.unwrap_or(false),
            low_memory: self.is_sparing()?,
            text_cache: self.text_cache()?,
            batch_size: self.batch_size()?,
            decode_interval: match self.decode_interval {
                None => default.decode_interval,
                Some(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| {
                    Failure::request(format!(
                        "decode_interval: found {seconds}, expected seconds, 0 or more"
                    ))
                })?,
            },
            vae_tiling: self.vae_tiling()?,
            ..default
        })
    }

    /// Whether time is spent for memory.
    pub fn is_sparing(&self) -> Result<bool, Failure> {
        let sparing = self.low_memory.unwrap_or(false);
        if sparing && self.keep_resident == Some(true) {
            return Err(Failure::request(RequestError::LowMemoryResident));
        }
        if sparing && self.devices.len() > 1 {
            return Err(Failure::request(
                "low_memory: several devices would each hold a model at the same time; name one, or leave \
                 low_memory out",
            ));
        }
        Ok(sparing)
    }

    /// The precision of what is exported on first use; fp32 where none is given.
    pub fn precision(&self) -> Result<Option<Precision>, Failure> {
        let parse = |name: &String| {
            name.parse().map_err(|error| Failure::request(format!("dtype: {error}")))
        };
        self.dtype.as_ref().map(parse).transpose()
    }

    /// Where a preview goes, if one is wanted.
    pub fn preview_target(&self) -> Result<Option<Target>, Failure> {
        let interval = self.preview_interval.unwrap_or(1);
        if interval == 0 {
            return Err(Failure::request("preview_interval: found 0, expected 1 or more"));
        }
        match &self.preview {
            Some(name) => Target::parse(name).map(Some),
            None if self.preview_interval.is_some() => Err(Failure::request(
                "preview_interval: found it without preview; say where the preview goes, --preview FILE.png \
                 or --preview terminal",
            )),
            None => Ok(None),
        }
    }

    /// Fits the preview to the model.
    pub fn preview(
        &self,
        target: Option<Target>,
        pipeline: &mut Pipeline,
    ) -> Result<Option<Preview>, Failure> {
        let Some(target) = target else { return Ok(None) };
        // Without a place to keep it, the map is made each time.
        let folder = cache_folder().ok().map(|folder| folder.join("preview"));
        let map = pipeline.latent_preview(folder.as_deref())?;
        Ok(Some(Preview::new(target, map, self.preview_interval.unwrap_or(1))))
    }
}
