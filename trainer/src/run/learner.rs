//! A model with all that changes while it is trained: its weights, the gradients that are being added up, the
//! optimizer's state, the average.

mod lent;
mod together;

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use ndarray::{ArrayD, IxDyn};
use pixart_exporter::{graph::LORA_SCALE, naming::TransformerConfig};
use pixart_runtime::{engine::Engine, noise::TorchGenerator, tensor::Tensor};
use serde_json::Value;

use super::{RunError, RunOptions, StartingPoint, prepare::Prepared};
use crate::{
    checkpoint::{self, Contents, Model, Saved},
    ema::Average,
    gradient::{Inputs, TrainedTransformer, Training, Weights},
    lora::Adapter,
    loss::{Diffusion, LossKind, Target},
    optimizer::{Accumulated, Accumulator, Group, Mean, Optimizer, Step},
    tensors::{Tensors, to_tensors, to_values},
};

pub use lent::{Lent, Untrained};
use together::Together;

/// A model that is being trained.
pub struct Learner {
    engine: Arc<dyn Engine>,
    config: TransformerConfig,
    json: Value,
    model: TrainedTransformer,
    /// All the model reads; for a LoRA the frozen weights and the factors.
    weights: Weights,
    /// The settings of the LoRA, and the names of its factors. Its numbers are in `weights`.
    adapter: Option<Adapter>,
    accumulator: Accumulator,
    optimizer: Optimizer,
    average: Option<Average>,
    /// The others, if it is one of several.
    together: Option<Together>,
    kind: LossKind,
    parameters: u64,
}

/// What became of a batch.
pub(super) enum Learned {
    /// Its loss is not finite; there are no gradients.
    NotFinite(f64),
    /// A loss, and what became of its gradients.
    Loss(f64, Accumulated),
}

impl Learner {
    /// A model before its first step.
    pub(super) fn new(
        engine: &Arc<dyn Engine>,
        start: StartingPoint,
        options: &RunOptions,
    ) -> Result<Self, RunError> {
        let StartingPoint { config, json, weights, .. } = start;
        let adapter = match &options.lora {
            None => None,
            Some(settings) => {
                let shapes = weights.iter().map(|(name, weight)| (name.as_str(), weight.shape()));
                let mut generator = TorchGenerator::new(options.seed);
                Some(Adapter::new(settings.clone(), shapes, &mut generator)?)
            }
        };
        let training = match &adapter {
            None => Training::full(),
            Some(adapter) => {
                let layers = adapted(adapter, &weights)?;
                Training::lora(move |layer| layers.contains(layer))
            }
        };
        let training = training.in_precision(options.precision);
        let shared = engine.clone();
        let engine = engine.as_ref();
        let model = TrainedTransformer::load(engine, &config, &training)?;
        let mut weights = to_values(engine, weights)?;
        let factors = adapter.as_ref().map(|adapter| to_values(engine, adapter.factors().clone()));
        let factors = factors.transpose()?;
        let trained = factors.as_ref().unwrap_or(&weights);
        let groups = vec![Group::without_decay()];
        let together = options.together.as_ref().map(|options| Together::new(options, trained));
        let own = together.as_ref().map(|together| together.own(trained));
        let moved = own.as_ref().unwrap_or(trained);
        let optimizer = Optimizer::new(engine, options.algorithm, groups, moved)?;
        drop(own);
        // One of all keeps the average.
        let is_first = together.as_ref().is_none_or(|together| together.ranks.is_first());
        let average = options.average.filter(|_| is_first);
        let average = average.map(|a| Average::new(engine, a.decay, a.warmup, trained));
        let average = average.transpose()?;
        let parameters = trained.values().map(|weight| weight.size() as u64).sum();
        weights.extend(factors.into_iter().flatten());
        if let Some(adapter) = &adapter {
            let scale = ArrayD::from_elem(IxDyn(&[]), adapter.settings().scale() as f32);
            weights.insert(LORA_SCALE.to_owned(), engine.to_device(Tensor::F32(scale))?);
        }
        let accumulator = Accumulator::new(engine, options.accumulation)?;
        let kind = options.loss;
        Ok(Self {
            engine: shared,
            config,
            json,
            model,
            weights,
            adapter,
            accumulator,
            optimizer,
            average,
            together,
            kind,
            parameters,
        })
    }

    /// Whether it is alone, or the one of several that writes.
    pub(super) fn is_first(&self) -> bool {
        self.together.as_ref().is_none_or(|together| together.ranks.is_first())
    }

    /// Takes the weights of the first of several.
    pub(super) fn share_weights(&mut self) -> Result<(), RunError> {
        match &self.together {
            Some(together) => together.share_weights(&mut self.weights),
            None => Ok(()),
        }
    }

    /// The model's configuration.
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// Numbers that are trained.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// All weights that the model reads, those of a LoRA included.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The average, if there is one.
    pub fn average(&self) -> Option<&Average> {
        self.average.as_ref()
    }

    /// Steps of the optimizer.
    pub fn steps(&self) -> u64 {
        self.optimizer.steps()
    }

    /// Batches of the coming step that are there already.
    pub(super) fn pending(&self) -> u32 {
        self.accumulator.pending()
    }

