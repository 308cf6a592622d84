//! Where the parts of a pipeline come from.

use std::path::{Path, PathBuf};

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
    /// and some transformer repositories lack everything else: combine them by filling the fields.
    pub fn from_folder(folder: &Path) -> Result<Self, ExportError> {
        let index = folder.join("model_index.json");
        let source = Self {
            transformer: folder.join("transformer"),
            text_encoder: folder.join("text_encoder"),
            vae: folder.join("vae"),
            tokenizer: folder.join("tokenizer"),
            scheduler: folder.join("scheduler"),
            model_index: index.is_file().then_some(index),
        };
        source.check(folder)?;
        Ok(source)
    }

    fn check(&self, folder: &Path) -> Result<(), ExportError> {
        let parts = "a diffusers pipeline folder with transformer, text_encoder, vae, tokenizer \
                     and scheduler";
        if !folder.is_dir() {
            return Err(not_found(folder, parts));
        }
        let all =
            [&self.transformer, &self.text_encoder, &self.vae, &self.tokenizer, &self.scheduler];
        match all.into_iter().find(|part| !part.is_dir()) {
            Some(part) => Err(not_found(part, parts)),
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

/// The folder of a component, given that folder or the pipeline's.
pub(crate) fn component_folder(
    source: &Path,
    component: Component,
) -> Result<PathBuf, ExportError> {
    if source.is_file() {
        return Err(ExportError::SourceIsFile { path: source.to_owned() });
    }
    let name = component.source_folder();
    let inner = source.join(name);
    for folder in [inner.as_path(), source] {
        if folder.join("config.json").is_file() {
            return Ok(folder.to_owned());
        }
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

fn not_found(path: &Path, expected: &str) -> ExportError {
    ExportError::SourceNotFound { path: path.to_owned(), expected: expected.to_owned() }
}
