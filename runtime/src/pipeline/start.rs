//! What denoising begins with.

use ndarray::{ArrayD, Zip};

use super::{Pipeline, Reference, Request, init::InitLatents};
use crate::{
    noise::TorchGenerator,
    sampler::{Level, Solver},
    size::SizePlan,
};

/// The beginning of one picture.
pub(super) struct Start {
    /// The first latents, f32 [1, 4, height, width].
    pub(super) latents: ArrayD<f32>,
    /// What of a picture is to be kept, if anything.
    pub(super) kept: Option<Kept>,
}

/// The part of a picture that is not drawn anew.
pub(super) struct Kept {
    /// The picture's latents, without noise.
    picture: ArrayD<f32>,
    noise: ArrayD<f32>,
    /// f32 [1, 1, height, width], 0 where the picture is kept.
    mask: ArrayD<f32>,
}

impl Pipeline {
    /// The first latents of a picture, drawn from its generator. They are plain noise, or those of the picture
    /// to begin from with as much noise as the first step taken expects.
    ///
    /// As in diffusers, what is drawn first is a sample of the encoder's distribution, then the noise; mindone
    /// has nothing of the kind, so there the distribution's mean is taken and the noise is that of a
    /// picture from the same seed without `init`.
    pub(super) fn start(
        &self,
        generator: &mut TorchGenerator,
        size: &SizePlan,
        request: &Request,
        init: Option<&InitLatents>,
        solver: &dyn Solver,
    ) -> Start {
        let (height, width) = size.latent();
        let shape = [1, self.transformer().in_channels, height, width];
        let Some(InitLatents { posterior, mask }) = init else {
            return Start { latents: draw(generator, &shape), kept: None };
        };
        let latents = match request.reference {
            Reference::Diffusers => posterior.sample(generator),
            Reference::Mindone => posterior.mean.clone(),
        };
        let factor = self.scaling_factor();
        let picture = latents.mapv(|value| factor * value);
        let noise = draw(generator, &shape);
        let first = request.first_step();
        // As in diffusers: with a mask and nothing to keep of the rest, the start is noise alone.
        let latents = if mask.is_some() && first == 0 {
            noise.clone()
        } else {
            noised(&picture, &noise, solver.level(first))
        };
        let kept = mask.as_ref().map(|mask| Kept { picture, noise, mask: mask.clone() });
        Start { latents, kept }
    }
}

impl Kept {
    /// Puts the picture back into `latents` where it is kept, with as much noise as step `next` expects; after
    /// the last step, with none.
    pub(super) fn restore(&self, latents: &mut ArrayD<f32>, solver: &dyn Solver, next: usize) {
        let level = match next < solver.timesteps().len() {
            true => solver.level(next),
            false => Level::CLEAN,
        };
        let old = noised(&self.picture, &self.noise, level);
        let mask = self.mask.broadcast(latents.raw_dim()).expect("one mask for all channels");
        Zip::from(latents).and(&old).and(mask).for_each(|x, &old, &anew| {
            if anew == 0.0 {
                *x = old;
            }
        });
    }
}

/// Standard normal noise.
fn draw(generator: &mut TorchGenerator, shape: &[usize]) -> ArrayD<f32> {
    let values = generator.randn(shape.iter().product());
    ArrayD::from_shape_vec(shape, values).expect("as many values as the shape holds")
}

/// α `picture` + σ `noise`.
fn noised(picture: &ArrayD<f32>, noise: &ArrayD<f32>, level: Level) -> ArrayD<f32> {
    let mut latents = picture.clone();
    Zip::from(&mut latents).and(noise).for_each(|x, &noise| {
        *x = (level.alpha * f64::from(*x) + level.sigma * f64::from(noise)) as f32;
    });
    latents
}
