//! What can be wrong with a LoRA.

use std::path::PathBuf;

use crate::{engine::EngineError, model_folder::Component};

/// A LoRA cannot be read, or does not fit the model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoraError {
    /// Nothing there.
    #[error(
        "lora: found nothing at {}, expected a safetensors file or a folder with one, with a \
         strength after a colon if need be: FILE:0.8",
        path.display()
    )]
    Missing {
        /// The path looked for.
        path: PathBuf,
    },
    /// A strength that is no number in range.
    #[error(
        "lora: found the strength \"{found}\" for {}, expected a number from -100 to 100",
        path.display()
    )]
    Strength {
        /// The LoRA.
        path: PathBuf,
        /// What was typed.
        found: String,
    },
    /// A folder without a LoRA, or with several files.
    #[error(
        "lora: {} has {found}, expected adapter_model.safetensors, pytorch_lora_weights.safetensors \
         or one other .safetensors file; name the file itself",
        folder.display()
    )]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What is in it.
        found: String,
    },
    /// The file cannot be read.
    #[error("lora: cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A pickle, which could run code.
    #[error(
        "lora: {} is a PyTorch pickle (.bin, .pt), expected safetensors; save it as such with the \
         tool it comes from, or in Python: safetensors.torch.save_file(torch.load(FILE, \
         weights_only=True), \"lora.safetensors\")",
        path.display()
    )]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// Not a safetensors file, or a damaged one.
    #[error(
        "lora: {} is not a usable safetensors file: {reason}; fetch or save it again",
        path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// `adapter_config.json` is missing, broken or at odds with the file.
    #[error("lora: {}: {reason}", path.display())]
    Config {
        /// The configuration or, if it is missing, the LoRA.
        path: PathBuf,
        /// What was found, what was expected, what to do.
        reason: String,
    },
    /// Another method than LoRA and DoRA.
    #[error(
        "lora: {} uses {method} (`{key}`), which is not supported, expected LoRA or DoRA; convert \
         it with the tool it comes from, or merge it into the checkpoint and export that",
        path.display()
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Name of the method.
        method: String,
        /// The key or setting that shows it.
        key: String,
    },
    /// A tensor lacks its counterpart, or its shape is impossible.
    #[error("lora: {}: {module}: {reason}", path.display())]
    Module {
        /// The file.
        path: PathBuf,
        /// Name of the layer in the file.
        module: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// Keys that are no layers of the model.
    #[error(
        "lora: {}: {} of its {total} keys belong to no layer of this model: {}; expected a LoRA for \
         this model, or `--lora_allow_unmatched true` to go on without these",
        path.display(),
        keys.len(),
        listed(keys)
    )]
    Unmatched {
        /// The file.
        path: PathBuf,
        /// The keys, in order.
        keys: Vec<String>,
        /// How many keys the file has.
        total: usize,
    },
    /// No key at all is of this model.
    #[error(
        "lora: {}: none of its {total} keys belongs to a layer of this model, found for example {}; \
         expected a LoRA for PixArt-Σ",
        path.display(),
        listed(keys)
    )]
    NoMatch {
        /// The file.
        path: PathBuf,
        /// The keys, in order.
        keys: Vec<String>,
        /// How many keys the file has.
        total: usize,
    },
    /// A change of another shape than the weight it is for.
    #[error(
        "lora: {}: found a change of {found:?} for {module}, expected {expected:?}, which is the \
         layer's size in this {component}; the LoRA was made for another model",
        path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// Name of the layer in the file.
        module: String,
        /// Outputs and inputs of the change.
        found: [usize; 2],
        /// Outputs and inputs of the layer.
        expected: [usize; 2],
        /// The component it is in.
        component: Component,
    },
    /// A weight to which nothing can be added.
    #[error(
        "lora: {}: the weights of {module} in this {component} (precision {precision}) are stored as \
         {found}, expected fp32, fp16 or bf16; export the {component} in one of these for use with \
         LoRA",
        path.display()
    )]
    Quantised {
        /// The file.
        path: PathBuf,
        /// Name of the layer in the file.
        module: String,
        /// The component it is in.
        component: Component,
        /// Its precision.
        precision: String,
        /// The initializer and its type.
        found: String,
    },
    /// NaN or infinity in a changed weight.
    #[error(
        "lora: {tensor} of the {component} is not finite in {precision} after {}; the file is \
         damaged, or a strength too large",
        paths(loras)
    )]
    NotFinite {
        /// The initializer.
        tensor: String,
        /// The component it is in.
        component: Component,
        /// The type it is stored in.
        precision: String,
        /// The LoRAs that were applied to it.
        loras: Vec<PathBuf>,
    },
    /// The exported model cannot be read.
    #[error("{component}: {source}")]
    Graph {
        /// The component.
        component: Component,
        /// What happened.
        source: EngineError,
    },
}

impl LoraError {
    /// Whether what was asked for cannot be done, rather than a file being unreadable or damaged.
    pub fn is_request(&self) -> bool {
        !matches!(
            self,
            Self::Read { .. } | Self::Format { .. } | Self::NotFinite { .. } | Self::Graph { .. }
        )
    }
}

/// The first keys of a list that can be hundreds long.
fn listed(keys: &[String]) -> String {
    const MOST: usize = 8;
    let mut text = keys.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    if keys.len() > MOST {
        text += &format!(" and {} more", keys.len() - MOST);
    }
    text
}

fn paths(loras: &[PathBuf]) -> String {
    loras.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
