//! Compiled graphs that are kept from one start to the next.
//!
//! `FOLDER/<provider>-<hash>/` holds what a provider keeps of one graph, and `entry.json`: what it belongs to
//! ([`Identity`]), in full, and size and hash of every file. An entry that belongs to something else, or is not as
//! it was written, is made anew. It comes into being under another name, is complete when it gets its own, and only
//! then is it used. Processes that share the folder take turns at an entry ([`lock`]).

mod lock;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{Keeps, Provider, identity::Identity};
use crate::files::{sha256_of, write_atomically};

/// The description of an entry.
const ENTRY: &str = "entry.json";
/// The graph that a provider which keeps contexts writes.
const CONTEXT: &str = "compiled.onnx";
/// What names of entries under construction begin with; the entry's name, a dot and anything follow.
const UNFINISHED: &str = ".unfinished-";

/// One graph that was loaded, and what of it was kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    /// The graph it was made of.
    pub model: PathBuf,
    /// The sizes it is for, as `height 128, width 128`; empty if it is for all.
    pub sizes: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Seconds until it was ready.
    pub seconds: f64,
}

/// Where a compiled graph came from.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It was there.
    Found(Entry),
    /// It was made.
    Made(Entry),
    /// It was made because what was there was no good, for this reason.
    Remade(Entry, String),
    /// It was made and is not kept, for this reason, which lies in the graph or the provider.
    NotKept(String),
    /// It was made but keeping it failed, for this reason. It is tried again the next time.
    Failed(String),
}

/// What is kept of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its folder.
    pub folder: PathBuf,
    /// How many bytes it has.
    pub bytes: u64,
}

/// What a session is wanted for.
pub(in super::super) struct Wanted<'a> {
    pub model: &'a Path,
    pub sizes: &'a [(String, usize)],
    /// Its weights are other than the graph's.
    pub changed: bool,
}

/// What a session has to be told so that its provider uses the cache.
#[derive(Debug, Default)]
pub(in super::super) struct Using {
    /// Options of the provider.
    pub settings: Vec<(String, String)>,
    /// Settings of the session.
    pub config: Vec<(&'static str, String)>,
    /// The graph to load instead.
    pub graph: Option<PathBuf>,
}

/// Makes a session.
pub(in super::super) type Make<'a, S, E> = dyn Fn(&Using) -> Result<S, E> + 'a;

/// The cache of one device.
pub(super) struct Cache {
    folder: PathBuf,
    keeps: &'static Keeps,
    provider: &'static str,
    /// All but the graph.
    around: Identity,
}

#[derive(Serialize, Deserialize)]
struct Description {
    /// 1.
    format: u32,
    /// What the entry belongs to.
    identity: String,
    /// The graph, for people.
    model: String,
    files: Vec<KeptFile>,
    /// Why there is nothing, and why it is in vain to try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

impl Description {
    fn new(
        model: &Path,
        identity: &Identity,
        files: Vec<KeptFile>,
        refused: Option<String>,
    ) -> Self {
        let (identity, model) = (identity.as_str().to_owned(), model.display().to_string());
        Self { format: 1, identity, model, files, refused }
    }
}

/// What is found in the place of an entry.
enum State {
    Absent,
    /// All of it, of so many bytes.
    Whole(u64),
    /// A note that the provider has no use for it.
    Refused(String),
}

#[derive(Serialize, Deserialize)]
struct KeptFile {
    name: String,
    bytes: u64,
    sha256: String,
}

impl Cache {
    /// The cache in `folder`, which is made when something is kept, for a device with these settings on a machine.
    pub fn new(
        folder: PathBuf,
        provider: &'static Provider,
        settings: &[(String, String)],
        machine: Identity,
    ) -> Self {
        let mut around = machine;
        around.add_settings(provider, settings);
        Self { folder, keeps: &provider.keeps, provider: provider.name, around }
    }

