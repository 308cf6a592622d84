//! From gradients to changed weights: accumulation, clipping, AdamW, CAME and Muon.
//!
//! Every step is an ONNX graph ([`Algorithm`] says which formulas) that is computed by the engine that
//! computes the model, one weight after the other; a few sessions serve weights of every size. Weights,
//! gradients and state stay where the engine computes.
//!
//! ```no_run
//! use pixart_runtime::engine::Engine;
//! use pixart_trainer::{
//!     Values,
//!     optimizer::{Accumulated, Accumulator, Algorithm, Came, Group, Optimizer, Step, clip_factor},
//! };
//!
//! # fn train(engine: &dyn Engine, mut weights: Values, batches: Vec<Values>)
//! #     -> Result<(), Box<dyn std::error::Error>> {
//! let algorithm = Algorithm::Came(Came::default());
//! let mut optimizer = Optimizer::new(engine, algorithm, vec![Group::without_decay()], &weights)?;
//! let mut accumulator = Accumulator::new(engine, 4)?;
//! for gradients in batches {
//!     // Of a loss that was multiplied by 1024.
//!     if let Accumulated::Complete(mean) = accumulator.add(gradients, 1024.0)? {
//!         let clipped = clip_factor(mean.norm, 0.01);
//!         let gradient_scale = mean.scale * clipped;
//!         let step = Step { learning_rate: 2e-5, weight_decay: 0.0, gradient_scale };
//!         optimizer.step(&mut weights, mean.tensors, &step)?;
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod accumulator;
mod algorithm;
mod error;
pub(crate) mod graphs;
mod group;
mod kept;

use std::collections::BTreeMap;

use pixart_runtime::engine::{Engine, Session, Value};

pub use accumulator::{Accumulated, Accumulator, Mean, clip_factor};
pub use algorithm::{AdamW, Algorithm, Came, Muon};
pub use error::OptimizerError;
pub use group::Group;
use kept::Kept;

use crate::{
    session,
    tensors::{Tensors, Values},
};

/// What a step needs beside gradients; it may differ from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The learning rate, at least 0.
    pub learning_rate: f64,
    /// The weight decay, at least 0: weights shrink by its product with the learning rate.
    pub weight_decay: f64,
    /// Factor on all gradients: what they still have to be divided by, and clipping.
    pub gradient_scale: f64,
}

/// An optimizer with its state, for a fixed set of weights.
pub struct Optimizer {
    algorithm: Algorithm,
    /// For AdamW, CAME's vectors and what is no matrix to Muon.
    vectors: Box<dyn Session>,
    /// For CAME's matrices and Muon's.
    matrices: Option<Box<dyn Session>>,
    /// For Muon's matrices of more rows than columns.
    tall: Option<Box<dyn Session>>,
    steps: u64,
    kept: BTreeMap<String, Kept>,
    /// The weights, those of one size together: engines prepare themselves for a size.
    order: Vec<String>,
}

impl Optimizer {
    /// An optimizer of all `weights`, of which only names and shapes are read, before its first step: give
    /// those that are trained, or their gradients. `groups` have factors on learning rate
    /// and decay, the first that fits a name counts; names that none fits have 1.
    ///
    /// # Errors
    /// When a setting is out of its range, there are no weights, or the engine refuses a graph.
    pub fn new(
        engine: &dyn Engine,
        algorithm: Algorithm,
        groups: Vec<Group>,
        weights: &Values,
    ) -> Result<Self, OptimizerError> {
        algorithm.check()?;
        for group in &groups {
            at_least_zero("learning rate of a group", group.learning_rate)?;
            at_least_zero("weight decay of a group", group.weight_decay)?;
        }
        if weights.is_empty() {
            return Err(OptimizerError::Nothing);
        }
        let load = |graph| session::load(engine, &graph);
        let (vectors, matrices, tall) = match &algorithm {
            Algorithm::AdamW(settings) => (load(graphs::adamw(settings)?)?, None, None),
            Algorithm::Came(settings) => {
                let matrices = load(graphs::came_matrix(settings)?)?;
                (load(graphs::came_vector(settings)?)?, Some(matrices), None)
            }
            Algorithm::Muon(settings) => {
                let [wide, tall] = graphs::muon(settings)?;
                let vectors = load(graphs::adamw(&settings.rest)?)?;
                (vectors, Some(load(wide)?), Some(load(tall)?))
            }
        };
        let kept: BTreeMap<_, _> = weights
            .iter()
            .map(|(name, weight)| {
                (name.clone(), Kept::new(&algorithm, &groups, name, weight.shape()))
            })
            .collect();
        let mut order: Vec<String> = kept.keys().cloned().collect();
        order.sort_by(|a, b| kept[a].view.cmp(&kept[b].view).then_with(|| a.cmp(b)));
        Ok(Self { algorithm, vectors, matrices, tall, steps: 0, kept, order })
    }

    /// The optimizer's kind and settings.
    pub fn algorithm(&self) -> &Algorithm {
        &self.algorithm
    }

