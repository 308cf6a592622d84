//! A transformer's checkpoint as training begins from it: checked as an export checks it, under
//! diffusers' names, with nothing lowered or rewritten.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::checkpoint::{Checkpoint, OpenOptions, TensorView};
use crate::naming::{self, KvCompression, KvSampling, TransformerConfig, VariantFlags};
use crate::profile::Profile;
use crate::source::Located;
use crate::{Component, ExportError, models};

/// A transformer whose configuration and tensors fit together.
pub struct TrainableTransformer {
    config: TransformerConfig,
    json: Value,
    checkpoint: Checkpoint,
    names: BTreeSet<String>,
}

impl TrainableTransformer {
    /// Opens a file of weights, a transformer's folder, or the folder of a pipeline.
    ///
    /// With `compression` by convolution, a checkpoint that has no such convolutions becomes a model that has:
    /// their weights are then not among [`Self::names`] and begin anew.
    ///
    /// # Errors
    ///
    /// Everything that keeps such a checkpoint from being exported.
    pub fn open(
        source: &Path,
        open: &OpenOptions,
        flags: &VariantFlags,
        compression: Option<&KvCompression>,
    ) -> Result<Self, ExportError> {
        let located = Located::find(source, Component::Transformer)?;
        let checkpoint = Checkpoint::open(&located.path, open)?;
        let (checkpoint, naming) = naming::in_diffusers_names(checkpoint)?;
        let file = located.config.as_deref();
        let mut config = TransformerConfig::read(&checkpoint, file, flags)?;
        let component = Component::Transformer;
        let graph = models::transformer::build(&config, Profile::Ort)
            .map_err(|source| ExportError::Graph { component, source })?;
        let found = naming::find(&graph, &checkpoint, component)
            .map_err(|error| naming::in_stored_names(error, naming))?;
        let names = found.into_iter().map(|weight| weight.tensor).collect();
        let convolutions =
            compression.filter(|compression| compression.sampling == KvSampling::Conv);
        if let (Some(compression), None) = (convolutions, &config.kv_compression) {
            config.kv_compression = Some(compression.clone());
        }
        let json = match file {
            Some(file) => config.to_json_over(file)?,
            None => config.to_json(),
        };
        Ok(Self { config, json, checkpoint, names })
    }

    /// The configuration.
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// The content of a `config.json` for it: that of the checkpoint, brought up to date.
    pub fn config_json(&self) -> &Value {
        &self.json
    }

    /// The names of the weights that the model reads, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// A weight that the model reads.
    pub fn weight(&self, name: &str) -> Option<TensorView<'_>> {
        self.names.get(name).and_then(|name| self.checkpoint.tensor(name))
    }
}
