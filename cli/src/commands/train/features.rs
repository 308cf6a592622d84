//! Features that the official tools have extracted, read in the place of encoders.

use super::settings::Settings;
use super::{counts, looking};
use crate::exit::Failure;
use crate::progress::note;
use pixart_exporter::naming::TransformerConfig;
use pixart_trainer::data::{Dataset, Features, Reason};
use std::path::Path;
use std::sync::Arc;

/// What is read, if anything is.
#[derive(Clone, Copy)]
pub struct Read {
    pub moments: bool,
    pub captions: bool,
}

impl Settings {
    /// What of the official features is to be read. What it does not go with is refused.
    pub fn features(&self) -> Result<Option<Read>, Failure> {
        let read = Read {
            moments: self.encoders.load_vae_feat.unwrap_or(false),
            captions: self.encoders.load_t5_feat.unwrap_or(false),
        };
        let name = match read {
            Read { moments: true, .. } => "load_vae_feat",
            Read { captions: true, .. } => "load_t5_feat",
            _ => return Ok(None),
        };
        let refuse = |why: &str| Err(Failure::request(format!("{name}: found it with {why}")));
        if self.encoders.cache_dir.is_some() {
            return refuse(
                "cache_dir, which has both captions and pictures; leave one of them out",
            );
        }
        if self.prior.prior_image_dir.is_some() {
            return refuse(
                "prior_image_dir, whose pictures have no features; leave one of them out",
            );
        }
        Ok(Some(read))
    }
}

/// The pictures that have the features that are read, and these features.
pub fn of(
    settings: &Settings,
    read: Read,
    dataset: Dataset,
    config: &TransformerConfig,
) -> Result<(Dataset, Arc<Features>), Failure> {
    let Read { moments, captions } = read;
    if moments && config.use_additional_conditions {
        return Err(Failure::request(
            "load_vae_feat: found it with a model that has conditions of size, as PixArt-α has, whose VAE is not \
             SDXL's, which the features are of; leave it out",
        ));
    }
    let (_, _, image_dir) = settings.data.source()?;
    let beside = settings.data.json_path.as_deref().map(|file| file.parent().unwrap_or(file));
    let root = match beside {
        // A file without a folder lies in this one.
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => &image_dir,
    };
    let features = Features::new(root, &dataset, config.in_channels, config.caption_channels);
    let all = dataset.items().len();
    let captions = match captions {
        true => Some((settings.encoders.captions()?, settings.data.t5_max_length()?)),
        false => None,
    };
    let workers = settings.data.data(true)?.threads;
    let check = |dataset: &Dataset, item| Ok(features.check(dataset, item, moments, captions)?);
    let dataset = looking("features", |progress| dataset.keep(workers, check, progress));
    let left_out = dataset.left_out().iter();
    let without: Vec<_> = left_out
        .filter_map(|it| match &it.reason {
            Reason::Features(error) => Some((&it.path, error)),
            _ => None,
        })
        .collect();
    let [(path, error), ..] = &without[..] else {
        return Ok((dataset, Arc::new(features)));
    };
    let told = format!(
        "{} of {all} pictures do not have the features that load_vae_feat and load_t5_feat ask for: {} ({}: {error})",
        without.len(),
        counts(without.iter().map(|(_, error)| error.kind())),
        path.display()
    );
    if without.len() == all {
        return Err(Failure::Failed(anyhow::anyhow!(
            "{told}; extract them with the official tools/extract_features.py into {}, or leave the two out \
             (with real_prompt_ratio 1, those of sharegpt4v are not needed)",
            root.display()
        )));
    }
    note(format_args!("{told}; they are not trained on"));
    Ok((dataset, Arc::new(features)))
}
