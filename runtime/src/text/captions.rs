//! The text side of a model: prompts in, embeddings out, from the cache where they are there.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use ndarray::{Array3, ArrayD};

use super::{
    Conditioning, PromptCleaning, PromptIds, TextCache, Tokenizer,
    cache::{self, Found, Key},
    encode::{self, Padded},
};
use crate::{
    engine::Engine,
    error::PipelineError,
    lora::{Exported, Lora, LoraMatch, LoraPlan, match_loras},
    model_folder::{Component, ComponentFolder, ModelError, TextEncoderArchitecture},
    pipeline::{Cancel, Event, LazyComponent, Request, Stage, StageProgress},
};

/// Bytes of captions on their way through an encoder whose weights are read for them all.
const MOST_TOGETHER: usize = 256 << 20;

/// What a prompt's caption is and where it is found.
struct Wanted {
    key: Key,
    shape: [usize; 3],
    length: usize,
}

impl Wanted {
    fn of(ids: &PromptIds, request: &Request, width: usize) -> Self {
        let rows = ids.rows();
        let length = encode::padded_length(&rows, request.max_length);
        Self { key: Key::new(&rows, length), shape: [rows.len(), length, width], length }
    }

    /// What lies between two blocks of T5-XXL, about: the stream and a bias for each of 64 heads.
    fn bytes(&self) -> usize {
        let [rows, length, width] = self.shape;
        4 * rows * length * (width + 64 * length)
    }
}

/// A tokenizer and a text encoder, the latter perhaps only in the form of what it once gave.
pub struct CaptionEncoder {
    tokenizer: Tokenizer,
    /// Absent where only cached captions can be had.
    encoder: Option<LazyComponent<TextEncoderArchitecture>>,
    folder: PathBuf,
    cache: Option<TextCache>,
    /// The fingerprint of the LoRAs that change the encoder.
    lora: Option<String>,
    cancel: Cancel,
}

impl CaptionEncoder {
    /// Reads the tokenizer and the text encoder's manifest. With a cache, the text encoder's folder may
    /// be missing.
    ///
    /// # Errors
    /// When a folder is broken or of another version, the two do not belong together, or the text
    /// encoder is missing and there is no cache.
    pub fn new(
        engine: &Arc<dyn Engine>,
        text_encoder: &Path,
        tokenizer: &Path,
        cache: Option<TextCache>,
    ) -> Result<Self, PipelineError> {
        let encoder = match LazyComponent::<TextEncoderArchitecture>::open(engine, text_encoder) {
            Ok(encoder) => Some(encoder),
            Err(ModelError::MissingFolder { .. }) if cache.is_some() => None,
            Err(error) => return Err(error.into()),
        };
        let tokenizer = Tokenizer::from_folder(tokenizer)?;
        let ids = tokenizer.vocab_size();
        let rows = encoder.as_ref().map_or(ids, |encoder| encoder.folder.architecture.vocab_size);
        if ids > rows {
            let problem = format!(
                "the tokenizer has {ids} ids but the text encoder's table only {rows} rows; take both \
                 from the same checkpoint"
            );
            return Err(ModelError::Mismatch(problem).into());
        }
        let (folder, cancel) = (text_encoder.to_owned(), Cancel::new());
        Ok(Self { tokenizer, encoder, folder, cache, lora: None, cancel })
    }

    /// Sets the token that stops [`encode`](Self::encode) early.
    pub fn set_cancel(&mut self, cancel: Cancel) {
        self.cancel = cancel;
    }

    /// From now on, an encoder of more than so many bytes has the weights of a few blocks in memory at a time
    /// ([`engine::stream`](crate::engine::stream)). All of them are read from the disk then for each request:
    /// once, unless it has hundreds of captions. An encoder on an accelerator is loaded as a whole all
    /// the same.
    pub fn stream_above(&mut self, bytes: u64) {
        if let Some(encoder) = &mut self.encoder {
            encoder.stream_above(bytes);
        }
    }

    /// Numbers a token in the embeddings; unknown without the text encoder.
    pub fn width(&self) -> Option<usize> {
        self.encoder.as_ref().map(|encoder| encoder.folder.architecture.d_model)
    }

    /// What the text encoder's manifest says, where it is there.
    pub fn folder(&self) -> Option<&ComponentFolder<TextEncoderArchitecture>> {
        self.encoder.as_ref().map(|encoder| &encoder.folder)
    }

