//! What an optimizer keeps of one weight, and one step of it.

use ndarray::ArrayD;
use pixart_runtime::engine::{Session, Value};

use super::{AdamW, Algorithm, Group, Muon, OptimizerError, Step, group};
use crate::{
    pieces,
    tensors::{matrices, number},
};

/// What AdamW, and CAME for a vector, keep of a weight.
const MOMENTS: &[&str] = &["first_moment", "second_moment"];
/// What CAME keeps of a matrix.
const FACTORED: &[&str] =
    &["first_moment", "rows", "columns", "instability_rows", "instability_columns"];
/// What Muon keeps of a matrix.
const MOMENTUM: &[&str] = &["momentum"];

/// The inputs of a graph that are single numbers.
pub(super) type Numbers = Vec<(&'static str, Value)>;

/// What belongs to one weight.
pub(super) struct Kept {
    /// The weight's.
    pub shape: Vec<usize>,
    /// The shape that the graph sees it in.
    pub view: Vec<usize>,
    learning_rate: f64,
    weight_decay: f64,
    /// The kinds of the tensors of `state`.
    pub names: &'static [&'static str],
    pub state: Vec<Value>,
}

impl Kept {
    pub fn new(algorithm: &Algorithm, groups: &[Group], name: &str, shape: &[usize]) -> Self {
        let (learning_rate, weight_decay) = group::factors(groups, name);
        let (names, view) = match algorithm {
            Algorithm::Came(_) if shape.len() >= 2 => (FACTORED, matrices(shape).to_vec()),
            Algorithm::Muon(_) if Muon::is_matrix(name, shape) => (MOMENTUM, shape.to_vec()),
            _ => (MOMENTS, vec![shape.iter().product()]),
        };
        let state = names.iter().map(|name| {
            let mut shape = view.clone();
            match *name {
                "rows" | "instability_rows" => shape[2] = 1,
                "columns" | "instability_columns" => shape[1] = 1,
                _ => {}
            }
            ArrayD::<f32>::zeros(shape).into()
        });
        let state = state.collect();
        Self { shape: shape.to_vec(), view, learning_rate, weight_decay, names, state }
    }

    /// Whether its elements depend on one another as those of a matrix.
    pub fn is_matrix(&self) -> bool {
        self.view.len() > 1
    }

    /// The numbers that the graphs take for a step.
    pub fn numbers(&self, algorithm: &Algorithm, count: u64, step: &Step) -> Numbers {
        let learning_rate = step.learning_rate * self.learning_rate;
        let decay = step.weight_decay * self.weight_decay;
        let mut numbers = vec![
            ("gradient_scale", number(step.gradient_scale)),
            ("keep", number(1.0 - learning_rate * decay)),
        ];
        match algorithm {
            Algorithm::Muon(_) if self.is_matrix() => {
                numbers.push(("rate", number(learning_rate * Muon::rate(&self.shape))));
            }
            Algorithm::AdamW(AdamW { betas: [beta1, beta2], .. })
            | Algorithm::Muon(Muon { rest: AdamW { betas: [beta1, beta2], .. }, .. }) => {
                // In 64 bits here, because the first steps need all digits.
                let correction = |beta: f64| 1.0 - beta.powf(count as f64);
                numbers.push(("rate", number(learning_rate / correction(*beta1))));
                numbers.push(("correction", number(correction(*beta2).sqrt())));
            }
            Algorithm::Came(_) => numbers.push(("rate", number(learning_rate))),
        }
        numbers
    }

    /// One step of one weight whose elements do not depend on one another.
    pub fn step_by_element(
        &mut self,
        session: &mut dyn Session,
        weight: &mut Value,
        gradient: &Value,
        numbers: &Numbers,
    ) -> Result<(), OptimizerError> {
        let state = self.names.iter().copied().zip(&mut self.state);
        let mut moved: Vec<_> = [("weight", weight)].into_iter().chain(state).collect();
        let numbers: Vec<_> = numbers.iter().map(|(name, number)| (*name, number)).collect();
        pieces::run_by_element(session, &mut moved, Some(("gradient", gradient)), &numbers)
    }

    /// One step of one weight.
    pub fn step(
        &mut self,
        session: &mut dyn Session,
        weight: &mut Value,
        gradient: Value,
        numbers: &Numbers,
    ) -> Result<(), OptimizerError> {
        let (old, gradient) = (weight.clone().reshaped(&self.view), gradient.reshaped(&self.view));
        let mut inputs = vec![("weight", &old), ("gradient", &gradient)];
        inputs.extend(numbers.iter().map(|(name, number)| (*name, number)));
        inputs.extend(self.names.iter().copied().zip(&self.state));
        let mut results = pieces::run(session, &inputs, 1 + self.names.len())?;
        self.state = results.split_off(1);
        *weight = results.remove(0).reshaped(&self.shape);
        Ok(())
    }
}
