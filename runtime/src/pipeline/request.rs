//! What can be asked for.

use std::{fmt, str::FromStr};

use super::InitImage;
use crate::{
    error::RequestError,
    noise::TorchGenerator,
    sampler::{EasyCache, GuidanceEnd, SamplingMethod, UncondMask},
    size::{Size, check_sides},
    text::PromptCleaning,
};

/// The implementation whose pictures are to be reproduced. They differ in small but visible ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reference {
    /// mindone, which agrees with the official code and with training: raw prompts, the positive
    /// prompt's mask for both halves, fractional times down to a little noise, pixel values
    /// cut off.
    #[default]
    Mindone,
    /// diffusers: prompts through its caption cleaner, a mask for each half, whole times down to no
    /// noise, pixel values rounded.
    Diffusers,
}

impl FromStr for Reference {
    type Err = RequestError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "mindone" => Ok(Self::Mindone),
            "diffusers" => Ok(Self::Diffusers),
            _ => Err(RequestError::UnknownReference(name.to_owned())),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mindone => "mindone",
            Self::Diffusers => "diffusers",
        })
    }
}

/// The size of one picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PictureSize {
    /// Pixels from left to right; the model's own size where not given.
    pub width: Option<u32>,
    /// Pixels from top to bottom; the model's own size where not given.
    pub height: Option<u32>,
    /// Height and width whose ratio picks the trained size to draw at, both above 0. It is the size
    /// of the picture too where neither side is given.
    pub aspect_ratio: Option<(u32, u32)>,
}

/// Where the noise of one picture comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoiseSeed {
    /// The seed.
    pub seed: u64,
    /// A second seed to go towards, if any.
    pub variation: Option<Variation>,
}

/// A step from one seed's noise towards another's: all that is drawn for a picture lies between what the two
/// draw, by spherical interpolation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variation {
    /// The other seed.
    pub seed: u64,
    /// How far to go, 0 (not at all) to 1 (the other seed's own noise, bit for bit).
    pub strength: f64,
}

impl NoiseSeed {
    /// A seed alone.
    pub fn new(seed: u64) -> Self {
        Self { seed, variation: None }
    }

    /// The generator.
    pub(super) fn generator(self) -> TorchGenerator {
        match self.variation {
            None => TorchGenerator::new(self.seed),
            Some(to) => TorchGenerator::between(self.seed, to.seed, to.strength),
        }
    }
}

/// The pictures wanted: one for each prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What to draw. An empty text is allowed; what does not fit into `max_length` tokens is cut off.
    pub prompts: Vec<String>,
    /// What to draw away from: none (the empty text for each) or one for each prompt.
    pub negative_prompts: Vec<String>,
    /// Pixels from left to right, 1 to 16384; the model's own size where not given.
    pub width: Option<u32>,
    /// Pixels from top to bottom, 1 to 16384; the model's own size where not given.
    pub height: Option<u32>,
    /// None, or one for each prompt, in place of `width` and `height`.
    pub sizes: Vec<PictureSize>,
    /// The solver.
    pub sampling_method: SamplingMethod,
    /// Steps of the solver, in its [range](SamplingMethod::steps).
    pub sampling_steps: usize,
    /// How much the prompt counts, a finite number. At 1 (diffusers: 1 or less) the negative prompt
    /// is not used and a step needs half the computation.
    pub guidance_scale: f32,
    /// After which step guidance stops. The steps after it need half the computation.
    pub guidance_end: GuidanceEnd,
    /// How far a guided prediction is pulled back to the deviation of the prompt's own, 0 (not) to 1.
    pub guidance_rescale: f32,
    /// Which tokens the unconditional half attends to; the reference's choice where not given.
    pub uncond_mask: Option<UncondMask>,
    /// Which steps may be carried over from those before instead of computed; none where not given. What a
    /// picture loses by it depends on the model.
    pub easycache: Option<EasyCache>,
    /// Seed of the first picture's noise; picture k has `seed` + k.
    pub seed: u64,
    /// None, or one for each prompt, in place of `seed`.
    pub noise_seeds: Vec<NoiseSeed>,
    /// A picture to begin from. It gives the sides that are not given: both, or one by its sides' ratio.
    pub init: Option<InitImage>,
    /// The implementation to follow.
    pub reference: Reference,
    /// What is done to prompts; what the reference does where not given.
    pub cleaning: Option<PromptCleaning>,
    /// Whether to generate at the trained size of the nearest aspect ratio and resize to the size
    /// asked for. Otherwise both sides have to be multiples of 16.
    pub use_resolution_binning: bool,
    /// The most tokens of a prompt, end of sequence included, 1 to 4096. PixArt-Σ was trained
    /// with 300.
    pub max_length: usize,
}

