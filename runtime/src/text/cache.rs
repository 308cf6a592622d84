//! Caption embeddings kept on disk, so that a prompt is encoded once, on whatever machine.
//!
//! `FOLDER/<text encoder>/<token ids>.safetensors`, both names being hashes; where LoRAs change the
//! encoder, theirs follows after a `-`. Entries are written to a
//! temporary file and renamed, so two processes can share a folder; what was damaged is dropped.

use std::{
    collections::HashMap,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    time::SystemTime,
};

use ndarray::ArrayD;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sha2::{Digest, Sha256};

use crate::files::{hex, write_atomically};

/// Where caption embeddings are kept, and how many.
#[derive(Clone, Debug)]
pub struct TextCache {
    folder: PathBuf,
    limit: u64,
    /// Whether it was told that nothing can be written.
    read_only: bool,
}

/// The name under which the entries of an encoder are kept: its identity and, if LoRAs change it, their
/// fingerprint.
pub(super) fn encoder_name(identity: &str, lora: Option<&str>) -> String {
    match lora {
        Some(lora) => format!("{identity}-{lora}"),
        None => identity.to_owned(),
    }
}

/// What an entry is found by: token ids and length.
pub(super) struct Key(String);

/// What was found.
pub(super) enum Found {
    Entry(ArrayD<f32>),
    Nothing,
    /// There was something else, which is gone now.
    Damaged(String),
}

impl Key {
    /// The key of rows of ids, padded to one length. Prompt and cleaner are in it through the ids.
    pub(super) fn new(rows: &[&[i64]], length: usize) -> Self {
        let mut hash = Sha256::new();
        hash.update(format!("caption 1, {} rows of {length}", rows.len()));
        for row in rows {
            hash.update((row.len() as u64).to_le_bytes());
            row.iter().for_each(|id| hash.update(id.to_le_bytes()));
        }
        Self(hex(&hash.finalize()[..16]))
    }
}

impl TextCache {
    /// A cache in `folder`, made when something is put in, of at most `limit` bytes: the entries used
    /// longest ago go first.
    pub fn new(folder: impl Into<PathBuf>, limit: u64) -> Self {
        Self { folder: folder.into(), limit, read_only: false }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The text encoders that entries are of.
    pub(super) fn encoders(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.path().is_dir());
        folders.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// The embeddings of an entry, which have this shape; whatever else is there is removed.
    pub(super) fn get(&self, encoder: &str, key: &Key, shape: &[usize]) -> Found {
        match self.read(encoder, key, shape) {
            Ok(Some(values)) => Found::Entry(values),
            Ok(None) => Found::Nothing,
            Err(problem) => {
                let path = self.path(encoder, key);
                let _ = fs::remove_file(&path);
                Found::Damaged(format!("dropped a damaged caption, {}: {problem}", path.display()))
            }
        }
    }

    /// Whether there is such an entry, sound or not.
    pub(super) fn has(&self, encoder: &str, key: &Key) -> bool {
        self.path(encoder, key).is_file()
    }

    /// The entries that all encoders changed by these LoRAs together have of these ids and this shape.
    /// Nothing is removed: an entry of another shape may be sound and of an encoder for other models.
    pub(super) fn of_any_encoder(
        &self,
        lora: Option<&str>,
        key: &Key,
        shape: &[usize],
    ) -> Vec<ArrayD<f32>> {
        let changed = |encoder: &str| encoder.split_once('-').map(|(_, lora)| lora) == lora;
        let encoders = self.encoders().into_iter().filter(|encoder| changed(encoder));
        encoders.filter_map(|encoder| self.read(&encoder, key, shape).ok().flatten()).collect()
    }

    fn read(
        &self,
        encoder: &str,
        key: &Key,
        shape: &[usize],
    ) -> Result<Option<ArrayD<f32>>, String> {
        let path = self.path(encoder, key);
        let Ok(bytes) = fs::read(&path) else { return Ok(None) };
        let values = parsed(&bytes, shape)?;
        // What is in use is kept longest. A folder that cannot be written loses nothing by it.
        let touched = fs::File::open(&path);
        let _ = touched.and_then(|file| file.set_modified(SystemTime::now()));
        Ok(Some(values))
    }

    /// Puts embeddings in. The first time nothing can be written, says so.
    pub(super) fn put(&mut self, encoder: &str, key: &Key, values: &ArrayD<f32>) -> Option<String> {
        let path = self.path(encoder, key);
        let result = serialized(values).and_then(|bytes| {
            if bytes.len() as u64 > self.limit {
                return Ok(());
            }
            fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
            write_atomically(&path, |writer| writer.write_all(&bytes))?;
            self.shrink(&path)
        });
        let error = result.err().filter(|_| !self.read_only)?;
        self.read_only = true;
        let folder = self.folder.display();
        Some(format!("cannot keep captions in {folder}: {error}; they are encoded anew each time"))
    }

    /// Removes the entries used longest ago until the rest fits, but not the one just written.
    fn shrink(&self, newest: &Path) -> io::Result<()> {
        let mut entries = Vec::new();
        for encoder in self.encoders() {
            for entry in fs::read_dir(self.folder.join(encoder))?.flatten() {
                // Another process may have removed it.
                let Ok(metadata) = entry.metadata() else { continue };
                let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                entries.push((used, metadata.len(), entry.path()));
            }
        }
        let mut total: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
        entries.sort();
        for (_, bytes, path) in entries {
            if total <= self.limit {
                break;
            }
            if path != newest && fs::remove_file(&path).is_ok() {
                total -= bytes;
            }
        }
        Ok(())
    }

    fn path(&self, encoder: &str, key: &Key) -> PathBuf {
        self.folder.join(encoder).join(format!("{}.safetensors", key.0))
    }
}

const TENSOR: &str = "embeddings";
const HASH: &str = "sha256";

fn serialized(values: &ArrayD<f32>) -> io::Result<Vec<u8>> {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let hash = HashMap::from([(HASH.to_owned(), hex(&Sha256::digest(&data)))]);
    let view = TensorView::new(Dtype::F32, values.shape().to_vec(), &data);
    let view = view.map_err(io::Error::other)?;
    safetensors::serialize([(TENSOR, view)], Some(hash)).map_err(io::Error::other)
}

fn parsed(bytes: &[u8], shape: &[usize]) -> Result<ArrayD<f32>, String> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let view = file.tensor(TENSOR).map_err(|error| error.to_string())?;
    if view.dtype() != Dtype::F32 || view.shape() != shape {
        return Err(format!(
            "found {:?} of {:?}, expected F32 of {shape:?}",
            view.dtype(),
            view.shape()
        ));
    }
    let expected = metadata.metadata().as_ref().and_then(|map| map.get(HASH));
    if expected != Some(&hex(&Sha256::digest(view.data()))) {
        return Err("its content has another hash than when it was written".to_owned());
    }
    let values = view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    ArrayD::from_shape_vec(shape, values).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn values(of: f32) -> ArrayD<f32> {
        ArrayD::from_elem(vec![2, 8, 4], of)
    }

