//! Where the pictures go: numbered files that never replace an existing one.

use super::{listing::Listing, settings::Settings};
use crate::exit::{Failure, print_line};
use anyhow::Context;
use pixart_runtime::image::{grid, write_png};
use pixart_runtime::pipeline::Picture;
use pixart_runtime::vae::write_latents;
use std::path::PathBuf;

/// The files of one run.
pub struct Output {
    folder: PathBuf,
    latents: Option<PathBuf>,
    listing: Listing,
    /// How many pictures a grid holds in a column and in all, if grids are wanted.
    grid: Option<(usize, usize)>,
    next: usize,
    written: Vec<PathBuf>,
}

impl Output {
    /// Makes the folder and finds out that files can be written there before the long work starts.
    pub fn prepare(settings: &Settings) -> Result<Self, Failure> {
        let folder = settings.output_path.clone().unwrap_or_else(|| "samples".into());
        let shown = folder.display();
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("output_path: cannot make the folder {shown}"))?;
        tempfile::tempfile_in(&folder)
            .with_context(|| format!("output_path: cannot write into {shown}"))?;
        if let Some(file) = &settings.save_latents {
            let parent = match file.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => ".".as_ref(),
            };
            tempfile::tempfile_in(parent)
                .with_context(|| format!("save_latents: cannot write into {}", parent.display()))?;
        }
        let next = first_free_number(&folder, "")
            .with_context(|| format!("output_path: cannot list {shown}"))?;
        let (trials, batch) = (settings.trials()?, settings.batch_size()?);
        Ok(Self {
            listing: Listing::open(&folder)?,
            grid: settings.imagegrid.unwrap_or(false).then_some((trials, batch * trials)),
            folder,
            latents: settings.save_latents.clone(),
            next,
            written: Vec::new(),
        })
    }

    /// Writes the next picture and prints its path.
    pub fn write(&mut self, picture: &Picture, negative: &str) -> Result<(), Failure> {
        let path = self.folder.join(format!("{}.png", self.next));
        write_png(&path, &picture.image)?;
        self.listing.add(self.next, &picture.prompt, negative)?;
        self.next += 1;
        print_line(path.display())?;
        self.written.push(path);
        Ok(())
    }

    /// Writes what belongs to the run as a whole.
    pub fn finish(&self, pictures: &[Picture]) -> Result<(), Failure> {
        if let Some((trials, size)) = self.grid {
            let next = first_free_number(&self.folder, GRID)
                .with_context(|| format!("output_path: cannot list {}", self.folder.display()))?;
            for (k, group) in pictures.chunks(size).enumerate() {
                let path = self.folder.join(format!("{GRID}{}.png", next + k));
                // A column is a prompt, a row a trial.
                let columns: Vec<Vec<_>> = group
                    .chunks(trials)
                    .map(|column| column.iter().map(|picture| &picture.image).collect())
                    .collect();
                write_png(&path, &grid(&columns))?;
                print_line(path.display())?;
            }
        }
        if let Some(path) = &self.latents {
            write_latents(path, pictures)?;
        }
        Ok(())
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
            many => format!("{} pictures in {}", many.len(), self.folder.display()),
        }
    }
}

/// What the names of grids begin with.
const GRID: &str = "grid-";

/// One more than the highest `<prefix><k>.png` there.
fn first_free_number(folder: &std::path::Path, prefix: &str) -> std::io::Result<usize> {
    let mut next = 0;
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name
            .to_str()
            .and_then(|n| n.strip_prefix(prefix)?.strip_suffix(".png")?.parse::<usize>().ok());
        next = next.max(number.map_or(0, |n| n.saturating_add(1)));
    }
    Ok(next)
}
