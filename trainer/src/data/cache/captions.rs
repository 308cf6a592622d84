//! What the text encoder makes of captions, kept on disk.

use super::entry::{self, Entry, Lack, floats};
use super::{CacheError, Fill};
use ndarray::{Array2, Array3, Axis, s};
use pixart_runtime::error::PipelineError;
use pixart_runtime::text::{LENGTH_MULTIPLE, PromptCleaning};
use safetensors::Dtype;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// How captions become tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptionSettings {
    /// What is done to the text first.
    pub cleaning: PromptCleaning,
    /// Tokens at most, the end of sequence among them.
    pub max_length: usize,
}

impl Default for CaptionSettings {
    /// The seed's: the text as it is, 300 tokens.
    fn default() -> Self {
        Self { cleaning: PromptCleaning::Raw, max_length: 300 }
    }
}

/// What the text encoder makes of one caption.
#[derive(Clone, Debug, PartialEq)]
pub struct CaptionStates {
    /// f32 [rows, width]: one row a token. The empty caption's has rows for padding too, up to the greatest
    /// length, because dropped captions are attended to with the mask of their text.
    pub states: Array2<f32>,
    /// Tokens, the end of sequence among them; at most as many as rows.
    pub tokens: usize,
}

/// The numbers that captions are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CaptionType {
    /// Half as large; each number is off by a 2048th of itself at most. Upstream's caches have it too.
    #[default]
    F16,
    /// As they were computed.
    F32,
}

impl CaptionType {
    fn dtype(self) -> Dtype {
        match self {
            Self::F16 => Dtype::F16,
            Self::F32 => Dtype::F32,
        }
    }
}

impl CaptionStates {
    /// Itself, if it has so many numbers a token.
    pub(in super::super) fn of_width(self, width: usize) -> Result<Self, Lack> {
        let found = self.states.ncols();
        match found == width {
            true => Ok(self),
            false => Err(Lack::Damaged(format!("found {found} numbers a token, expected {width}"))),
        }
    }
}

/// Kept captions of one text encoder.
#[derive(Clone, Debug)]
pub struct CaptionCache {
    folder: PathBuf,
    /// Tells its entries from those of other text encoders.
    encoder: String,
}

/// Tokens that the text encoder is given at once, which bounds the memory it takes.
const TOKENS_AT_ONCE: usize = 2048;
const TOKENS: &str = "tokens";

impl CaptionCache {
    pub(super) fn new(folder: &Path, encoder: String) -> Self {
        Self { folder: folder.to_owned(), encoder }
    }

    /// The states of a caption.
    ///
    /// # Errors
    /// When they are not there, or not as they were written.
    pub fn get(&self, text: &str, settings: CaptionSettings) -> Result<CaptionStates, Lack> {
        Ok(self.read(text, settings)?.0)
    }

    fn read(&self, text: &str, settings: CaptionSettings) -> Result<(CaptionStates, Dtype), Lack> {
        let Entry { dtype, shape, bytes, notes } = entry::read(&self.path(text, settings))?;
        let tokens = notes.get(TOKENS).and_then(|tokens| tokens.parse().ok()).unwrap_or(0);
        let values = floats(dtype, &bytes);
        let states = match (values, &shape[..]) {
            (Some(values), &[rows, width]) if (1..=rows).contains(&tokens) => {
                Array2::from_shape_vec((rows, width), values).ok()
            }
            _ => None,
        };
        let damaged = || {
            Lack::Damaged(format!("found {tokens} tokens in {dtype:?} of {shape:?}, no caption"))
        };
        Ok((CaptionStates { states: states.ok_or_else(damaged)?, tokens }, dtype))
    }

    /// Whether something is kept under this caption's name; nothing is read.
    pub(super) fn has(&self, text: &str, settings: CaptionSettings) -> bool {
        self.path(text, settings).is_file()
    }

    fn put(
        &self,
        text: &str,
        settings: CaptionSettings,
        kept: CaptionType,
        caption: &CaptionStates,
    ) -> Result<(), CacheError> {
        let states = caption.states.iter();
        let bytes: Vec<u8> = match kept {
            CaptionType::F32 => states.flat_map(|value| value.to_le_bytes()).collect(),
            CaptionType::F16 => {
                let beyond = |value: &&f32| !half::f16::from_f32(**value).is_finite();
                if let Some(&value) = caption.states.iter().find(beyond) {
                    return Err(CacheError::Range { caption: text.to_owned(), value });
                }
                states.flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect()
            }
        };
        let notes = HashMap::from([(TOKENS.to_owned(), caption.tokens.to_string())]);
        let (dtype, shape) = (kept.dtype(), caption.states.shape().to_vec());
        let path = self.path(text, settings);
        entry::write(&path, Entry { dtype, shape, bytes, notes })
            .map_err(|source| CacheError::Write { path, source })
    }

