//! What text encoder and VAE make of captions and pictures, kept in a folder: it is computed once, not in
//! every epoch, and training needs neither of the two then.
//!
//! `cache.json` says which encoders it is of; `captions/` and `moments/` hold a file each caption and
//! picture. One process at a time may fill a folder, or several that share the work; any number may read it meanwhile.

mod captions;
mod description;
mod entry;
mod fill;
mod moments;

pub(super) use captions::encoded;
pub use captions::{CaptionCache, CaptionSettings, CaptionStates, CaptionType};
pub use description::{Description, TextDescription, VaeDescription};
pub use entry::Lack;
use fill::Fill;
pub use fill::{FillOptions, Filled, Filling};
pub use moments::MomentCache;
pub(super) use moments::at_once;

use super::Dataset;
use super::scan::in_parallel;
use crate::ranks::Lost;
use pixart_runtime::error::PipelineError;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// A folder with encoded captions and pictures, to read from.
#[derive(Clone, Debug)]
pub struct EncodingCache {
    folder: PathBuf,
    description: Description,
    captions: CaptionCache,
    moments: MomentCache,
}

/// What a cache does not have of a training.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lacks {
    /// Captions, in quotes, and paths of pictures, with the reason.
    pub list: Vec<(String, Lack)>,
    /// How many captions and pictures the training has.
    pub of: usize,
}

/// A cache cannot be used or not be filled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// There is no cache.
    #[error(
        "cache_dir: there is no cache in {}; fill it with `pixart train cache --cache_dir {}` and the \
         settings of this training",
        folder.display(), folder.display()
    )]
    NoCache {
        /// The folder.
        folder: PathBuf,
    },
    /// What says which encoders it is of cannot be read.
    #[error("{}: {problem}; remove this file and run `pixart train cache` again, which finds the entries \
             of the encoders it is given", path.display())]
    Description {
        /// `cache.json`.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// It is of another encoder.
    #[error(
        "cache_dir: {} has what another {what} gave: found {found}, expected {expected}; take the {what} it \
         was made with, or another folder",
        folder.display()
    )]
    OtherEncoder {
        /// The folder.
        folder: PathBuf,
        /// `text encoder`, `tokenizer` or `VAE`.
        what: &'static str,
        /// What the cache is of.
        found: String,
        /// What is to be used.
        expected: String,
    },
    /// The process that describes it wrote somewhere else.
    #[error(
        "cache_dir: found no cache in {} that the first process has made there; name a folder that all \
         machines see",
        folder.display()
    )]
    NotShared {
        /// The folder.
        folder: PathBuf,
    },
    /// Another process fills it.
    #[error(
        "cache_dir: another `pixart train cache` is filling {}; wait until it is done, or end it",
        folder.display()
    )]
    Busy {
        /// The folder.
        folder: PathBuf,
    },
    /// Something training needs is not there.
    #[error(transparent)]
    Incomplete(#[from] Box<Incomplete>),
    /// A value too large for fp16.
    #[error(
        "the text encoder gave {value} for the caption \"{}\", and fp16 ends at 65504; keep captions with \
         --caption_dtype fp32",
        shortened(caption)
    )]
    Range {
        /// The caption.
        caption: String,
        /// The value.
        value: f32,
    },
    /// An encoder failed.
    #[error(transparent)]
    Encoder(#[from] Box<PipelineError>),
    /// What the VAE's encoder gave cannot be what was asked for.
    #[error("the VAE's encoder gave {found}, expected {expected} for {}", file.display())]
    Output {
        /// A picture it was given.
        file: PathBuf,
        /// Its shape.
        found: String,
        /// The shape.
        expected: String,
    },
    /// Nothing can be written.
    #[error("{}: cannot keep what was encoded: {source}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The processes that fill it together are gone.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// Something training needs is not in a cache.
#[derive(Debug, thiserror::Error)]
#[error(
    "cache_dir: {} lacks {lacking} of {of} {what} of this training: {first}: {why}; {advice}",
    folder.display()
)]
pub struct Incomplete {
    /// The folder.
    pub folder: PathBuf,
    /// `captions` or `pictures`, with their settings.
    pub what: String,
    /// How many are not there.
    pub lacking: usize,
    /// How many are needed.
    pub of: usize,
    /// The first of them.
    pub first: String,
    /// Why it is not there.
    pub why: Lack,
    /// What to do.
    pub advice: String,
}

impl From<PipelineError> for CacheError {
    fn from(error: PipelineError) -> Self {
        Box::new(error).into()
    }
}

impl EncodingCache {
    /// Opens a cache for reading.
    ///
    /// # Errors
    /// When there is none, or it is of another version.
    pub fn open(folder: &Path) -> Result<Self, CacheError> {
        match Description::read(folder)? {
            Some(description) => Ok(Self::with(folder, description)),
            None => Err(CacheError::NoCache { folder: folder.to_owned() }),
        }
    }