impl Default for Request {
    /// No prompts yet, and the settings of the released inference configs.
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            negative_prompts: Vec::new(),
            width: None,
            height: None,
            sizes: Vec::new(),
            sampling_method: SamplingMethod::default(),
            sampling_steps: SamplingMethod::default().default_steps(),
            guidance_scale: SamplingMethod::default().default_guidance_scale(),
            guidance_end: GuidanceEnd::default(),
            guidance_rescale: 0.0,
            uncond_mask: None,
            easycache: None,
            seed: 42,
            noise_seeds: Vec::new(),
            init: None,
            reference: Reference::default(),
            cleaning: None,
            use_resolution_binning: true,
            max_length: 300,
        }
    }
}

impl Request {
    /// Checks all that can be checked before a model is there; [`Pipeline::sample`] does it too.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    ///
    /// [`Pipeline::sample`]: super::Pipeline::sample
    pub fn check(&self) -> Result<(), RequestError> {
        let prompts = self.prompts.len();
        if prompts == 0 {
            return Err(RequestError::NoPrompts);
        }
        let found = self.negative_prompts.len();
        if found != 0 && found != prompts {
            return Err(RequestError::NegativePrompts { found, prompts });
        }
        let found = self.sizes.len();
        if found != 0 && found != prompts {
            return Err(RequestError::Sizes { found, prompts });
        }
        let found = self.noise_seeds.len();
        if found != 0 && found != prompts {
            return Err(RequestError::NoiseSeeds { found, prompts });
        }
        let range = |field, accepted: bool, found: &dyn fmt::Display, expected| match accepted {
            true => Ok(()),
            false => Err(RequestError::OutOfRange { field, found: found.to_string(), expected }),
        };
        let (method, steps) = (self.sampling_method, self.sampling_steps);
        let accepted = method.steps();
        if !accepted.contains(&steps) {
            return Err(RequestError::Steps { method, found: steps, accepted });
        }
        let scale = &self.guidance_scale;
        range("guidance_scale", scale.is_finite(), scale, "a finite number")?;
        match &self.guidance_end {
            GuidanceEnd::Fraction(part) => {
                range("guidance_end", (0.0..=1.0).contains(part), part, "0 to 1")?;
            }
            GuidanceEnd::Step(step) => {
                let expected = "0 to sampling_steps";
                range("guidance_last_step", *step <= steps, step, expected)?;
            }
        }
        let rescale = &self.guidance_rescale;
        range("guidance_rescale", (0.0..=1.0).contains(rescale), rescale, "0 to 1")?;
        if let Some(EasyCache { threshold, start, end }) = &self.easycache {
            let accepted = threshold.is_finite() && *threshold >= 0.0;
            range("easycache", accepted, threshold, "a finite number, 0 or more")?;
            range("easycache_start", (0.0..=1.0).contains(start), start, "0 to 1")?;
            let accepted = (*start..=1.0).contains(end);
            range("easycache_end", accepted, end, "easycache_start to 1")?;
        }
        if self.guided() && !method.takes_guidance() {
            return Err(RequestError::Guided { method, found: self.guidance_scale });
        }
        for Variation { strength, .. } in self.noise_seeds.iter().filter_map(|s| s.variation) {
            let accepted = (0.0..=1.0).contains(&strength);
            range("variation_strength", accepted, &strength, "0 to 1")?;
        }
        if let Some(init) = &self.init {
            init.check(method, steps)?;
        }
        let length = &self.max_length;
        range("max_length", (1..=4096).contains(length), length, "1 to 4096")?;
        for (k, size) in (0..prompts).map(|k| (k, self.size(k))) {
            if size.aspect_ratio.is_some() && !self.use_resolution_binning {
                return Err(RequestError::RatioWithoutBins);
            }
            let checked = check_sides(size.width, size.height, self.use_resolution_binning);
            checked.map_err(|source| match (&self.init, self.given_size(k)) {
                (Some(init), PictureSize { width: None, height: None, .. }) => {
                    let Size { width, height } = init.size();
                    RequestError::InitSize { width, height, source }
                }
                _ => source.into(),
            })?;
        }
        Ok(())
    }

