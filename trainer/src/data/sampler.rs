//! Which pictures go into which batch.

use super::Dataset;
use super::random::Stream;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

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
    /// Batches that are over of the current epoch, or of what of it is dealt out with this number of workers;
    /// less than there are.
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
    /// What of the current epoch was dealt out to another number of workers, before that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Dealt>,
}

/// Batches of one size that are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dealt {
    /// Pictures in a batch of all workers.
    pub pictures: usize,
    /// How many of them.
    pub batches: u64,
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
    /// Which share of the batch of all workers they are.
    pub share: Share,
    /// The position once this batch is done.
    pub after: Position,
}

/// Where the pictures of a worker stand in the batch of all workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Where the first one stands, from 0.
    pub first: usize,
    /// Pictures of the batch of all workers. What stands there or behind fills up, so that all workers have equally
    /// many, and does not count.
    pub whole: usize,
}

/// Deals out batch after batch, epoch after epoch, without end.
///
/// A batch of all workers is of one bucket, so that they do equal work, and every worker gets equally many
/// batches of equally many pictures. In an epoch each picture occurs once, but for what fills up the last batch
/// of a bucket for several workers, which [`Share::whole`] tells apart. Batches of all workers together depend on
/// their size alone, not on how many share them.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: BatchOptions,
    buckets: Vec<Vec<usize>>,
    position: Position,
    /// The batches of the epoch from the position's first on, all workers' pictures one after the other.
    order: Vec<Whole>,
    ordered: Option<u64>,
}

/// The bucket and the pictures of a batch of all workers.
type Whole = (usize, Vec<usize>);

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
            earlier: Vec::new(),
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

    /// Goes on at a position that was saved. With another number of workers the pictures that are left of the epoch
    /// are dealt out anew, unless a batch of all of them is as large as before: then all goes on as it would have.
    ///
    /// # Errors
    /// As [`Sampler::new`], and when the position is of other pictures, another seed, or, with as many workers as
    /// before, another batch size.
    pub fn resume(
        dataset: &Dataset,
        options: BatchOptions,
        position: &Position,
    ) -> Result<Self, SamplerError> {
        let mut sampler = Self::new(dataset, options)?;
        let now = &sampler.position;
        let same: [(&'static str, String, String); 4] = [
            ("set of pictures and captions", position.data.clone(), now.data.clone()),
            ("seed", position.seed.to_string(), now.seed.to_string()),
            ("batch_size", position.batch_size.to_string(), now.batch_size.to_string()),
            ("drop_last", position.drop_last.to_string(), now.drop_last.to_string()),
        ];
        for (what, found, expected) in same {
            let may_differ = what == "batch_size" && position.world != now.world;
            if found != expected && !may_differ {
                return Err(SamplerError::OtherRun { what, found, expected });
            }
        }
        let before = Dealt {
            pictures: position.batch_size.saturating_mul(position.world),
            batches: position.batch,
        };
        let (batch_size, world) = (options.batch_size, options.world);
        sampler.position = Position { batch_size, world, ..position.clone() };
        if before.pictures != batch_size.saturating_mul(world) && before.batches > 0 {
            sampler.position.earlier.push(before);
            sampler.position.batch = 0;
        }
        sampler.order = sampler.epoch_order();
        let batches = sampler.order.len() as u64;
        if batches == 0 {
            // What is left does not fill a batch.
            sampler.next_epoch();
        } else if position.batch >= batches && sampler.position.batch != 0 {
            return Err(SamplerError::OtherRun {
                what: "batch in the epoch",
                found: position.batch.to_string(),
                expected: format!("less than {batches}"),
            });
        }
        sampler.ordered = Some(sampler.position.epoch).filter(|_| batches > 0);
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
            self.order = self.epoch_order();
            self.ordered = Some(epoch);
        }
        let BatchOptions { rank, world, .. } = self.options;
        let (bucket, pictures) = &self.order[batch as usize];
        let share = pictures.len().div_ceil(world);
        let first = rank * share;
        // Workers get equally many: the bucket's first pictures fill up.
        let more = self.buckets[*bucket].iter().cycle();
        let items = pictures.iter().chain(more).skip(first).take(share).copied().collect();
        let (bucket, share) = (*bucket, Share { first, whole: pictures.len() });
        self.position.batch += 1;
        if self.position.batch == self.order.len() as u64 {
            self.next_epoch();
        }
        BatchPlan { epoch, batch, bucket, items, share, after: self.position.clone() }
    }

    fn next_epoch(&mut self) {
        self.position.epoch += 1;
        self.position.batch = 0;
        self.position.earlier.clear();
    }

    /// The batches of the position's epoch, without what was dealt out earlier.
    fn epoch_order(&self) -> Vec<Whole> {
        let BatchOptions { batch_size, seed, world, .. } = self.options;
        let epoch = self.position.epoch;
        let mut left = self.buckets.clone();
        for (number, items) in left.iter_mut().enumerate() {
            Stream::new(seed, &[PURPOSE, epoch, 1 + number as u64]).shuffle(items);
        }
        for (count, dealt) in self.position.earlier.iter().enumerate() {
            let mut order = self.shuffled(&left, dealt.pictures, count);
            order.truncate(dealt.batches as usize);
            let over: HashSet<usize> = order.into_iter().flat_map(|(_, items)| items).collect();
            left.iter_mut().for_each(|items| items.retain(|item| !over.contains(item)));
        }
        self.shuffled(&left, batch_size.saturating_mul(world), self.position.earlier.len())
    }

    /// Batches of so many pictures, in the order of the `count`-th time that this epoch is dealt out.
    fn shuffled(&self, buckets: &[Vec<usize>], pictures: usize, count: usize) -> Vec<Whole> {
        let BatchOptions { seed, drop_last, .. } = self.options;
        let whole = |batch: &[usize]| !drop_last || batch.len() == pictures;
        let mut order: Vec<Whole> = Vec::new();
        for (number, items) in buckets.iter().enumerate() {
            let batches = items.chunks(pictures).filter(|batch| whole(batch));
            order.extend(batches.map(|batch| (number, batch.to_vec())));
        }
        // The first time has no number, as ever.
        let name = [PURPOSE, self.position.epoch, 0, count as u64];
        let name = if count == 0 { &name[..3] } else { &name[..] };
        Stream::new(seed, name).shuffle(&mut order);
        order
    }
}

#[cfg(test)]
mod tests;
