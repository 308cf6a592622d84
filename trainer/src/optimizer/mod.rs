//! Optimizers: a step is a graph too, so that it runs where the gradients are.
//!
//! [`Optimizer::step`] measures the gradients of all weights together, scales them down if their norm is
//! larger than it may be, and runs the optimizer's graph once for every weight.

mod adamw;
mod came;
mod norm;

use std::collections::BTreeMap;

use ndarray::ArrayD;
use pixart_exporter::graph::{GraphError, ir::Graph};
use pixart_runtime::engine::{Engine, EngineError};
use pixart_runtime::tensor::Tensor;

pub use adamw::AdamW;
pub use came::Came;

use crate::gradient::{Gradients, Weights};
use crate::session::{GraphSession, SessionError};

/// Which rule turns gradients into steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019.
    AdamW(AdamW),
    /// Luo et al., "CAME: Confidence-guided Adaptive Memory Efficient Optimization", 2023.
    Came(Came),
}

/// Why a step fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptimizerError {
    /// There is a gradient without a weight, or of another shape.
    #[error("gradient of `{name}`: found shape {found:?}; expected {expected}")]
    Gradient {
        /// The weight.
        name: String,
        /// The gradient's shape.
        found: Vec<usize>,
        /// What it has to be.
        expected: String,
    },
    /// A number among the settings or the gradients is not finite, or out of its range.
    #[error("{name} is {found}; expected {expected}")]
    Value {
        /// What it is.
        name: String,
        /// The number.
        found: f64,
        /// Its range.
        expected: &'static str,
    },
    /// A state that is not this optimizer's.
    #[error("optimizer state `{name}`: found {found}; expected {expected}")]
    State {
        /// The tensor's name.
        name: String,
        /// What it is.
        found: String,
        /// What it has to be.
        expected: String,
    },
    /// A step's graph is not well-formed.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A graph cannot be loaded or run.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A result has another type than its graph says.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What an optimizer keeps of one weight, and how the graph sees it.
struct Layout {
    /// The shape that weight and gradient have in the graph.
    shape: Vec<usize>,
    /// Names and shapes of the state, all zero in the beginning.
    slots: Vec<(&'static str, Vec<usize>)>,
    /// Whether it goes to the graph for matrices.
    matrix: bool,
}

/// An optimizer with its state.
pub struct Optimizer {
    rule: Rule,
    norm: GraphSession,
    vector: GraphSession,
    /// The graph for weights of two axes and more, where the rule has another one for them.
    matrix: Option<GraphSession>,
    /// `<slot>.<weight>` → its tensor.
    state: BTreeMap<String, Tensor>,
    steps: u64,
}

impl Optimizer {
    /// An optimizer at its beginning, its graphs loaded.
    ///
    /// # Errors
    /// Settings out of their range, or an engine that cannot load the graphs.
    pub fn load(engine: &dyn Engine, rule: Rule) -> Result<Self, OptimizerError> {
        let (vector, matrix) = match &rule {
            Rule::AdamW(adamw) => (adamw.graph()?, None),
            Rule::Came(came) => (came.vector_graph()?, Some(came.matrix_graph()?)),
        };
        let load = |graph: &Graph| GraphSession::load(engine, graph);
        Ok(Self {
            rule,
            norm: load(&norm::graph()?)?,
            vector: load(&vector)?,
            matrix: matrix.as_ref().map(load).transpose()?,
            state: BTreeMap::new(),
            steps: 0,
        })
    }

