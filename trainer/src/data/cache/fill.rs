//! Filling a cache: captions first, then pictures, so that one encoder is in memory at a time.

use super::super::scan::in_parallel;
use super::super::{Dataset, Skipped};
use super::captions::EncodesText;
use super::{
    CacheError, CaptionSettings, CaptionType, Description, EncodingCache, TextDescription,
    VaeDescription, texts,
};
use ndarray::{Array3, Array4};
use pixart_runtime::error::PipelineError;
use pixart_runtime::pipeline::Cancel;
use pixart_runtime::text::CaptionEncoder;
use pixart_runtime::vae::{PictureEncoder, tiles::TilingOptions};
use std::fs::{self, File, TryLockError};
use std::path::Path;

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

/// What filling the cache did.
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

/// A cache that this process alone may write, until it is dropped.
#[derive(Debug)]
pub struct Filling {
    cache: EncodingCache,
    /// Locked. The system unlocks it when the process ends, however it does.
    _lock: File,
}

impl Filling {
    /// Opens a cache for writing; it is made where there is none.
    ///
    /// # Errors
    /// When the folder cannot be written, is of other encoders, or is being filled by another process.
    pub fn open(
        folder: &Path,
        text: TextDescription,
        vae: VaeDescription,
    ) -> Result<Self, CacheError> {
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
        let mut description = Description::new(text, vae);
        if let Some(there) = Description::read(folder)? {
            description.join(there, folder)?;
        }
        description.write(folder)?;
        Ok(Self { cache: EncodingCache::with(folder, description), _lock: lock })
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
        let mut fill = Fill::new(texts.len(), options, progress);
        let (settings, kept) = (options.settings, options.kept);
        let encoder: &mut dyn EncodesText = encoder;
        self.cache.captions.fill(&texts, settings, kept, encoder, &mut fill)?;
        Ok(fill.filled)
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
        self.cache.description.add_size(dataset.sizing());
        self.cache.description.write(&self.cache.folder)?;
        let mut fill = Fill::new(dataset.items().len(), options, progress);
        let tiling = TilingOptions::default();
        let mut encode = |pixels: Array4<f32>| {
            let moments = encoder.moments(pixels.into_dyn(), &tiling, tell)?;
            Ok(moments.into_dimensionality().expect("the encoder's shape was checked"))
        };
        let workers = options.workers;
        let skipped = self.cache.moments.fill(dataset, workers, &mut encode, &mut fill)?;
        Ok(Filled { skipped, ..fill.filled })
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
    options: &'a FillOptions,
    progress: &'a mut dyn FnMut(usize, usize),
}

impl<'a> Fill<'a> {
    pub(super) fn new(
        total: usize,
        options: &'a FillOptions,
        progress: &'a mut dyn FnMut(usize, usize),
    ) -> Self {
        let filled = Filled { total, ..Filled::default() };
        Self { filled, done: 0, options, progress }
    }

    /// Which of those there are need nothing done.
    pub(super) fn present(
        &mut self,
        count: usize,
        is_there: impl Fn(usize) -> bool + Sync,
    ) -> Vec<bool> {
        let mut present = vec![false; count];
        in_parallel(count, self.options.workers, is_there, |k, there, _| {
            present[k] = there;
            if there {
                self.filled.present += 1;
                self.advance();
            }
        });
        present
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
        (self.progress)(self.done, self.filled.total);
    }
}
