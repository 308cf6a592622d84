//! Pictures that show what a model in training can draw.

use std::sync::Arc;

use pixart_exporter::naming::TransformerConfig;
use pixart_runtime::{
    engine::Engine,
    model_folder::{KvCompression, TransformerArchitecture},
    pipeline::{Event, ModelPaths, Picture, PipelineError, PipelineOptions, Request, Series},
};

use super::Lent;

/// The same pictures, from the same noise, again and again while a model is trained. Of the training
/// itself nothing changes: the noise is the request's own.
pub struct Validation {
    series: Series,
}

impl Validation {
    /// Checks what can be checked before training begins, and encodes the captions of `request`;
    /// `progress` is told of it. The transformer of `paths` is not read.
    ///
    /// # Errors
    /// When a part of the model is missing or the request asks for something impossible.
    pub fn new(
        engine: Arc<dyn Engine>,
        config: &TransformerConfig,
        paths: &ModelPaths,
        options: PipelineOptions,
        request: Request,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self, PipelineError> {
        let architecture = architecture(config);
        let series = Series::new(engine, architecture, paths, options, request, progress)?;
        Ok(Self { series })
    }

    /// Draws with a model as it is now.
    ///
    /// # Errors
    /// When the engine fails, or what is drawn is not finite.
    pub fn draw(
        &mut self,
        model: &mut Lent<'_>,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<Picture>, PipelineError> {
        self.series.draw(model, progress)
    }
}

/// What a manifest would say about the model.
fn architecture(config: &TransformerConfig) -> TransformerArchitecture {
    let kv_compression = config.kv_compression.as_ref().map(|compression| KvCompression {
        sampling: compression.sampling.to_string(),
        scale_factor: compression.scale_factor,
        layers: compression.layers.iter().copied().collect(),
    });
    TransformerArchitecture {
        sample_size: u32::try_from(config.sample_size).unwrap_or(u32::MAX),
        in_channels: config.in_channels,
        out_channels: config.out_channels,
        caption_channels: config.caption_channels,
        use_additional_conditions: config.use_additional_conditions,
        kv_compression,
    }
}
