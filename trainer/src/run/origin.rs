//! What a run has to go on with that stands in no tensor: the model below a LoRA, and the prior pictures.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{RunError, RunOptions, StartingPoint, state};
use crate::{
    checkpoint::{CheckpointError, Saved},
    files::hex,
};

/// Name of the field of a checkpoint's `state`.
const FIELD: &str = "origin";

/// Numbers of each weight that the hash of a model is made of.
const SAMPLES: usize = 4096;

/// What must be the same when a run goes on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Origin {
    /// A hash of the model that a LoRA is trained on.
    base: Option<String>,
    /// Where that model was; only told, because it may be moved.
    #[serde(default)]
    base_path: Option<String>,
    /// A hash of the prior pictures.
    prior: Option<String>,
    /// Which they are.
    #[serde(default)]
    prior_pictures: Option<PriorPictures>,
}

/// The prior pictures that a run began with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriorPictures {
    /// Their paths in their folder, in their order.
    pub names: Vec<String>,
    /// The caption of all.
    pub prompt: String,
}

impl Origin {
    pub fn new(start: &StartingPoint, options: &RunOptions) -> Self {
        let is_lora = options.lora.is_some();
        let path = start.source.as_ref().map(|path| path.display().to_string());
        let prior = options.prior.as_ref();
        Self {
            base: is_lora.then(|| fingerprint(start)),
            base_path: path.filter(|_| is_lora),
            prior: prior.map(|prior| prior.fingerprint.clone()),
            prior_pictures: prior.map(|prior| prior.pictures.clone()),
        }
    }

    pub fn add_to(&self, state: &mut BTreeMap<String, Value>) {
        state.insert(FIELD.to_owned(), state::value(self));
    }

    /// What a checkpoint says; nothing in those of before it was saved.
    fn read(saved: &Saved) -> Result<Option<Self>, RunError> {
        match saved.state().contains_key(FIELD) {
            true => state::field(saved, FIELD).map(Some),
            false => Ok(None),
        }
    }

    /// The prior pictures of a checkpoint's run, if it had any and the checkpoint tells which.
    pub fn prior(saved: &Saved) -> Result<Option<PriorPictures>, RunError> {
        Ok(Self::read(saved)?.and_then(|origin| origin.prior_pictures))
    }

    /// Whether a checkpoint is of a run that began with the same. Those of before this was saved are.
    pub fn check(&self, saved: &Saved) -> Result<(), RunError> {
        let Some(found) = Self::read(saved)? else { return Ok(()) };
        let other = |told: fn(&Self) -> String| {
            let (path, found, expected) = (saved.folder().to_owned(), told(&found), told(self));
            Err(CheckpointError::Other { path, found, expected }.into())
        };
        if found.base != self.base {
            return other(Self::base_told);
        }
        if found.prior != self.prior {
            return other(Self::prior_told);
        }
        Ok(())
    }

    fn base_told(&self) -> String {
        match (&self.base, &self.base_path) {
            (None, _) => "no LoRA".to_owned(),
            (Some(hash), None) => format!("a LoRA of the model {hash}"),
            (Some(hash), Some(path)) => format!("a LoRA of the model {hash} (--checkpoint {path})"),
        }
    }

    fn prior_told(&self) -> String {
        let Some(hash) = &self.prior else { return "no prior pictures".to_owned() };
        let Some(PriorPictures { names, prompt }) = &self.prior_pictures else {
            return format!("the prior pictures {hash}");
        };
        let first = names.first().map(String::as_str).unwrap_or_default();
        format!("the prior pictures {hash} ({} of \"{prompt}\", the first {first})", names.len())
    }
}

/// A hash of a model: its architecture, and some numbers of every weight, evenly spaced. Of two trained models no
/// weight is the same, so these tell them apart in a hundredth of the time that all numbers take.
fn fingerprint(start: &StartingPoint) -> String {
    let StartingPoint { config, weights, .. } = start;
    let mut hash = Sha256::new();
    // What the shapes of the weights do not say.
    let (size, scale) = (config.sample_size, config.interpolation_scale);
    let (heads, compression) = (config.num_attention_heads, &config.kv_compression);
    hash.update(format!("model 1, {size}, {scale}, {heads} heads, {compression:?}\0"));
    for (name, weight) in weights {
        hash.update(format!("{name} {:?}\0", weight.shape()));
        let step = weight.len().div_ceil(SAMPLES).max(1);
        let numbers = weight.iter().step_by(step).flat_map(|number| number.to_le_bytes());
        hash.update(numbers.collect::<Vec<u8>>());
    }
    hex(&hash.finalize()[..8])
}

#[cfg(test)]
mod tests {
    use pixart_exporter::naming::TransformerConfig;

    use super::*;

    fn start(seed: u64) -> StartingPoint {
        let config = TransformerConfig {
            num_layers: 1,
            num_attention_heads: 2,
            attention_head_dim: 8,
            caption_channels: 8,
            ..TransformerConfig::xl2(8)
        };
        StartingPoint::random(config, seed).expect("weights")
    }

    #[test]
    fn models_differ_by_weights_and_by_what_shapes_do_not_say() {
        let first = fingerprint(&start(1));
        assert_eq!(fingerprint(&start(1)), first);
        assert_ne!(fingerprint(&start(2)), first);
        let mut other = start(1);
        other.config.interpolation_scale *= 2.0;
        assert_ne!(fingerprint(&other), first);
        for name in ["proj_out.bias", "transformer_blocks.0.ff.net.2.weight"] {
            let mut other = start(1);
            // A weight of up to so many numbers counts as a whole.
            let weight = other.weights.get_mut(name).expect("a weight");
            assert!(weight.len() < SAMPLES);
            *weight.last_mut().expect("a number") += 0.5;
            assert_ne!(fingerprint(&other), first, "{name}");
        }
    }
}