    /// The same for these of the pictures, each with the noise it has here.
    pub fn part(&self, pictures: impl Iterator<Item = usize> + Clone) -> Self {
        fn those<T: Clone>(list: &[T], pictures: impl Iterator<Item = usize>) -> Vec<T> {
            pictures.filter_map(|k| list.get(k).cloned()).collect()
        }
        Self {
            prompts: those(&self.prompts, pictures.clone()),
            negative_prompts: those(&self.negative_prompts, pictures.clone()),
            sizes: those(&self.sizes, pictures.clone()),
            noise_seeds: pictures.map(|k| self.noise_seed(k)).collect(),
            ..self.clone()
        }
    }

    /// The size of picture `k`.
    pub(super) fn size(&self, k: usize) -> PictureSize {
        let mut size = self.given_size(k);
        if let (Some(init), None) = (&self.init, size.aspect_ratio) {
            let own = init.size();
            // The other side by the ratio, rounded; what is too long is refused like any other side.
            let other = |side: u32, a: u32, b: u32| {
                let exact = (u64::from(side) * u64::from(a) + u64::from(b) / 2) / u64::from(b);
                u32::try_from(exact.max(1)).unwrap_or(u32::MAX)
            };
            (size.width, size.height) = match (size.width, size.height) {
                (None, None) => (Some(own.width), Some(own.height)),
                (Some(width), None) => (Some(width), Some(other(width, own.height, own.width))),
                (None, Some(height)) => (Some(other(height, own.width, own.height)), Some(height)),
                both => both,
            };
        }
        size
    }

    /// The size of picture `k` as far as it is given.
    fn given_size(&self, k: usize) -> PictureSize {
        let all = PictureSize { width: self.width, height: self.height, aspect_ratio: None };
        self.sizes.get(k).copied().unwrap_or(all)
    }

    /// Where the noise of picture `k` comes from.
    pub fn noise_seed(&self, k: usize) -> NoiseSeed {
        let own = NoiseSeed::new(self.seed.wrapping_add(k as u64));
        self.noise_seeds.get(k).copied().unwrap_or(own)
    }

    /// The first step that is taken; those before it are left out with a picture to begin from.
    pub(super) fn first_step(&self) -> usize {
        self.init.as_ref().map_or(0, |init| init.first_step(self.sampling_steps))
    }

    /// How many steps each picture takes: all, but for a picture to begin from.
    pub fn steps_taken(&self) -> usize {
        self.sampling_steps - self.first_step()
    }

    /// What is done to the prompts.
    pub fn prompt_cleaning(&self) -> PromptCleaning {
        self.cleaning.unwrap_or(PromptCleaning::of(self.reference))
    }

    /// Whether any step is guided, so that negative prompts are needed.
    pub(super) fn guided(&self) -> bool {
        self.guided_steps() > 0
    }

    /// How many steps, from the first on, compute the unconditional half.
    pub(super) fn guided_steps(&self) -> usize {
        let guided = match self.reference {
            Reference::Mindone => self.guidance_scale != 1.0,
            Reference::Diffusers => self.guidance_scale > 1.0,
        };
        if guided { self.guidance_end.guided_steps(self.sampling_steps) } else { 0 }
    }

    /// Which tokens the unconditional half attends to.
    pub(crate) fn uncond_mask(&self) -> UncondMask {
        self.uncond_mask.unwrap_or_else(|| UncondMask::of(self.reference))
    }