    /// A session that uses what is kept, if that is good, and keeps what it makes otherwise. Whatever goes wrong
    /// with the cache, the session is the one that `make` makes without.
    ///
    /// # Errors
    /// When a session cannot be made without a cache either.
    pub fn load<S, E: ToString>(
        &self,
        wanted: &Wanted<'_>,
        identity: &dyn Fn() -> io::Result<Identity>,
        make: &Make<'_, S, E>,
    ) -> Result<(S, Outcome), E> {
        let without = |reason: String| Ok((make(&Using::default())?, Outcome::NotKept(reason)));
        if let Keeps::Nothing(reason) = self.keeps {
            return without((*reason).to_owned());
        }
        if matches!(self.keeps, Keeps::Context) && wanted.changed {
            return without("a graph with weights changed by LoRAs is not kept".to_owned());
        }
        let failed = |reason: String| Ok((make(&Using::default())?, Outcome::Failed(reason)));
        let mut whole = self.around.clone();
        match identity() {
            Ok(graph) => whole.append(&graph),
            Err(error) => return failed(format!("the graph cannot be identified: {error}")),
        }
        for (name, size) in wanted.sizes {
            whole.add("size", format!("{name} {size}"));
        }
        let name = format!("{}-{}", self.provider, whole.hash());
        let folder = self.folder.join(&name);
        // Who comes second finds what the first has made.
        let lock = lock::wait_for(&self.folder, &name);
        let bad = match check(&folder, &whole) {
            Ok(State::Absent) => None,
            Ok(State::Refused(reason)) => {
                drop(lock);
                return without(reason);
            }
            Ok(State::Whole(bytes)) => match self.open(&folder, &whole, wanted.model, make) {
                Ok((session, None)) => {
                    return Ok((session, Outcome::Found(Entry { folder, bytes })));
                }
                Ok((session, Some(refused))) => return Ok((session, Outcome::NotKept(refused))),
                Err(error) => Some(error.to_string()),
            },
            Err(reason) => Some(reason),
        };
        lock::remove_abandoned(&self.folder, lock.is_some().then_some(&name));
        let made = self.build(&folder, wanted.model, &whole, make);
        let bytes = match made {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                let reason = "the provider wrote nothing that could be kept";
                refuse(&folder, wanted.model, &whole, reason);
                drop(lock);
                return without(reason.to_owned());
            }
            Err(reason) => {
                drop(lock);
                return failed(reason);
            }
        };
        match self.open(&folder, &whole, wanted.model, make) {
            Ok((session, None)) => {
                let entry = Entry { folder, bytes };
                let outcome = match bad {
                    Some(reason) => Outcome::Remade(entry, reason),
                    None => Outcome::Made(entry),
                };
                Ok((session, outcome))
            }
            Ok((session, Some(refused))) => Ok((session, Outcome::NotKept(refused))),
            Err(error) => {
                let reason = format!("what was kept cannot be used: {}", error.to_string());
                refuse(&folder, wanted.model, &whole, &reason);
                drop(lock);
                without(reason)
            }
        }
    }

    /// A session that is told of an entry, and why it took no notice of it, if it did not. Then the entry is
    /// noted as one that need not be made again.
    fn open<S, E>(
        &self,
        folder: &Path,
        identity: &Identity,
        model: &Path,
        make: &Make<'_, S, E>,
    ) -> Result<(S, Option<String>), E> {
        let (before, described) = (stamps(folder), stamp(folder, ENTRY));
        let session = make(&self.using(folder))?;
        // Another description is another entry, of a process that cannot be waited for: not every file system has
        // locks.
        if stamps(folder) == before || stamp(folder, ENTRY) != described {
            return Ok((session, None));
        }
        let reason = "the provider does not read what it has written itself, but compiles anew";
        refuse(folder, model, identity, reason);
        Ok((session, Some(reason.to_owned())))
    }

