//! Pictures to begin from: whole, or with a mask of what is to be drawn anew.

use std::sync::Arc;

use image::{GrayImage, RgbImage, imageops};
use ndarray::{Array4, ArrayD};

use super::{Event, Pipeline, Reference, Request, Stage, StageProgress};
use crate::{
    error::{PipelineError, RequestError},
    image::fit::{mask_into, picture_into, stretch},
    sampler::SamplingMethod,
    size::{Size, SizePlan},
    vae::{Posterior, from_picture},
};

/// Mask values from this one on are drawn anew.
const WHITE: u8 = 128;
/// Pixels of a latent cell's side.
const CELL: u32 = 8;
/// The strongest blur of a mask.
const MOST_BLUR: f32 = 256.0;

/// A picture to begin from instead of plain noise.
#[derive(Clone, Debug, PartialEq)]
pub struct InitImage {
    /// The picture, upright, of any size. It is cropped at the centre to the sides' ratio of the picture asked
    /// for and scaled to the size that is generated.
    pub image: Arc<RgbImage>,
    /// How much of the way from noise is gone anew, above 0 and up to 1: the last
    /// ⌊`sampling_steps` · `strength`⌋ steps are taken. At 1 nothing is left of the picture but what a mask
    /// keeps.
    pub strength: f64,
    /// What is drawn anew; everything where not given.
    pub mask: Option<Mask>,
}

/// Which part of a picture is drawn anew.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask {
    /// As large as the picture. White (128 and more) is drawn anew, black is kept. When the kept part is put
    /// back, shades of grey mix old and new.
    pub image: Arc<GrayImage>,
    /// Standard deviation of a Gaussian blur that softens the mask's edge, in its pixels, 0 (none) to 256.
    pub blur: f32,
    /// Whether the finished picture gets the kept part of the original back, pixel by pixel. Otherwise all of
    /// it comes from the VAE, which changes kept pixels a little.
    pub paste_back: bool,
}

impl InitImage {
    /// What can be checked without a model.
    pub(super) fn check(&self, method: SamplingMethod, steps: usize) -> Result<(), RequestError> {
        let wrong = |field, found: String, expected| {
            Err(RequestError::OutOfRange { field, found, expected })
        };
        if method == SamplingMethod::Dmd {
            return Err(RequestError::InitWithoutSteps(method));
        }
        let strength = self.strength;
        if !(strength > 0.0 && strength <= 1.0) {
            return wrong("strength", strength.to_string(), "a number above 0 and up to 1");
        }
        if self.first_step(steps) == steps {
            return Err(RequestError::NoStepsLeft { strength, steps });
        }
        let (width, height) = self.image.dimensions();
        if width == 0 || height == 0 {
            return wrong("init_image", format!("{width}x{height} pixels"), "at least one");
        }
        let Some(mask) = &self.mask else { return Ok(()) };
        if mask.image.dimensions() != (width, height) {
            let found = mask.image.dimensions();
            return Err(RequestError::MaskSize { found, expected: (width, height) });
        }
        if !(0.0..=MOST_BLUR).contains(&mask.blur) {
            return wrong("mask_blur", mask.blur.to_string(), "0 to 256 pixels");
        }
        if mask.image.as_raw().iter().all(|value| *value < WHITE) {
            return Err(RequestError::EmptyMask);
        }
        Ok(())
    }

    /// The first of `steps` steps that is taken, from 0: diffusers' `get_timesteps`.
    pub(super) fn first_step(&self, steps: usize) -> usize {
        steps - ((steps as f64 * self.strength) as usize).min(steps)
    }

    /// The picture's own size.
    pub(super) fn size(&self) -> Size {
        let (width, height) = self.image.dimensions();
        Size { width, height }
    }

    /// The same with the mask's blur done.
    fn blurred(&self) -> Self {
        let mask = self.mask.as_ref().map(|mask| match mask.blur {
            0.0 => mask.clone(),
            blur => {
                let image = Arc::new(imageops::blur(&*mask.image, blur));
                Mask { image, blur: 0.0, ..mask.clone() }
            }
        });
        Self { mask, ..self.clone() }
    }

    /// The mask of the latents: f32 [1, 1, h, w], 1 where they are drawn anew. Without upstream's rule to
    /// follow, a cell with any white pixel is; diffusers asks the pixel at its top left.
    fn latent_mask(&self, plan: &SizePlan, reference: Reference) -> Option<ArrayD<f32>> {
        let mask = mask_into(&self.mask.as_ref()?.image, plan.requested, plan.generated);
        let white = |x: u32, y: u32| mask.get_pixel(x, y).0[0] >= WHITE;
        let (height, width) = plan.latent();
        let cells = Array4::from_shape_fn((1, 1, height, width), |(_, _, y, x)| {
            let (left, top) = (x as u32 * CELL, y as u32 * CELL);
            let anew = match reference {
                Reference::Diffusers => white(left, top),
                Reference::Mindone => {
                    (0..CELL * CELL).any(|i| white(left + i % CELL, top + i / CELL))
                }
            };
            f32::from(u8::from(anew))
        });
        Some(cells.into_dyn())
    }

