//! What the VAE's encoder makes of pictures, kept on disk: it is computed once, not in every epoch, and
//! training needs no encoder then.
//!
//! `FOLDER/<encoder>/<two digits>/<picture>.safetensors`, one file a picture. The picture's name is a hash of its path,
//! length and time of change, and of the size it is trained at: what has changed is computed anew. Files
//! are written under a temporary name and renamed, so a run that was killed leaves whole files only, and the
//! next one goes on with what is missing.

use super::loader::{Skipped, item_pixels};
use super::scan::in_parallel;
use super::{Dataset, PictureError};
use ndarray::{Array3, Array4, Axis, Ix3};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Kept means and logarithms of variances of latents, as the encoder gives them: unscaled, before anything
/// is sampled from them.
#[derive(Clone, Debug)]
pub struct MomentCache {
    folder: PathBuf,
}

/// Moments could not be computed or kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError<E> {
    /// The encoder failed.
    #[error(transparent)]
    Encoder(E),
    /// What the encoder gave cannot be what was asked for.
    #[error("the VAE's encoder gave {found}, expected {expected} for {}", file.display())]
    Output {
        /// A picture it was given.
        file: PathBuf,
        /// Shape, or that it is not finite.
        found: String,
        /// The shape.
        expected: String,
    },
    /// Nothing can be written.
    #[error("{}: the moments cannot be kept: {source}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What filling the cache did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Pictures whose moments were computed.
    pub computed: usize,
    /// Pictures whose moments were there.
    pub present: usize,
    /// Pictures that have become unreadable.
    pub skipped: Vec<Skipped>,
}

/// How the cache is filled.
#[derive(Clone, Copy, Debug)]
pub struct FillOptions {
    /// Pictures that the encoder is given at once, all of one size.
    pub batch_size: usize,
    /// Threads that decode pictures.
    pub workers: usize,
}

const TENSOR: &str = "moments";
const HASH: &str = "sha256";
/// Begins the names of files that are not finished.
const UNFINISHED: &str = ".pixart-";
/// An unfinished file of this age is no other process's work any more.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// Pixels a latent pixel stands for.
const SCALE: u32 = 8;

impl MomentCache {
    /// The part of a cache that is of one encoder. `encoder` tells encoders apart, a hash of the weights for
    /// instance; nothing is made until something is put in.
    pub fn new(folder: &Path, encoder: &str) -> Self {
        // Whatever the name is, it becomes one folder.
        Self { folder: folder.join(hex(&Sha256::digest(encoder))) }
    }

    /// The moments of a picture, f32 [2 × latent channels, height / 8, width / 8]; none if they are not
    /// there, of a picture that has changed, or damaged.
    pub fn get(&self, dataset: &Dataset, item: usize) -> Option<Array3<f32>> {
        let bytes = fs::read(self.path(dataset, item).ok()?).ok()?;
        parsed(&bytes, latent_size(dataset, item))
    }

