//! Where the parts of a pipeline come from.

use std::path::{Path, PathBuf};

use crate::naming::{TransformerConfig, VariantFlags};
use crate::write::ConfigFile;
use crate::{Component, ExportError};

/// The folders of a pipeline in the diffusers layout. They need not lie together: several
/// transformers share one text encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineSource {
    /// Folder of the transformer.
    pub transformer: PathBuf,
    /// Folder of the T5 encoder.
    pub text_encoder: PathBuf,
    /// Folder of the auto-encoder.
    pub vae: PathBuf,
    /// Folder of the tokenizer.
    pub tokenizer: PathBuf,
    /// Folder of the scheduler's configuration.
    pub scheduler: PathBuf,
    /// The pipeline's `model_index.json`; without it, one is written.
    pub model_index: Option<PathBuf>,
}

impl PipelineSource {
    /// The parts of a complete pipeline folder.
    ///
    /// # Errors
    ///
    /// A part is missing; the message names the first one. Shared bundles lack the transformer,
    /// and some transformer repositories lack everything else: see [`Self::in_folder`].
    pub fn from_folder(folder: &Path) -> Result<Self, ExportError> {
        let source = Self::in_folder(folder);
        if !folder.is_dir() {
            return Err(not_found(folder, PARTS));
        }
        source.check()?;
        Ok(source)
    }

    /// Where the parts of a pipeline folder are, whether they are there or not. Fields that are
    /// somewhere else can then be set, before [`Self::check`].
    pub fn in_folder(folder: &Path) -> Self {
        let index = folder.join("model_index.json");
        Self {
            transformer: folder.join("transformer"),
            text_encoder: folder.join("text_encoder"),
            vae: folder.join("vae"),
            tokenizer: folder.join("tokenizer"),
            scheduler: folder.join("scheduler"),
            model_index: index.is_file().then_some(index),
        }
    }

    /// Whether every part is there: a folder, or for the transformer also a file.
    ///
    /// # Errors
    ///
    /// One is missing; the message names the first.
    pub fn check(&self) -> Result<(), ExportError> {
        if !self.transformer.exists() {
            return Err(not_found(&self.transformer, PARTS));
        }
        let folders = [&self.text_encoder, &self.vae, &self.tokenizer, &self.scheduler];
        match folders.into_iter().find(|part| !part.is_dir()) {
            Some(part) => Err(not_found(part, PARTS)),
            None => Ok(()),
        }
    }

    /// Checks what is copied without being read: the tokenizer and the scheduler.
    pub(crate) fn check_copied(&self) -> Result<(), ExportError> {
        let vocabulary = ["spiece.model", "tokenizer.json"];
        if !vocabulary.iter().any(|name| self.tokenizer.join(name).is_file()) {
            return Err(not_found(
                &self.tokenizer.join(vocabulary[0]),
                "the tokenizer's vocabulary",
            ));
        }
        let scheduler = self.scheduler.join("scheduler_config.json");
        if !scheduler.is_file() {
            return Err(not_found(&scheduler, "the scheduler's configuration"));
        }
        match &self.model_index {
            Some(index) if !index.is_file() => {
                Err(not_found(index, "the pipeline's model_index.json"))
            }
            _ => Ok(()),
        }
    }

    /// The folder of a component.
    pub(crate) fn folder(&self, component: Component) -> &Path {
        match component {
            Component::Transformer => &self.transformer,
            Component::TextEncoder => &self.text_encoder,
            Component::VaeDecoder | Component::VaeEncoder => &self.vae,
        }
    }
}

/// What a complete source is, for messages.
const PARTS: &str = "a diffusers pipeline folder with transformer, text_encoder, vae, tokenizer and \
                     scheduler, or each of them by itself";

/// A component's checkpoint: a folder or a file, and the configuration that belongs to it.
pub(crate) struct Located {
    /// The folder or the file.
    pub path: PathBuf,
    /// Its `config.json`, if it has one.
    pub config: Option<PathBuf>,
}

/// Extensions of files that may be a transformer's weights.
const WEIGHTS: [&str; 5] = ["safetensors", "pth", "pt", "bin", "ckpt"];

impl Located {
    /// Finds a component, given its folder, the pipeline's, or for a transformer a file of weights.
    pub fn find(source: &Path, component: Component) -> Result<Self, ExportError> {
        if source.is_file() {
            return match component {
                Component::Transformer => Ok(Self::file(source)),
                _ => Err(ExportError::SourceIsFile { path: source.to_owned(), component }),
            };
        }
        let name = component.source_folder();
        let inner = source.join(name);
        let folders = [inner.as_path(), source];
        for folder in folders {
            let config = folder.join("config.json");
            if config.is_file() {
                return Ok(Self { path: folder.to_owned(), config: Some(config) });
            }
        }
        if component == Component::Transformer
            && let Some(folder) = folders.into_iter().find(|folder| has_weights(folder))
        {
            return Ok(Self { path: folder.to_owned(), config: None });
        }
        let missing = [source, inner.as_path()].into_iter().find(|folder| !folder.is_dir());
        let missing = missing.map_or_else(|| inner.join("config.json"), Path::to_owned);
        Err(not_found(
            &missing,
            &format!(
                "a diffusers pipeline folder with {name}/config.json, or the folder of the {name}"
            ),
        ))
    }

    /// The `config.json` of what is written from a transformer: its own as it is, unless there is
    /// none or an option says something else.
    pub fn config_file(
        &self,
        config: &TransformerConfig,
        flags: &VariantFlags,
    ) -> Result<ConfigFile, ExportError> {
        match &self.config {
            Some(file) if flags.first_set().is_none() => Ok(ConfigFile::Copied(file.clone())),
            Some(file) => Ok(ConfigFile::Written(config.to_json_over(file)?)),
            None => Ok(ConfigFile::Written(config.to_json())),
        }
    }

    /// A file has the `config.json` beside it if it is one of a diffusers folder. Other files may
    /// lie beside those of other models, whose configuration would be wrong for them.
    fn file(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let config = path.with_file_name("config.json");
        let belongs = name.starts_with("diffusion_pytorch_model.") && config.is_file();
        Self { path: path.to_owned(), config: belongs.then_some(config) }
    }
}

fn has_weights(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.filter_map(Result::ok).any(|entry| {
        let path = entry.path();
        path.extension().is_some_and(|e| WEIGHTS.iter().any(|weights| e == *weights))
    })
}

fn not_found(path: &Path, expected: &str) -> ExportError {
    ExportError::SourceNotFound { path: path.to_owned(), expected: expected.to_owned() }
}