    /// The prediction `[batch, 8, height, width]` with the weights as they are now.
    ///
    /// # Errors
    /// When an input has another shape than the configuration says, or the engine fails.
    pub fn predict(&mut self, inputs: &Inputs) -> Result<ArrayD<f32>, RunError> {
        Ok(self.model.forward(&self.weights, inputs)?.output)
    }

    /// Adds the gradients of a batch, of its loss times `loss_scale`.
    pub(super) fn learn(
        &mut self,
        diffusion: &Diffusion,
        batch: Prepared,
        loss_scale: f64,
    ) -> Result<Learned, RunError> {
        let Prepared { clean, noise, noisy, times, inputs, importance, .. } = batch;
        // Once for all parts, and for both ways.
        let inputs = inputs.to_device(self.engine.as_ref())?;
        let pass = self.model.forward(&self.weights, &inputs)?;
        let target = Target { clean: &clean, noise: &noise, noisy: &noisy, times: &times };
        let loss = diffusion.weighted_loss(self.kind, &pass.output, &target, &importance)?;
        let mean = match &self.together {
            Some(together) => together.mean_loss(loss.mean())?,
            None => loss.mean(),
        };
        if !mean.is_finite() {
            return Ok(Learned::NotFinite(mean));
        }
        let gradient = loss.gradient * loss_scale as f32;
        if let Some(together) = &self.together {
            let Self { model, accumulator, weights, .. } = self;
            let loss = (mean, gradient);
            return together.learn(model, accumulator, weights, pass, loss, loss_scale);
        }
        let gradients = self.model.backward(&self.weights, pass, gradient)?;
        Ok(Learned::Loss(mean, self.accumulator.add(gradients, loss_scale)?))
    }

    /// Moves the weights by the mean of the gradients of a step.
    pub(super) fn step(&mut self, mean: Mean, step: &Step) -> Result<(), RunError> {
        self.optimizer.step(&mut self.weights, mean.tensors, step)?;
        if let Some(together) = &self.together {
            together.spread(&mut self.weights)?;
        }
        if let Some(average) = &mut self.average {
            average.update(&self.weights)?;
        }
        Ok(())
    }

    /// Saves a checkpoint, and gives its folder; of several, the first one does it, with what the others keep.
    pub(super) fn save(
        &mut self,
        root: &Path,
        epoch: u64,
        state: &BTreeMap<String, Value>,
    ) -> Result<PathBuf, RunError> {
        let shares = match &self.together {
            Some(together) => together.others_state(&self.optimizer)?,
            None => Vec::new(),
        };
        if !self.is_first() {
            return Ok(checkpoint::place(root, self.optimizer.steps()));
        }
        if let Some(adapter) = &mut self.adapter {
            for (name, factor) in adapter.factors_mut() {
                if let Some(now) = self.weights.get(name) {
                    *factor = now.to_tensor()?.into_f32(name)?;
                }
            }
        }
        let model = match &self.adapter {
            None => Model::Whole { config: &self.json, weights: &self.weights },
            Some(adapter) => Model::Lora(adapter),
        };
        let contents = Contents {
            step: self.optimizer.steps(),
            epoch,
            model,
            average: self.average.as_ref(),
            optimizer: Some(&self.optimizer),
            shares: &shares,
            state,
        };
        Ok(checkpoint::save(root, &contents)?)
    }

    /// Goes on where a checkpoint stood. The weights of a whole model are those it was made with: the
    /// [`StartingPoint`] is then the checkpoint's folder.
    pub(super) fn restore(&mut self, saved: &Saved) -> Result<(), RunError> {
        saved.check_kind(self.adapter.is_some())?;
        if let Some(adapter) = &mut self.adapter {
            saved.restore_adapter(adapter)?;
            self.weights.extend(to_values(self.engine.as_ref(), adapter.factors().clone())?);
        }
        let is_share = self.together.as_ref().is_some_and(|together| together.shares.is_some());
        saved.restore_optimizer(&mut self.optimizer, is_share)?;
        if let Some(average) = &mut self.average
            && !saved.restore_average(average, self.adapter.as_ref())?
        {
            // Begun only now: from the weights as they are.
            let trained = average.weights().keys();
            let now =
                trained.filter_map(|name| Some((name.clone(), self.weights.get(name)?.clone())));
            average.restore(0, to_tensors(&now.collect())?)?;
        }
        Ok(())
    }
}

/// The layers of a LoRA without the numbers of their blocks.
fn adapted(adapter: &Adapter, weights: &Tensors) -> Result<HashSet<String>, RunError> {
    let layers: HashSet<&str> = adapter.layers().collect();
    let names: HashSet<String> = layers.iter().map(|layer| in_block(layer).to_owned()).collect();
    // All blocks share a graph, so a layer of one is a layer of all.
    let all = weights.keys().filter_map(|name| name.strip_suffix(".weight"));
    for layer in all.filter(|layer| names.contains(in_block(layer))) {
        if !layers.contains(layer) {
            return Err(RunError::Setting {
                setting: "lora_targets",
                found: format!("targets that leave out {layer} but have it in other blocks"),
                expected: "layers of all blocks, such as to_q or attn2.to_v".to_owned(),
            });
        }
    }
    Ok(names)
}

/// The name that a layer has in its block.
fn in_block(layer: &str) -> &str {
    let rest = layer.strip_prefix("transformer_blocks.");
    rest.and_then(|rest| rest.split_once('.')).map_or(layer, |(_, rest)| rest)
}
