//! Which weights of a component change by which layers of which files.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest, Sha256};

use super::{Lora, LoraError, adapter::Layer, key::Network, merge, targets::Targets};
use crate::{
    engine::{GraphWeights, Override},
    files::hex,
    model_folder::Component,
};

/// What several LoRAs do to one component.
#[derive(Debug)]
pub struct LoraPlan {
    component: Component,
    /// `None` where nothing changes, so that the graph was not even read.
    weights: Option<GraphWeights>,
    loras: Vec<Arc<Lora>>,
    /// By initializer, the changes in their order.
    pub(super) steps: BTreeMap<String, Vec<Step>>,
}

/// A change of one weight: some rows of a layer of a file.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub lora: usize,
    pub layer: usize,
    pub rows: Range<usize>,
}

/// What was found out about a LoRA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraMatch {
    /// The file.
    pub path: PathBuf,
    /// Weights of the transformer that it changes.
    pub transformer: usize,
    /// Weights of the text encoder that it changes.
    pub text_encoder: usize,
    /// Keys that belong to no layer and were left out.
    pub unmatched: Vec<String>,
}

/// An exported component that LoRAs can change.
#[derive(Clone, Copy, Debug)]
pub struct Exported<'a> {
    /// Its `model.onnx`.
    pub model: &'a Path,
    /// Its precision, for messages.
    pub precision: &'a str,
}

/// Matches every layer of `loras` with a weight of the transformer or the text encoder, and compares
/// the shapes. The graph of the text encoder is only read if a LoRA has keys for it. Keys for a
/// component that is not given are passed over: they count neither as matched nor as unmatched.
///
/// # Errors
/// When a key belongs to no layer and `allow_unmatched` is not set, no key at all belongs to one, or a
/// change does not fit its weight.
pub fn match_loras(
    loras: &[Arc<Lora>],
    transformer: Option<Exported<'_>>,
    text_encoder: Option<Exported<'_>>,
    allow_unmatched: bool,
) -> Result<([LoraPlan; 2], Vec<LoraMatch>), LoraError> {
    let mut builders = [
        Builder::new(Component::Transformer, transformer, loras),
        Builder::new(Component::TextEncoder, text_encoder, loras),
    ];
    let mut matches = Vec::new();
    for (index, lora) in loras.iter().enumerate() {
        let mut unmatched = lora.unknown.clone();
        let (mut changed, mut passed_over) = ([0, 0], false);
        for (position, layer) in lora.layers.iter().enumerate() {
            let side = match layer.module.network() {
                Network::Transformer => 0,
                Network::TextEncoder => 1,
            };
            match builders[side].add(index, position)? {
                None => passed_over = true,
                Some(0) => unmatched.extend(layer.keys.iter().cloned()),
                Some(count) => changed[side] += count,
            }
        }
        unmatched.sort();
        let (path, total) = (lora.path().to_owned(), lora.keys);
        if changed == [0, 0] && !passed_over {
            return Err(LoraError::NoMatch { path, keys: unmatched, total });
        }
        if !unmatched.is_empty() && !allow_unmatched {
            return Err(LoraError::Unmatched { path, keys: unmatched, total });
        }
        let [transformer, text_encoder] = changed;
        matches.push(LoraMatch { path, transformer, text_encoder, unmatched });
    }
    Ok((builders.map(|builder| builder.plan), matches))
}

struct Builder<'a> {
    exported: Option<Exported<'a>>,
    targets: Option<Targets>,
    /// Initializers that the LoRA of this index changes already.
    seen: HashSet<(usize, String)>,
    plan: LoraPlan,
}

impl<'a> Builder<'a> {
    fn new(component: Component, exported: Option<Exported<'a>>, loras: &[Arc<Lora>]) -> Self {
        let (loras, steps) = (loras.to_vec(), BTreeMap::new());
        let plan = LoraPlan { component, weights: None, loras, steps };
        Self { exported, targets: None, seen: HashSet::new(), plan }
    }