    /// Steps done so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Moves the weights by one step against the gradients, which are used up. Other values than those of
    /// the optimizer's weights stay as they are.
    ///
    /// # Errors
    /// When a weight or gradient is missing, has another shape, or belongs to nothing, or a number of
    /// `step` is out of its range; nothing has changed then. When the engine fails: then some weights
    /// have moved and others have not, so that training has to go on from a checkpoint.
    pub fn step(
        &mut self,
        weights: &mut Values,
        mut gradients: Values,
        step: &Step,
    ) -> Result<(), OptimizerError> {
        at_least_zero("learning rate", step.learning_rate)?;
        at_least_zero("weight decay", step.weight_decay)?;
        at_least_zero("factor on the gradients", step.gradient_scale)?;
        self.check("weight", weights)?;
        self.check("gradient", &gradients)?;
        if let Some(name) = gradients.keys().find(|name| !self.kept.contains_key(*name)) {
            let advice = "give gradients of what is trained only";
            return Err(OptimizerError::Unknown { kind: "gradient", name: name.clone(), advice });
        }
        let count = self.steps + 1;
        for name in &self.order {
            let (Some(kept), Some(weight), Some(gradient)) =
                (self.kept.get_mut(name), weights.get_mut(name), gradients.remove(name))
            else {
                continue;
            };
            let numbers = kept.numbers(&self.algorithm, count, step);
            let matrices = match kept.shape[..] {
                [rows, columns] if rows > columns && self.tall.is_some() => &mut self.tall,
                _ => &mut self.matrices,
            };
            match (&self.algorithm, matrices) {
                (Algorithm::Came(_) | Algorithm::Muon(_), Some(matrices)) if kept.is_matrix() => {
                    kept.step(matrices.as_mut(), weight, gradient, &numbers)?;
                }
                (Algorithm::AdamW(_) | Algorithm::Muon(_), _) => {
                    kept.step_by_element(self.vectors.as_mut(), weight, &gradient, &numbers)?;
                }
                (Algorithm::Came(_), _) => {
                    kept.step(self.vectors.as_mut(), weight, gradient, &numbers)?;
                }
            }
        }
        self.steps = count;
        Ok(())
    }

    /// Whether all weights have a tensor of their shape.
    fn check(&self, kind: &'static str, values: &Values) -> Result<(), OptimizerError> {
        for (name, kept) in &self.kept {
            let expected = kept.shape.clone();
            let Some(value) = values.get(name) else {
                return Err(OptimizerError::Missing { kind, name: name.clone(), expected });
            };
            if value.shape() != expected {
                let (found, name) = (value.shape().to_vec(), name.clone());
                let advice = "it must have the shape that the weight had when training began";
                return Err(OptimizerError::Shape { kind, name, found, expected, advice });
            }
        }
        Ok(())
    }

    /// The state, for a checkpoint: tensors named `kind/weight`, in the shapes that the graphs have
    /// them in (`[elements]`; for CAME's matrices `[all leading axes, rows, columns]`, means with 1
    /// in the place of the axis they are taken over; for Muon's `[rows, columns]`).
    pub fn state(&self) -> impl Iterator<Item = (String, &Value)> {
        self.kept.iter().flat_map(|(name, kept)| {
            let values = kept.names.iter().zip(&kept.state);
            values.map(move |(kind, value)| (format!("{kind}/{name}"), value))
        })
    }

    /// Whether a tensor of a [`Optimizer::state`] is of one of this optimizer's weights.
    pub(crate) fn keeps(&self, key: &str) -> bool {
        key.split_once('/').is_some_and(|(kind, name)| {
            self.kept.get(name).is_some_and(|kept| kept.names.contains(&kind))
        })
    }

    /// Goes on where another optimizer of the same weights stood after `steps` steps, with the
    /// tensors of its [`Optimizer::state`].
    ///
    /// # Errors
    /// When a tensor is missing, of another shape, or left over: the state is of another optimizer or
    /// of other weights. Nothing has changed then.
    pub fn restore(&mut self, steps: u64, mut state: Tensors) -> Result<(), OptimizerError> {
        const ADVICE: &str = "the state must be that of the same optimizer on the same weights; \
                              continue with the settings it was saved with";
        for (name, kept) in &self.kept {
            for (kind, own) in kept.names.iter().zip(&kept.state) {
                let expected = own.shape().to_vec();
                let name = name.clone();
                match state.get(&format!("{kind}/{name}")) {
                    None => return Err(OptimizerError::Missing { kind, name, expected }),
                    Some(found) if found.shape() != expected => {
                        let (found, advice) = (found.shape().to_vec(), ADVICE);
                        return Err(OptimizerError::Shape { kind, name, found, expected, advice });
                    }
                    Some(_) => {}
                }
            }
        }
        if let Some(name) = state.keys().find(|key| !self.keeps(key)) {
            let (kind, name) = ("the optimizer's state", name.clone());
            return Err(OptimizerError::Unknown { kind, name, advice: ADVICE });
        }
        for (name, kept) in &mut self.kept {
            for (kind, own) in kept.names.iter().zip(&mut kept.state) {
                if let Some(found) = state.remove(&format!("{kind}/{name}")) {
                    *own = found.into();
                }
            }
        }
        self.steps = steps;
        Ok(())
    }
}

/// An error unless `value` is a finite number that is not negative.
fn at_least_zero(setting: &'static str, value: f64) -> Result<(), OptimizerError> {
    // Beyond the range of 32 bits it would become infinite on its way into a graph.
    if value >= 0.0 && (value as f32).is_finite() {
        return Ok(());
    }
    let found = value.to_string();
    Err(OptimizerError::Setting { setting, found, expected: "a finite number, at least 0" })
}
