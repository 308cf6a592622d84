//! From noise to latents under one caption.

use ndarray::{ArrayD, Axis, Slice, concatenate};

use super::{Pipeline, Request, init::InitLatents, start::Start};
use crate::{
    error::{PipelineError, RequestError},
    model_folder::TransformerArchitecture,
    noise::TorchGenerator,
    sampler::{Prediction, Solver, guide, rescale},
    size::SizePlan,
    tensor::Tensor,
    text::Conditioning,
};

impl Pipeline {
    /// The solver of a request, for one picture.
    fn solver(&self, request: &Request) -> Result<Box<dyn Solver>, RequestError> {
        let Request { sampling_method, sampling_steps, reference, .. } = *request;
        sampling_method.solver(&self.schedule, &self.scheduler, sampling_steps, reference)
    }

    /// Whether the model can do what the solver needs.
    pub(super) fn check_solver(&self, request: &Request) -> Result<(), RequestError> {
        let TransformerArchitecture { in_channels, out_channels, .. } = self.transformer();
        if self.solver(request)?.needs_variance() && out_channels == in_channels {
            return Err(RequestError::NoVariance(request.sampling_method));
        }
        Ok(())
    }

    /// Draws the latents of one picture. Its generator gives the first noise, f32
    /// [1, 4, height, width], and then, step by step, what a stochastic solver adds. With `init`, the
    /// first steps may be left out.
    pub(super) fn denoise(
        &mut self,
        mut generator: TorchGenerator,
        size: &SizePlan,
        caption: &Conditioning,
        init: Option<&InitLatents>,
        request: &Request,
        step_done: &mut dyn FnMut(),
    ) -> Result<ArrayD<f32>, PipelineError> {
        let mut solver = self.solver(request)?;
        let Start { mut latents, kept } =
            self.start(&mut generator, size, request, init, solver.as_ref());
        let TransformerArchitecture {
            in_channels,
            out_channels,
            use_additional_conditions: conditions,
            ..
        } = self.transformer.folder.architecture;
        let transformer = self.transformer.load()?;

        let (height, width) = size.latent();
        let (steps, guided) = (request.sampling_steps, request.guided_steps());
        let first = request.first_step();
        let mut inputs = Vec::new();
        for (i, timestep) in solver.timesteps().to_vec().into_iter().enumerate().skip(first) {
            let batch = if i < guided { 2 } else { 1 };
            if i == first || i == guided {
                inputs = constant_inputs(caption, batch, conditions.then_some((height, width)));
            }
            let copies = concatenate(Axis(0), &vec![latents.view(); batch]);
            inputs[0].1 = copies.expect("copies have one shape").into();
            inputs[1].1 = ArrayD::from_elem(vec![batch], timestep).into();
            let output = transformer.run(&inputs, "out_hidden_states")?;
            transformer.check_shape(&output, &[batch, out_channels, height, width])?;
            let prediction = predicted(&output, in_channels, request, solver.needs_variance());
            solver.step(i, &mut latents, &prediction, &mut generator);
            transformer.check_finite(&latents, Some((i + 1, steps)))?;
            if let Some(kept) = &kept {
                kept.restore(&mut latents, solver.as_ref(), i + 1);
            }
            step_done();
        }
        Ok(latents)
    }
}

/// The transformer's inputs. The first two, latents and time, are to be replaced in every step. A batch
/// of 2 has the unconditional half first, a batch of 1 is the prompt's half.
fn constant_inputs(
    caption: &Conditioning,
    batch: usize,
    latent_size: Option<(usize, usize)>,
) -> Vec<(&'static str, Tensor)> {
    let nothing = || Tensor::F32(ArrayD::zeros(vec![batch]));
    let mut inputs = vec![
        ("hidden_states", nothing()),
        ("timestep", nothing()),
        ("encoder_hidden_states", last_rows(&caption.embeddings, batch)),
        ("encoder_attention_mask", last_rows(&caption.mask, batch)),
    ];
    if let Some((height, width)) = latent_size {
        // In pixels, and height first.
        let (height, width) = (8.0 * height as f32, 8.0 * width as f32);
        let sizes = [height, width].repeat(batch);
        let sizes = ArrayD::from_shape_vec(vec![batch, 2], sizes).expect("two numbers a row");
        inputs.push(("resolution", sizes.into()));
        inputs.push(("aspect_ratio", ArrayD::from_elem(vec![batch, 1], height / width).into()));
    }
    inputs
}

