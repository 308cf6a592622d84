//! T5's tokenizer, from `spiece.model` or `tokenizer.json`.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use prost::Message;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::{
    AddedToken, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper,
    models::unigram::Unigram,
    normalizers::precompiled::Precompiled,
    pre_tokenizers::{
        metaspace::{Metaspace, PrependScheme},
        sequence::Sequence,
        whitespace::WhitespaceSplit,
    },
};

use crate::bundle::store;

use super::{
    charsmap,
    sentencepiece::{self, kind},
};

/// The sentinel tokens a T5 vocabulary has where its config does not say otherwise.
const DEFAULT_EXTRA_IDS: usize = 100;

/// A T5 tokenizer. Gives the ids that `T5Tokenizer` of transformers 5 gives.
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    pad: i64,
    eos: i64,
}

/// A tokenizer could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The folder holds neither file.
    #[error(
        "the tokenizer folder {} holds neither spiece.model nor tokenizer.json; copy the \
         checkpoint's tokenizer folder there",
        folder.display()
    )]
    Missing {
        /// The folder looked into.
        folder: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{}: {problem}", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// What was found and what was expected.
        problem: String,
    },
    /// The caption cleaner does not take a prompt.
    #[error(transparent)]
    Clean(#[from] super::CleanError),
    /// The tokenizer failed on a text.
    #[error("the tokenizer failed on the text: {0}")]
    Encode(String),
}

/// What both kinds of file hold.
struct Vocabulary {
    /// Pieces and their scores, by id.
    pieces: Vec<(String, f64)>,
    unk_id: Option<usize>,
    /// The character normalisation that was compiled into the model.
    charsmap: Option<Precompiled>,
    /// Tokens found in the raw text before anything else, in order of registration.
    added: Vec<AddedToken>,
}

/// The fields of `tokenizer_config.json` that matter for ids.
#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    extra_ids: Option<usize>,
    pad_token: Option<TokenName>,
    eos_token: Option<TokenName>,
    unk_token: Option<TokenName>,
    additional_special_tokens: Option<Vec<TokenName>>,
    extra_special_tokens: Option<Value>,
    added_tokens_decoder: BTreeMap<String, AddedTokenConfig>,
}

/// A token is written as its text or as an object with the text in `content`.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum TokenName {
    Text(String),
    Object { content: String },
}

#[derive(Clone, Deserialize)]
struct AddedTokenConfig {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

impl TokenName {
    fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

impl AddedTokenConfig {
    fn token(self) -> AddedToken {
        AddedToken::from(self.content, self.special)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized)
    }
}

impl Tokenizer {
    /// Reads the tokenizer in `folder`: `spiece.model` with the optional `tokenizer_config.json`
    /// (as the released checkpoints have it), else `tokenizer.json`.
    ///
    /// # Errors
    /// When neither file is there, or the one used is broken or holds no unigram vocabulary.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let config = read_config(&folder.join("tokenizer_config.json"))?;
        let spiece = folder.join("spiece.model");
        let json = folder.join("tokenizer.json");
        let (vocabulary, file) = if store::is_file(&spiece) {
            (from_sentencepiece(&spiece, &config)?, spiece)
        } else if store::is_file(&json) {
            (from_json(&json)?, json)
        } else {
            return Err(TokenizerError::Missing { folder: folder.to_owned() });
        };
        Self::build(vocabulary, config, &file)
    }

