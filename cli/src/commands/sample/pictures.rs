//! The settings of pictures to begin from, of variations and of rows between two seeds.

use super::settings::{Settings, drawn};
use crate::exit::Failure;
use pixart_runtime::image::{ReadImageError, read_mask, read_picture};
use pixart_runtime::pipeline::{InitImage, Mask, NoiseSeed, Request, Variation};
use std::path::Path;
use std::sync::Arc;

/// Which seeds a run draws from.
enum Seeds {
    /// Picture k of seed + k.
    Plain,
    /// All of one seed, each a step towards another seed: picture k towards this one + k.
    Variations(i128, f64),
    /// This many of each prompt, on the way from one seed to this one.
    Row(i128, usize),
}

impl Settings {
    /// Pictures of each prompt in a row between two seeds, if such rows are asked for.
    pub fn row(&self) -> Result<Option<usize>, Failure> {
        Ok(match self.seeds()? {
            Seeds::Row(_, steps) => Some(steps),
            _ => None,
        })
    }

    /// Puts variations or a row between two seeds into `request`, whose prompts and seed are there.
    pub fn apply_seeds(&self, request: &mut Request) -> Result<(), Failure> {
        let (from, count) = (request.seed, request.prompts.len());
        request.noise_seeds = match self.seeds()? {
            Seeds::Plain => Vec::new(),
            Seeds::Variations(seed, strength) => {
                let first = drawn("variation_seed", seed)?;
                if seed == -1 {
                    eprintln!("variation_seed: drew {first}");
                }
                let towards = |k: usize| first.wrapping_add(k as u64);
                (0..count).map(|k| between(from, towards(k), strength)).collect()
            }
            Seeds::Row(seed, steps) => {
                let to = drawn("interpolate_to", seed)?;
                if seed == -1 {
                    eprintln!("interpolate_to: drew {to}");
                }
                let part = |k: usize| (k % steps) as f64 / (steps - 1) as f64;
                (0..count).map(|k| between(from, to, part(k))).collect()
            }
        };
        Ok(())
    }

    fn seeds(&self) -> Result<Seeds, Failure> {
        let both = |a: &str, b: &str| {
            Failure::request(format!("{a}: found it without {b}, expected both; give {b} too"))
        };
        let variation = match (self.variation_seed, self.variation_strength) {
            (Some(seed), Some(strength)) => Some(Seeds::Variations(seed, strength)),
            (None, None) => None,
            (Some(_), None) => return Err(both("variation_seed", "variation_strength")),
            (None, Some(_)) => return Err(both("variation_strength", "variation_seed")),
        };
        let row = match (self.interpolate_to, self.interpolate_steps) {
            (Some(_), Some(steps)) if steps < 2 => {
                return Err(Failure::request(format!(
                    "interpolate_steps: found {steps}, expected 2 or more, the pictures of both seeds \
                     included"
                )));
            }
            (Some(seed), Some(steps)) => Some(Seeds::Row(seed, steps)),
            (None, None) => None,
            (Some(_), None) => return Err(both("interpolate_to", "interpolate_steps")),
            (None, Some(_)) => return Err(both("interpolate_steps", "interpolate_to")),
        };
        if row.is_some() && self.num_trials.is_some() {
            return Err(Failure::request(
                "interpolate_steps and num_trials: found both, expected one of them: both say how many \
                 pictures a prompt has",
            ));
        }
        match (variation, row) {
            (Some(_), Some(_)) => Err(Failure::request(
                "variation_seed and interpolate_to: found both, expected one of them: both say which \
                 seed the noise goes towards",
            )),
            (variation, row) => Ok(variation.or(row).unwrap_or(Seeds::Plain)),
        }
    }

    /// Reads the picture to begin from and its mask into `request`.
    pub fn read_pictures(&self, request: &mut Request) -> Result<(), Failure> {
        let Some(path) = &self.init_image else {
            for (name, given) in [
                ("strength", self.strength.is_some()),
                ("mask", self.mask.is_some()),
                ("mask_blur", self.mask_blur.is_some()),
                ("paste_back", self.paste_back.is_some()),
            ] {
                if given {
                    return Err(Failure::request(format!(
                        "{name}: found it without init_image, the picture it is about; give \
                         --init_image FILE too"
                    )));
                }
            }
            return Ok(());
        };
        if self.mask.is_none() {
            for (name, given) in
                [("mask_blur", self.mask_blur.is_some()), ("paste_back", self.paste_back.is_some())]
            {
                if given {
                    return Err(Failure::request(format!(
                        "{name}: found it without mask; give --mask FILE too"
                    )));
                }
            }
        }
        let image = Arc::new(named("init_image", path, read_picture)?);
        let mask = match &self.mask {
            Some(path) => Some(Mask {
                image: Arc::new(named("mask", path, read_mask)?),
                blur: self.mask_blur.unwrap_or(0.0),
                paste_back: self.paste_back.unwrap_or(true),
            }),
            None => None,
        };
        // Those of diffusers' pipelines.
        let default = if mask.is_some() { 1.0 } else { 0.8 };
        let strength = self.strength.unwrap_or(default);
        request.init = Some(InitImage { image, strength, mask });
        request.check().map_err(Failure::request)
    }
}

fn between(from: u64, seed: u64, strength: f64) -> NoiseSeed {
    NoiseSeed { seed: from, variation: Some(Variation { seed, strength }) }
}

fn named<T>(
    setting: &str,
    path: &Path,
    read: impl Fn(&Path) -> Result<T, ReadImageError>,
) -> Result<T, Failure> {
    read(path).map_err(|error| Failure::request(format!("{setting}: {error}")))
}
