//! Which pictures go into which batch.

use super::Dataset;
use super::random::Stream;
use serde::{Deserialize, Serialize};

/// How pictures are dealt out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// Pictures in a batch of one worker.
    pub batch_size: usize,
    /// Decides the order.
    pub seed: u64,
    /// Whether what does not fill a batch of all workers is left out of an epoch. Upstream always does,
    /// which can leave nothing of a small set.
    pub drop_last: bool,
    /// This worker's number, from 0.
    pub rank: usize,
    /// How many workers there are.
    pub world: usize,
}

impl BatchOptions {
    /// One worker, incomplete batches kept.
    pub fn new(batch_size: usize, seed: u64) -> Self {
        Self { batch_size, seed, drop_last: false, rank: 0, world: 1 }
    }
}

/// Pictures cannot be dealt out as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplerError {
    /// There are no pictures.
    #[error(
        "no picture can be trained on: none of the labels has a usable picture and a caption; \
         `pixart dataset check` says why of each"
    )]
    NoPictures,
    /// No bucket fills a batch.
    #[error(
        "no batch: none of the {buckets} sizes has the {needed} pictures that fill a batch of all workers; \
         set drop_last to false, or batch_size to {largest} at most"
    )]
    NoBatches {
        /// Buckets there are.
        buckets: usize,
        /// Pictures that a batch needs.
        needed: usize,
        /// The batch size with which there would be a batch.
        largest: usize,
    },
    /// An option is out of range.
    #[error("{option}: found {found}, expected {expected}")]
    Option {
        /// Its name.
        option: &'static str,
        /// Its value.
        found: usize,
        /// What it should be.
        expected: String,
    },
    /// A position is of another run.
    #[error(
        "the saved position does not fit: its {what} is {found}, now it is {expected}; go on with the same, \
         or begin a new epoch"
    )]
    OtherRun {
        /// What differs.
        what: &'static str,
        /// What was saved.
        found: String,
        /// What is now.
        expected: String,
    },
}

/// How far a run is, and of what run. Together with the options it is all that has to be saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Epochs that are over.
    pub epoch: u64,
    /// Batches of the current epoch that are over; less than an epoch has.
    pub batch: u64,
    /// The seed of the order.
    pub seed: u64,
    /// Pictures in a batch of one worker.
    pub batch_size: usize,
    /// Workers.
    pub world: usize,
    /// Whether incomplete batches are left out.
    pub drop_last: bool,
    /// [`Dataset::fingerprint`].
    pub data: String,
}

/// The pictures of a batch of one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchPlan {
    /// The epoch it belongs to, from 0.
    pub epoch: u64,
    /// Its number in the epoch, from 0.
    pub batch: u64,
    /// The bucket it is of, in [`Dataset::buckets`].
    pub bucket: usize,
    /// The pictures, in [`Dataset::items`].
    pub items: Vec<usize>,
    /// The position once this batch is done.
    pub after: Position,
}

/// Deals out batch after batch, epoch after epoch, without end.
///
/// A batch of all workers is of one bucket, so that they do equal work, and every worker gets equally many
/// batches of equally many pictures. In an epoch each picture occurs once; only what fills up the last batch
/// of a bucket for several workers occurs twice.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: BatchOptions,
    buckets: Vec<Vec<usize>>,
    position: Position,
    /// The batches of the epoch, all workers' pictures one after the other.
    order: Vec<(usize, Vec<usize>)>,
    ordered: Option<u64>,
}

/// Tells these choices from those of other parts of a run.
const PURPOSE: u64 = 2;