    fn get(cache: &TextCache, id: i64) -> Option<f32> {
        match cache.get("t5", &Key::new(&[&[id]], 8), &[2, 8, 4]) {
            Found::Entry(values) => values.first().copied(),
            Found::Nothing => None,
            Found::Damaged(problem) => panic!("{problem}"),
        }
    }

    #[test]
    fn what_was_put_in_comes_out_for_the_same_ids_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut cache = TextCache::new(folder.path().join("text"), 1 << 20);
        assert_eq!(get(&cache, 1), None);
        assert_eq!(cache.put("t5", &Key::new(&[&[1]], 8), &values(0.5)), None);
        assert_eq!((get(&cache, 1), get(&cache, 2)), (Some(0.5), None));
        let others = [Key::new(&[&[1]], 16), Key::new(&[&[1], &[]], 8), Key::new(&[&[1, 0]], 8)];
        for other in others {
            assert!(matches!(cache.get("t5", &other, &[2, 8, 4]), Found::Nothing));
        }
        let key = Key::new(&[&[1]], 8);
        assert!(matches!(cache.get("t6", &key, &[2, 8, 4]), Found::Nothing));
        cache.put("t6", &key, &ArrayD::zeros(vec![2, 8, 6]));
        assert_eq!(cache.of_any_encoder(None, &key, &[2, 8, 4]), [values(0.5)]);
        assert_eq!(cache.of_any_encoder(None, &key, &[2, 8, 6]).len(), 1, "nothing was removed");
        cache.put(&encoder_name("t5", Some("a1")), &key, &values(0.25));
        assert_eq!(cache.of_any_encoder(None, &key, &[2, 8, 4]), [values(0.5)]);
        assert_eq!(cache.of_any_encoder(Some("a1"), &key, &[2, 8, 4]), [values(0.25)]);
        assert!(cache.of_any_encoder(Some("a2"), &key, &[2, 8, 4]).is_empty());
    }

    #[test]
    fn any_changed_byte_is_noticed_and_the_entry_dropped() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut cache = TextCache::new(folder.path(), 1 << 20);
        let key = Key::new(&[&[1]], 8);
        cache.put("t5", &key, &values(0.5));
        let path = cache.path("t5", &key);
        let good = fs::read(&path).expect("an entry");
        for at in (0..good.len()).step_by(7) {
            let mut bytes = good.clone();
            bytes[at] ^= 0x41;
            fs::write(&path, &bytes).expect("written");
            if let Found::Entry(found) = cache.get("t5", &key, &[2, 8, 4]) {
                assert_eq!(found, values(0.5), "byte {at}");
            } else {
                assert!(!path.exists(), "byte {at}: dropped");
            }
        }
        fs::write(&path, &good[..good.len() - 1]).expect("written");
        assert!(matches!(cache.get("t5", &key, &[2, 8, 4]), Found::Damaged(_)));
    }

    #[test]
    fn the_entries_used_longest_ago_go_first() {
        let folder = tempfile::tempdir().expect("a folder");
        // An entry is its 256 bytes of numbers and a header of less than 256.
        let mut cache = TextCache::new(folder.path(), 3 * 512);
        let set_age = |cache: &TextCache, id: i64, minutes: u64| {
            let path = cache.path("t5", &Key::new(&[&[id]], 8));
            let time = SystemTime::now() - Duration::from_secs(60 * minutes);
            fs::File::open(path).and_then(|file| file.set_modified(time)).expect("an old entry");
        };
        for id in 1..=3 {
            cache.put("t5", &Key::new(&[&[id]], 8), &values(id as f32));
            set_age(&cache, id, 100 - id as u64);
        }
        // The oldest one is used again.
        assert_eq!(get(&cache, 1), Some(1.0));
        cache.put("t5", &Key::new(&[&[4]], 8), &values(4.0));
        assert_eq!([1, 2, 3, 4].map(|id| get(&cache, id).is_some()), [true, false, true, true]);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_told_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let taken = folder.path().join("taken");
        fs::write(&taken, "a file").expect("written");
        let mut cache = TextCache::new(&taken, 1 << 20);
        let told = cache.put("t5", &Key::new(&[&[1]], 8), &values(1.0)).expect("a warning");
        assert!(told.contains("taken"), "{told}");
        assert_eq!(cache.put("t5", &Key::new(&[&[2]], 8), &values(1.0)), None);
    }
}