    /// The token ids of one text, end of sequence included, cut to `max_length`.
    ///
    /// # Errors
    /// When the text cannot be cleaned or tokenized.
    pub fn ids(
        &self,
        text: &str,
        cleaning: PromptCleaning,
        max_length: usize,
    ) -> Result<Vec<i64>, PipelineError> {
        Ok(PromptIds::new(&self.tokenizer, cleaning, text, None, max_length)?.positive)
    }

    /// What the text encoder makes of rows of ids, each padded to `length` and attending to its own ids
    /// alone: f32 [rows, length, width]. The cache is passed by.
    ///
    /// # Errors
    /// When the text encoder is missing or fails, or gives what is not finite.
    pub fn states(&mut self, rows: &[&[i64]], length: usize) -> Result<Array3<f32>, PipelineError> {
        let Some(encoder) = &mut self.encoder else {
            let (folder, component) = (self.folder.clone(), Component::TextEncoder);
            return Err(ModelError::MissingFolder { folder, component }.into());
        };
        let shape = [rows.len(), length, encoder.folder.architecture.d_model];
        let pad = self.tokenizer.pad_id();
        let caption = Padded { rows: rows.to_vec(), length };
        let states = encode::embed(&mut encoder.load()?, &[caption], pad, length)?;
        let states = states.into_iter().next().unwrap_or_default();
        encoder.check_shape(&states, &shape)?;
        Ok(states.into_dimensionality().expect("three axes were checked"))
    }

    /// Applies what LoRAs have for the text encoder, in this order, from the next request on, in place
    /// of those set before. What they have for the transformer is passed over. Captions are cached
    /// apart from those of the plain encoder and of other LoRAs.
    ///
    /// # Errors
    /// Those of [`match_loras`]. Those set before stay then.
    pub fn set_loras(
        &mut self,
        loras: &[Arc<Lora>],
        allow_unmatched: bool,
    ) -> Result<Vec<LoraMatch>, PipelineError> {
        let ([_, plan], matches) = match_loras(loras, None, self.exported(), allow_unmatched)?;
        self.set_lora(plan);
        Ok(matches)
    }

