//! Where the pictures go: files that never replace an existing one.

mod shared;

use super::files::Files;
use super::name::{NameParts, Template};
use super::record::Record;
use super::{listing::Listing, settings::Settings};
use crate::exit::{Failure, print_line};
use anyhow::Context;
use pixart_runtime::image::{ImageFormat, RgbImage, SaveOptions, grid, save_new_image};
use pixart_runtime::pipeline::{Picture, Request};
use pixart_runtime::size::Size;
use pixart_runtime::vae::write_latents;
use shared::Shared;
pub use shared::{Made, Named};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The files of one run.
pub struct Output {
    files: Files,
    latents: Option<PathBuf>,
    listing: Listing,
    /// How many pictures a grid holds in a column and in all, if grids are wanted.
    grid: Option<(usize, usize)>,
    number: usize,
    started: SystemTime,
    written: Vec<PathBuf>,
    /// Where several processes make the pictures.
    shared: Option<Shared>,
}

impl Output {
    /// Makes the folder and finds out that files can be written there before the long work starts.
    pub fn prepare(settings: &Settings) -> Result<Self, Failure> {
        let files = settings.files()?;
        let (trials, batch) = (settings.trials()?, settings.batch_size()?);
        let (folder, shown) = (&files.folder, files.folder.display());
        std::fs::create_dir_all(folder)
            .with_context(|| format!("output_path: cannot make the folder {shown}"))?;
        tempfile::tempfile_in(folder)
            .with_context(|| format!("output_path: cannot write into {shown}"))?;
        if let Some(file) = &settings.save_latents {
            let parent = match file.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => ".".as_ref(),
            };
            tempfile::tempfile_in(parent)
                .with_context(|| format!("save_latents: cannot write into {}", parent.display()))?;
        }
        let listing = Listing::open(folder)?;
        let number = first_number(folder, &files.template, &listing)
            .with_context(|| format!("output_path: cannot list {shown}"))?;
        Ok(Self {
            listing,
            grid: settings.imagegrid.unwrap_or(false).then_some((trials, batch * trials)),
            latents: settings.save_latents.clone(),
            number,
            started: SystemTime::now(),
            written: Vec::new(),
            shared: None,
            files,
        })
    }

    /// Writes picture `index` of the run and prints its path.
    pub fn write(
        &mut self,
        picture: &Picture,
        index: usize,
        request: &Request,
        record: &Record,
    ) -> Result<(), Failure> {
        let metadata = self.files.metadata.then(|| record.metadata(picture, index));
        let mut options = self.options();
        options.metadata = metadata.as_ref();
        if !options.metadata_fits() {
            options.metadata = None;
            eprintln!(
                "warning: a JPEG has no room for so long a prompt, so the picture will not say how it was \
                 made; png and webp have"
            );
        }
        let (width, height) = picture.image.dimensions();
        let parts = self.parts(request, index, Size { width, height }, record.model());
        let expected = self.shared.as_ref().map(|shared| shared.names[index].clone());
        let template = &self.files.template;
        let name = |number| match &expected {
            Some(Named { number: first, stem, .. }) if *first == number => stem.clone(),
            _ => template.render(number, &parts),
        };
        let first = expected.as_ref().map_or(self.number, |named| named.number);
        let (number, path) = save(&self.files, name, first, &picture.image, &options)?;
        self.number = number + 1;
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let id = match &expected {
            _ if template.is_plain() => number,
            Some(named) => named.id,
            None => self.listing.next(false),
        };
        match &mut self.shared {
            None => {
                let negative = negative(request, index);
                self.listing.add(id, &file, &picture.prompt, negative)?;
            }
            Some(shared) => {
                shared.made.push((index, id, file.into_owned()));
                self.list_so_far(request)?;
            }
        }
        print_line(path.display())?;
        self.written.push(path);
        Ok(())
    }

    /// What the name of picture `index` is made of.
    fn parts<'a>(
        &self,
        request: &'a Request,
        index: usize,
        size: Size,
        model: &'a str,
    ) -> NameParts<'a> {
        NameParts {
            seed: request.noise_seed(index).seed,
            prompt: &request.prompts[index],
            width: size.width,
            height: size.height,
            model,
            sampler: request.sampling_method.name(),
            steps: request.sampling_steps,
            guidance: request.guidance_scale,
            started: self.started,
        }
    }

    /// Writes what belongs to the run as a whole.
    pub fn finish(&self, pictures: &[Picture]) -> Result<(), Failure> {
        if let Some((trials, size)) = self.grid {
            let template = Template::parse("grid-{number}")?;
            let mut next = highest_number(&self.files.folder, &template).with_context(|| {
                format!("output_path: cannot list {}", self.files.folder.display())
            })?;
            for group in pictures.chunks(size) {
                // A column is a prompt, a row a trial.
                let columns: Vec<Vec<_>> = group
                    .chunks(trials)
                    .map(|column| column.iter().map(|picture| &picture.image).collect())
                    .collect();
                // It carries no texts: it is several pictures, and none of theirs would make it again.
                let name = |number| format!("grid-{number}");
                let (number, path) =
                    save(&self.files, name, next, &grid(&columns), &self.options())?;
                next = number + 1;
                print_line(path.display())?;
            }
        }
        if let Some(path) = &self.latents {
            write_latents(path, pictures)?;
        }
        Ok(())
    }

    fn options(&self) -> SaveOptions<'static> {
        let Files { format, jpeg_quality, .. } = self.files;
        SaveOptions { format, jpeg_quality, metadata: None }
    }

    /// Tells of the pictures that an error leaves.
    pub fn tell_kept(&self) {
        if !self.written.is_empty() {
            eprintln!("kept: {}", self.summary());
        }
    }

    /// Where the pictures are, for the line at the end.
    pub fn summary(&self) -> String {
        match self.written.as_slice() {
            [] => "no picture".to_owned(),
            [one] => one.display().to_string(),
            many => format!("{} pictures in {}", many.len(), self.files.folder.display()),
        }
    }
}

