//! What the transformer is asked in each step, for those pictures of a batch that need it.

use ndarray::{ArrayD, Axis, concatenate};

use super::{component::LoadedComponent, inputs::constant_inputs};
use crate::{
    engine::Value, error::PipelineError, model_folder::TransformerArchitecture, text::Conditioning,
};

/// A picture as the transformer sees it.
pub(super) struct Asked<'a> {
    pub(super) caption: &'a Conditioning,
    /// f32 \[1, channels, height, width\].
    pub(super) latents: &'a ArrayD<f32>,
}

/// The transformer, with what stays the same from step to step.
pub(super) struct Asking<'a> {
    pub(super) transformer: LoadedComponent<'a>,
    /// Whether it is told the size of the picture.
    conditions: bool,
    out_channels: usize,
    /// Latent height and width.
    size: (usize, usize),
    /// Tokens that captions are padded to at least.
    least: usize,
    /// On the device, where there is one: only latents and time go there in every step.
    constant: Vec<(&'static str, Value)>,
    /// For which pictures that is, and for how many rows of each.
    constant_for: (Vec<usize>, usize),
}

impl<'a> Asking<'a> {
    pub(super) fn new(
        transformer: LoadedComponent<'a>,
        architecture: &TransformerArchitecture,
        size: (usize, usize),
        least: usize,
    ) -> Self {
        let TransformerArchitecture { out_channels, use_additional_conditions: conditions, .. } =
            *architecture;
        let (constant, constant_for) = (Vec::new(), (Vec::new(), 0));
        Self { transformer, conditions, out_channels, size, least, constant, constant_for }
    }

    /// What the transformer says of the pictures of the batch that are `asked` for, by their places: for each
    /// `halves` rows, the unconditional one, if there is one, and the prompt's.
    pub(super) fn ask(
        &mut self,
        batch: &[Asked<'_>],
        asked: &[usize],
        halves: usize,
        timestep: f32,
    ) -> Result<Vec<ArrayD<f32>>, PipelineError> {
        if self.constant_for.0 != asked || self.constant_for.1 != halves {
            let captions: Vec<_> = asked.iter().map(|&place| batch[place].caption).collect();
            let sizes = self.conditions.then_some(self.size);
            let inputs = constant_inputs(&captions, halves, sizes, self.least).into_iter();
            let placed = inputs.map(|(name, value)| Ok((name, self.transformer.place(value)?)));
            self.constant = placed.collect::<Result<_, PipelineError>>()?;
            self.constant_for = (asked.to_vec(), halves);
        }
        let pictures = asked.iter().map(|&place| batch[place].latents.view());
        let rows = (0..halves).flat_map(|_| pictures.clone());
        let latents = concatenate(Axis(0), &rows.collect::<Vec<_>>());
        let latents = Value::from(latents.expect("pictures of a batch have one shape"));
        let rows = halves * asked.len();
        let timesteps = Value::from(ArrayD::from_elem(vec![rows], timestep));
        let changing = [("hidden_states", &latents), ("timestep", &timesteps)].into_iter();
        let inputs = changing.chain(self.constant.iter().map(|(name, value)| (*name, value)));
        let inputs: Vec<_> = inputs.collect();
        let output = self.transformer.run_values(&inputs, "out_hidden_states")?;
        let (height, width) = self.size;
        self.transformer.check_shape(&output, &[rows, self.out_channels, height, width])?;
        let of = |place| {
            let rows: Vec<_> = (0..halves).map(|half| half * asked.len() + place).collect();
            output.select(Axis(0), &rows)
        };
        Ok((0..asked.len()).map(of).collect())
    }
}