    /// The negative prompt of picture `k`.
    pub(crate) fn negative_prompt(&self, k: usize) -> Option<&str> {
        self.guided().then(|| self.negative_prompts.get(k).map_or("", String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_checked() {
        let good = Request { prompts: vec![String::new()], ..Default::default() };
        assert_eq!(good.check(), Ok(()));
        let cache = EasyCache::default();
        let cached = |easycache| Request { easycache: Some(easycache), ..good.clone() };
        assert_eq!(cached(EasyCache { threshold: 0.0, start: 0.0, end: 1.0 }).check(), Ok(()));
        let bad = [
            (Request::default(), "prompts"),
            (Request { negative_prompts: vec![String::new(); 2], ..good.clone() }, "negative"),
            (Request { sampling_steps: 1, ..good.clone() }, "sampling_steps"),
            (Request { sampling_steps: 1001, ..good.clone() }, "sampling_steps"),
            (Request { guidance_scale: f32::NAN, ..good.clone() }, "guidance_scale"),
            (Request { max_length: 0, ..good.clone() }, "max_length"),
            (Request { guidance_rescale: 1.5, ..good.clone() }, "guidance_rescale"),
            (Request { guidance_rescale: f32::NAN, ..good.clone() }, "guidance_rescale"),
            (Request { guidance_end: GuidanceEnd::Fraction(-0.1), ..good.clone() }, "guidance_end"),
            (Request { guidance_end: GuidanceEnd::Step(21), ..good.clone() }, "guidance_last_step"),
            (cached(EasyCache { threshold: -0.1, ..cache }), "easycache:"),
            (cached(EasyCache { threshold: f64::INFINITY, ..cache }), "easycache:"),
            (cached(EasyCache { threshold: f64::NAN, ..cache }), "easycache:"),
            (cached(EasyCache { start: 1.5, ..cache }), "easycache_start"),
            (cached(EasyCache { end: 1.5, ..cache }), "easycache_end"),
            (cached(EasyCache { start: 0.5, end: 0.4, ..cache }), "easycache_end"),
        ];
        for (request, field) in bad {
            let message = request.check().expect_err(field).to_string();
            assert!(message.contains(field) && message.contains("expected"), "{message}");
        }
    }

    #[test]
    fn every_solver_has_its_own_range_of_steps() {
        let request = |sampling_method: SamplingMethod, sampling_steps| Request {
            prompts: vec![String::new()],
            guidance_scale: sampling_method.default_guidance_scale(),
            sampling_method,
            sampling_steps,
            ..Default::default()
        };
        for method in SamplingMethod::ALL {
            let (least, most) = (*method.steps().start(), *method.steps().end());
            for steps in [least, method.default_steps(), most] {
                assert_eq!(request(method, steps).check(), Ok(()));
            }
            for steps in [least - 1, most + 1] {
                let message = request(method, steps).check().expect_err("no range").to_string();
                assert!(message.contains("sampling_steps") && message.contains(method.name()));
            }
        }
    }

    #[test]
    fn distilled_models_are_not_guided() {
        for method in [SamplingMethod::Lcm, SamplingMethod::Dmd] {
            let request = |guidance_scale, reference| Request {
                prompts: vec![String::new()],
                sampling_method: method,
                sampling_steps: 1,
                guidance_scale,
                reference,
                ..Default::default()
            };
            let guided = request(4.5, Reference::Mindone).check().expect_err("guided").to_string();
            assert!(guided.contains("guidance_scale: found 4.5, expected 1"), "{guided}");
            assert_eq!(request(1.0, Reference::Mindone).check(), Ok(()));
            assert_eq!(request(0.0, Reference::Diffusers).check(), Ok(()));
        }
    }

    #[test]
    fn the_references_switch_guidance_off_at_different_scales() {
        let request =
            |reference, guidance_scale| Request { reference, guidance_scale, ..Default::default() };
        for (scale, mindone, diffusers) in
            [(4.5, true, true), (1.0, false, false), (0.5, true, false)]
        {
            assert_eq!(request(Reference::Mindone, scale).guided(), mindone);
            assert_eq!(request(Reference::Diffusers, scale).guided(), diffusers);
        }
    }
}
