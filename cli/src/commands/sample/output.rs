//! Where the pictures go: numbered files that never replace an existing one.

use super::settings::Settings;
use crate::exit::{Failure, print_line};
use anyhow::Context;
use pixart_runtime::image::write_png;
use pixart_runtime::pipeline::Picture;
use pixart_runtime::vae::write_latents;
use std::path::PathBuf;

/// The files of one run.
pub struct Output {
    folder: PathBuf,
    latents: Option<PathBuf>,
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
        let next = first_free_number(&folder)
            .with_context(|| format!("output_path: cannot list {shown}"))?;
        Ok(Self { folder, latents: settings.save_latents.clone(), next, written: Vec::new() })
    }

    /// Writes the next picture and prints its path.
    pub fn write(&mut self, picture: &Picture) -> Result<(), Failure> {
        let path = self.folder.join(format!("{}.png", self.next));
        write_png(&path, &picture.image)?;
        self.next += 1;
        print_line(path.display())?;
        self.written.push(path);
        Ok(())
    }

    /// Writes what belongs to the run as a whole.
    pub fn finish(&self, pictures: &[Picture]) -> Result<(), Failure> {
        if let Some(path) = &self.latents {
            write_latents(path, pictures)?;
        }
        Ok(())
    }

    /// Where the pictures are, for the line at the end.
    pub fn summary(&self) -> String {
        match self.written.as_slice() {
            [one] => one.display().to_string(),
            many => format!("{} pictures in {}", many.len(), self.folder.display()),
        }
    }
}

/// One more than the highest `<k>.png` there.
fn first_free_number(folder: &std::path::Path) -> std::io::Result<usize> {
    let mut next = 0;
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|n| n.strip_suffix(".png")?.parse::<usize>().ok());
        next = next.max(number.map_or(0, |n| n.saturating_add(1)));
    }
    Ok(next)
}
