//! `prompts.json` beside the pictures: which number was made from which prompt.

use crate::exit::Failure;
use anyhow::Context;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The list and its file. Entries of earlier runs stay.
pub struct Listing {
    file: PathBuf,
    entries: Vec<Value>,
}

impl Listing {
    /// Reads the list in `folder`, if there is one.
    pub fn open(folder: &Path) -> Result<Self, Failure> {
        let file = folder.join("prompts.json");
        let shown = file.display();
        let entries = match std::fs::read(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {shown}"))?,
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                Failure::request(format!(
                    "{shown}: expected the list of an earlier run, found something else ({error}); move it \
                     away or choose another output_path"
                ))
            })?,
        };
        Ok(Self { file, entries })
    }

    /// One more than the highest number there; `named` leaves out the pictures whose name is their number.
    pub fn next(&self, named: bool) -> usize {
        let entries = self.entries.iter().filter(|entry| !named || entry["file"].is_string());
        let ids = entries.filter_map(|entry| usize::try_from(entry["id"].as_u64()?).ok());
        ids.max().map_or(0, |id| id.saturating_add(1))
    }

    /// Adds a picture and writes the list. `file` is its name where that is not `<id>.png`, as it is in
    /// upstream's lists.
    pub fn add(
        &mut self,
        id: usize,
        file: &str,
        prompt: &str,
        negative_prompt: &str,
    ) -> Result<(), Failure> {
        let name = key(id, file);
        self.entries.retain(|entry| entry["id"] != name.0 || entry["file"].as_str() != name.1);
        self.entries.push(entry(name, prompt, negative_prompt));
        self.write(&self.entries)
    }

    /// Writes what the list would be with these pictures added: id, file, prompt and negative prompt of each. Here it
    /// stays as it is.
    pub fn write_with(&self, pictures: &[(usize, &str, &str, &str)]) -> Result<(), Failure> {
        let names = || pictures.iter().map(|&(id, file, ..)| key(id, file));
        let replaced: HashSet<(Option<u64>, Option<&str>)> =
            names().map(|(id, file)| (Some(id as u64), file)).collect();
        let old = self
            .entries
            .iter()
            .filter(|entry| !replaced.contains(&(entry["id"].as_u64(), entry["file"].as_str())));
        let mut entries: Vec<Value> = old.cloned().collect();
        entries.extend(
            names().zip(pictures).map(|(name, &(_, _, prompt, negative_prompt))| {
                entry(name, prompt, negative_prompt)
            }),
        );
        self.write(&entries)
    }

    fn write(&self, entries: &[Value]) -> Result<(), Failure> {
        let written = self.replace(entries);
        Ok(written.with_context(|| format!("cannot write {}", self.file.display()))?)
    }

    fn replace(&self, entries: &[Value]) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(entries)?;
        text.push('\n');
        let folder = self.file.parent().unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(".pixart-");
        // A temporary file is private by default; the result is an ordinary file.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.persist(&self.file)?;
        Ok(())
    }
}

/// What tells an entry from others: its id, and its file where that is not `<id>.png`.
fn key(id: usize, file: &str) -> (usize, Option<&str>) {
    (id, (file != format!("{id}.png")).then_some(file))
}

fn entry((id, file): (usize, Option<&str>), prompt: &str, negative_prompt: &str) -> Value {
    let mut entry = json!({ "id": id, "prompt": prompt, "negative_prompt": negative_prompt });
    if let Some(file) = file {
        entry["file"] = file.into();
    }
    entry
}
