//! Pictures that keep a model from forgetting what it can draw: read from a folder, and drawn into it where
//! they are missing.

use super::looking;
use super::options::wrong;
use super::settings::{PriorSettings, Settings};
use super::watch;
use crate::commands::dataset::settings as data;
use crate::exit::Failure;
use crate::progress::{Progress, Unit, note};
use pixart_runtime::engine::Engine;
use pixart_runtime::image::{Metadata, SaveOptions, save_new_image};
use pixart_runtime::pipeline::{Event, Request};
use pixart_trainer::data::{Captions, Columns, Dataset, Labels, Source};
use pixart_trainer::run::{PriorOptions, PriorPictures, StartingPoint, Untrained};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Prior pictures, as they are asked for.
pub struct Prior {
    folder: PathBuf,
    prompt: String,
    weight: f64,
    wanted: usize,
}

impl PriorSettings {
    /// What is asked for, if anything is.
    pub fn prior(&self, settings: &Settings) -> Result<Option<Prior>, Failure> {
        let Some(folder) = &self.prior_image_dir else {
            let others = [
                ("prior_prompt", self.prior_prompt.is_some()),
                ("prior_loss_weight", self.prior_loss_weight.is_some()),
                ("num_prior_images", self.num_prior_images.is_some()),
            ];
            return match others.into_iter().find(|(_, given)| *given) {
                None => Ok(None),
                Some((name, _)) => Err(Failure::request(format!(
                    "{name}: found it without prior_image_dir; name the folder of prior pictures with \
                     --prior_image_dir, or leave it out"
                ))),
            };
        };
        let Some(prompt) = self.prior_prompt.clone() else {
            return Err(Failure::request(
                "prior_prompt: nothing given; say what the pictures of prior_image_dir show with --prior_prompt",
            ));
        };
        if settings.data.multi_scale.unwrap_or(false) {
            return Err(wrong(
                "multi_scale",
                true,
                "false with prior_image_dir: a batch has pictures of both kinds, which have to be of one size",
            ));
        }
        if settings.encoders.cache_dir.is_some() {
            return Err(Failure::request(
                "cache_dir: found it with prior_image_dir, whose pictures no cache has; leave one of them out",
            ));
        }
        let weight = self.prior_loss_weight.unwrap_or(1.0);
        if !(weight.is_finite() && weight >= 0.0) {
            return Err(wrong("prior_loss_weight", weight, "a finite number, at least 0"));
        }
        let wanted = self.num_prior_images.unwrap_or(0);
        if wanted == 0 && !folder.is_dir() {
            return Err(wrong(
                "prior_image_dir",
                format!("no folder {}", folder.display()),
                "one of pictures; --num_prior_images draws them",
            ));
        }
        Ok(Some(Prior { folder: folder.clone(), prompt, weight, wanted }))
    }
}

impl Prior {
    /// The pictures of the folder, all with the prompt.
    fn labels(&self) -> Result<Labels, Failure> {
        let mut labels = Labels::read(&Source::Folder, &Columns::default(), &self.folder)?;
        for record in &mut labels.records {
            record.captions = Captions::new(Some(self.prompt.clone()), None);
        }
        Ok(labels)
    }

    /// How many pictures the folder has.
    fn count(&self) -> Result<usize, Failure> {
        match self.folder.is_dir() {
            true => Ok(self.labels()?.records.len()),
            false => Ok(0),
        }
    }

    /// Whether a training that goes on can take the same pictures as before: its model is not the one any more that
    /// could draw others. `began` is what it began with, if that is known.
    pub fn check_began(&self, began: Option<&PriorPictures>) -> Result<(), Failure> {
        let (there, which, back) = match began {
            Some(PriorPictures { names, prompt }) => {
                if self.prompt.trim() != prompt {
                    let expected = format!("\"{prompt}\", with which the training began");
                    return Err(wrong("prior_prompt", format!("\"{}\"", self.prompt), &expected));
                }
                (names.len(), "that it began with".to_owned(), "")
            }
            None => {
                let back = "; put those back that it began with";
                (self.count()?, format!("of {}", shown(&self.folder)), back)
            }
        };
        if there >= self.wanted {
            return Ok(());
        }
        let expected = format!(
            "at most the {there} {which}, because a training that goes on draws none: its model has changed since{back}"
        );
        Err(wrong("num_prior_images", self.wanted, &expected))
    }

