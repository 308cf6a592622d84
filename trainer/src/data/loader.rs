//! Batches of pixels and captions, made ahead of time.

use super::ahead::{Ahead, OfPlan, Stopped};
use super::picture::{PictureError, decode_picture, read_file, training_tensor};
use super::scan::in_parallel;
use super::{BatchPlan, Caption, CaptionOptions, Dataset, Sampler};
use ndarray::{Array3, Array4};
use pixart_runtime::size::Size;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// How batches are made.
#[derive(Clone, Copy, Debug)]
pub struct LoaderOptions {
    /// How captions are chosen. The seed is the sampler's.
    pub captions: CaptionOptions,
    /// Threads that decode pictures.
    pub workers: usize,
    /// Batches that are made ahead.
    pub ahead: usize,
}

impl Default for LoaderOptions {
    /// The seed's captions and four workers, two batches ahead.
    fn default() -> Self {
        Self { captions: CaptionOptions::default(), workers: 4, ahead: 2 }
    }
}

/// A batch to train on.
#[derive(Debug)]
pub struct Batch {
    /// Its place in the run; `plan.after` is what to save once it is done. `plan.items` are the pictures in
    /// it, in which another may stand for one that has become unreadable.
    pub plan: BatchPlan,
    /// f32 [pictures, 3, height, width] in −1 to 1.
    pub pixels: Array4<f32>,
    /// One for each picture.
    pub captions: Vec<Caption>,
    /// Pictures of this batch that could not be read, for which others stand.
    pub skipped: Vec<Skipped>,
}

/// A picture that was readable when training began and is not any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its number in [`Dataset::items`].
    pub item: usize,
    /// Where it is.
    pub file: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

/// No more batches can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// All pictures of a bucket have become unreadable.
    #[error(
        "none of the {count} pictures of {} × {} pixels can be read any more; {}: {problem}",
        size.width, size.height, file.display()
    )]
    NoneLeft {
        /// The bucket's size.
        size: Size,
        /// Pictures in it.
        count: usize,
        /// The first one.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The thread that makes batches is gone.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Batches of pixels, made on threads of their own in the sampler's order.
///
/// A picture that has become unreadable is replaced by the next readable one of its bucket, so that batches
/// keep their size and workers stay together; [`Loader::skipped`](Ahead::skipped) has all of them.
pub type Loader = Ahead<Batch, LoadError>;

impl Loader {
    /// Makes the batches from where `sampler` is to the end of the epoch before `end_epoch`.
    pub fn start(
        dataset: Arc<Dataset>,
        sampler: Sampler,
        end_epoch: u64,
        options: LoaderOptions,
    ) -> Self {
        let mut bad = BTreeMap::new();
        Self::making(sampler, end_epoch, options.ahead, move |plan| {
            load(&dataset, plan, &options, &mut bad)
        })
    }
}

impl OfPlan for Batch {
    fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }
}

/// Makes one batch. `bad` are pictures known to be unreadable.
pub(super) fn load(
    dataset: &Dataset,
    mut plan: BatchPlan,
    options: &LoaderOptions,
    bad: &mut BTreeMap<usize, String>,
) -> Result<Batch, LoadError> {
    let get = |item| item_pixels(dataset, item).map_err(|error| error.to_string());
    let (pictures, skipped) = gathered(dataset, &mut plan, options.workers, bad, get)?;
    let size = dataset.buckets()[plan.bucket].size;
    let mut pixels = Array4::zeros((pictures.len(), 3, size.height as usize, size.width as usize));
    for (mut place, picture) in pixels.outer_iter_mut().zip(&pictures) {
        place.assign(picture);
    }
    let captions = chosen_captions(dataset, &plan, options.captions);
    Ok(Batch { plan, pixels, captions, skipped })
}

