//! Filling a cache: captions first, then pictures, so that one encoder is in memory at a time.
//!
//! Several processes that fill one together look each at its share of what may be there, tell each other, and take
//! the batches of what is missing in turn. They are those of one process, so the entries are the same, too.

use super::super::scan::in_parallel;
use super::super::{Dataset, Skipped};
use super::captions::EncodesText;
use super::{
    CacheError, CaptionSettings, CaptionType, Description, EncodingCache, TextDescription,
    VaeDescription, texts,
};
use crate::ranks::{Lost, Ranks};
use ndarray::{Array3, Array4};
use pixart_runtime::error::PipelineError;
use pixart_runtime::pipeline::Cancel;
use pixart_runtime::text::CaptionEncoder;
use pixart_runtime::vae::{PictureEncoder, tiles::TilingOptions};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::sync::Arc;

/// How a cache is filled.
#[derive(Clone, Debug)]
pub struct FillOptions {
    /// How captions become tokens.
    pub settings: CaptionSettings,
    /// The numbers captions are kept in.
    pub kept: CaptionType,
    /// Threads that decode pictures and look at what is there.
    pub workers: usize,
    /// Ends it early; what is done by then stays.
    pub cancel: Cancel,
}

/// What filling the cache did; of several processes, what all of them did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// How many there are in all.
    pub total: usize,
    /// Those that were computed.
    pub computed: usize,
    /// Those that were there.
    pub present: usize,
    /// Pictures that cannot be read. Training passes over them.
    pub skipped: Vec<Skipped>,
}

/// A cache that this process alone may write, or it and those that fill it together, until it is dropped.
#[derive(Debug)]
pub struct Filling {
    cache: EncodingCache,
    ranks: Option<Arc<Ranks>>,
    /// Locked, by the first of several. The system unlocks it when the process ends, however it does.
    _lock: Option<File>,
}

impl Filling {
    /// Opens a cache for writing; it is made where there is none. With `ranks`, all of them do so, on the same
    /// encoders, and each takes its share of what is then filled.
    ///
    /// # Errors
    /// When the folder cannot be written, is of other encoders, or is being filled by another process.
    pub fn open(
        folder: &Path,
        text: TextDescription,
        vae: VaeDescription,
        ranks: Option<Arc<Ranks>>,
    ) -> Result<Self, CacheError> {
        let description = Description::new(text, vae);
        let (description, lock) = match ranks.as_ref().filter(|ranks| !ranks.is_first()) {
            None => Self::lock(folder, description)?,
            Some(_) => (description, None),
        };
        if let Some(ranks) = &ranks {
            ranks.meet()?;
            if !ranks.is_first() && Description::read(folder)?.is_none() {
                return Err(CacheError::NotShared { folder: folder.to_owned() });
            }
        }
        Ok(Self { cache: EncodingCache::with(folder, description), ranks, _lock: lock })
    }

    /// Makes a folder ours and says in it of which encoders it is.
    fn lock(
        folder: &Path,
        mut description: Description,
    ) -> Result<(Description, Option<File>), CacheError> {
        let unwritten = |path: &Path| {
            let path = path.to_owned();
            |source| CacheError::Write { path, source }
        };
        fs::create_dir_all(folder).map_err(unwritten(folder))?;
        let path = folder.join(".lock");
        let lock = File::create(&path).map_err(unwritten(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(CacheError::Busy { folder: folder.to_owned() });
            }
            // Some network file systems have no locks. Entries are written in one step, so two processes
            // would do work twice, but no harm.
            Err(TryLockError::Error(_)) => {}
        }
        if let Some(there) = Description::read(folder)? {
            description.join(there, folder)?;
        }
        description.write(folder)?;
        Ok((description, Some(lock)))
    }

    /// The cache itself.
    pub fn cache(&self) -> &EncodingCache {
        &self.cache
    }

    /// Encodes the captions that are missing or damaged, and the empty one. `progress` is told how many of how many
    /// are done.
    ///
    /// # Errors
    /// When the text encoder fails or nothing can be written. What was written until then stays.
    pub fn fill_captions(
        &mut self,
        dataset: &Dataset,
        encoder: &mut CaptionEncoder,
        options: &FillOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Filled, CacheError> {
        let texts = texts(dataset);
        let mut fill = Fill::new(texts.len(), options, progress).among(self.ranks.as_deref());
        let (settings, kept) = (options.settings, options.kept);
        let encoder: &mut dyn EncodesText = encoder;
        self.cache.captions.fill(&texts, settings, kept, encoder, &mut fill)?;
        fill.finish(dataset, Vec::new())
    }

    /// Encodes the pictures that are missing, damaged or changed. `progress` is told how many of how many are done,
    /// `tell` if memory is short.
    ///
    /// # Errors
    /// When the VAE's encoder fails or nothing can be written. What was written until then stays.
    pub fn fill_moments(
        &mut self,
        dataset: &Dataset,
        encoder: &mut PictureEncoder,
        options: &FillOptions,
        progress: &mut dyn FnMut(usize, usize),
        tell: &mut dyn FnMut(&str),
    ) -> Result<Filled, CacheError> {
        if self.ranks.as_ref().is_none_or(|ranks| ranks.is_first()) {
            self.cache.description.add_size(dataset.sizing());
            self.cache.description.write(&self.cache.folder)?;
        }
        let fill = Fill::new(dataset.items().len(), options, progress);
        let mut fill = fill.among(self.ranks.as_deref());
        let tiling = TilingOptions::default();
        let mut encode = |pixels: Array4<f32>| {
            let moments = encoder.moments(pixels.into_dyn(), &tiling, tell)?;
            Ok(moments.into_dimensionality().expect("the encoder's shape was checked"))
        };
        let workers = options.workers;
        let skipped = self.cache.moments.fill(dataset, workers, &mut encode, &mut fill)?;
        fill.finish(dataset, skipped)
    }
}

impl EncodesText for CaptionEncoder {
    fn ids(&mut self, text: &str, settings: CaptionSettings) -> Result<Vec<i64>, PipelineError> {
        CaptionEncoder::ids(self, text, settings.cleaning, settings.max_length)
    }

