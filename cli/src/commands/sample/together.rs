//! One request drawn by several processes: each draws whole batches of it, under the names that they have in one
//! process, and the first one tells of all.

use super::devices::named;
use super::output::{Made, Named, Output};
use super::prompts::texts;
use super::settings::{Settings, drawn};
use crate::config;
use crate::exit::Failure;
use crate::progress::note;
use crate::ranks;
use pixart_runtime::files::hex;
use pixart_runtime::image::RgbImage;
use pixart_runtime::pipeline::{Picture, Pipeline, Request};
use pixart_runtime::vae::tiles::TilingMode;
use pixart_trainer::ranks::Ranks;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// This process among those that draw.
pub struct Together<'a> {
    ranks: &'a Arc<Ranks>,
}

/// What a process has made when it is done.
#[derive(Serialize, Deserialize)]
struct Done {
    cancelled: bool,
    /// Steps that were carried over from others.
    reused: usize,
    made: Vec<Made>,
}

impl<'a> Together<'a> {
    /// Gives `settings` the device, the threads and the seeds of one of several processes, which must have been told
    /// the same.
    pub fn join(ranks: &'a Arc<Ranks>, settings: &mut Settings) -> Result<Self, Failure> {
        if settings.preview.is_some() {
            return Err(Failure::request(
                "preview: it is for one process; leave it or use_parallel out",
            ));
        }
        let threads = settings.threads()?;
        let given = config::given(settings).map_err(anyhow::Error::from)?;
        ranks::compare(ranks, &ranks::told(given)?)?;
        settings.share(ranks)?;
        settings.threads = ranks::threads(Some(ranks), threads)?;
        settings.take_device(ranks)?;
        Ok(Self { ranks })
    }

    /// Its number, for messages.
    pub fn name(&self) -> String {
        ranks::name(self.ranks)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.ranks.place().world
    }

    /// Does `work` in the first process, then in the others.
    pub fn in_turn<T>(&self, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        ranks::in_turn(Some(self.ranks), work)
    }

    /// Refuses processes that would draw other pictures: from other prompts, with another model or engine.
    pub fn compare(&self, request: &Request, facts: &Value, engine: String) -> Result<(), Failure> {
        let Request { prompts, negative_prompts, sizes, noise_seeds, .. } = request;
        let prompts = format!("{:?}", (prompts, negative_prompts, sizes, noise_seeds));
        let hash = hex(&Sha256::digest(prompts)[..8]);
        let mut told = BTreeMap::from([
            ("prompts".to_owned(), format!("those of the hash {hash}")),
            ("engine".to_owned(), engine),
            ("loras".to_owned(), facts["loras"].to_string()),
        ]);
        for part in ["model", "inputs"] {
            let parts = facts[part].as_object().into_iter().flatten();
            told.extend(parts.map(|(name, facts)| (name.clone(), facts.to_string())));
        }
        ranks::compare(self.ranks, &told)
    }

    /// The pictures of this process; `output` is told the names of all.
    pub fn share(
        &self,
        pipeline: &Pipeline,
        request: &Request,
        model: &str,
        output: &mut Output,
    ) -> Result<Range<usize>, Failure> {
        let (sizes, batches) = (pipeline.picture_sizes(request)?, pipeline.batches(request)?);
        let names: Vec<Named> =
            ranks::of_first(self.ranks, || output.names(request, &sizes, model))?;
        let place = self.ranks.place();
        let of = |rank| own(&batches, rank, place.world);
        output.expect(names, self.ranks.is_first().then(|| (1..place.world).map(of).collect()));
        Ok(of(place.rank))
    }

    /// What is done when all have drawn: the first process writes what is of the run as a whole. Gives how many
    /// pictures there are in all, how many of their steps were carried over from others, and whether any process was
    /// told to end.
    pub fn finish(
        &self,
        pictures: &[Picture],
        request: &Request,
        output: &mut Output,
        cancelled: bool,
    ) -> Result<(usize, usize, bool), Failure> {
        let reused = pictures.iter().map(|picture| picture.reused_steps).sum();
        let own = Done { cancelled, reused, made: output.made(pictures) };
        let all = ranks::of_all(self.ranks, &own)?;
        let cancelled = all.iter().any(|done| done.cancelled);
        let reused = all.iter().map(|done| done.reused).sum();
        let made: Vec<(usize, Made)> = (0..).zip(all).flat_map(from_each).collect();
        let count = made.len();
        if output.wants_pictures() {
            if count < request.prompts.len() {
                note("ended early, so no grids and no latents are written");
            } else {
                let pictures = self.collect(pictures, &made, request)?;
                if self.ranks.is_first() {
                    output.finish(&pictures)?;
                }
            }
        }
        if self.ranks.is_first() {
            output.conclude(made.into_iter().map(|(_, made)| made).collect(), request)?;
        }
        Ok((count, reused, cancelled))
    }