/// The last `count` entries along the first dimension.
fn last_rows(tensor: &Tensor, count: usize) -> Tensor {
    let rows = Slice::from(-(count as isize)..);
    match tensor {
        Tensor::F32(values) => values.slice_axis(Axis(0), rows).to_owned().into(),
        Tensor::I64(values) => values.slice_axis(Axis(0), rows).to_owned().into(),
    }
}

/// What the solver is told. Guidance is for the noise channels; the variance is the prompt's own.
fn predicted(
    output: &ArrayD<f32>,
    channels: usize,
    request: &Request,
    variance: bool,
) -> Prediction {
    let row = |b: usize| output.slice_axis(Axis(0), Slice::from(b..=b));
    let prompt = output.shape()[0] - 1;
    let part = |b: usize, part: Slice| row(b).slice_axis(Axis(1), part).to_owned();
    let mut noise = part(0, Slice::from(..channels));
    if prompt != 0 {
        let conditional = part(prompt, Slice::from(..channels));
        guide(&mut noise, &conditional, request.guidance_scale);
        if request.guidance_rescale > 0.0 {
            rescale(&mut noise, &conditional, request.guidance_rescale);
        }
    }
    let variance = variance.then(|| part(prompt, Slice::from(channels..)));
    Prediction { noise, variance }
}

#[cfg(test)]
mod tests {
    use ndarray::Array4;

    use super::*;

    const UNCONDITIONAL: [f32; 8] = [0.3, -1.2, 0.8, 2.0, -0.4, 0.1, 1.5, -0.9];
    const CONDITIONAL: [f32; 8] = [1.0, -0.7, 0.2, 1.1, 0.6, -1.4, 0.9, -0.3];

    /// Four channels of two noise values and four of two variance values, whose first digit tells the half.
    fn output() -> ArrayD<f32> {
        let halves = [UNCONDITIONAL, CONDITIONAL];
        let value = |(b, c, _, x): (usize, usize, usize, usize)| match c {
            0..4 => halves[b][2 * c + x],
            _ => 10.0 * (b + 1) as f32 + (c + x) as f32,
        };
        Array4::from_shape_fn((2, 8, 1, 2), value).into_dyn()
    }

    fn close(found: &ArrayD<f32>, expected: &[f32]) -> bool {
        found.len() == expected.len()
            && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-6 * b.abs().max(1.0))
    }

    #[test]
    fn guided_and_rescaled_noise_equals_that_of_diffusers() {
        // `rescale_noise_cfg(u + 4.5 (c - u), c, r)` of diffusers 0.42.1.
        let plain = [3.45, 1.05, -1.9, -2.05, 4.1, -6.65, -1.2, 1.8];
        let rescaled: [f32; 8] = [
            1.656_523_5,
            0.504_159_45,
            -0.912_288_4,
            -0.984_311,
            1.968_622_2,
            -3.193_009_4,
            -0.576_182_1,
            0.864_273_1,
        ];
        for (guidance_rescale, expected) in [(0.0, plain), (0.7, rescaled)] {
            let request = Request { guidance_rescale, ..Request::default() };
            let prediction = predicted(&output(), 4, &request, false);
            assert!(close(&prediction.noise, &expected), "{}", prediction.noise);
            assert!(prediction.variance.is_none());
        }
    }

    #[test]
    fn the_variance_is_the_prompts_own_and_not_guided() {
        let prediction = predicted(&output(), 4, &Request::default(), true);
        let variance = prediction.variance.expect("asked for");
        assert!(close(&variance, &[24.0, 25.0, 25.0, 26.0, 26.0, 27.0, 27.0, 28.0]));
        // Without guidance the batch is the prompt alone.
        let alone = output().slice_axis(Axis(0), Slice::from(1..)).to_owned();
        let prediction = predicted(&alone, 4, &Request::default(), true);
        assert!(close(&prediction.noise, &CONDITIONAL));
        assert_eq!(prediction.variance, Some(variance));
    }
}
