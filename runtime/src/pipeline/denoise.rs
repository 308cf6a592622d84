//! From noise to latents, a batch of pictures at a time.

use std::ops::Range;

use ndarray::{ArrayD, Axis, Slice};

use super::{
    Event, Pipeline, Request, StageProgress,
    ask::{Asked, Asking},
    run::Run,
    start::{Kept, Start},
};
use crate::{
    error::{PipelineError, RequestError},
    model_folder::TransformerArchitecture,
    noise::TorchGenerator,
    sampler::{Prediction, Solver, StepCache, guide, rescale},
    text::Conditioning,
};

/// One picture on its way from noise to latents.
struct Drawing<'a> {
    /// Its number in the request.
    index: usize,
    caption: &'a Conditioning,
    /// Gives the first noise and then, step by step, what a stochastic solver adds.
    generator: TorchGenerator,
    solver: Box<dyn Solver>,
    latents: ArrayD<f32>,
    /// What of a picture to begin from is to be kept.
    kept: Option<Kept>,
    /// What steps can be carried over from, if they may.
    cache: Option<StepCache>,
}

/// What became of a drawing.
pub(super) struct Drawn {
    pub(super) latents: ArrayD<f32>,
    /// How many of its steps were carried over from others.
    pub(super) reused_steps: usize,
}

impl Drawing<'_> {
    fn asked(&self) -> Asked<'_> {
        Asked { caption: self.caption, latents: &self.latents }
    }

    /// What the transformer would say in step `index`, where it need not be asked.
    fn carried(&mut self, index: usize, rows: usize) -> Option<ArrayD<f32>> {
        self.cache.as_mut()?.reuse(index, &self.latents, rows)
    }

    /// Takes note of what the transformer said.
    fn computed(&mut self, output: ArrayD<f32>) -> ArrayD<f32> {
        if let Some(cache) = &mut self.cache {
            cache.keep(&self.latents, &output);
        }
        output
    }
}

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

    /// Whether pictures can share a batch, if they are to.
    pub(super) fn check_batch(&self) -> Result<(), RequestError> {
        let dynamic = self.transformer.folder.int8_mode.as_deref() == Some("dynamic");
        match self.options.batch_size {
            1 => Ok(()),
            0 => Err(RequestError::OutOfRange {
                field: "batch_size",
                found: "0".to_owned(),
                expected: "1 or more",
            }),
            found if dynamic => Err(RequestError::DynamicBatch(found)),
            _ => Ok(()),
        }
    }

    fn drawing<'a>(&self, run: &Run<'a>, index: usize) -> Result<Drawing<'a>, RequestError> {
        let mut generator = run.request.noise_seed(index).generator();
        let (caption, solver) = (&run.captions[index], self.solver(run.request)?);
        let init = run.init.map(|init| init.latents(index));
        let (size, request) = (&run.sizes[index], run.request);
        let Start { latents, kept } =
            self.start(&mut generator, size, request, init, solver.as_ref());
        let cached = |settings| StepCache::new(settings, request.sampling_steps);
        let cache = request.easycache.map(cached);
        Ok(Drawing { index, caption, generator, solver, latents, kept, cache })
    }

    /// Draws the latents of pictures of one size; nothing if cancelled before they are done. With a picture to
    /// begin from, the first steps may be left out.
    pub(super) fn denoise(
        &mut self,
        batch: Range<usize>,
        run: &mut Run<'_>,
        stage: &mut StageProgress<'_>,
    ) -> Result<Option<Vec<Drawn>>, PipelineError> {
        let (request, cancel) = (run.request, self.options.cancel.clone());
        let (height, width) = run.sizes[batch.start].latent();
        let mut drawings =
            batch.map(|index| self.drawing(run, index)).collect::<Result<Vec<_>, _>>()?;
        let architecture = self.transformer.folder.architecture.clone();
        let (in_channels, out_channels) = (architecture.in_channels, architecture.out_channels);
        let transformer = match run.transformer.as_deref_mut() {
            Some(session) => self.transformer.with(session),
            None => self.transformer.load()?,
        };

        let (pictures, timesteps) = (drawings.len(), drawings[0].solver.timesteps().to_vec());
        let (steps, guided) = (request.sampling_steps, request.guided_steps());
        let first = request.first_step();
        let longest = drawings.iter().map(|drawing| drawing.caption.mask.shape()[1]).max();
        let per_size = transformer.compiles_per_size();
        let least = if per_size { request.max_length } else { longest.unwrap_or(0) };
        // Where another size of a batch costs more than it saves, the others are computed too, in vain.
        let all = transformer.plans_per_size();
        let mut asking = Asking::new(transformer, &architecture, (height, width), least);
        for (i, timestep) in timesteps.into_iter().enumerate().skip(first) {
            if cancel.is_cancelled() {
                return Ok(None);
            }
            let halves = if i < guided { 2 } else { 1 };
            let mut outputs: Vec<_> = drawings.iter_mut().map(|d| d.carried(i, halves)).collect();
            let mut asked: Vec<_> = (0..pictures).filter(|&k| outputs[k].is_none()).collect();
            if !asked.is_empty() {
                if all {
                    asked = (0..pictures).collect();
                }
                let batch: Vec<_> = drawings.iter().map(Drawing::asked).collect();
                let said = asking.ask(&batch, &asked, halves, timestep)?;
                for (k, output) in asked.into_iter().zip(said) {
                    outputs[k].get_or_insert_with(|| drawings[k].computed(output));
                }
            }

            for (drawing, output) in drawings.iter_mut().zip(outputs.into_iter().flatten()) {
                let Drawing { index, solver, generator, latents, kept, .. } = drawing;
                let variance = solver.needs_variance();
                let prediction = predicted(&output, in_channels, request, variance);
                let x0 = prediction.picture(latents, solver.level(i));
                solver.step(i, latents, &prediction, generator);
                let step = (i + 1, steps);
                if !latents.iter().all(|value| value.is_finite()) {
                    let used = if variance { out_channels } else { in_channels };
                    let used = output.slice_axis(Axis(1), Slice::from(..used)).to_owned();
                    asking.transformer.check_finite(&used, Some(step))?;
                    let guidance_scale = request.guidance_scale;
                    return Err(PipelineError::Diverged { step, guidance_scale });
                }
                if let Some(kept) = kept {
                    kept.restore(latents, solver.as_ref(), i + 1);
                }
                stage.tell(Event::Latents {
                    index: *index,
                    step: i + 1,
                    steps,
                    latents,
                    predicted: &x0,
                });
            }
            stage.advance(pictures);
        }
        let drawn = |Drawing { latents, cache, .. }| Drawn {
            latents,
            reused_steps: cache.map_or(0, |cache| cache.reused()),
        };
        Ok(Some(drawings.into_iter().map(drawn).collect()))
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