    /// The picture in the size asked for, from `drawn`, the one in the size generated.
    fn finished(&self, drawn: &RgbImage, size: Size) -> RgbImage {
        let mut picture = stretch(drawn, size);
        if let Some(mask) = self.mask.as_ref().filter(|mask| mask.paste_back) {
            let original = picture_into(&self.image, size, size);
            let share = mask_into(&mask.image, size, size);
            for ((new, old), share) in
                picture.pixels_mut().zip(original.pixels()).zip(share.pixels())
            {
                let share = u32::from(share.0[0]);
                for (new, old) in new.0.iter_mut().zip(old.0) {
                    let mixed = u32::from(*new) * share + u32::from(old) * (255 - share);
                    *new = ((mixed + 127) / 255) as u8;
                }
            }
        }
        picture
    }
}

/// The picture of a request as latents.
pub(super) struct Init {
    picture: InitImage,
    /// One for each picture asked for; those of one size share theirs.
    latents: Vec<Arc<InitLatents>>,
}

/// A picture to begin from in one size.
pub(super) struct InitLatents {
    /// The latents' distribution.
    pub(super) posterior: Posterior,
    /// What is drawn anew: f32 [1, 1, h, w], 1 there and 0 elsewhere.
    pub(super) mask: Option<ArrayD<f32>>,
}

impl Init {
    /// For picture `k`.
    pub(super) fn latents(&self, k: usize) -> &InitLatents {
        &self.latents[k]
    }

    /// The plan for decoding: the picture is brought to the size asked for by [`finish`](Self::finish), which
    /// undoes what was done to the picture to begin from, so that what is kept stays at its place.
    pub(super) fn decoded(plan: &SizePlan) -> SizePlan {
        SizePlan { generated: plan.generated, requested: plan.generated }
    }

    /// Brings a decoded picture to the size asked for and puts back what the mask keeps.
    pub(super) fn finish(&self, drawn: &RgbImage, plan: &SizePlan) -> RgbImage {
        self.picture.finished(drawn, plan.requested)
    }
}

impl Pipeline {
    /// Whether there is an encoder for the picture that the request has.
    pub(super) fn check_init(&self, request: &Request) -> Result<(), PipelineError> {
        match (&request.init, &self.vae_encoder) {
            (Some(_), None) => Err(PipelineError::NoEncoder),
            _ => Ok(()),
        }
    }

    /// Encodes the request's picture, if it has one, once for every size.
    pub(super) fn encode_init(
        &mut self,
        request: &Request,
        sizes: &[SizePlan],
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<Option<Init>, PipelineError> {
        let Some(init) = &request.init else { return Ok(None) };
        let picture = init.blurred();
        let mut different: Vec<SizePlan> = Vec::new();
        for size in sizes {
            if !different.contains(size) {
                different.push(*size);
            }
        }
        let mut stage = StageProgress::start(Stage::EncodePicture, different.len(), progress);
        let mut encoded = Vec::with_capacity(different.len());
        for size in &different {
            let mask = picture.latent_mask(size, request.reference);
            if mask.as_ref().is_some_and(|mask| mask.iter().all(|&value| value == 0.0)) {
                return Err(RequestError::EmptyMask.into());
            }
            let fitted = picture_into(&picture.image, size.requested, size.generated);
            let mut told = None;
            let tell = &mut |text: &str| told = Some(text.to_owned());
            let tiling = self.tiling();
            let encoder = self.vae_encoder.as_mut().ok_or(PipelineError::NoEncoder)?;
            let posterior =
                Posterior::new(&encoder.moments(from_picture(&fitted), &tiling, tell)?);
            if let Some(text) = &told {
                stage.tell(Event::Info { text });
            }
            encoded.push(Arc::new(InitLatents { posterior, mask }));
            stage.advance(1);
        }
        stage.finish();
        self.free(|pipeline| {
            if let Some(encoder) = &mut pipeline.vae_encoder {
                encoder.unload();
            }
        });
        let place =
            |size: &SizePlan| different.iter().position(|d| d == size).expect("one of them");
        let latents = sizes.iter().map(|size| encoded[place(size)].clone()).collect();
        Ok(Some(Init { picture, latents }))
    }
}

#[cfg(test)]
mod tests {
    use image::{Luma, Rgb};

    use super::*;

    fn init(width: u32, height: u32, strength: f64) -> InitImage {
        InitImage { image: Arc::new(RgbImage::new(width, height)), strength, mask: None }
    }

