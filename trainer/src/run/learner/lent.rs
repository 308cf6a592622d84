//! A model in training as the transformer that a [`Series`](pixart_runtime::pipeline::Series) draws with.

use std::path::PathBuf;

use pixart_runtime::{
    engine::{Engine, EngineError, Session, Value},
    tensor::Tensor,
};

use super::{Learner, RunError, StartingPoint};
use crate::{
    gradient::{Inputs, TrainedTransformer, Training, Weights},
    tensors::to_values,
};

/// The name of the prediction in an exported transformer.
const OUTPUT: &str = "out_hidden_states";

/// A model in training, or before it, with the inputs and the output of an exported transformer.
pub struct Lent<'a> {
    model: &'a mut TrainedTransformer,
    /// They share their elements with those of the training.
    weights: Weights,
}

impl Learner {
    /// The model as a session that predicts, with the average of the weights where there is one. Nothing
    /// of the training changes.
    pub fn lend(&mut self) -> Lent<'_> {
        let mut weights = self.weights.clone();
        if let Some(average) = &self.average {
            weights.extend(average.weights().clone());
        }
        Lent { model: &mut self.model, weights }
    }
}

/// A model before training.
pub struct Untrained {
    model: TrainedTransformer,
    weights: Weights,
}

impl Untrained {
    /// The model that a training begins with.
    ///
    /// # Errors
    /// When the engine refuses it.
    pub fn new(engine: &dyn Engine, start: &StartingPoint) -> Result<Self, RunError> {
        let model = TrainedTransformer::load(engine, &start.config, &Training::weights(|_| false))?;
        Ok(Self { model, weights: to_values(engine, start.weights.clone())? })
    }

    /// The model as a session that predicts.
    pub fn lend(&mut self) -> Lent<'_> {
        Lent { model: &mut self.model, weights: self.weights.clone() }
    }
}

impl Session for Lent<'_> {
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, EngineError> {
        let values = inputs.iter().map(|(name, tensor)| (*name, Value::from((*tensor).clone())));
        let values: Vec<_> = values.collect();
        let inputs: Vec<_> = values.iter().map(|(name, value)| (*name, value)).collect();
        self.run_to_tensors(&inputs)
    }

    fn run_to_tensors(
        &mut self,
        inputs: &[(&str, &Value)],
    ) -> Result<Vec<(String, Tensor)>, EngineError> {
        let failed = |reason: String| EngineError::Run {
            engine: "training",
            model: PathBuf::from("the transformer in training"),
            inputs: inputs.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
            reason,
        };
        let input = |wanted: &str| {
            let found = inputs.iter().find(|(name, _)| *name == wanted);
            let missing = || failed(format!("there is no input \"{wanted}\""));
            found.map(|(_, value)| (*value).clone()).ok_or_else(missing)
        };
        let is_there = |wanted: &str| inputs.iter().any(|(name, _)| *name == wanted);
        let conditions = match is_there("resolution") {
            true => Some([input("resolution")?, input("aspect_ratio")?]),
            false => None,
        };
        let inputs = Inputs {
            hidden_states: input("hidden_states")?,
            encoder_hidden_states: input("encoder_hidden_states")?,
            encoder_attention_mask: input("encoder_attention_mask")?,
            timestep: input("timestep")?,
            conditions,
        };
        let pass = self.model.forward(&self.weights, &inputs);
        let pass = pass.map_err(|error| failed(error.to_string()))?;
        Ok(vec![(OUTPUT.to_owned(), Tensor::F32(pass.output))])
    }
}