    /// Encodes the captions that are missing or kept in other numbers than `kept`. `ids` tokenizes a text,
    /// `encode` turns rows of ids, padded to a length, into states.
    ///
    /// # Errors
    /// When a caption cannot be encoded, or nothing can be written. What was written until then stays.
    pub(super) fn fill(
        &self,
        texts: &[&str],
        settings: CaptionSettings,
        kept: CaptionType,
        encoder: &mut dyn EncodesText,
        fill: &mut Fill<'_>,
    ) -> Result<(), CacheError> {
        entry::remove_abandoned(&self.folder);
        let present = fill.present(texts.len(), |k| {
            let read = self.read(texts[k], settings);
            read.is_ok_and(|(_, dtype)| dtype == kept.dtype())
        })?;
        let mut missing = Vec::new();
        for (&text, _) in texts.iter().zip(present).filter(|(_, present)| !present) {
            missing.push((encoder.ids(text, settings)?.len(), text));
        }
        // Those of one length together, the longest first: if memory runs out, then at once.
        missing.sort_by(|a, b| b.cmp(a));
        let mut batches = Vec::new();
        let mut rest = &missing[..];
        while let Some(&(longest, first)) = rest.first() {
            let length = padded(first, longest, settings);
            let most = if encoder.rows_are_independent() { TOKENS_AT_ONCE / length } else { 1 };
            let alike =
                |&&(tokens, text): &&(usize, &str)| padded(text, tokens, settings) == length;
            let count = rest.iter().take(most.max(1)).take_while(alike).count();
            let (now, later) = rest.split_at(count);
            rest = later;
            batches.push(now.iter().map(|(_, text)| *text).collect::<Vec<&str>>());
        }
        for batch in fill.share(batches) {
            if fill.is_cancelled() {
                return Ok(());
            }
            for (text, caption) in batch.iter().zip(encoded(encoder, &batch, settings)?) {
                self.put(text, settings, kept, &caption)?;
                fill.computed();
            }
        }
        Ok(())
    }

    fn path(&self, text: &str, settings: CaptionSettings) -> PathBuf {
        let CaptionSettings { cleaning, max_length } = settings;
        let mut name = Sha256::new();
        let encoder = &self.encoder;
        name.update(format!("caption 1, {encoder}, {cleaning}, {max_length} tokens\0{text}"));
        entry::path(&self.folder, &name)
    }
}

/// A text encoder, as far as captions need one.
pub(in super::super) trait EncodesText {
    /// The token ids of a text.
    fn ids(&mut self, text: &str, settings: CaptionSettings) -> Result<Vec<i64>, PipelineError>;

    /// The states of rows of ids, padded to `length`: f32 [rows, length, width].
    fn states(&mut self, rows: &[&[i64]], length: usize) -> Result<Array3<f32>, PipelineError>;

    /// Whether a row's states are the same whatever rows are beside it, but for rounding.
    fn rows_are_independent(&self) -> bool;
}

/// Encodes captions of one padded length.
pub(in super::super) fn encoded(
    encoder: &mut dyn EncodesText,
    texts: &[&str],
    settings: CaptionSettings,
) -> Result<Vec<CaptionStates>, PipelineError> {
    let ids = texts.iter().map(|text| encoder.ids(text, settings));
    let ids = ids.collect::<Result<Vec<_>, _>>()?;
    let rows: Vec<&[i64]> = ids.iter().map(Vec::as_slice).collect();
    let lengths = texts.iter().zip(&rows).map(|(text, row)| padded(text, row.len(), settings));
    let length = lengths.max().unwrap_or_default();
    let states = encoder.states(&rows, length)?;
    let captions = states.axis_iter(Axis(0)).zip(texts.iter().zip(&rows));
    let caption = |(states, (text, row)): (ndarray::ArrayView2<'_, f32>, (&&str, &&[i64]))| {
        let kept = if text.is_empty() { length } else { row.len() };
        CaptionStates { states: states.slice(s![..kept, ..]).to_owned(), tokens: row.len() }
    };
    Ok(captions.map(caption).collect())
}

/// The length a caption of so many tokens is encoded at. More makes no difference to it: padding has no
/// weight, and T5's positions are distances. Only the empty caption's padding is used.
fn padded(text: &str, tokens: usize, settings: CaptionSettings) -> usize {
    match text.is_empty() {
        true => settings.max_length.max(tokens),
        false => tokens.next_multiple_of(LENGTH_MULTIPLE).min(settings.max_length).max(tokens),
    }
}

#[cfg(test)]
#[path = "captions_tests.rs"]
mod tests;