    fn with(folder: &Path, description: Description) -> Self {
        Self {
            captions: CaptionCache::new(
                &folder.join("captions"),
                description.text_encoder.identity(),
            ),
            moments: MomentCache::new(&folder.join("moments"), description.vae.identity()),
            folder: folder.to_owned(),
            description,
        }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The encoders it is of.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The captions in it.
    pub fn captions(&self) -> &CaptionCache {
        &self.captions
    }

    /// The pictures in it.
    pub fn moments(&self) -> &MomentCache {
        &self.moments
    }

    /// The empty caption, which stands for dropped ones.
    ///
    /// # Errors
    /// When it is not there, or not what the description says.
    pub fn null(&self, settings: CaptionSettings) -> Result<CaptionStates, CacheError> {
        let null = self.captions.get("", settings);
        let null = null.and_then(|null| null.of_width(self.description.text_encoder.width));
        null.map_err(|why| {
            let (folder, advice) = (self.folder.clone(), ADVICE.to_owned());
            let (what, first) = ("empty captions".to_owned(), "\"\"".to_owned());
            Box::new(Incomplete { folder, what, lacking: 1, of: 1, first, why, advice }).into()
        })
    }

    /// Whether everything that training on these pictures needs is there: at once, so nothing is
    /// read but what is in question. A picture that could not be read when the cache was filled may lack.
    ///
    /// # Errors
    /// [`CacheError::Incomplete`] otherwise.
    pub fn check_complete(
        &self,
        dataset: &Dataset,
        settings: CaptionSettings,
    ) -> Result<(), CacheError> {
        let incomplete = |what: String, lacking: Vec<(String, Lack)>, of| {
            let Some((first, why)) = lacking.first().cloned() else { return Ok(()) };
            let (folder, lacking) = (self.folder.clone(), lacking.len());
            let advice = format!(
                "{ADVICE}{}",
                match what.starts_with("pictures") {
                    true => format!(" (so far it was filled for {})", self.description.sizes()),
                    false => String::new(),
                }
            );
            Err(Box::new(Incomplete { folder, what, lacking, of, first, why, advice }).into())
        };
        let sizing = dataset.sizing();
        let mut lacking = Vec::new();
        for item in 0..dataset.items().len() {
            match self.moments.has(dataset, item) {
                Ok(()) => {}
                Err(why) if why.is_noted() => {}
                Err(why) => lacking.push((dataset.file(item).display().to_string(), why)),
            }
        }
        let of = dataset.items().len();
        incomplete(format!("pictures at {}", description::size(sizing)), lacking, of)?;
        let texts = texts(dataset);
        let missing = texts.iter().filter(|text| !self.captions.has(text, settings));
        let lacking = missing.map(|text| (format!("\"{}\"", shortened(text)), Lack::Missing));
        let CaptionSettings { cleaning, max_length } = settings;
        let what = format!("captions ({max_length} tokens at most, cleaning {cleaning})");
        incomplete(what, lacking.collect(), texts.len())
    }

    /// Reads everything that training on these pictures needs, on `workers` threads, and gives what cannot be had.
    /// `progress` is told how many of how many were read.
    pub fn lacks(
        &self,
        dataset: &Dataset,
        settings: CaptionSettings,
        workers: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Lacks {
        let texts = texts(dataset);
        let of = texts.len() + dataset.items().len();
        let width = self.description.text_encoder.width;
        let mut list = Vec::new();
        in_parallel(
            of,
            workers,
            |k| match texts.get(k) {
                Some(text) => {
                    let caption = self.captions.get(text, settings);
                    let caption = caption.and_then(|caption| caption.of_width(width));
                    caption.err().map(|why| (format!("\"{}\"", shortened(text)), why))
                }
                None => {
                    let item = k - texts.len();
                    let why = self.moments.get(dataset, item).err();
                    why.map(|why| (dataset.file(item).display().to_string(), why))
                }
            },
            |k, lack, done| {
                list.extend(lack.map(|lack| (k, lack)));
                progress(done, of);
            },
        );
        list.sort_by_key(|(k, _)| *k);
        Lacks { list: list.into_iter().map(|(_, lack)| lack).collect(), of }
    }
}

const ADVICE: &str = "run `pixart train cache` with the settings of this training";

/// Every caption of a dataset once, and the empty one, which dropped captions are replaced by.
fn texts(dataset: &Dataset) -> Vec<&str> {
    let texts = dataset.items().iter().flat_map(|item| item.captions.texts());
    texts.chain([""]).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The beginning of a text.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
