//! A learner that is one of several: what it tells the others, and gets from them.

use std::{collections::BTreeMap, sync::Arc};

use ndarray::ArrayD;
use pixart_exporter::write::Floats;
use pixart_runtime::engine::Value;

use super::{Learned, RunError};
use crate::{
    gradient::{Pass, TrainedTransformer, Weights},
    optimizer::{Accumulated, Accumulator, Mean, Optimizer},
    ranks::{Exchange, Lost, Ranks, Shares},
    run::TogetherOptions,
    tensors::{Values, value_floats},
};

/// The others, and who keeps what.
pub(super) struct Together {
    pub ranks: Arc<Ranks>,
    pub shares: Option<Shares>,
}

/// A part of an optimizer's state: name, shape, elements.
type Part = (String, Vec<usize>, Vec<f32>);

impl Together {
    /// For weights that are trained.
    pub fn new(options: &TogetherOptions, trained: &Values) -> Self {
        let TogetherOptions { ranks, shard_optimizer } = options;
        let sizes = || trained.iter().map(|(name, value)| (name.clone(), value.size())).collect();
        let shares = shard_optimizer.then(|| Shares::new(&sizes(), ranks.place().world));
        Self { ranks: ranks.clone(), shares }
    }

    /// Those of the weights that this one moves.
    pub fn own(&self, trained: &Values) -> Values {
        let Some(shares) = &self.shares else { return trained.clone() };
        let rank = self.ranks.place().rank;
        let own = trained.iter().filter(|(name, _)| shares.is_of(name, rank));
        own.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Gives all the weights of the first one.
    pub fn share_weights(&self, weights: &mut Weights) -> Result<(), RunError> {
        let is_first = self.ranks.is_first();
        for (name, value) in weights.iter_mut().filter(|(_, value)| value.dtype() == "f32") {
            let numbers = match is_first {
                true => value_floats(name.clone(), value)?.data.into_owned(),
                false => vec![0.0; value.size()],
            };
            let numbers = self.ranks.broadcast(numbers, 0).wait()?;
            if !is_first {
                let array = ArrayD::from_shape_vec(value.shape(), numbers);
                *value = array.expect("as many numbers as were given").into();
            }
        }
        Ok(())
    }

    /// The mean of the losses of all; not finite if one is not.
    pub fn mean_loss(&self, own: f64) -> Result<f64, Lost> {
        let world = self.ranks.place().world as f64;
        Ok(self.ranks.sum_f64(vec![own])?[0] / world)
    }

    /// The pass backward, and the gradients of it and of the others added to those of the step.
    pub fn learn(
        &self,
        model: &mut TrainedTransformer,
        accumulator: &mut Accumulator,
        weights: &Weights,
        pass: Pass,
        (loss, gradient): (f64, ArrayD<f32>),
        loss_scale: f64,
    ) -> Result<Learned, RunError> {
        if !accumulator.is_last() {
            let gradients = model.backward(weights, pass, gradient)?;
            let norm = accumulator.norm_of(&gradients, loss_scale)?;
            // All leave a batch out, or none.
            if !self.ranks.sum_f64(vec![norm])?[0].is_finite() {
                return Ok(Learned::Loss(loss, Accumulated::Overflow));
            }
            return Ok(Learned::Loss(loss, accumulator.add(gradients, loss_scale)?));
        }
        let mut exchange = Exchange::begin(&self.ranks, self.shares.as_ref());
        model.backward_by_part(weights, pass, gradient, &mut |name: String, value: Value| {
            let numbers = accumulator.mean_with(&name, &value, loss_scale)?;
            exchange.send(name, value.shape(), numbers);
            Ok::<(), RunError>(())
        })?;
        let (tensors, squares) = exchange.finish()?;
        let scale = 1.0 / self.ranks.place().world as f64;
        let norm = squares.sqrt() * scale;
        if !norm.is_finite() {
            return Ok(Learned::Loss(loss, Accumulated::Overflow));
        }
        accumulator.clear();
        Ok(Learned::Loss(loss, Accumulated::Complete(Mean { tensors, scale, norm })))
    }

    /// Gives all the weights that others have moved.
    pub fn spread(&self, weights: &mut Weights) -> Result<(), RunError> {
        match &self.shares {
            Some(shares) => Ok(shares.spread(&self.ranks, weights)?),
            None => Ok(()),
        }
    }

    /// What the others keep of the optimizer's state, for the first one.
    pub fn others_state(&self, optimizer: &Optimizer) -> Result<Vec<Floats<'static>>, RunError> {
        if self.shares.is_none() {
            return Ok(Vec::new());
        }
        let own: BTreeMap<String, Vec<usize>> =
            optimizer.state().map(|(key, value)| (key, value.shape().to_vec())).collect();
        let names = serde_json::to_vec(&own).expect("names and numbers");
        let mut found = Vec::new();
        for (rank, names) in self.ranks.gather_bytes(names)?.into_iter().enumerate().skip(1) {
            let names: BTreeMap<String, Vec<usize>> =
                serde_json::from_slice(&names).map_err(|_| Lost)?;
            let mut state: BTreeMap<String, &Value> = match rank == self.ranks.place().rank {
                true => optimizer.state().collect(),
                false => BTreeMap::new(),
            };
            for (name, shape) in names {
                let own = match state.remove(&name) {
                    Some(value) => bytes(&value_floats(name.clone(), value)?.data),
                    None => Vec::new(),
                };
                let count = size_of::<f32>() * shape.iter().product::<usize>();
                let received = self.ranks.to_first(own, rank, count).wait()?;
                if self.ranks.is_first() {
                    found.push((name, shape, numbers(&received)));
                }
            }
        }
        let floats = |(name, shape, data): Part| Floats { name, shape, data: data.into() };
        Ok(found.into_iter().map(floats).collect())
    }
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}
