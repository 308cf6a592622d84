//! What a cache is of.

use super::super::Sizing;
use super::{CacheError, entry};
use crate::files::hex;
use pixart_runtime::bundle::store;
use pixart_runtime::model_folder::{
    ComponentFolder, TextEncoderArchitecture, VaeEncoderArchitecture,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Name of the file.
const FILE: &str = "cache.json";
/// The format this version reads.
const FORMAT: u64 = 1;

/// Which encoders the entries of a cache are of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    format: u64,
    /// What made captions.
    pub text_encoder: TextDescription,
    /// What made moments.
    pub vae: VaeDescription,
    /// The sizes that it was filled for, at least in part.
    sizes: Vec<String>,
}

/// A text encoder with its tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextDescription {
    /// [`ComponentFolder::origin`](pixart_runtime::model_folder::ComponentFolder::origin).
    pub origin: String,
    /// `fp32`, `int8`, …
    pub precision: String,
    /// A hash of the tokenizer's files.
    pub tokenizer: String,
    /// Numbers a token.
    pub width: usize,
    /// Where it was, for people.
    pub folder: PathBuf,
}

/// A VAE's encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VaeDescription {
    /// [`ComponentFolder::origin`](pixart_runtime::model_folder::ComponentFolder::origin).
    pub origin: String,
    /// `fp32`, …
    pub precision: String,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// What latents are multiplied by once they are sampled.
    pub scaling_factor: f32,
    /// Where it was, for people.
    pub folder: PathBuf,
}

impl TextDescription {
    /// Of an exported text encoder and the folder of its tokenizer.
    ///
    /// # Errors
    /// When a file of the tokenizer cannot be read.
    pub fn new(
        text_encoder: &ComponentFolder<TextEncoderArchitecture>,
        tokenizer: &Path,
    ) -> io::Result<Self> {
        let mut hash = Sha256::new();
        for name in ["spiece.model", "tokenizer.json", "tokenizer_config.json"] {
            match store::read(&tokenizer.join(name)) {
                Ok(bytes) => hash.update(Sha256::digest(bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => hash.update(name),
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            origin: text_encoder.origin.clone(),
            precision: text_encoder.precision.clone(),
            tokenizer: hex(&hash.finalize()[..8]),
            width: text_encoder.architecture.d_model,
            folder: place(text_encoder),
        })
    }

    /// What its entries are told from others' by.
    pub(super) fn identity(&self) -> String {
        format!("{} in {}, tokenizer {}", self.origin, self.precision, self.tokenizer)
    }
}

impl VaeDescription {
    /// Of an exported VAE encoder.
    pub fn new(vae_encoder: &ComponentFolder<VaeEncoderArchitecture>) -> Self {
        Self {
            origin: vae_encoder.origin.clone(),
            precision: vae_encoder.precision.clone(),
            latent_channels: vae_encoder.architecture.latent_channels,
            scaling_factor: vae_encoder.architecture.scaling_factor,
            folder: place(vae_encoder),
        }
    }

    /// What its entries are told from others' by.
    pub(super) fn identity(&self) -> String {
        format!("{} in {}", self.origin, self.precision)
    }
}

/// The folder of an exported component.
fn place<A>(component: &ComponentFolder<A>) -> PathBuf {
    component.model.parent().unwrap_or(Path::new("")).to_owned()
}

impl Description {
    /// Of these encoders, with nothing in it.
    pub fn new(text_encoder: TextDescription, vae: VaeDescription) -> Self {
        Self { format: FORMAT, text_encoder, vae, sizes: Vec::new() }
    }

    /// The sizes that the cache was filled for, for people.
    pub fn sizes(&self) -> String {
        match self.sizes.is_empty() {
            true => "none".to_owned(),
            false => self.sizes.join(", "),
        }
    }

    /// The one in a folder, if it has one.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, CacheError> {
        let path = folder.join(FILE);
        let wrong = |problem: String| CacheError::Description { path: path.clone(), problem };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrong(error.to_string())),
        };
        let value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        if value["format"] != FORMAT {
            return Err(wrong(format!("found format {}, expected {FORMAT}", value["format"])));
        }
        serde_json::from_value(value).map(Some).map_err(|error| wrong(error.to_string()))
    }

    /// Takes over what is already in a folder, which must be of the same encoders.
    pub(super) fn join(&mut self, there: Self, folder: &Path) -> Result<(), CacheError> {
        let differs = |what, found: &str, expected: &str, place: &Path| match found == expected {
            true => Ok(()),
            false => Err(CacheError::OtherEncoder {
                folder: folder.to_owned(),
                what,
                found: format!("{found} (of {})", place.display()),
                expected: expected.to_owned(),
            }),
        };
        let (text, old) = (&self.text_encoder, &there.text_encoder);
        let what = if old.tokenizer == text.tokenizer { "text encoder" } else { "tokenizer" };
        differs(what, &old.identity(), &text.identity(), &old.folder)?;
        let (vae, old) = (&self.vae, &there.vae);
        differs("VAE", &old.identity(), &vae.identity(), &old.folder)?;
        self.sizes = there.sizes;
        Ok(())
    }

    /// Notes that the cache is being filled for a size.
    pub(super) fn add_size(&mut self, sizing: Sizing) {
        let size = size(sizing);
        if !self.sizes.contains(&size) {
            self.sizes.push(size);
        }
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), CacheError> {
        let path = folder.join(FILE);
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::other);
        let written = text.and_then(|text| entry::put(&path, &text));
        written.map_err(|source| CacheError::Write { path, source })
    }
}

/// A size in the words of the settings.
pub(super) fn size(sizing: Sizing) -> String {
    let Sizing { sample_size, multi_scale } = sizing;
    format!("sample_size {sample_size}{}", if multi_scale { " multi_scale" } else { "" })
}
