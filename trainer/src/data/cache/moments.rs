//! What the VAE's encoder makes of pictures, kept on disk.
//!
//! One file a picture, found by its path and the size it is trained at. The file knows the picture's length, time
//! of change and hash, so that one that has changed is computed anew, and one that was only copied is not.

use super::super::loader::{Skipped, pixels_of};
use super::super::picture::read_file;
use super::super::scan::in_parallel;
use super::super::{Dataset, PictureError};
use super::entry::{self, Entry, Lack, floats};
use super::{CacheError, Fill};
use crate::files::hex;
use ndarray::{Array3, Array4, ArrayView3, Axis};
use pixart_runtime::error::PipelineError;
use safetensors::Dtype;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::SystemTime;

/// Kept means and logarithms of variances of latents, as the encoder gives them: unscaled, before anything
/// is sampled from them.
#[derive(Clone, Debug)]
pub struct MomentCache {
    folder: PathBuf,
    /// Tells its entries from those of other encoders.
    encoder: String,
    /// Of pictures whose entries are of another time, so that each is read once to be compared.
    hashed: Arc<Mutex<HashMap<PathBuf, Stamp>>>,
}

/// Pixels that the encoder is given at once, in pictures of one size; a larger picture goes alone.
const PIXELS_AT_ONCE: usize = 512 * 512;

impl MomentCache {
    pub(super) fn new(folder: &Path, encoder: String) -> Self {
        Self { folder: folder.to_owned(), encoder, hashed: Arc::default() }
    }

    /// The moments of a picture, f32 [2 × latent channels, height / 8, width / 8].
    ///
    /// # Errors
    /// When they are not there, not as they were written, or of a picture that has changed since. A picture
    /// that is gone has not changed.
    pub fn get(&self, dataset: &Dataset, item: usize) -> Result<Array3<f32>, Lack> {
        Ok(self.read(dataset, item)?.0)
    }

    /// The moments of a picture, with its stamp of now where that is another one than the entry's.
    fn read(&self, dataset: &Dataset, item: usize) -> Result<(Array3<f32>, Option<Stamp>), Lack> {
        let Entry { dtype, shape, bytes, notes } = entry::read(&self.path(dataset, item))?;
        let (height, width) = dataset.latent_size(item);
        let fits = matches!(shape[..], [channels, h, w]
            if channels > 0 && channels % 2 == 0 && (h, w) == (height, width));
        let values = floats(dtype, &bytes).filter(|_| fits && dtype == Dtype::F32);
        let moments = values
            .and_then(|values| Array3::from_shape_vec((shape[0], shape[1], shape[2]), values).ok());
        let Some(moments) = moments else {
            let expected = format!("F32 of [2 × latent channels, {height}, {width}]");
            return Err(Lack::Damaged(format!(
                "found {dtype:?} of {shape:?}, expected {expected}"
            )));
        };
        match self.picture(&notes, &dataset.file(item)) {
            Picture::Same => Ok((moments, None)),
            Picture::Copied(stamp) => Ok((moments, Some(stamp))),
            Picture::Changed => Err(Lack::Changed),
        }
    }

    /// What has become of the picture that `notes` are of.
    fn picture(&self, notes: &HashMap<String, String>, file: &Path) -> Picture {
        let says = |name, value: &str| notes.get(name).is_some_and(|noted| noted == value);
        let Ok((bytes, changed)) = Stamp::look(file) else {
            // There is nothing it could have changed to.
            return Picture::Same;
        };
        if !says(BYTES, &bytes.to_string()) {
            return Picture::Changed;
        }
        if says(CHANGED, &changed.to_string()) {
            return Picture::Same;
        }
        match self.hashed(file, bytes, changed) {
            Ok(stamp) if says(PICTURE, &stamp.hash) => Picture::Copied(stamp),
            _ => Picture::Changed,
        }
    }

