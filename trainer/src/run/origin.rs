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

/// Hashes of what must be the same when a run goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// Of the model that a LoRA is trained on.
    base: Option<String>,
    /// Of the prior pictures.
    prior: Option<String>,
}

impl Origin {
    pub fn new(start: &StartingPoint, options: &RunOptions) -> Self {
        Self {
            base: options.lora.as_ref().map(|_| fingerprint(start)),
            prior: options.prior.as_ref().map(|prior| prior.fingerprint.clone()),
        }
    }

    pub fn add_to(&self, state: &mut BTreeMap<String, Value>) {
        state.insert(FIELD.to_owned(), state::value(self));
    }

    /// Whether a checkpoint is of a run that began with the same. Those of before this was saved are.
    pub fn check(&self, saved: &Saved) -> Result<(), RunError> {
        if !saved.state().contains_key(FIELD) {
            return Ok(());
        }
        let found: Self = state::field(saved, FIELD)?;
        let base = |hash: &Option<String>| match hash {
            Some(hash) => format!("a LoRA of the model {hash}"),
            None => "no LoRA".to_owned(),
        };
        let prior = |hash: &Option<String>| match hash {
            Some(hash) => format!("the prior pictures {hash}"),
            None => "no prior pictures".to_owned(),
        };
        for (found, expected) in
            [(base(&found.base), base(&self.base)), (prior(&found.prior), prior(&self.prior))]
        {
            if found != expected {
                let path = saved.folder().to_owned();
                return Err(CheckpointError::Other { path, found, expected }.into());
            }
        }
        Ok(())
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
