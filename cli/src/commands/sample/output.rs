//! Where the pictures go: files that never replace an existing one.

use super::files::Files;
use super::name::{NameParts, Template};
use super::record::Record;
use super::{listing::Listing, settings::Settings};
use crate::exit::{Failure, print_line};
use anyhow::Context;
use pixart_runtime::image::{ImageFormat, RgbImage, SaveOptions, grid, save_new_image};
use pixart_runtime::pipeline::{Picture, Request};
use pixart_runtime::vae::write_latents;
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
        let parts = NameParts {
            seed: picture.seed,
            prompt: &picture.prompt,
            width,
            height,
            model: record.model(),
            sampler: request.sampling_method.name(),
            steps: request.sampling_steps,
            guidance: request.guidance_scale,
            started: self.started,
        };
        let template = &self.files.template;
        let name = |number| template.render(number, &parts);
        let (number, path) = save(&self.files, name, self.number, &picture.image, &options)?;
        self.number = number + 1;
        let id = if template.is_plain() { number } else { self.listing.next(false) };
        let negative = request.negative_prompts.get(index).map_or("", String::as_str);
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        self.listing.add(id, &file, &picture.prompt, negative)?;
        print_line(path.display())?;
        self.written.push(path);
        Ok(())
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

/// Writes a picture under the first free name from `number` on. A name without a number gets one at its end.
fn save(
    files: &Files,
    name: impl Fn(usize) -> String,
    mut number: usize,
    image: &RgbImage,
    options: &SaveOptions,
) -> Result<(usize, PathBuf), Failure> {
    let mut stem = name(number);
    let mut copies = 0;
    loop {
        let copy = if copies == 0 { String::new() } else { format!("-{copies}") };
        let path = files.folder.join(format!("{stem}{copy}.{}", files.extension));
        if save_new_image(&path, image, options)? {
            return Ok((number, path));
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
