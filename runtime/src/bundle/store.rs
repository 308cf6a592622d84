//! Files of models, on disk or in a bundle, by their paths.
//!
//! Each function does what its namesake of the standard library does; a bundle counts as a folder, too.

use std::{
    collections::HashMap,
    fs::{self, File, Metadata},
    io,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use super::{Bundle, format::read_at};

/// Where the bytes of a file lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file that holds them: the file itself, or a bundle.
    pub file: PathBuf,
    /// The first of them in it.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
    /// Whether it is a bundle that holds them.
    pub bundled: bool,
}

impl Place {
    /// All of the bytes.
    ///
    /// # Errors
    /// When the file cannot be read, or has become shorter.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.bytes).map_err(io::Error::other)?];
        let count = read_at(&File::open(&self.file)?, self.offset, &mut bytes)?;
        match count == bytes.len() {
            true => Ok(bytes),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Where the file at `path` lies; `None` for a folder, a pipe or a device.
///
/// # Errors
/// When there is nothing, or the bundle above cannot be used.
pub fn place(path: &Path) -> io::Result<Option<Place>> {
    let missing = match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {
            let (file, bytes) = (path.to_owned(), metadata.len());
            return Ok(Some(Place { file, offset: 0, bytes, bundled: false }));
        }
        Ok(_) => return Ok(None),
        Err(error) => error,
    };
    let Some((bundle, name)) = inside(path)? else { return Err(missing) };
    match bundle.entry(&name) {
        Some(entry) => {
            let (file, offset, bytes) = (bundle.file().to_owned(), entry.offset, entry.bytes);
            Ok(Some(Place { file, offset, bytes, bundled: true }))
        }
        None if has_folder(&bundle, &name) => Ok(None),
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Whether there is a file at `path`.
pub fn is_file(path: &Path) -> bool {
    matches!(place(path), Ok(Some(_)))
}

/// Whether there is a folder at `path`, or a bundle.
pub fn is_dir(path: &Path) -> bool {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => matches!(opened(path, &metadata), Ok(Some(_))),
        Ok(metadata) => metadata.is_dir(),
        Err(_) => matches!(inside(path), Ok(Some((bundle, name))) if has_folder(&bundle, &name)),
    }
}

/// All bytes of the file at `path`.
///
/// # Errors
/// When it is missing, no file, or cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    match place(path)? {
        Some(place) if place.bundled => place.read(),
        // A file may have no size that is known before.
        _ => fs::read(path),
    }
}

fn has_folder(bundle: &Bundle, name: &str) -> bool {
    let within = |path: &str| path.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
    bundle.index().entries.iter().any(|entry| within(&entry.path))
}

/// The bundle above a path where nothing is on disk, and the rest of the path.
fn inside(path: &Path) -> io::Result<Option<(Arc<Bundle>, String)>> {
    for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
        let Ok(metadata) = fs::metadata(above) else { continue };
        if !metadata.is_file() {
            return Ok(None);
        }
        let Some(bundle) = opened(above, &metadata)? else { return Ok(None) };
        let rest = path.strip_prefix(above).unwrap_or(Path::new(""));
        let names: Option<Vec<&str>> = rest
            .components()
            .map(|part| match part {
                Component::Normal(name) => name.to_str(),
                _ => None,
            })
            .collect();
        return Ok(names.map(|names| (bundle, names.join("/"))));
    }
    Ok(None)
}

/// Bundles looked into, with size and time of their files.
type Known = HashMap<PathBuf, (u64, Option<SystemTime>, Arc<Bundle>)>;

/// The bundle at `path`. What was read of it is kept, as long as it is the same file.
fn opened(path: &Path, metadata: &Metadata) -> io::Result<Option<Arc<Bundle>>> {
    static KNOWN: Mutex<Option<Known>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    let (bytes, modified) = (metadata.len(), metadata.modified().ok());
    if let Some((then, at, bundle)) = known.get(path)
        && (*then, *at) == (bytes, modified)
    {
        return Ok(Some(bundle.clone()));
    }
    let bundle = Bundle::open(path).map_err(io::Error::other)?.map(Arc::new);
    if let Some(bundle) = &bundle {
        known.insert(path.to_owned(), (bytes, modified, bundle.clone()));
    }
    Ok(bundle)
}