    /// The stamp of a picture of this length and time.
    fn hashed(&self, file: &Path, bytes: u64, changed: u128) -> io::Result<Stamp> {
        let known = || self.hashed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stamp) = known().get(file)
            && (stamp.bytes, stamp.changed) == (bytes, changed)
        {
            return Ok(stamp.clone());
        }
        let stamp = Stamp { bytes, changed, hash: hex(&Sha256::digest(fs::read(file)?)) };
        known().insert(file.to_owned(), stamp.clone());
        Ok(stamp)
    }

    /// Whether something is kept under this picture's name; nothing but the note of a picture that could
    /// not be read is read.
    pub(super) fn has(&self, dataset: &Dataset, item: usize) -> Result<(), Lack> {
        let path = self.path(dataset, item);
        let (height, width) = dataset.latent_size(item);
        match fs::metadata(&path) {
            // Two channels at least.
            Ok(metadata) if metadata.len() >= (2 * 4 * height * width) as u64 => Ok(()),
            Ok(_) => entry::read(&path).map(drop),
            Err(_) => Err(Lack::Missing),
        }
    }

    /// Computes what is missing with `encode`, which turns pictures f32 [B, 3, height, width] in −1 to 1 into
    /// moments [B, 2 × latent channels, height / 8, width / 8]; the next pictures are decoded meanwhile by
    /// `workers` threads. Memory holds three batches. Pictures that cannot be read are skipped and noted.
    ///
    /// # Errors
    /// When the encoder fails or gives something else, or nothing can be written. What was written until
    /// then stays.
    pub(super) fn fill(
        &self,
        dataset: &Dataset,
        workers: usize,
        encode: &mut dyn FnMut(Array4<f32>) -> Result<Array4<f32>, PipelineError>,
        fill: &mut Fill<'_>,
    ) -> Result<Vec<Skipped>, CacheError> {
        entry::remove_abandoned(&self.folder);
        let present = fill.present(dataset.items().len(), |item| {
            let Ok((moments, copied)) = self.read(dataset, item) else { return false };
            if let Some(stamp) = copied {
                // So that the next one need not read the picture. Without, all is as right as before.
                let _ = self.write(dataset, item, moments.view(), stamp);
            }
            true
        })?;
        let mut batches = Vec::new();
        for bucket in dataset.buckets() {
            let pixels = bucket.size.width as usize * bucket.size.height as usize;
            let missing: Vec<usize> =
                bucket.items.iter().copied().filter(|&item| !present[item]).collect();
            batches.extend(missing.chunks(at_once(pixels)).map(<[usize]>::to_vec));
        }
        let batches = fill.share(batches);
        let mut skipped = Vec::new();
        std::thread::scope(|scope| -> Result<(), CacheError> {
            let (sender, decoded) = mpsc::sync_channel(1);
            scope.spawn(move || {
                for batch in batches {
                    let pictures = decode(dataset, &batch, workers);
                    // Nobody waits any more after an error.
                    if sender.send((batch, pictures)).is_err() {
                        return;
                    }
                }
            });
            for (batch, pictures) in decoded {
                if fill.is_cancelled() {
                    return Ok(());
                }
                self.fill_batch(dataset, &batch, pictures, encode, fill, &mut skipped)?;
            }
            Ok(())
        })?;
        Ok(skipped)
    }

    fn fill_batch(
        &self,
        dataset: &Dataset,
        batch: &[usize],
        pictures: Vec<Result<(Stamp, Array3<f32>), PictureError>>,
        encode: &mut dyn FnMut(Array4<f32>) -> Result<Array4<f32>, PipelineError>,
        fill: &mut Fill<'_>,
        skipped: &mut Vec<Skipped>,
    ) -> Result<(), CacheError> {
        let unwritten = |path: PathBuf| |source| CacheError::Write { path, source };
        let mut ready = Vec::new();
        for (&item, result) in batch.iter().zip(pictures) {
            match result {
                Ok((stamp, pixels)) => ready.push((item, stamp, pixels)),
                Err(error) => {
                    let (path, problem) = (self.path(dataset, item), error.to_string());
                    entry::write_problem(&path, &problem).map_err(unwritten(path))?;
                    skipped.push(Skipped { item, file: dataset.file(item), problem });
                    fill.skipped();
                }
            }
        }
        let Some(&(first, ..)) = ready.first() else { return Ok(()) };
        let views: Vec<_> = ready.iter().map(|(_, _, pixels)| pixels.view()).collect();
        let pixels = ndarray::stack(Axis(0), &views).expect("pictures of a bucket have one size");
        let moments = encode(pixels)?;
        let (height, width) = dataset.latent_size(first);
        let fits = matches!(*moments.shape(), [count, channels, h, w]
            if count == ready.len() && channels > 0 && channels % 2 == 0 && (h, w) == (height, width));
        if !fits {
            let expected = format!("[{}, 2 × latent channels, {height}, {width}]", ready.len());
            let found = format!("{:?}", moments.shape());
            return Err(CacheError::Output { file: dataset.file(first), found, expected });
        }
        for ((item, stamp, _), moments) in ready.into_iter().zip(moments.outer_iter()) {
            let written = self.write(dataset, item, moments, stamp);
            written.map_err(unwritten(self.path(dataset, item)))?;
            fill.computed();
        }
        Ok(())
    }

    fn write(
        &self,
        dataset: &Dataset,
        item: usize,
        moments: ArrayView3<'_, f32>,
        stamp: Stamp,
    ) -> io::Result<()> {
        let bytes = moments.iter().flat_map(|value| value.to_le_bytes()).collect();
        let (shape, notes) = (moments.shape().to_vec(), stamp.notes());
        let entry = Entry { dtype: Dtype::F32, shape, bytes, notes };
        entry::write(&self.path(dataset, item), entry)
    }

    /// Where the moments of a picture are.
    fn path(&self, dataset: &Dataset, item: usize) -> PathBuf {
        let (height, width) = dataset.latent_size(item);
        let mut name = Sha256::new();
        let (encoder, filter) = (&self.encoder, dataset.sizing().filter());
        name.update(format!("moments 2, {encoder}, {height} x {width}, {filter:?}\0"));
        // The same name on every system, whatever separates its folders.
        for part in &dataset.items()[item].path {
            name.update(part.as_encoded_bytes());
            name.update("/");
        }
        entry::path(&self.folder, &name)
    }
}