    fn build(
        vocabulary: Vocabulary,
        config: TokenizerConfig,
        file: &Path,
    ) -> Result<Self, TokenizerError> {
        let invalid = |problem: String| TokenizerError::Invalid { file: file.to_owned(), problem };
        let mut added: Vec<AddedToken> =
            sorted_by_id(config.added_tokens_decoder).map(AddedTokenConfig::token).collect();
        let name = |token: Option<TokenName>, usual: &str| match token {
            Some(token) => token.text(),
            None => usual.to_owned(),
        };
        let pad = name(config.pad_token, "<pad>");
        let eos = name(config.eos_token, "</s>");
        let unk = name(config.unk_token, "<unk>");
        added.extend([&eos, &unk, &pad].map(|name| AddedToken::from(name, true)));
        added.extend(vocabulary.added);
        // A token without a row in the embedding table cannot be used, and the first one of a name
        // decides how it is matched.
        let mut unused: HashSet<&str> =
            vocabulary.pieces.iter().map(|(piece, _)| piece.as_str()).collect();
        added.retain(|token| unused.remove(token.content.as_str()));

        let model = Unigram::from(vocabulary.pieces, vocabulary.unk_id, false)
            .map_err(|error| invalid(format!("the vocabulary cannot be used: {error}")))?;
        let mut tokenizer = tokenizers::Tokenizer::new(ModelWrapper::from(model));
        tokenizer
            .with_normalizer(vocabulary.charsmap.map(NormalizerWrapper::from))
            .map_err(|error| invalid(format!("the character map cannot be used: {error}")))?;
        tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
            PreTokenizerWrapper::from(WhitespaceSplit),
            PreTokenizerWrapper::from(Metaspace::new('▁', PrependScheme::Always, true)),
        ])));
        tokenizer
            .add_tokens(added)
            .map_err(|error| invalid(format!("a special token cannot be used: {error}")))?;

        let id = |name: &str| {
            tokenizer.token_to_id(name).map(i64::from).ok_or_else(|| {
                invalid(format!("the vocabulary has no \"{name}\"; a T5 vocabulary is expected"))
            })
        };
        let (pad, eos) = (id(&pad)?, id(&eos)?);
        Ok(Self { tokenizer, pad, eos })
    }

    /// The ids of `text` with the end-of-sequence id after them, at most `max_length` in all:
    /// a longer text loses its end.
    ///
    /// # Errors
    /// Only if the underlying tokenizer fails, which no text is known to make it do.
    pub fn encode(&self, text: &str, max_length: usize) -> Result<Vec<i64>, TokenizerError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|error| TokenizerError::Encode(error.to_string()))?;
        let kept = max_length.saturating_sub(1);
        Ok(encoding
            .get_ids()
            .iter()
            .take(kept)
            .map(|&id| i64::from(id))
            .chain([self.eos])
            .collect())
    }

    /// The id that fills the rest of a sequence.
    pub fn pad_id(&self) -> i64 {
        self.pad
    }

    /// The id that ends a sequence.
    pub fn eos_id(&self) -> i64 {
        self.eos
    }

    /// The number of ids, sentinels included. The text encoder's embedding table has at least
    /// this many rows.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }
}

fn read(file: &Path) -> Result<Vec<u8>, TokenizerError> {
    store::read(file).map_err(|source| TokenizerError::Read { file: file.to_owned(), source })
}

fn read_config(file: &Path) -> Result<TokenizerConfig, TokenizerError> {
    if !store::is_file(file) {
        return Ok(TokenizerConfig::default());
    }
    serde_json::from_slice(&read(file)?).map_err(|error| TokenizerError::Invalid {
        file: file.to_owned(),
        problem: error.to_string(),
    })
}

/// The map's keys are ids written as text; `"10"` comes after `"9"`.
fn sorted_by_id(
    tokens: BTreeMap<String, AddedTokenConfig>,
) -> impl Iterator<Item = AddedTokenConfig> {
    let mut tokens: Vec<_> =
        tokens.into_iter().map(|(id, token)| (id.parse().unwrap_or(u64::MAX), token)).collect();
    tokens.sort_by_key(|(id, _)| *id);
    tokens.into_iter().map(|(_, token)| token)
}