    /// What LoRAs are matched with, where the text encoder is there.
    pub(crate) fn exported(&self) -> Option<Exported<'_>> {
        self.encoder.as_ref().map(LazyComponent::exported)
    }

    /// Changes the encoder's weights from the next load on; what is loaded goes.
    pub(crate) fn set_lora(&mut self, plan: LoraPlan) {
        self.lora = plan.fingerprint();
        if let Some(encoder) = &mut self.encoder {
            encoder.set_lora(plan);
        }
    }

    /// The captions of a request, one for each prompt; those of the first prompts if it is cancelled.
    /// `width` is the number of values of a token, for captions from the cache.
    ///
    /// # Errors
    /// When the tokenizer or the encoder fails, or a caption is not cached and there is no encoder.
    pub fn encode(
        &mut self,
        request: &Request,
        width: usize,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<Conditioning>, PipelineError> {
        let prompts = self.tokenize(request)?;
        let mut stage = StageProgress::start(Stage::EncodeText, prompts.len(), progress);
        let mut captions: Vec<Conditioning> = Vec::with_capacity(prompts.len());
        let mut ready = HashMap::new();
        for (k, ids) in prompts.iter().enumerate() {
            // What was encoded together is kept.
            if self.cancel.is_cancelled() && ready.is_empty() {
                break;
            }
            captions.push(match prompts[..k].iter().position(|earlier| earlier == ids) {
                Some(same) => captions[same].clone(),
                None => {
                    let tell = &mut |text: &str| stage.tell(Event::Note { text });
                    self.one(&prompts, k, request, width, &mut ready, tell)?
                }
            });
            stage.advance(1);
        }
        stage.finish();
        Ok(captions)
    }

    /// Frees the memory of the weights.
    pub fn unload(&mut self) {
        if let Some(encoder) = &mut self.encoder {
            encoder.unload();
        }
    }

    fn tokenize(&self, request: &Request) -> Result<Vec<PromptIds>, PipelineError> {
        let ids = |(k, prompt): (usize, &String)| {
            let negative = request.negative_prompt(k);
            let (cleaning, max_length) = (request.prompt_cleaning(), request.max_length);
            Ok(PromptIds::new(&self.tokenizer, cleaning, prompt, negative, max_length)?)
        };
        request.prompts.iter().enumerate().map(ids).collect()
    }

    /// The caption of one prompt. Where others are encoded with it, they are left in `ready`.
    fn one(
        &mut self,
        prompts: &[PromptIds],
        k: usize,
        request: &Request,
        width: usize,
        ready: &mut HashMap<usize, ArrayD<f32>>,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Conditioning, PipelineError> {
        let ids = &prompts[k];
        let Wanted { key, shape, length } = Wanted::of(ids, request, width);
        let mask = encode::mask(ids, length, request.uncond_mask());
        let Some(encoder) = &self.encoder else {
            let embeddings = self.cached_only(&key, &shape, &request.prompts[k])?;
            return Ok(Conditioning { embeddings: embeddings.into(), mask });
        };
        let identity = cache::encoder_name(&encoder.folder.identity, self.lora.as_deref());
        if let Some(cache) = &self.cache {
            match cache.get(&identity, &key, &shape) {
                Found::Entry(values) => {
                    return Ok(Conditioning { embeddings: values.into(), mask });
                }
                Found::Damaged(problem) => tell(&problem),
                Found::Nothing => {}
            }
        }
        let embeddings = match ready.remove(&k) {
            Some(embeddings) => embeddings,
            None => self.embed(prompts, k, request, width, ready)?,
        };
        if let Some(problem) =
            self.cache.as_mut().and_then(|cache| cache.put(&identity, &key, &embeddings))
        {
            tell(&problem);
        }
        Ok(Conditioning { embeddings: embeddings.into(), mask })
    }

    /// Encodes a prompt and, where all weights are read for it, later ones with it.
    fn embed(
        &mut self,
        prompts: &[PromptIds],
        k: usize,
        request: &Request,
        width: usize,
        ready: &mut HashMap<usize, ArrayD<f32>>,
    ) -> Result<ArrayD<f32>, PipelineError> {
        let pad = self.tokenizer.pad_id();
        let Some(encoder) = &mut self.encoder else {
            let (folder, component) = (self.folder.clone(), Component::TextEncoder);
            return Err(ModelError::MissingFolder { folder, component }.into());
        };
        let mut together = vec![k];
        if encoder.is_streamed() {
            let identity = cache::encoder_name(&encoder.folder.identity, self.lora.as_deref());
            let mut bytes = Wanted::of(&prompts[k], request, width).bytes();
            for later in k + 1..prompts.len() {
                let wanted = Wanted::of(&prompts[later], request, width);
                // A damaged one is told of, and encoded, in its turn.
                let cache = self.cache.as_ref();
                let cached = cache.is_some_and(|cache| cache.has(&identity, &wanted.key));
                if cached || prompts[..later].contains(&prompts[later]) {
                    continue;
                }
                bytes += wanted.bytes();
                if bytes > MOST_TOGETHER {
                    break;
                }
                together.push(later);
            }
        }
        let padded = |&place: &usize| {
            let rows = prompts[place].rows();
            Padded { length: encode::padded_length(&rows, request.max_length), rows }
        };
        let captions: Vec<_> = together.iter().map(padded).collect();
        let embedded = encode::embed(&mut encoder.load()?, &captions, pad, request.max_length)?;
        let mut embedded = together.into_iter().zip(embedded);
        let first = embedded.next().map(|(_, first)| first);
        ready.extend(embedded);
        Ok(first.unwrap_or_default())
    }

    /// A caption of whatever encoder, changed by the same LoRAs, as long as only one encoder's is
    /// there.
    fn cached_only(
        &self,
        key: &Key,
        shape: &[usize],
        prompt: &str,
    ) -> Result<ArrayD<f32>, PipelineError> {
        let found =
            self.cache.as_ref().map(|cache| cache.of_any_encoder(self.lora.as_deref(), key, shape));
        let mut found = found.unwrap_or_default();
        let cache = self.cache.as_ref().map(|cache| cache.folder().to_owned()).unwrap_or_default();
        match (found.pop(), found.len()) {
            (Some(values), 0) => Ok(values),
            (Some(_), more) => Err(ModelError::Mismatch(format!(
                "the cache {} has this caption from {} text encoders, and there is none at {} to tell \
                 which; remove the folders of the others from the cache",
                cache.display(),
                more + 1,
                self.folder.display()
            ))
            .into()),
            (None, _) => Err(PipelineError::NotCached {
                prompt: prompt.to_owned(),
                cache,
                folder: self.folder.clone(),
            }),
        }
    }
}
