//! A model in training as the transformer that a [`Series`](pixart_runtime::pipeline::Series) draws with.

use std::path::PathBuf;

use pixart_runtime::{
    engine::{EngineError, Session},
    tensor::Tensor,
};

use super::Learner;
use crate::gradient::{Inputs, Weights};

/// The name of the prediction in an exported transformer.
const OUTPUT: &str = "out_hidden_states";

/// A model in training with the inputs and the output of an exported transformer.
pub struct Lent<'a> {
    learner: &'a mut Learner,
    /// In the place of those in training.
    averaged: Option<Weights>,
}

impl Learner {
    /// The model as a session that predicts, with the average of the weights where there is one. Nothing
    /// of the training changes.
    pub fn lend(&mut self) -> Lent<'_> {
        let averaged = self.average.as_ref().map(|average| {
            // Both share their elements with what is there.
            let mut weights = self.weights.clone();
            weights.extend(average.weights().clone());
            weights
        });
        Lent { learner: self, averaged }
    }
}

impl Session for Lent<'_> {
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, EngineError> {
        let failed = |reason: String| EngineError::Run {
            engine: "training",
            model: PathBuf::from("the transformer in training"),
            inputs: inputs.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
            reason,
        };
        let input = |wanted: &str| {
            let found = inputs.iter().find(|(name, _)| *name == wanted);
            let missing = || failed(format!("there is no input \"{wanted}\""));
            found.map(|(_, tensor)| (*tensor).clone().into()).ok_or_else(missing)
        };
        let inputs = Inputs {
            hidden_states: input("hidden_states")?,
            encoder_hidden_states: input("encoder_hidden_states")?,
            encoder_attention_mask: input("encoder_attention_mask")?,
            timestep: input("timestep")?,
            conditions: None,
        };
        let Learner { model, weights, .. } = &mut *self.learner;
        let weights = self.averaged.as_ref().unwrap_or(weights);
        let pass = model.forward(weights, &inputs).map_err(|error| failed(error.to_string()))?;
        Ok(vec![(OUTPUT.to_owned(), Tensor::F32(pass.output))])
    }
}