fn from_sentencepiece(file: &Path, config: &TokenizerConfig) -> Result<Vocabulary, TokenizerError> {
    let invalid = |problem: String| TokenizerError::Invalid { file: file.to_owned(), problem };
    let model = sentencepiece::Model::decode(read(file)?.as_slice())
        .map_err(|error| invalid(format!("this is no SentencePiece model: {error}")))?;
    let model_type = model.trainer.and_then(|trainer| trainer.model_type).unwrap_or(1);
    if model_type != 1 {
        return Err(invalid(format!(
            "found a {} model, expected unigram, as T5's tokenizer is",
            sentencepiece::model_type_name(model_type)
        )));
    }
    if model.pieces.is_empty() {
        return Err(invalid("the SentencePiece model has no pieces".to_owned()));
    }

    let mut added = Vec::new();
    let mut pieces = Vec::with_capacity(model.pieces.len());
    let mut unk_id = None;
    for (id, piece) in model.pieces.into_iter().enumerate() {
        let text = piece.piece.unwrap_or_default();
        match piece.kind {
            Some(kind::UNKNOWN) => unk_id = Some(id),
            Some(kind::CONTROL) => added.push(AddedToken::from(&*text, true)),
            Some(kind::USER_DEFINED) => {
                added.push(AddedToken::from(&*text, false).normalized(false))
            }
            _ => {}
        }
        pieces.push((text, f64::from(piece.score.unwrap_or(0.0))));
    }
    // The sentinels sit on top of the vocabulary in descending order.
    for sentinel in (0..config.extra_ids.unwrap_or(DEFAULT_EXTRA_IDS)).rev() {
        let name = format!("<extra_id_{sentinel}>");
        added.push(AddedToken::from(&*name, true));
        pieces.push((name, 0.0));
    }
    let names = config.additional_special_tokens.iter().flatten().cloned().map(TokenName::text);
    added.extend(names.map(|name| AddedToken::from(name, true)));
    if let Some(Value::Array(names)) = &config.extra_special_tokens {
        added.extend(names.iter().filter_map(Value::as_str).map(|n| AddedToken::from(n, true)));
    }
    let charsmap = model
        .normalizer
        .and_then(|normalizer| normalizer.precompiled_charsmap)
        .filter(|bytes| !bytes.is_empty())
        .map(|bytes| charsmap::read(&bytes))
        .transpose()
        .map_err(|error| invalid(format!("the character map is broken: {error}")))?;
    Ok(Vocabulary { pieces, unk_id, charsmap, added })
}

/// Takes vocabulary and character map; how the text is split is T5's way whatever the file says,
/// as in transformers.
fn from_json(file: &Path) -> Result<Vocabulary, TokenizerError> {
    #[derive(Deserialize)]
    struct File {
        model: Model,
        normalizer: Option<Value>,
        #[serde(default)]
        added_tokens: Vec<AddedTokenConfig>,
    }
    #[derive(Deserialize)]
    struct Model {
        #[serde(rename = "type")]
        kind: Option<String>,
        unk_id: Option<usize>,
        vocab: Value,
    }
    let invalid = |problem: String| TokenizerError::Invalid { file: file.to_owned(), problem };
    let content: File =
        serde_json::from_slice(&read(file)?).map_err(|error| invalid(error.to_string()))?;
    if let Some(kind) = content.model.kind.filter(|kind| kind != "Unigram") {
        return Err(invalid(format!(
            "found a {kind} model, expected Unigram, as T5's tokenizer is"
        )));
    }
    let pieces = serde_json::from_value(content.model.vocab)
        .map_err(|error| invalid(format!("model.vocab, a list of [piece, score]: {error}")))?;
    let normalizers = match content.normalizer {
        Some(Value::Object(mut sequence)) if sequence.contains_key("normalizers") => {
            sequence.remove("normalizers").and_then(|list| match list {
                Value::Array(list) => Some(list),
                _ => None,
            })
        }
        other => other.map(|one| vec![one]),
    };
    let charsmap = normalizers
        .into_iter()
        .flatten()
        .find(|normalizer| normalizer["type"] == "Precompiled")
        .map(|normalizer| {
            let text = normalizer["precompiled_charsmap"].as_str().unwrap_or_default();
            let bytes = BASE64.decode(text).map_err(|error| error.to_string())?;
            charsmap::read(&bytes)
        })
        .transpose()
        .map_err(|error| invalid(format!("the character map is broken: {error}")))?;
    let added = content.added_tokens.into_iter().map(AddedTokenConfig::token).collect();
    Ok(Vocabulary { pieces, unk_id: content.model.unk_id, charsmap, added })
}

#[cfg(test)]
mod tests;