impl Sampler {
    /// Begins at the first batch of the first epoch.
    ///
    /// # Errors
    /// When there are no pictures or no batches, or an option is out of range.
    pub fn new(dataset: &Dataset, options: BatchOptions) -> Result<Self, SamplerError> {
        let out_of_range = |option, found, expected: &str| {
            Err(SamplerError::Option { option, found, expected: expected.to_owned() })
        };
        if options.batch_size == 0 {
            return out_of_range("batch_size", 0, "1 or more");
        }
        if options.world == 0 {
            return out_of_range("world", 0, "1 or more");
        }
        if options.rank >= options.world {
            return out_of_range("rank", options.rank, &format!("less than {}", options.world));
        }
        let buckets: Vec<Vec<usize>> =
            dataset.buckets().iter().map(|bucket| bucket.items.clone()).collect();
        let Some(largest) = buckets.iter().map(Vec::len).max() else {
            return Err(SamplerError::NoPictures);
        };
        let position = Position {
            epoch: 0,
            batch: 0,
            seed: options.seed,
            batch_size: options.batch_size,
            world: options.world,
            drop_last: options.drop_last,
            data: dataset.fingerprint(),
        };
        let sampler = Self { options, buckets, position, order: Vec::new(), ordered: None };
        if sampler.batches_per_epoch() == 0 {
            return Err(SamplerError::NoBatches {
                buckets: sampler.buckets.len(),
                needed: options.batch_size.saturating_mul(options.world),
                largest: largest / options.world,
            });
        }
        Ok(sampler)
    }

    /// Goes on at a position that was saved.
    ///
    /// # Errors
    /// As [`Sampler::new`], and when the position is of other pictures, another seed, batch size or number
    /// of workers.
    pub fn resume(
        dataset: &Dataset,
        options: BatchOptions,
        position: &Position,
    ) -> Result<Self, SamplerError> {
        let mut sampler = Self::new(dataset, options)?;
        let now = &sampler.position;
        let same: [(&'static str, String, String); 5] = [
            ("set of pictures and captions", position.data.clone(), now.data.clone()),
            ("seed", position.seed.to_string(), now.seed.to_string()),
            ("batch_size", position.batch_size.to_string(), now.batch_size.to_string()),
            ("number of workers", position.world.to_string(), now.world.to_string()),
            ("drop_last", position.drop_last.to_string(), now.drop_last.to_string()),
        ];
        for (what, found, expected) in same {
            if found != expected {
                return Err(SamplerError::OtherRun { what, found, expected });
            }
        }
        let batches = sampler.batches_per_epoch();
        if position.batch >= batches {
            return Err(SamplerError::OtherRun {
                what: "batch in the epoch",
                found: position.batch.to_string(),
                expected: format!("less than {batches}"),
            });
        }
        sampler.position = position.clone();
        Ok(sampler)
    }

    /// Batches of one worker in an epoch, the same for all.
    pub fn batches_per_epoch(&self) -> u64 {
        let all = self.options.batch_size.saturating_mul(self.options.world);
        let batches = |bucket: &Vec<usize>| match self.options.drop_last {
            true => bucket.len() / all,
            false => bucket.len().div_ceil(all),
        };
        self.buckets.iter().map(batches).sum::<usize>() as u64
    }

    /// Where it is now.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The next batch of this worker.
    pub fn next_batch(&mut self) -> BatchPlan {
        let Position { epoch, batch, .. } = self.position;
        if self.ordered != Some(epoch) {
            self.order = self.epoch_order(epoch);
            self.ordered = Some(epoch);
        }
        let (bucket, items) = &self.order[batch as usize];
        let share = items.len() / self.options.world;
        let items = items[self.options.rank * share..][..share].to_vec();
        let bucket = *bucket;
        self.position.batch += 1;
        if self.position.batch == self.order.len() as u64 {
            self.position.epoch += 1;
            self.position.batch = 0;
        }
        BatchPlan { epoch, batch, bucket, items, after: self.position.clone() }
    }

    fn epoch_order(&self, epoch: u64) -> Vec<(usize, Vec<usize>)> {
        let BatchOptions { batch_size, seed, drop_last, world, .. } = self.options;
        let all = batch_size.saturating_mul(world);
        let mut order = Vec::new();
        for (number, bucket) in self.buckets.iter().enumerate() {
            let mut items = bucket.clone();
            Stream::new(seed, &[PURPOSE, epoch, 1 + number as u64]).shuffle(&mut items);
            for batch in items.chunks(all) {
                if drop_last && batch.len() < all {
                    continue;
                }
                // Workers get equally many: the bucket's first pictures fill up.
                let full = batch.len().next_multiple_of(world);
                let more = items.iter().cycle().take(full - batch.len());
                order.push((number, batch.iter().chain(more).copied().collect()));
            }
        }
        Stream::new(seed, &[PURPOSE, epoch, 0]).shuffle(&mut order);
        order
    }
}

#[cfg(test)]
mod tests;
