//! The files of a run whose pictures several processes make, under the names they have when one does.

use super::{Output, first_free, negative};
use crate::exit::Failure;
use pixart_runtime::pipeline::{Picture, Request};
use pixart_runtime::size::Size;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::ops::Range;

/// A name that is kept for a picture.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Named {
    /// In the list of prompts, where that is not the number.
    pub id: usize,
    /// The number that the name was made with.
    pub number: usize,
    /// Without the extension.
    pub stem: String,
}

/// A picture that was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Made {
    /// Its number in the run.
    pub index: usize,
    /// In the list of prompts.
    id: usize,
    /// Name of its file.
    file: String,
    /// Width and height.
    pub size: [u32; 2],
    /// Shape of its latents.
    pub latents: Vec<usize>,
}

/// What is known of the pictures of all processes.
pub(super) struct Shared {
    /// A name for each.
    pub names: Vec<Named>,
    /// What this one has written.
    pub made: Vec<Listed>,
    /// What the others draw, each in this order, and have not written when it was last looked; known to the one
    /// that keeps the list of prompts.
    pub others: Option<Vec<Range<usize>>>,
    /// What they had.
    pub seen: Vec<Listed>,
}

/// A picture in the list of prompts: number in the run, id in the list, file.
type Listed = (usize, usize, String);

impl Output {
    /// Names for all pictures of a run, of these sizes, as they would get them one after the other.
    pub fn names(
        &self,
        request: &Request,
        sizes: &[Size],
        model: &str,
    ) -> Result<Vec<Named>, Failure> {
        let mut taken = HashSet::new();
        let (mut next, first_id) = (self.number, self.listing.next(false));
        let mut names = Vec::new();
        for (index, &size) in sizes.iter().enumerate() {
            let parts = self.parts(request, index, size, model);
            let name = |number| self.files.template.render(number, &parts);
            let (number, stem) = first_free(name, next, |stem| {
                Ok(!self.files.path(stem).exists() && taken.insert(stem.to_owned()))
            })?;
            next = number + 1;
            names.push(Named { id: first_id + index, number, stem });
        }
        Ok(names)
    }

    /// Takes these names for pictures from now on. The process that is told what each of the `others` draws keeps the
    /// list of prompts.
    pub fn expect(&mut self, names: Vec<Named>, others: Option<Vec<Range<usize>>>) {
        self.shared = Some(Shared { names, made: Vec::new(), others, seen: Vec::new() });
    }

    /// Whether pictures are needed once more when all are there.
    pub fn wants_pictures(&self) -> bool {
        self.grid.is_some() || self.latents.is_some()
    }

    /// What this process has written.
    pub fn made(&self, pictures: &[Picture]) -> Vec<Made> {
        let made = self.shared.iter().flat_map(|shared| &shared.made).zip(pictures);
        let made = made.map(|((index, id, file), picture)| {
            let (width, height) = picture.image.dimensions();
            let latents = picture.latents.shape().to_vec();
            Made { index: *index, id: *id, file: file.clone(), size: [width, height], latents }
        });
        made.collect()
    }

    /// Lists the pictures of this process, and those of others that are there already; does nothing where another one
    /// keeps the list.
    pub(super) fn list_so_far(&mut self, request: &Request) -> Result<(), Failure> {
        let plain = self.files.template.is_plain();
        let Some(Shared { names, made, others: Some(others), seen }) = &mut self.shared else {
            return Ok(());
        };
        for other in others {
            while let Some(named) = names[other.clone()].first() {
                let path = self.files.path(&named.stem);
                if !path.exists() {
                    break;
                }
                let id = if plain { named.number } else { named.id };
                let file = path.file_name().unwrap_or_default().to_string_lossy();
                seen.push((other.start, id, file.into_owned()));
                other.start += 1;
            }
        }
        let mut list = [made.as_slice(), seen.as_slice()].concat();
        list.sort_by_key(|(index, ..)| *index);
        self.list(&list, request)
    }

    /// Ends a run: `made` is what all processes have made.
    pub fn conclude(&mut self, mut made: Vec<Made>, request: &Request) -> Result<(), Failure> {
        made.sort_by_key(|made| made.index);
        let list = made.iter().map(|made| (made.index, made.id, made.file.clone()));
        let list: Vec<_> = list.collect();
        if !list.is_empty() {
            self.list(&list, request)?;
        }
        self.written = made.iter().map(|made| self.files.folder.join(&made.file)).collect();
        let unseen = self.written.iter().filter(|path| !path.exists()).count();
        if unseen > 0 {
            eprintln!(
                "warning: {unseen} of {} pictures are not seen in {} from here; is output_path on a file system that \
                 all machines see?",
                self.written.len(),
                self.files.folder.display()
            );
        }
        Ok(())
    }

    fn list(&self, list: &[Listed], request: &Request) -> Result<(), Failure> {
        let pictures = list.iter().map(|(index, id, file)| {
            (*id, file.as_str(), request.prompts[*index].as_str(), negative(request, *index))
        });
        self.listing.write_with(&pictures.collect::<Vec<_>>())
    }
}
