//! Gradients of several batches as one, and what is known about them.

use pixart_runtime::engine::{Engine, Session, Value};

use super::{OptimizerError, graphs};
use crate::{
    pieces, session,
    tensors::{Values, number, value_floats},
};

/// Takes the mean of the gradients of several batches, and leaves out what is not finite.
pub struct Accumulator {
    mean_square: Box<dyn Session>,
    add_scaled: Box<dyn Session>,
    scaled: Box<dyn Session>,
    batches: u32,
    added: u32,
    sum: Values,
}

/// What became of the gradients of a batch.
#[derive(Debug)]
pub enum Accumulated {
    /// Some were infinite or no numbers; they have been left out, as upstream does it.
    Overflow,
    /// More batches are needed before a step.
    Incomplete,
    /// All batches are there.
    Complete(Mean),
}

/// The mean of the gradients of all batches.
#[derive(Debug)]
pub struct Mean {
    /// The gradients, still without the factor [`Mean::scale`].
    pub tensors: Values,
    /// What they have to be multiplied by.
    pub scale: f64,
    /// The norm of all of them as one vector, with the factor.
    pub norm: f64,
}

impl Accumulator {
    /// For steps of `batches` batches each.
    ///
    /// # Errors
    /// When `batches` is 0 or the engine refuses a graph.
    pub fn new(engine: &dyn Engine, batches: u32) -> Result<Self, OptimizerError> {
        if batches == 0 {
            return Err(OptimizerError::Setting {
                setting: "gradient_accumulation_steps",
                found: "0".to_owned(),
                expected: "at least 1",
            });
        }
        let mean_square = session::load(engine, &graphs::mean_square()?)?;
        let add_scaled = session::load(engine, &graphs::add_scaled()?)?;
        let scaled = session::load(engine, &graphs::scaled()?)?;
        Ok(Self { mean_square, add_scaled, scaled, batches, added: 0, sum: Values::new() })
    }

    /// Adds the gradients of a batch, of a loss that was multiplied by `loss_scale`.
    ///
    /// Gradients whose squares (without the loss scale) exceed the range of 32 bits count as infinite.
    ///
    /// # Errors
    /// When the names or shapes differ from those of the batch before, or the engine fails.
    pub fn add(
        &mut self,
        gradients: Values,
        loss_scale: f64,
    ) -> Result<Accumulated, OptimizerError> {
        let scale = 1.0 / loss_scale;
        let norm = self.norm_of(&gradients, loss_scale)?;
        if !norm.is_finite() {
            return Ok(Accumulated::Overflow);
        }
        if self.batches == 1 {
            return Ok(Accumulated::Complete(Mean { tensors: gradients, scale, norm }));
        }
        self.add_to_sum(gradients, scale / f64::from(self.batches))?;
        self.added += 1;
        if self.added < self.batches {
            return Ok(Accumulated::Incomplete);
        }
        self.added = 0;
        let tensors = std::mem::take(&mut self.sum);
        let norm = self.norm(&tensors, 1.0)?;
        Ok(Accumulated::Complete(Mean { tensors, scale: 1.0, norm }))
    }

    /// Batches of the coming step that are there already. What they added up to is lost when training
    /// is interrupted, so checkpoints belong between steps.
    pub fn pending(&self) -> u32 {
        self.added
    }

    /// Whether the next batch is the last one of its step.
    pub(crate) fn is_last(&self) -> bool {
        self.added + 1 == self.batches
    }

    /// The norm of all gradients as one vector, without the loss scale; not finite if one of them is not.
    pub(crate) fn norm_of(
        &mut self,
        gradients: &Values,
        loss_scale: f64,
    ) -> Result<f64, OptimizerError> {
        self.norm(gradients, 1.0 / loss_scale)
    }

    /// A gradient of the last batch of a step together with those before: the numbers of their mean. Nothing changes.
    pub(crate) fn mean_with(
        &self,
        name: &str,
        gradient: &Value,
        loss_scale: f64,
    ) -> Result<Vec<f32>, OptimizerError> {
        let scale = (1.0 / loss_scale / f64::from(self.batches)) as f32;
        let floats = |value| value_floats(name.to_owned(), value).map(|floats| floats.data);
        let mut numbers = floats(gradient)?.into_owned();
        numbers.iter_mut().for_each(|number| *number *= scale);
        if let Some(sum) = self.sum.get(name) {
            let sum = floats(sum)?;
            numbers.iter_mut().zip(&*sum).for_each(|(number, sum)| *number += sum);
        }
        Ok(numbers)
    }

    /// Begins the next step.
    pub(crate) fn clear(&mut self) {
        self.added = 0;
        self.sum.clear();
    }

    fn add_to_sum(&mut self, gradients: Values, scale: f64) -> Result<(), OptimizerError> {
        let scale = number(scale);
        if self.added > 0 {
            self.check(&gradients)?;
        }
        let numbers = [("scale", &scale)];
        for (name, mut gradient) in gradients {
            match self.sum.get_mut(&name) {
                Some(sum) => {
                    let (mut moved, read) = ([("sum", sum)], Some(("gradient", &gradient)));
                    let session = self.add_scaled.as_mut();
                    pieces::run_by_element(session, &mut moved, read, &numbers)?;
                }
                None => {
                    let mut moved = [("gradient", &mut gradient)];
                    let session = self.scaled.as_mut();
                    pieces::run_by_element(session, &mut moved, None, &numbers)?;
                    self.sum.insert(name, gradient);
                }
            }
        }
        Ok(())
    }

    /// Whether the gradients are those of the same weights as before.
    fn check(&self, gradients: &Values) -> Result<(), OptimizerError> {
        let kind = "gradient";
        for (name, sum) in &self.sum {
            let (name, expected) = (name.clone(), sum.shape().to_vec());
            match gradients.get(&name) {
                None => return Err(OptimizerError::Missing { kind, name, expected }),
                Some(found) if found.shape() != expected => {
                    let (found, advice) = (found.shape().to_vec(), "as in the batch before");
                    return Err(OptimizerError::Shape { kind, name, found, expected, advice });
                }
                Some(_) => {}
            }
        }
        match gradients.keys().find(|name| !self.sum.contains_key(*name)) {
            None => Ok(()),
            Some(name) => {
                let (name, advice) = (name.clone(), "the batch before had none");
                Err(OptimizerError::Unknown { kind, name, advice })
            }
        }
    }

    /// The norm of all gradients as one vector; not finite if one of them is not.
    fn norm(&mut self, gradients: &Values, scale: f64) -> Result<f64, OptimizerError> {
        let scale = number(scale);
        let mut squares = 0.0;
        for gradient in gradients.values() {
            let (read, numbers) = (("gradient", gradient), [("scale", &scale)]);
            let mean = pieces::mean_of_pieces(self.mean_square.as_mut(), read, &numbers)?;
            squares += gradient.size() as f64 * mean;
        }
        Ok(squares.sqrt())
    }
}

/// The factor that brings gradients of this norm down to `largest`, as
/// `torch.nn.utils.clip_grad_norm_` has it: `largest / (norm + 1e-6)`, at most 1.
pub fn clip_factor(norm: f64, largest: f64) -> f64 {
    (largest / (norm + 1e-6)).min(1.0)
}