/// What `get` gives for the pictures of a plan, got on `workers` threads. Those it refuses are replaced by the
/// next ones of their bucket, also in the plan, and come into `bad`.
pub(super) fn gathered<T: Send>(
    dataset: &Dataset,
    plan: &mut BatchPlan,
    workers: usize,
    bad: &mut BTreeMap<usize, String>,
    get: impl Fn(usize) -> Result<T, String> + Sync,
) -> Result<(Vec<T>, Vec<Skipped>), LoadError> {
    let known = &*bad;
    let mut results: Vec<Option<Tried<T>>> = plan.items.iter().map(|_| None).collect();
    in_parallel(
        plan.items.len(),
        workers,
        |k| tried(&dataset.bucket_of(plan.items[k]).items, plan.items[k], known, &get),
        |k, result, _| results[k] = Some(result),
    );
    let (mut gathered, mut skipped) = (Vec::with_capacity(results.len()), Vec::new());
    for (tried, place) in results.into_iter().zip(&mut plan.items) {
        let Tried { found, refused } = tried.ok_or(Stopped)?;
        for (item, problem) in refused {
            bad.insert(item, problem.clone());
            skipped.push(Skipped { item, file: dataset.file(item), problem });
        }
        let Some((item, got)) = found else {
            let bucket = dataset.bucket_of(*place);
            return Err(LoadError::NoneLeft {
                size: bucket.size,
                count: bucket.items.len(),
                file: dataset.file(*place),
                problem: bad.get(place).cloned().unwrap_or_default(),
            });
        };
        *place = item;
        gathered.push(got);
    }
    Ok((gathered, skipped))
}

/// The captions of a plan's pictures.
pub(super) fn chosen_captions(
    dataset: &Dataset,
    plan: &BatchPlan,
    options: CaptionOptions,
) -> Vec<Caption> {
    let choose = |&item: &usize| {
        dataset.items()[item].captions.choose(options, plan.after.seed, plan.epoch, item)
    };
    plan.items.iter().map(choose).collect()
}

/// What was got of a picture, and those before it of which nothing could be got.
struct Tried<T> {
    found: Option<(usize, T)>,
    refused: Vec<(usize, String)>,
}

/// What `get` gives of the picture `item`, or of the next one of its bucket that it gives something of.
fn tried<T>(
    bucket: &[usize],
    item: usize,
    known: &BTreeMap<usize, String>,
    get: impl Fn(usize) -> Result<T, String>,
) -> Tried<T> {
    let at = bucket.partition_point(|&other| other < item);
    let mut refused = Vec::new();
    for &candidate in bucket[at..].iter().chain(&bucket[..at]) {
        let problem = match known.get(&candidate) {
            Some(problem) => problem.clone(),
            None => match get(candidate) {
                Ok(got) => return Tried { found: Some((candidate, got)), refused },
                Err(problem) => problem,
            },
        };
        refused.push((candidate, problem));
    }
    Tried { found: None, refused }
}

/// What a picture is trained on, f32 [3, height, width] in −1 to 1.
pub(super) fn item_pixels(dataset: &Dataset, item: usize) -> Result<Array3<f32>, PictureError> {
    pixels_of(dataset, item, &read_file(&dataset.file(item), dataset.limits())?)
}

/// The same of the picture's file.
pub(super) fn pixels_of(
    dataset: &Dataset,
    item: usize,
    file: &[u8],
) -> Result<Array3<f32>, PictureError> {
    let picture = decode_picture(file, dataset.limits())?;
    let size = Size { width: picture.width(), height: picture.height() };
    // Another picture under the same name would not fit into the batch.
    let before = dataset.items()[item].size;
    if dataset.sizing().bucket(size) != dataset.sizing().bucket(before) {
        let Size { width, height } = before;
        return Err(PictureError::Broken(format!(
            "the picture has changed: it was {width} × {height} pixels and is {} × {}",
            size.width, size.height
        )));
    }
    Ok(training_tensor(&dataset.sizing().fit(&picture)))
}

#[cfg(test)]
mod tests;