    /// Adds the change of one layer of a file; returns how many weights it changes, or nothing where
    /// the component is not given.
    fn add(&mut self, index: usize, position: usize) -> Result<Option<usize>, LoraError> {
        let component = self.plan.component;
        let Some(exported) = self.exported else { return Ok(None) };
        let targets = match &mut self.targets {
            Some(targets) => targets,
            empty => {
                let weights = GraphWeights::open(exported.model)
                    .map_err(|source| LoraError::Graph { component, source })?;
                let targets = Targets::of(&weights);
                self.plan.weights = Some(weights);
                empty.insert(targets)
            }
        };
        let lora = &self.plan.loras[index];
        let layer = &lora.layers[position];
        let Some(shares) = targets.find(&layer.module) else { return Ok(Some(0)) };
        let (path, module) = (|| lora.path().to_owned(), || layer.module.name.clone());
        let found = [layer.up.nrows(), layer.down.ncols()];
        let mut first = 0;
        let mut ordered: Vec<_> = shares.iter().collect();
        ordered.sort_by_key(|share| share.part);
        let list = &targets.list;
        let rows: usize = ordered.iter().map(|share| list[share.target].outputs).sum();
        for share in &ordered {
            let target = &list[share.target];
            if let Some(found) = &target.quantised {
                return Err(LoraError::Quantised {
                    path: path(),
                    module: module(),
                    component,
                    precision: exported.precision.to_owned(),
                    found: found.clone(),
                });
            }
            let expected = [rows, target.inputs];
            if found != expected {
                let (path, module) = (path(), module());
                return Err(LoraError::Shape { path, module, found, expected, component });
            }
            if share.parts > 1
                && matches!(layer.magnitude, Some(super::adapter::Magnitude::Inputs(..)))
            {
                return Err(LoraError::Unsupported {
                    path: path(),
                    method: "DoRA with magnitudes of inputs over several layers in one".to_owned(),
                    key: module(),
                });
            }
            if !self.seen.insert((index, target.initializer.clone())) {
                return Err(LoraError::Module {
                    path: path(),
                    module: module(),
                    reason: format!(
                        "found a second change of {}, expected one; the file has it under two names",
                        target.initializer
                    ),
                });
            }
        }
        for share in &ordered {
            let target = &list[share.target];
            let rows = first..first + target.outputs;
            first = rows.end;
            // Checked all the same: it should not matter for the rest what a strength is.
            if lora.strength() != 0.0 {
                let steps = self.plan.steps.entry(target.initializer.clone()).or_default();
                steps.push(Step { lora: index, layer: position, rows });
            }
        }
        Ok(Some(ordered.len()))
    }
}

impl LoraPlan {
    /// How many weights change.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// What distinguishes the results of the changed component from those of the plain one: a hash of
    /// what the files ask of it (their SHA-256, strengths, and scales, which may come from a file
    /// beside them), in their order. `None` where no file has anything for it. The component itself
    /// need not be there.
    pub fn fingerprint(&self) -> Option<String> {
        let network = match self.component {
            Component::TextEncoder => Network::TextEncoder,
            Component::Transformer => Network::Transformer,
            Component::VaeDecoder | Component::VaeEncoder => return None,
        };
        let (mut hash, mut any) = (Sha256::new(), false);
        for lora in self.loras.iter().filter(|lora| lora.strength() != 0.0) {
            let mut layers =
                lora.layers.iter().filter(|l| l.module.network() == network).peekable();
            if layers.peek().is_none() {
                continue;
            }
            any = true;
            hash.update(format!("lora {} {:08x}\n", lora.sha256(), lora.strength().to_bits()));
            for Layer { module, scale, magnitude, .. } in layers {
                let (scale, dora) = (scale.to_bits(), magnitude.is_some());
                hash.update(format!("{} {scale:08x} {dora}\n", module.name));
            }
        }
        any.then(|| hex(&hash.finalize()[..8]))
    }

    /// The changed weights, each in the type it is stored in.
    ///
    /// # Errors
    /// When a weight cannot be read, or is not finite after the change.
    pub fn merge(&self) -> Result<Vec<Override>, LoraError> {
        self.merge_some(&|_| true)
    }

    /// The same for the weights whose names are `wanted`.
    ///
    /// # Errors
    /// As [`Self::merge`].
    pub fn merge_some(&self, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Override>, LoraError> {
        let Some(weights) = &self.weights else { return Ok(Vec::new()) };
        let steps = self.steps.iter().filter(|(name, _)| wanted(name)).collect();
        merge::all(self.component, weights, &self.loras, steps)
    }
}
