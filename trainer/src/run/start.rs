//! What a training begins with: a checkpoint's weights, or random ones.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use ndarray::{ArrayD, IxDyn};
use pixart_exporter::{
    ExportError, Profile, TrainableTransformer, VariantFlags,
    checkpoint::OpenOptions,
    graph::ir::WeightData,
    models,
    naming::{KvCompression, TransformerConfig},
};
use pixart_runtime::noise::TorchGenerator;
use serde_json::Value;

use super::{RunError, initial};
use crate::tensors::Tensors;

/// A transformer before training.
pub struct StartingPoint {
    /// Its configuration.
    pub config: TransformerConfig,
    /// The content of its `config.json`.
    pub json: Value,
    /// Every weight, under diffusers' names and in its shapes.
    pub weights: Tensors,
    /// Where they come from; absent for random ones.
    pub source: Option<PathBuf>,
}

impl StartingPoint {
    /// The weights of a checkpoint (see [`TrainableTransformer::open`]), of whatever precision, in 32 bits.
    ///
    /// With `compression` by convolution, a model without such convolutions gets them; they begin as averages.
    ///
    /// # Errors
    /// When the checkpoint is none of a transformer, is damaged, or does not fit its configuration.
    pub fn from_checkpoint(
        source: &Path,
        open: &OpenOptions,
        flags: &VariantFlags,
        compression: Option<&KvCompression>,
    ) -> Result<Self, RunError> {
        let opened = TrainableTransformer::open(source, open, flags, compression)?;
        let mut weights = Tensors::new();
        // Only what a checkpoint may lack is drawn, and of that nothing is random.
        let mut generator = TorchGenerator::new(0);
        for (name, shape) in shapes(opened.config())? {
            let stored = opened.weight(&name).and_then(|view| view.to_f32());
            let array = match stored {
                Some(values) => ArrayD::from_shape_vec(IxDyn(&shape), values)
                    .expect("the checkpoint was compared with the shapes"),
                None => initial::weight(&name, &shape, &mut generator),
            };
            weights.insert(name, array);
        }
        let (config, json) = (opened.config().clone(), opened.config_json().clone());
        Ok(Self { config, json, weights, source: Some(source.to_owned()) })
    }

    /// Random weights, as the official code begins; the same for the same seed.
    ///
    /// # Errors
    /// When the configuration does not fit together.
    pub fn random(config: TransformerConfig, seed: u64) -> Result<Self, RunError> {
        let mut generator = TorchGenerator::new(seed);
        let weights = shapes(&config)?.into_iter().map(|(name, shape)| {
            let weight = initial::weight(&name, &shape, &mut generator);
            (name, weight)
        });
        let (weights, json) = (weights.collect(), config.to_json());
        Ok(Self { weights, json, config, source: None })
    }
}

/// The names and shapes of the weights of a configuration's model.
fn shapes(config: &TransformerConfig) -> Result<BTreeMap<String, Vec<usize>>, RunError> {
    let graph = models::transformer::build(config, Profile::Ort).map_err(|source| {
        let component = pixart_exporter::Component::Transformer;
        ExportError::Graph { component, source }
    })?;
    let weights = graph.initializers.into_iter().filter_map(|initializer| match initializer.data {
        WeightData::Checkpoint(weight) => Some((weight.tensor, weight.shape)),
        WeightData::Inline(_) => None,
    });
    Ok(weights.collect())
}