    /// One step for all weights that have a gradient; the gradients are used up. Returns the norm of all of
    /// them together, as it was: where it is larger than `max_norm`, they are scaled down to that first.
    ///
    /// # Errors
    /// A gradient of no weight or of another shape, gradients that are not finite, or a learning rate that is
    /// not: weights and state are as they were then. When the engine fails, some weights may have made the
    /// step and some not.
    pub fn step(
        &mut self,
        weights: &mut Weights,
        gradients: Gradients,
        learning_rate: f64,
        max_norm: Option<f64>,
    ) -> Result<f64, OptimizerError> {
        positive("learning rate", learning_rate, true)?;
        check(weights, &gradients)?;
        // Flat, as the norm's graph wants them; this moves no elements.
        let shapes: Vec<Vec<usize>> = gradients.values().map(|g| g.shape().to_vec()).collect();
        let gradients: Vec<(String, Tensor)> = gradients
            .into_iter()
            .map(|(name, gradient)| {
                let count = gradient.len();
                (name, Tensor::F32(reshaped(gradient, &[count])))
            })
            .collect();
        let norm = self.norm(&gradients)?;
        let scale = match max_norm {
            Some(most) => {
                positive("largest norm of the gradients", most, false)?;
                (most / (norm + 1e-6)).min(1.0)
            }
            None => 1.0,
        };
        let scalars = match &self.rule {
            Rule::AdamW(adamw) => adamw.scalars(learning_rate, self.steps + 1),
            Rule::Came(came) => came.scalars(learning_rate),
        };
        let mut scalars: Vec<(&str, Tensor)> =
            scalars.into_iter().map(|(name, value)| (name, scalar(value))).collect();
        scalars.push(("scale", scalar(scale)));
        for ((name, gradient), shape) in gradients.into_iter().zip(shapes) {
            let gradient = gradient.into_f32(&name)?;
            let weight = weights.get_mut(&name).expect("checked");
            self.step_of(&name, weight, reshaped(gradient, &shape), &scalars)?;
        }
        self.steps += 1;
        Ok(norm)
    }

    /// The step of one weight.
    fn step_of(
        &mut self,
        name: &str,
        weight: &mut Tensor,
        gradient: ArrayD<f32>,
        scalars: &[(&str, Tensor)],
    ) -> Result<(), OptimizerError> {
        let shape = weight.shape().to_vec();
        let layout = self.layout(&shape);
        // Taken out, so that no elements are copied.
        let old = std::mem::replace(weight, scalar(0.0)).into_f32(name)?;
        let old = Tensor::F32(reshaped(old, &layout.shape));
        let gradient = Tensor::F32(reshaped(gradient, &layout.shape));
        let mut slots = Vec::with_capacity(layout.slots.len());
        for (slot, shape) in &layout.slots {
            let zeros = || Tensor::F32(ArrayD::zeros(&shape[..]));
            let kept = self.state.remove(&format!("{slot}.{name}"));
            slots.push((*slot, kept.unwrap_or_else(zeros)));
        }
        let mut inputs = vec![("weight", &old), ("gradient", &gradient)];
        inputs.extend(scalars.iter().map(|(name, value)| (*name, value)));
        inputs.extend(slots.iter().map(|(slot, value)| (*slot, value)));
        let session = match (&mut self.matrix, layout.matrix) {
            (Some(matrix), true) => matrix,
            _ => &mut self.vector,
        };
        let results = session.run(&inputs);
        drop(inputs);
        let results = match results {
            Ok(results) => results,
            Err(error) => {
                *weight = Tensor::F32(reshaped(old.into_f32(name)?, &shape));
                let back = slots.into_iter().map(|(slot, value)| (format!("{slot}.{name}"), value));
                self.state.extend(back);
                return Err(error.into());
            }
        };
        for (result, value) in results {
            match result.strip_prefix("out_") {
                Some("weight") => {
                    *weight = Tensor::F32(reshaped(value.into_f32("weight")?, &shape));
                }
                slot => {
                    let slot = slot.unwrap_or(&result);
                    self.state.insert(format!("{slot}.{name}"), value);
                }
            }
        }
        Ok(())
    }