    /// Draws what the folder lacks, with the model as it is before training.
    pub fn draw(
        &self,
        settings: &Settings,
        engine: &Arc<dyn Engine>,
        start: &StartingPoint,
    ) -> Result<(), Failure> {
        let there = self.count()?;
        if there >= self.wanted {
            return Ok(());
        }
        let missing = self.wanted - there;
        let base = settings.validation.sampling()?;
        let request = Request {
            prompts: vec![self.prompt.clone(); missing],
            // Other noise than that of the pictures that are there.
            seed: settings.run.seed() + there as u64,
            ..base
        };
        let mut validation = watch::validation(settings, engine, &start.config, request, None)?;
        let mut model = Untrained::new(engine.as_ref(), start)?;
        std::fs::create_dir_all(&self.folder)?;
        let mut bar = Progress::start("prior pictures", 0, Unit::Count("step"));
        let mut unwritten = None;
        let drawn = validation.draw(&mut model.lend(), &mut |event| match event {
            Event::Step { index, total } => bar.update(index as u64, total as u64),
            Event::Picture { picture, .. } if unwritten.is_none() => {
                unwritten = self.write(&picture.image, picture.seed).err();
            }
            _ => {}
        });
        bar.finish();
        drawn?;
        unwritten.map_or(Ok(()), Err)?;
        eprintln!("drew {missing} prior pictures, {}", self.folder.display());
        Ok(())
    }

    /// Writes a picture under the first free name.
    fn write(&self, image: &image::RgbImage, seed: u64) -> Result<(), Failure> {
        let parameters = format!("{}\nSeed: {seed}", self.prompt);
        let metadata = Metadata { parameters, ..Metadata::default() };
        let options = SaveOptions { metadata: Some(&metadata), ..SaveOptions::default() };
        for k in seed.. {
            let path = self.folder.join(format!("prior_{k:06}.png"));
            if save_new_image(&path, image, &options)? {
                break;
            }
        }
        Ok(())
    }

    /// The data set of the encoder: the pictures that are learnt, and these behind them; of a training that goes on,
    /// those that it began with.
    pub fn join(
        &self,
        settings: &data::Settings,
        own: &Dataset,
        began: Option<&PriorPictures>,
    ) -> Result<(Dataset, Option<PriorOptions>), Failure> {
        let options = settings.data(true)?;
        let mut labels = self.labels()?;
        if let Some(began) = began {
            let all = labels.records.len();
            let names: HashSet<&str> = began.names.iter().map(String::as_str).collect();
            labels.records.retain(|record| names.contains(&*record.path.to_string_lossy()));
            let others = all - labels.records.len();
            if others > 0 {
                let folder = shown(&self.folder);
                note(format_args!(
                    "{others} pictures of {folder} are passed over: the training began without them"
                ));
            }
        }
        let prior = looking("prior pictures", |progress| {
            Dataset::open(labels, &self.folder, &options, progress)
        });
        if let Some(began) = began {
            self.check_complete(&prior, began)?;
        }
        let both = own.and(&prior);
        let items = own.items().len()..both.items().len();
        if items.is_empty() {
            return Err(wrong(
                "prior_image_dir",
                format!("no usable picture in {}", shown(&self.folder)),
                "at least one; --num_prior_images draws them",
            ));
        }
        if let [first, ..] = prior.left_out() {
            note(format_args!(
                "{} of {} prior pictures are not trained on ({}: {})",
                prior.left_out().len(),
                items.len() + prior.left_out().len(),
                shown(&first.path),
                first.reason
            ));
        }
        let (weight, fingerprint) = (self.weight, prior.fingerprint());
        let names = prior.items().iter().map(|item| item.path.to_string_lossy().into_owned());
        let prompt = self.prompt.trim().to_owned();
        let pictures = PriorPictures { names: names.collect(), prompt };
        Ok((both, Some(PriorOptions { items, weight, fingerprint, pictures })))
    }

    /// Whether all that a training began with can still be used.
    fn check_complete(&self, prior: &Dataset, began: &PriorPictures) -> Result<(), Failure> {
        let there: HashSet<_> =
            prior.items().iter().map(|item| item.path.to_string_lossy()).collect();
        let gone: Vec<&String> =
            began.names.iter().filter(|name| !there.contains(name.as_str())).collect();
        let [first, others @ ..] = &gone[..] else { return Ok(()) };
        let reason = prior.left_out().iter().find(|it| it.path.to_string_lossy() == first.as_str());
        let reason = reason.map_or("it is not there".to_owned(), |it| it.reason.to_string());
        let more = match others.len() {
            0 => String::new(),
            count => format!(", and {count} more"),
        };
        let (of, folder) = (began.names.len(), shown(&self.folder));
        Err(wrong(
            "prior_image_dir",
            format!(
                "{} of the {of} pictures in {folder} that the training began with",
                there.len()
            ),
            &format!("all; put back {first} ({reason}){more}"),
        ))
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