    fn states(&mut self, rows: &[&[i64]], length: usize) -> Result<Array3<f32>, PipelineError> {
        CaptionEncoder::states(self, rows, length)
    }

    fn rows_are_independent(&self) -> bool {
        // Dynamic quantisation takes one scale for all rows.
        self.folder().is_none_or(|folder| folder.int8_mode.as_deref() != Some("dynamic"))
    }
}

/// How far filling is.
pub(super) struct Fill<'a> {
    pub(super) filled: Filled,
    done: usize,
    /// How many this process has to do with.
    own: usize,
    options: &'a FillOptions,
    ranks: Option<&'a Ranks>,
    progress: &'a mut dyn FnMut(usize, usize),
}

/// What one of several processes did.
#[derive(Serialize, Deserialize)]
struct Part {
    computed: usize,
    present: usize,
    /// Items, with the problem of each.
    skipped: Vec<(usize, String)>,
}

impl<'a> Fill<'a> {
    pub(super) fn new(
        total: usize,
        options: &'a FillOptions,
        progress: &'a mut dyn FnMut(usize, usize),
    ) -> Self {
        let filled = Filled { total, ..Filled::default() };
        Self { filled, done: 0, own: total, options, ranks: None, progress }
    }

    /// One of several that fill the cache.
    pub(super) fn among(self, ranks: Option<&'a Ranks>) -> Self {
        Self { ranks, ..self }
    }

    /// Its number, and how many there are.
    fn place(&self) -> (usize, usize) {
        self.ranks.map_or((0, 1), |ranks| (ranks.place().rank, ranks.place().world))
    }

    /// Which of those there are need nothing done. Of several processes, each looks at its share before any of them
    /// writes, and all come to the same.
    pub(super) fn present(
        &mut self,
        count: usize,
        is_there: impl Fn(usize) -> bool + Sync,
    ) -> Result<Vec<bool>, Lost> {
        let (rank, world) = self.place();
        self.own = (rank..count).step_by(world).len();
        let mut present = vec![false; self.own];
        let is_there = |k: usize| is_there(rank + k * world);
        in_parallel(self.own, self.options.workers, is_there, |k, there, _| {
            present[k] = there;
            if there {
                self.filled.present += 1;
                self.advance();
            }
        });
        let Some(ranks) = self.ranks else { return Ok(present) };
        let all = ranks.gather_bytes(present.into_iter().map(u8::from).collect())?;
        Ok((0..count).map(|k| all[k % world].get(k / world) == Some(&1)).collect())
    }

    /// The batches of this process.
    pub(super) fn share<T>(&mut self, batches: Vec<Vec<T>>) -> Vec<Vec<T>> {
        let (rank, world) = self.place();
        let own: Vec<Vec<T>> = batches.into_iter().skip(rank).step_by(world).collect();
        self.own = self.filled.present + own.iter().map(Vec::len).sum::<usize>();
        own
    }

    pub(super) fn computed(&mut self) {
        self.filled.computed += 1;
        self.advance();
    }

    pub(super) fn skipped(&mut self) {
        self.advance();
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.options.cancel.is_cancelled()
    }

    fn advance(&mut self) {
        self.done += 1;
        (self.progress)(self.done, self.own);
    }

    /// What was done in all, once all are done.
    fn finish(self, dataset: &Dataset, skipped: Vec<Skipped>) -> Result<Filled, CacheError> {
        let Some(ranks) = self.ranks else { return Ok(Filled { skipped, ..self.filled }) };
        let Filled { total, computed, present, .. } = self.filled;
        let skipped = skipped.into_iter().map(|skipped| (skipped.item, skipped.problem));
        let own = Part { computed, present, skipped: skipped.collect() };
        let mut filled = Filled { total, ..Filled::default() };
        for part in ranks.gather_bytes(serde_json::to_vec(&own).map_err(|_| Lost)?)? {
            let part: Part = serde_json::from_slice(&part).map_err(|_| Lost)?;
            filled.computed += part.computed;
            filled.present += part.present;
            filled.skipped.extend(part.skipped.into_iter().map(|(item, problem)| {
                let file = dataset.file(item);
                Skipped { item, file, problem }
            }));
        }
        filled.skipped.sort_by_key(|skipped| skipped.item);
        Ok(filled)
    }
}