    /// √Σ g² over all gradients; each one's sum is computed by a graph.
    fn norm(&mut self, gradients: &[(String, Tensor)]) -> Result<f64, OptimizerError> {
        let mut squares = 0.0;
        for (name, flat) in gradients {
            for (result, value) in self.norm.run(&[("gradient", flat)])? {
                let sum: f32 = value.into_f32(&result)?.sum();
                if !sum.is_finite() {
                    let name = format!("the sum of the squares of the gradient of `{name}`");
                    let expected = "a finite number; the step was not made";
                    return Err(OptimizerError::Value { name, found: f64::from(sum), expected });
                }
                squares += f64::from(sum);
            }
        }
        Ok(squares.sqrt())
    }

    fn layout(&self, shape: &[usize]) -> Layout {
        match &self.rule {
            Rule::AdamW(_) => AdamW::layout(shape),
            Rule::Came(_) => Came::layout(shape),
        }
    }

    /// How many steps were made.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// What must be kept to go on later: tensors named `<slot>.<weight>`.
    pub fn state(&self) -> &BTreeMap<String, Tensor> {
        &self.state
    }

    /// Goes on from a state that [`Self::state`] and [`Self::steps`] gave, for the same weights.
    ///
    /// # Errors
    /// A tensor that this optimizer does not keep of one of the weights, or one of another shape; nothing
    /// is changed then.
    pub fn restore(
        &mut self,
        state: BTreeMap<String, Tensor>,
        steps: u64,
        weights: &Weights,
    ) -> Result<(), OptimizerError> {
        for (name, tensor) in &state {
            let (slot, weight) = name.split_once('.').unwrap_or((name, ""));
            let slots =
                weights.get(weight).map(|w| self.layout(w.shape()).slots).unwrap_or_default();
            let expected = match slots.iter().find(|(known, _)| *known == slot) {
                Some((_, shape)) if tensor.shape() == shape && tensor.as_f32().is_some() => {
                    continue;
                }
                Some((_, shape)) => format!("f32 {shape:?}"),
                None => "a state that this optimizer keeps of one of the weights".to_owned(),
            };
            let found = format!("{} {:?}", tensor.dtype(), tensor.shape());
            return Err(OptimizerError::State { name: name.clone(), found, expected });
        }
        self.state = state;
        self.steps = steps;
        Ok(())
    }
}

fn scalar(value: f64) -> Tensor {
    Tensor::F32(ArrayD::from_elem(vec![], value as f32))
}

/// The same elements under a shape of as many; arrays in their usual order are not copied.
fn reshaped(array: ArrayD<f32>, shape: &[usize]) -> ArrayD<f32> {
    array.into_shape_clone(shape).expect("a shape of as many elements")
}

/// An error unless every gradient is one of a weight of its shape.
fn check(weights: &Weights, gradients: &Gradients) -> Result<(), OptimizerError> {
    for (name, gradient) in gradients {
        let weight = weights.get(name).and_then(Tensor::as_f32);
        if weight.is_none_or(|weight| weight.shape() != gradient.shape()) {
            let expected = match weights.get(name) {
                Some(weight) => format!("{:?}, that of the weight", weight.shape()),
                None => "a gradient of one of the weights".to_owned(),
            };
            let (name, found) = (name.clone(), gradient.shape().to_vec());
            return Err(OptimizerError::Gradient { name, found, expected });
        }
    }
    Ok(())
}

/// An error unless `value` is finite and positive, or zero where that is allowed.
fn positive(name: &str, value: f64, zero: bool) -> Result<(), OptimizerError> {
    if value.is_finite() && (value > 0.0 || (zero && value == 0.0)) {
        return Ok(());
    }
    let expected = if zero { "a number from 0 on" } else { "a number above 0" };
    Err(OptimizerError::Value { name: name.to_owned(), found: value, expected })
}

/// An error unless `value` is in `0..1`.
fn fraction(name: &str, value: f64) -> Result<(), OptimizerError> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    let expected = "a number from 0 on and below 1";
    Err(OptimizerError::Value { name: name.to_owned(), found: value, expected })
}

#[cfg(test)]
mod tests;
