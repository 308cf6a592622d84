//! The model that is trained: from a checkpoint, from a training that goes on, or from nothing.

use super::failure;
use super::options::wrong;
use super::settings::Settings;
use crate::exit::Failure;
use pixart_exporter::checkpoint::OpenOptions;
use pixart_exporter::naming::{ConfigError, KvCompression, KvSampling, TransformerConfig};
use pixart_exporter::{ExportError, VariantFlags};
use pixart_trainer::checkpoint::Saved;
use pixart_trainer::run::{RunError, StartingPoint};
use std::path::Path;

/// What training begins with. `saved` is the checkpoint it goes on from; a LoRA goes on with the model it was
/// begun with.
pub fn starting_point(
    settings: &Settings,
    saved: Option<&Saved>,
) -> Result<StartingPoint, Failure> {
    let sample_size = settings.data.sample_size()?;
    let start = match (saved, settings.lora.lora_rank) {
        (Some(saved), None) => {
            let none = VariantFlags::default();
            load(saved.folder(), &none, None).map_err(failure)?
        }
        _ => first(settings, sample_size)?,
    };
    let found = start.config.sample_size;
    if found != sample_size {
        return Err(Failure::request(format!(
            "sample_size: found {sample_size}, but the model is one of {found}; take the config that belongs to \
             it, or train it at another size with --change_sample_size true"
        )));
    }
    Ok(start)
}

fn first(settings: &Settings, sample_size: usize) -> Result<StartingPoint, Failure> {
    let model = &settings.model;
    let compression = compression(settings)?;
    let Some(checkpoint) = &model.checkpoint else {
        return Err(Failure::request(
            "checkpoint: nothing given; name the transformer to begin with, --checkpoint FOLDER, or \"\" for random \
             weights",
        ));
    };
    if checkpoint.as_os_str().is_empty() {
        if settings.lora.lora_rank.is_some() {
            return Err(wrong(
                "checkpoint",
                "nothing (random weights)",
                "the model that the LoRA is for",
            ));
        }
        let mut config = architecture(settings, sample_size)?;
        config.kv_compression = compression.or(config.kv_compression);
        return StartingPoint::random(config, settings.run.seed()).map_err(failure);
    }
    if model.model_config.is_some() {
        return Err(Failure::request(
            "model_config: found it with a checkpoint, which says itself what it is; leave one of them out, or \
             give --checkpoint \"\" for random weights",
        ));
    }
    // Convolutions the model may lack; all else about compression it cannot show.
    let variant = compression.as_ref().filter(|c| c.sampling != KvSampling::Conv);
    let flags = VariantFlags {
        sample_size: model.change_sample_size.unwrap_or(false).then_some(sample_size),
        kv_compress_sampling: variant.map(|c| c.sampling),
        kv_compress_scale_factor: variant.map(|c| c.scale_factor),
        kv_compress_layer: variant.map(|c| c.layers.iter().copied().collect()),
        num_attention_heads: model.num_attention_heads,
        ..VariantFlags::default()
    };
    let start = match load(checkpoint, &flags, compression.as_ref()) {
        // Files without a config.json do not say it; then the settings do.
        Err(error) if lacks_sample_size(&error) => {
            let flags = VariantFlags { sample_size: Some(sample_size), ..flags };
            load(checkpoint, &flags, compression.as_ref())
        }
        start => start,
    };
    let start = start.map_err(failure)?;
    match (&compression, &start.config.kv_compression) {
        (Some(wanted), Some(found)) if wanted != found => Err(Failure::request(format!(
            "kv_compress: the settings ask for {}, but the model has {}; take the settings that belong to it",
            described(wanted),
            described(found)
        ))),
        _ => Ok(start),
    }
}

fn load(
    path: &Path,
    flags: &VariantFlags,
    compression: Option<&KvCompression>,
) -> Result<StartingPoint, RunError> {
    StartingPoint::from_checkpoint(path, &OpenOptions::default(), flags, compression)
}

fn lacks_sample_size(error: &RunError) -> bool {
    let RunError::Export(error) = error else { return false };
    let field = match &**error {
        ExportError::Config(ConfigError::Missing { field, .. }) => *field,
        _ => "",
    };
    field == "sample_size"
}

/// What a model with random weights is like.
fn architecture(settings: &Settings, sample_size: usize) -> Result<TransformerConfig, Failure> {
    let Some(path) = &settings.model.model_config else {
        return Ok(TransformerConfig::xl2(sample_size));
    };
    let inner = ["transformer/config.json", "config.json"].map(|name| path.join(name));
    let file = match path.is_dir() {
        true => inner.iter().find(|file| file.is_file()).unwrap_or(&inner[1]),
        false => path,
    };
    if !file.is_file() {
        return Err(wrong(
            "model_config",
            format!("nothing at {}", file.display()),
            "the config.json of a transformer in the diffusers layout, or a folder with one",
        ));
    }
    let change = settings.model.change_sample_size.unwrap_or(false);
    let flags =
        VariantFlags { sample_size: change.then_some(sample_size), ..VariantFlags::default() };
    Ok(TransformerConfig::read_file(file, &flags).map_err(ExportError::Config)?)
}

/// The compression of keys and values that is asked for. As upstream: without the switch, the other three
/// settings count for nothing.
fn compression(settings: &Settings) -> Result<Option<KvCompression>, Failure> {
    let model = &settings.model;
    let scale_factor = model.kv_compress_scale_factor.unwrap_or(1);
    if model.kv_compress != Some(true) || scale_factor == 1 {
        return Ok(None);
    }
    let sampling = model.kv_compress_sampling.as_deref().unwrap_or("conv");
    let sampling: KvSampling = sampling
        .parse()
        .map_err(|error| Failure::request(format!("kv_compress_sampling: {error}")))?;
    if !(2..=256).contains(&scale_factor) {
        return Err(wrong("kv_compress_scale_factor", scale_factor, "a number from 1 to 256"));
    }
    if model.kv_compress_layer.is_empty() {
        return Err(wrong(
            "kv_compress_layer",
            "nothing",
            "the numbers of blocks, such as 14 15 16",
        ));
    }
    let layers = model.kv_compress_layer.iter().copied().collect();
    Ok(Some(KvCompression { sampling, scale_factor, layers }))
}

fn described(compression: &KvCompression) -> String {
    let KvCompression { sampling, scale_factor, layers } = compression;
    let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
    format!("{sampling} by {scale_factor} in the blocks {}", layers.join(" "))
}