    /// Makes an entry and says how many bytes it has, or why that cannot be; `None` if the provider wrote nothing.
    fn build<S, E: ToString>(
        &self,
        folder: &Path,
        model: &Path,
        identity: &Identity,
        make: &Make<'_, S, E>,
    ) -> Result<Option<u64>, String> {
        let text = |error: io::Error| format!("{}: {error}", self.folder.display());
        fs::create_dir_all(&self.folder).map_err(text)?;
        let entry = folder.file_name().unwrap_or_default().to_string_lossy();
        let prefix = format!("{UNFINISHED}{entry}.");
        let unfinished =
            tempfile::Builder::new().prefix(&prefix).tempdir_in(&self.folder).map_err(text)?;
        let session = make(&self.building(unfinished.path()));
        // Some write when the session ends. What comes next shows whether what was kept is of use.
        drop(session.map_err(|error| error.to_string())?);
        let bytes = seal(unfinished.path(), model, identity).map_err(text)?;
        let Some(bytes) = bytes else { return Ok(None) };
        if folder.exists() {
            fs::remove_dir_all(folder).map_err(text)?;
        }
        let unfinished = unfinished.keep();
        if let Err(error) = fs::rename(&unfinished, folder) {
            let _ = fs::remove_dir_all(&unfinished);
            // Without locks, another process may have been faster; its entry is as good if it is whole.
            return match check(folder, identity) {
                Ok(State::Whole(bytes)) => Ok(Some(bytes)),
                _ => Err(text(error)),
            };
        }
        Ok(Some(bytes))
    }

    fn using(&self, folder: &Path) -> Using {
        match self.keeps {
            Keeps::Context => Using { graph: Some(folder.join(CONTEXT)), ..Using::default() },
            _ => self.building(folder),
        }
    }

    fn building(&self, folder: &Path) -> Using {
        let shown = folder.to_string_lossy();
        match self.keeps {
            Keeps::Nothing(_) => Using::default(),
            Keeps::Folder(settings) => {
                let own = |(name, value): &(&str, &str)| {
                    ((*name).to_owned(), value.replace("FOLDER", &shown))
                };
                Using { settings: settings.iter().map(own).collect(), ..Using::default() }
            }
            Keeps::Context => Using {
                config: vec![
                    ("ep.context_enable", "1".to_owned()),
                    ("ep.context_file_path", folder.join(CONTEXT).to_string_lossy().into_owned()),
                    // Beside the graph: protobuf holds no more than 2 GiB.
                    ("ep.context_embed_mode", "0".to_owned()),
                ],
                ..Using::default()
            },
        }
    }
}

/// Writes what an entry is, and says how many bytes it has; `None` if there is nothing in it.
fn seal(folder: &Path, model: &Path, identity: &Identity) -> io::Result<Option<u64>> {
    let mut files = Vec::new();
    for name in list(folder)? {
        let path = folder.join(&name);
        let (bytes, sha256) = (fs::metadata(&path)?.len(), sha256_of(&path, &mut |_| ())?);
        files.push(KeptFile { name, bytes, sha256 });
    }
    let bytes = files.iter().map(|file| file.bytes).sum();
    if bytes == 0 {
        return Ok(None);
    }
    describe_entry(folder, Description::new(model, identity, files, None))?;
    Ok(Some(bytes))
}

/// Puts a note in the place of an entry that nobody needs. A note that cannot be written means that it is tried
/// again the next time.
fn refuse(folder: &Path, model: &Path, identity: &Identity, reason: &str) {
    let note = Description::new(model, identity, Vec::new(), Some(reason.to_owned()));
    let write = || {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir_all(folder)?;
        describe_entry(folder, note)
    };
    let _: io::Result<()> = write();
}

fn describe_entry(folder: &Path, description: Description) -> io::Result<()> {
    write_atomically(&folder.join(ENTRY), |writer| {
        serde_json::to_writer_pretty(writer, &description).map_err(io::Error::other)
    })
}

/// What an entry is good for. An error says what is wrong with it.
fn check(folder: &Path, identity: &Identity) -> Result<State, String> {
    if !folder.exists() {
        return Ok(State::Absent);
    }
    let text = fs::read(folder.join(ENTRY)).map_err(|error| format!("{ENTRY}: {error}"))?;
    let description: Description =
        serde_json::from_slice(&text).map_err(|error| format!("{ENTRY}: {error}"))?;
    if description.format != 1 || description.identity != identity.as_str() {
        return Err("it belongs to something else".to_owned());
    }
    if let Some(reason) = description.refused {
        return Ok(State::Refused(reason));
    }
    let found = list(folder).map_err(|error| error.to_string())?;
    if !found.iter().eq(description.files.iter().map(|file| &file.name)) {
        return Err("it has other files than were written".to_owned());
    }
    for KeptFile { name, bytes, sha256 } in &description.files {
        let path = folder.join(name);
        let hash = match fs::metadata(&path) {
            Ok(metadata) if metadata.len() == *bytes => sha256_of(&path, &mut |_| ()).ok(),
            _ => None,
        };
        if hash.as_deref() != Some(sha256) {
            return Err(format!("{name} is not as it was written"));
        }
    }
    Ok(State::Whole(description.files.iter().map(|file| file.bytes).sum()))
}

/// Size and time of change of a file.
type Stamp = (u64, Option<SystemTime>);

fn stamp(folder: &Path, name: &str) -> Stamp {
    let metadata = fs::metadata(folder.join(name)).ok();
    let time = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
    (metadata.map_or(0, |metadata| metadata.len()), time)
}

/// Of all files but the description, which tell whether somebody wrote.
fn stamps(folder: &Path) -> Vec<(String, Stamp)> {
    let names = list(folder).unwrap_or_default().into_iter();
    names.map(|name| (name.clone(), stamp(folder, &name))).collect()
}

/// Every file below a folder but its description, in order, with `/` between folders.
fn list(folder: &Path) -> io::Result<Vec<String>> {
    fn walk(folder: &Path, prefix: &str, names: &mut Vec<String>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_str().ok_or_else(|| io::Error::other("a name is no Unicode"))?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                walk(&entry.path(), &format!("{prefix}{name}/"), names)?;
            } else if !kind.is_file() {
                return Err(io::Error::other(format!("{prefix}{name} is no file")));
            } else if !prefix.is_empty() || name != ENTRY {
                names.push(format!("{prefix}{name}"));
            }
        }
        Ok(())
    }
    let mut names = Vec::new();
    walk(folder, "", &mut names)?;
    names.sort();
    Ok(names)
}