    /// The pictures of all, for the first process.
    fn collect(
        &self,
        own: &[Picture],
        made: &[(usize, Made)],
        request: &Request,
    ) -> Result<Vec<Picture>, Failure> {
        let place = self.ranks.place();
        let mut own = own.iter();
        let mut pictures = Vec::new();
        for (from, made) in made {
            let mine = if *from == place.rank { own.next() } else { None };
            let (pixels, latents) = mine.map_or((Vec::new(), Vec::new()), |picture| {
                let latents = picture.latents.iter().flat_map(|value| value.to_le_bytes());
                (picture.image.as_raw().clone(), latents.collect())
            });
            let count = size_of::<f32>() * made.latents.iter().product::<usize>();
            let [width, height] = made.size;
            let give = |bytes, count| self.ranks.to_first(bytes, *from, count).wait();
            let pixels = give(pixels, 3 * width as usize * height as usize)?;
            let latents = give(latents, count)?;
            if !self.ranks.is_first() {
                continue;
            }
            let wrong =
                || anyhow::anyhow!("rank {from} gave a picture of another size than it said");
            let latents = latents.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
            let latents = ndarray::ArrayD::from_shape_vec(&made.latents[..], latents.collect());
            pictures.push(Picture {
                image: RgbImage::from_raw(width, height, pixels).ok_or_else(wrong)?,
                latents: latents.map_err(|_| wrong())?,
                seed: request.noise_seed(made.index).seed,
                prompt: request.prompts[made.index].clone(),
                // Nobody asks a picture of a grid.
                vae_tiling: TilingMode::Off,
                reused_steps: 0,
            });
        }
        Ok(pictures)
    }
}

fn from_each((rank, done): (usize, Done)) -> impl Iterator<Item = (usize, Made)> {
    done.made.into_iter().map(move |made| (rank, made))
}

/// The pictures of one of several processes: neighbouring batches, as many as the others have or one less.
fn own(batches: &[Range<usize>], rank: usize, world: usize) -> Range<usize> {
    // The first one, which tells how it goes, always has some.
    let at = |rank: usize| (batches.len() * rank).div_ceil(world);
    match &batches[at(rank)..at(rank + 1)] {
        [] => 0..0,
        [first, ..] => first.start..batches[at(rank + 1) - 1].end,
    }
}

impl Settings {
    /// Whether processes share the request out: where devices are named, one process does.
    pub fn use_parallel(&self) -> Result<Option<bool>, Failure> {
        if self.devices.is_empty() || self.use_parallel != Some(true) {
            return Ok(self.use_parallel);
        }
        match ranks::launched() {
            2.. => Err(Failure::request(
                "devices: found it in one of several processes, each of which has one device, that of its number; name \
                 only the kind, as --device cuda",
            )),
            _ => Ok(None),
        }
    }

    /// Takes from the first process what only one has: what comes from stdin, and seeds that are drawn.
    fn share(&mut self, ranks: &Ranks) -> Result<(), Failure> {
        if self.prompt_path.as_deref().is_some_and(|path| path.as_os_str() == "-") {
            self.prompt = ranks::of_first(ranks, || texts(self))?;
            self.prompt_path = None;
        }
        for (name, tells, seed) in [
            ("seed", false, &mut self.seed),
            ("variation_seed", true, &mut self.variation_seed),
            ("interpolate_to", true, &mut self.interpolate_to),
        ] {
            if *seed == Some(-1) {
                let one = ranks::of_first(ranks, || drawn(name, -1))?;
                if tells {
                    note(format_args!("{name}: drew {one}"));
                }
                *seed = Some(one.into());
            }
        }
        Ok(())
    }

    /// Takes the devices of this process's number on its machine.
    fn take_device(&mut self, ranks: &Ranks) -> Result<(), Failure> {
        let main = self.main_device()?;
        if !main.provider.is_processor() {
            self.device = Some(ranks::device(ranks, main).to_string());
        }
        for (name, part) in [
            ("text_encoder_device", &mut self.text_encoder_device),
            ("vae_device", &mut self.vae_device),
        ] {
            if let Some(device) = part {
                *device = ranks::device(ranks, named(name, device)?).to_string();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_stay_whole_and_every_picture_is_drawn_once() {
        let batches = [0..3, 3..4, 4..7, 7..9, 9..10];
        for world in 1..8 {
            let shares: Vec<Range<usize>> =
                (0..world).map(|rank| own(&batches, rank, world)).collect();
            assert!(!shares[0].is_empty(), "{world}");
            let drawn: Vec<usize> = shares.iter().cloned().flatten().collect();
            assert_eq!(drawn, (0..10).collect::<Vec<_>>(), "{world}");
            for share in shares.iter().filter(|share| !share.is_empty()) {
                assert!(batches.iter().any(|batch| batch.start == share.start), "{share:?}");
                assert!(batches.iter().any(|batch| batch.end == share.end), "{share:?}");
            }
            let counts = |rank: usize| {
                let of = batches.iter().filter(|batch| shares[rank].contains(&batch.start));
                of.count()
            };
            let (least, most) =
                ((0..world).map(counts).min().unwrap(), (0..world).map(counts).max().unwrap());
            assert!(most - least <= 1, "{world}: {least} to {most} batches");
        }
    }
}