    fn masked(width: u32, height: u32, white: impl Fn(u32, u32) -> u8) -> InitImage {
        let image = Arc::new(GrayImage::from_fn(width, height, |x, y| Luma([white(x, y)])));
        let mask = Mask { image, blur: 0.0, paste_back: true };
        InitImage { mask: Some(mask), ..init(width, height, 1.0) }
    }

    #[test]
    fn as_many_steps_are_left_out_as_in_diffusers() {
        // `steps - min(int(steps * strength), steps)` in Python.
        for (steps, strength, first) in [
            (20, 0.8, 4),
            (10, 0.7, 3),
            (10, 0.3, 7),
            (50, 0.58, 22),
            (100, 0.29, 72),
            (20, 1.0, 0),
            (3, 0.99, 1),
            (20, 0.04, 20),
        ] {
            assert_eq!(init(1, 1, strength).first_step(steps), first, "{steps} {strength}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |init: &InitImage| init.check(SamplingMethod::Dpm, 20);
        for strength in [0.05, 0.5, 1.0] {
            assert_eq!(check(&init(3, 3, strength)), Ok(()));
        }
        assert_eq!(check(&masked(3, 3, |x, _| x as u8 * 127)), Ok(()));
        let blurred = |blur| {
            let mut init = masked(3, 3, |_, _| 255);
            init.mask.as_mut().expect("a mask").blur = blur;
            init
        };
        let other = InitImage { mask: masked(3, 4, |_, _| 255).mask, ..init(4, 3, 0.5) };
        for (init, said) in [
            (init(3, 3, 0.0), "strength: found 0, expected"),
            (init(3, 3, 1.01), "strength: found 1.01, expected"),
            (init(3, 3, f64::NAN), "strength: found NaN, expected"),
            (init(3, 3, 0.04), "0.04 of 20 steps leaves none, expected at least 0.05"),
            (init(0, 3, 0.5), "init_image: found 0x3 pixels, expected"),
            (other, "mask: found 3x4 pixels, expected 4x3"),
            (masked(3, 3, |_, _| 127), "mask: found no white"),
            (blurred(-1.0), "mask_blur: found -1, expected"),
            (blurred(f32::NAN), "mask_blur: found NaN, expected"),
        ] {
            let message = check(&init).expect_err(said).to_string();
            assert!(message.contains(said), "{message}");
        }
        let message = init(3, 3, 1.0).check(SamplingMethod::Dmd, 1).expect_err("dmd").to_string();
        assert!(message.contains("dmd"), "{message}");
    }

    #[test]
    fn a_cell_is_drawn_anew_for_any_pixel_or_for_its_first() {
        let size = Size { width: 32, height: 16 };
        let plan = SizePlan { generated: size, requested: size };
        // The first pixel of one cell, the last of another.
        let init = masked(32, 16, |x, y| 255 * u8::from((x, y) == (8, 0) || (x, y) == (31, 15)));
        let cells = |reference| {
            init.latent_mask(&plan, reference).expect("a mask").into_raw_vec_and_offset().0
        };
        assert_eq!(cells(Reference::Mindone), [0., 1., 0., 0., 0., 0., 0., 1.]);
        assert_eq!(cells(Reference::Diffusers), [0., 1., 0., 0., 0., 0., 0., 0.]);
    }

    #[test]
    fn what_is_kept_comes_back_exactly() {
        let mut init = masked(20, 10, |x, _| [0, 51, 255][(x as usize / 2).min(2)]);
        init.image = Arc::new(RgbImage::from_fn(20, 10, |x, y| Rgb([x as u8, y as u8, 9])));
        let drawn = RgbImage::from_pixel(32, 16, Rgb([200; 3]));
        let size = Size { width: 20, height: 10 };
        let picture = init.finished(&drawn, size);
        for (x, y, pixel) in picture.enumerate_pixels() {
            let expected = match x {
                0..2 => [x as u8, y as u8, 9],
                2..4 => [x as u8, y as u8, 9]
                    .map(|old| ((200 * 51 + u32::from(old) * 204 + 127) / 255) as u8),
                _ => [200; 3],
            };
            assert_eq!(pixel.0, expected);
        }
        init.mask.as_mut().expect("a mask").paste_back = false;
        assert!(init.finished(&drawn, size).pixels().all(|pixel| pixel.0 == [200; 3]));
    }

    #[test]
    fn a_blurred_mask_has_a_soft_edge_in_its_place() {
        let mut init = masked(64, 8, |x, _| if x < 32 { 0 } else { 255 });
        init.mask.as_mut().expect("a mask").blur = 4.0;
        let blurred = init.blurred().mask.expect("a mask").image;
        let row: Vec<u8> = (0..64).map(|x| blurred.get_pixel(x, 4).0[0]).collect();
        assert!(row.is_sorted() && row[8] == 0 && row[56] == 255, "{row:?}");
        assert!(row[31] < 128 && row[32] >= 128 && row[28] > 20, "{row:?}");
    }
}