/// Removes every entry of a cache, finished or not, and nothing else. Says how many there were and how many bytes.
///
/// # Errors
/// When the folder cannot be read or an entry cannot be removed.
pub fn clear_compiled(folder: &Path) -> io::Result<(usize, u64)> {
    let (mut count, mut bytes) = (0, 0);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, 0)),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let (name, path) = (entry.file_name(), entry.path());
        lock::remove_idle(&path);
        if !entry.file_type()?.is_dir() || !is_entry(&name.to_string_lossy()) {
            continue;
        }
        for file in list(&path).unwrap_or_default() {
            bytes += fs::metadata(path.join(file)).map_or(0, |metadata| metadata.len());
        }
        fs::remove_dir_all(&path)?;
        count += 1;
    }
    Ok((count, bytes))
}

/// Whether a folder has a name that only this module gives.
fn is_entry(name: &str) -> bool {
    name.starts_with(UNFINISHED) || is_whole_name(name)
}

/// Whether this is the name of an entry, `openvino-` and 32 digits.
fn is_whole_name(name: &str) -> bool {
    let digits = |hash: &str| hash.len() == 32 && hash.chars().all(|c| c.is_ascii_hexdigit());
    let known = |name: &str| super::PROVIDERS.iter().any(|provider| provider.name == name);
    name.rsplit_once('-').is_some_and(|(provider, hash)| known(provider) && digits(hash))
}

/// Sizes for people.
pub(super) fn describe(sizes: &[(String, usize)]) -> String {
    let sizes = sizes.iter().map(|(name, size)| format!("{name} {size}"));
    sizes.collect::<Vec<_>>().join(", ")
}

/// What became of a graph that is ready now.
pub(super) fn report(wanted: &Wanted<'_>, outcome: Outcome, begin: Instant) -> Compiled {
    Compiled {
        model: wanted.model.to_path_buf(),
        sizes: describe(wanted.sizes),
        outcome,
        seconds: begin.elapsed().as_secs_f64(),
    }
}

#[cfg(test)]
mod tests;
