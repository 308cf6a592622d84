//! The files of a run whose pictures several processes make, under the names they have when one does.

use super::{Output, first_free, negative};
use crate::exit::Failure;
use pixart_runtime::pipeline::{Picture, Request};
use pixart_runtime::size::Size;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

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
    /// What this one has written: number in the run, id in the list, file.
    pub made: Vec<(usize, usize, String)>,
    /// Whether this one keeps the list of prompts.
    pub lists: bool,
}

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

    /// Takes these names for pictures from now on; the process that `lists` keeps the list of prompts.
    pub fn expect(&mut self, names: Vec<Named>, lists: bool) {
        self.shared = Some(Shared { names, made: Vec::new(), lists });
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

    /// Lists the pictures of this process, and those of others that are there already.
    pub(super) fn list_so_far(&self, request: &Request) -> Result<(), Failure> {
        let Some(Shared { names, made, .. }) = &self.shared else { return Ok(()) };
        let plain = self.files.template.is_plain();
        let mut own = made.iter().peekable();
        let mut list = Vec::new();
        for (index, named) in names.iter().enumerate() {
            if let Some((_, id, file)) = own.next_if(|(own, ..)| *own == index) {
                list.push((index, *id, file.clone()));
                continue;
            }
            let path = self.files.path(&named.stem);
            if path.exists() {
                let id = if plain { named.number } else { named.id };
                let file = path.file_name().unwrap_or_default().to_string_lossy();
                list.push((index, id, file.into_owned()));
            }
        }
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
                "warning: {unseen} of {} pictures are not in {} here; other machines have them, since output_path \
                 is not on a file system that all see",
                self.written.len(),
                self.files.folder.display()
            );
        }
        Ok(())
    }

    fn list(&self, list: &[(usize, usize, String)], request: &Request) -> Result<(), Failure> {
        let pictures = list.iter().map(|(index, id, file)| {
            (*id, file.as_str(), request.prompts[*index].as_str(), negative(request, *index))
        });
        self.listing.write_with(&pictures.collect::<Vec<_>>())
    }
}