fn negative(request: &Request, index: usize) -> &str {
    request.negative_prompts.get(index).map_or("", String::as_str)
}

/// Writes a picture under the first free name from `number` on. A name without a number gets one at its end.
fn save(
    files: &Files,
    name: impl Fn(usize) -> String,
    number: usize,
    image: &RgbImage,
    options: &SaveOptions,
) -> Result<(usize, PathBuf), Failure> {
    let (number, stem) =
        first_free(name, number, |stem| Ok(save_new_image(&files.path(stem), image, options)?))?;
    Ok((number, files.path(&stem)))
}

/// The first name from `number` on that can be taken, and its number.
fn first_free(
    name: impl Fn(usize) -> String,
    mut number: usize,
    mut take: impl FnMut(&str) -> Result<bool, Failure>,
) -> Result<(usize, String), Failure> {
    let mut stem = name(number);
    let mut copies = 0;
    loop {
        let copy = if copies == 0 { String::new() } else { format!("-{copies}") };
        let whole = format!("{stem}{copy}");
        if take(&whole)? {
            return Ok((number, whole));
        }
        // A number at the end of a long name can be cut off.
        let next = name(number + 1);
        if next == stem {
            copies += 1;
        } else {
            number += 1;
            stem = next;
        }
    }
}

/// The number of the first picture.
fn first_number(folder: &Path, template: &Template, listing: &Listing) -> std::io::Result<usize> {
    if !template.has_number() {
        return Ok(0);
    }
    if !template.is_countable() {
        return Ok(listing.next(false));
    }
    let next = highest_number(folder, template)?;
    // There, a picture's number is its id in the list, too.
    Ok(if template.is_plain() { next.max(listing.next(true)) } else { next })
}

/// One more than the highest number of a picture there that has its name from the template.
fn highest_number(folder: &Path, template: &Template) -> std::io::Result<usize> {
    let mut next = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = PathBuf::from(entry?.file_name());
        if ImageFormat::from_path(&path).is_none() {
            continue;
        }
        let number = path.file_stem().and_then(|stem| template.number_in(stem.to_str()?));
        next = next.max(number.map_or(0, |number| number.saturating_add(1)));
    }
    Ok(next)
}