    /// Computes what is missing with `encode`, which turns pictures f32 [B, 3, height, width] in −1 to 1 into
    /// moments [B, 2 × latent channels, height / 8, width / 8]. `progress` is told how many of how many
    /// pictures are done. Memory holds one batch.
    ///
    /// # Errors
    /// When the encoder fails or gives something else, or nothing can be written. What was computed until
    /// then is kept.
    pub fn fill<E>(
        &self,
        dataset: &Dataset,
        options: FillOptions,
        mut encode: impl FnMut(&Array4<f32>) -> Result<Array4<f32>, E>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Filled, CacheError<E>> {
        self.remove_abandoned();
        let total = dataset.items().len();
        let mut filled = Filled::default();
        for bucket in dataset.buckets() {
            let mut missing = Vec::new();
            for &item in &bucket.items {
                match self.get(dataset, item) {
                    Some(_) => filled.present += 1,
                    None => missing.push(item),
                }
            }
            let mut done = filled.present + filled.computed + filled.skipped.len();
            progress(done, total);
            for batch in missing.chunks(options.batch_size.max(1)) {
                self.fill_batch(dataset, batch, options.workers, &mut encode, &mut filled)?;
                done += batch.len();
                progress(done, total);
            }
        }
        Ok(filled)
    }

    fn fill_batch<E>(
        &self,
        dataset: &Dataset,
        batch: &[usize],
        workers: usize,
        encode: &mut impl FnMut(&Array4<f32>) -> Result<Array4<f32>, E>,
        filled: &mut Filled,
    ) -> Result<(), CacheError<E>> {
        let mut loaded: Vec<Option<Result<_, PictureError>>> = batch.iter().map(|_| None).collect();
        in_parallel(
            batch.len(),
            workers,
            |k| {
                // Its name is taken first: a picture that changes meanwhile is not found by it later.
                let path = self.path(dataset, batch[k]).map_err(PictureError::Read)?;
                Ok((path, item_pixels(dataset, batch[k])?))
            },
            |k, result, _| loaded[k] = Some(result),
        );
        let mut ready = Vec::new();
        for (&item, result) in batch.iter().zip(loaded) {
            match result {
                Some(Ok((path, pixels))) => ready.push((item, path, pixels)),
                Some(Err(error)) => filled.skipped.push(Skipped {
                    item,
                    file: dataset.file(item),
                    problem: error.to_string(),
                }),
                None => {}
            }
        }
        let Some(&(first, ..)) = ready.first() else { return Ok(()) };
        let views: Vec<_> = ready.iter().map(|(_, _, pixels)| pixels.view()).collect();
        let pixels = ndarray::stack(Axis(0), &views).expect("pictures of a bucket have one size");
        let moments = encode(&pixels).map_err(CacheError::Encoder)?;
        let (height, width) = latent_size(dataset, first);
        let fits = matches!(*moments.shape(), [count, channels, h, w]
            if count == ready.len() && channels > 0 && channels % 2 == 0 && (h, w) == (height, width));
        let finite = moments.iter().all(|value| value.is_finite());
        if !fits || !finite {
            let found = if fits {
                "values that are not finite".to_owned()
            } else {
                format!("{:?}", moments.shape())
            };
            let expected = format!("[{}, 2 × latent channels, {height}, {width}]", ready.len());
            return Err(CacheError::Output { file: dataset.file(first), found, expected });
        }
        for ((_, path, _), moments) in ready.iter().zip(moments.outer_iter()) {
            write(path, &moments.to_owned())
                .map_err(|source| CacheError::Write { path: path.clone(), source })?;
            filled.computed += 1;
        }
        Ok(())
    }

    /// Where the moments of a picture are, as it is now.
    fn path(&self, dataset: &Dataset, item: usize) -> io::Result<PathBuf> {
        let metadata = fs::metadata(dataset.file(item))?;
        let changed = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH);
        let changed = changed.unwrap_or_default().as_nanos();
        let (height, width) = latent_size(dataset, item);
        let mut hash = Sha256::new();
        hash.update(dataset.items()[item].path.as_os_str().as_encoded_bytes());
        hash.update(format!("\0moments 1, {} bytes, {changed}", metadata.len()));
        hash.update(format!(", {height} x {width}, {:?}", dataset.sizing().filter()));
        let name = hex(&hash.finalize());
        Ok(self.folder.join(&name[..2]).join(format!("{name}.safetensors")))
    }

    /// Removes what a killed process left.
    fn remove_abandoned(&self) {
        let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
        for file in entries(&self.folder).flat_map(|part| entries(&part.path())) {
            let unfinished = file.file_name().to_string_lossy().starts_with(UNFINISHED);
            let age = file.metadata().and_then(|metadata| metadata.modified());
            let age = age.ok().and_then(|changed| changed.elapsed().ok()).unwrap_or_default();
            if unfinished && age > ABANDONED {
                // It is in nobody's way if it cannot be removed.
                let _ = fs::remove_file(file.path());
            }
        }
    }
}

/// Height and width of a picture's latents.
fn latent_size(dataset: &Dataset, item: usize) -> (usize, usize) {
    let size = dataset.sizing().bucket(dataset.items()[item].size);
    ((size.height / SCALE) as usize, (size.width / SCALE) as usize)
}

fn write(path: &Path, moments: &Array3<f32>) -> io::Result<()> {
    let data: Vec<u8> = moments.iter().flat_map(|value| value.to_le_bytes()).collect();
    let hash = HashMap::from([(HASH.to_owned(), hex(&Sha256::digest(&data)))]);
    let view = TensorView::new(Dtype::F32, moments.shape().to_vec(), &data);
    let view = view.map_err(io::Error::other)?;
    let bytes = safetensors::serialize([(TENSOR, view)], Some(hash)).map_err(io::Error::other)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(UNFINISHED);
    // A temporary file is private by default; a cache may be shared.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder)?;
    file.write_all(&bytes)?;
    file.persist(path)?;
    Ok(())
}

/// The moments in a file, if it is whole and they have this size.
fn parsed(bytes: &[u8], (height, width): (usize, usize)) -> Option<Array3<f32>> {
    let file = SafeTensors::deserialize(bytes).ok()?;
    let (_, metadata) = SafeTensors::read_metadata(bytes).ok()?;
    let view = file.tensor(TENSOR).ok()?;
    let expected = metadata.metadata().as_ref()?.get(HASH)?;
    let sound = view.dtype() == Dtype::F32 && *expected == hex(&Sha256::digest(view.data()));
    if !sound {
        return None;
    }
    let values = view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let moments = ndarray::ArrayD::from_shape_vec(view.shape(), values).ok()?;
    let moments = moments.into_dimensionality::<Ix3>().ok()?;
    (moments.shape()[1..] == [height, width]).then_some(moments)
}

fn hex(bytes: &[u8]) -> String {
    bytes[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