/// How many pictures of so many pixels the encoder is given at once.
pub(in super::super) fn at_once(pixels: usize) -> usize {
    (PIXELS_AT_ONCE / pixels.max(1)).max(1)
}

/// The pictures of a batch, decoded on several threads.
fn decode(
    dataset: &Dataset,
    batch: &[usize],
    workers: usize,
) -> Vec<Result<(Stamp, Array3<f32>), PictureError>> {
    let mut decoded: Vec<_> = batch.iter().map(|_| None).collect();
    in_parallel(
        batch.len(),
        workers,
        |k| {
            let file = dataset.file(batch[k]);
            // The time is taken first: a picture that changes meanwhile is found to have changed later.
            let (bytes, changed) = Stamp::look(&file).map_err(PictureError::Read)?;
            let file = read_file(&file, dataset.limits())?;
            let pixels = pixels_of(dataset, batch[k], &file)?;
            Ok((Stamp { bytes, changed, hash: hex(&Sha256::digest(file)) }, pixels))
        },
        |k, result, _| decoded[k] = Some(result),
    );
    decoded.into_iter().map(|result| result.expect("every picture was looked at")).collect()
}

/// What has become of a picture since its entry was written.
enum Picture {
    /// It is the same as far as length and time tell, or gone.
    Same,
    /// It is the same, and has another time.
    Copied(Stamp),
    /// It is another one.
    Changed,
}

/// What tells whether a picture is still the same.
#[derive(Clone, Debug)]
struct Stamp {
    bytes: u64,
    changed: u128,
    hash: String,
}

const BYTES: &str = "picture_bytes";
const CHANGED: &str = "picture_changed";
const PICTURE: &str = "picture_sha256";

impl Stamp {
    /// Length and time of change, in nanoseconds.
    fn look(file: &Path) -> io::Result<(u64, u128)> {
        let metadata = fs::metadata(file)?;
        let changed = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH);
        Ok((metadata.len(), changed.unwrap_or_default().as_nanos()))
    }

    fn notes(self) -> HashMap<String, String> {
        let Self { bytes, changed, hash } = self;
        let notes = [(BYTES, bytes.to_string()), (CHANGED, changed.to_string()), (PICTURE, hash)];
        notes.map(|(name, value)| (name.to_owned(), value)).into()
    }
}

#[cfg(test)]
#[path = "moments_tests.rs"]
mod tests;
