//! Where the parts come from that are measured: exported folders, or random weights made for it.

use super::{BenchArgs, StageName};
use crate::commands::sample::devices::{Providers, profile_for};
use crate::exit::Failure;
use crate::model::{self, Wanted};
use crate::progress::{Progress, Unit};
use anyhow::Context;
use pixart_exporter::random::{self, RandomWeights};
use pixart_exporter::write::{Scratch, free_space};
use pixart_exporter::{Component, ExportOptions, Int8Mode, Precision, export_component_until};
use pixart_runtime::engine::provider::Provider;
use pixart_runtime::pipeline::Cancel;
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// All random weights begin here, so that every run has the same.
const SEED: u64 = 42;

/// What is measured.
pub enum Parts {
    /// Folders that are there.
    Model { model: Option<PathBuf>, roots: [Option<PathBuf>; 3] },
    /// Shapes, in which weights are made.
    Random { name: String, configs: [Value; 3] },
}

/// An exported part, as long as it is needed.
pub struct Part {
    pub folder: PathBuf,
    /// Its precision, with the mode of int8.
    pub precision: String,
    /// Where random weights lie, until this is dropped.
    _scratch: Option<Scratch>,
}

/// The component of a stage.
pub fn component(stage: StageName) -> Component {
    match stage {
        StageName::Text => Component::TextEncoder,
        StageName::Denoise => Component::Transformer,
        StageName::Decode => Component::VaeDecoder,
    }
}

const STAGES: [StageName; 3] = [StageName::Text, StageName::Denoise, StageName::Decode];

impl Parts {
    /// Finds them, as far as that takes no work.
    pub fn locate(args: &BenchArgs) -> Result<Self, Failure> {
        match &args.random {
            Some(config) => Self::random(config),
            None => {
                let roots = [&args.text_encoder_root, &args.checkpoint, &args.vae_root];
                Ok(Self::Model { model: args.model.clone(), roots: roots.map(Clone::clone) })
            }
        }
    }

    fn random(config: &str) -> Result<Self, Failure> {
        let released = random::RELEASED.iter().find(|(name, _)| name.eq_ignore_ascii_case(config));
        if let Some((name, side)) = released {
            let configs = STAGES.map(|stage| random::released_config(component(stage), *side));
            return Ok(Self::Random { name: (*name).to_owned(), configs });
        }
        let path = Path::new(config);
        let (base, transformer) = match path.is_dir() {
            true => (path.to_owned(), path.join("transformer/config.json")),
            false if path.is_file() => {
                let folder = path.parent().unwrap_or(Path::new(""));
                (folder.join(".."), path.to_owned())
            }
            false => {
                let names: Vec<&str> = random::RELEASED.iter().map(|(name, _)| *name).collect();
                return Err(Failure::request(format!(
                    "random: found `{config}`, expected {}, a transformer's config.json, or a model \
                     folder with such files",
                    names.join(", ")
                )));
            }
        };
        let read = |path: &Path| -> Result<Value, Failure> {
            let wrong = |error: String| {
                let file = path.display();
                Failure::request(format!("random: {file}: {error}; expected a config.json"))
            };
            let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
            serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))
        };
        // What does not lie beside it has the shapes of the published models.
        let beside = |stage: StageName| {
            let file = base.join(component(stage).source_folder()).join("config.json");
            match file.is_file() {
                true => read(&file),
                false => Ok(random::released_config(component(stage), 64)),
            }
        };
        let configs = [beside(StageName::Text)?, read(&transformer)?, beside(StageName::Decode)?];
        Ok(Self::Random { name: config.to_owned(), configs })
    }

    /// What people call it.
    pub fn describe(&self) -> String {
        match self {
            Self::Random { name, .. } => format!("{name}, random weights"),
            Self::Model { model, roots } => {
                let named = model.iter().chain(roots.iter().flatten());
                let named: Vec<String> = named.map(|path| path.display().to_string()).collect();
                match named.is_empty() {
                    true => "models/demo".to_owned(),
                    false => named.join(", "),
                }
            }
        }
    }

    /// The stages that are measured, in their order.
    pub fn stages(&self, asked: &[StageName]) -> Result<Vec<StageName>, Failure> {
        let here: Vec<StageName> = match self {
            Self::Model { model: None, roots } if roots.iter().any(Option::is_some) => {
                let named = STAGES.into_iter().zip(roots).filter(|(_, root)| root.is_some());
                named.map(|(stage, _)| stage).collect()
            }
            _ => STAGES.to_vec(),
        };
        if let Some(missing) = asked.iter().find(|stage| !here.contains(stage)) {
            let flag = match missing {
                StageName::Text => "text_encoder_root",
                StageName::Denoise => "checkpoint",
                StageName::Decode => "vae_root",
            };
            return Err(Failure::request(format!(
                "stages: the part of this one is not named; give --{flag}, or --model for all parts"
            )));
        }
        Ok(here.into_iter().filter(|stage| asked.is_empty() || asked.contains(stage)).collect())
    }

    /// The exported part of a stage; random weights are made now.
    pub fn resolve(
        &self,
        stage: StageName,
        provider: &'static Provider,
        args: &BenchArgs,
        interrupted: &Cancel,
    ) -> Result<Part, Failure> {
        let index = STAGES.iter().position(|known| *known == stage).unwrap_or_default();
        match self {
            Self::Model { model, roots } => {
                let providers =
                    Providers { text_encoder: provider, transformer: provider, vae: provider };
                let wanted = Wanted::new(args.precision, providers)?;
                let (model, root) = (model.as_deref(), roots[index].as_deref());
                let profile = profile_for(provider);
                let folder = model::part(component(stage), model, root, profile, wanted)?;
                Ok(Part { precision: precision(&folder), folder, _scratch: None })
            }
            Self::Random { configs, .. } => {
                let options = ExportOptions {
                    profile: profile_for(provider),
                    precision: match stage {
                        StageName::Decode => Precision::Fp32,
                        _ => args.precision.unwrap_or_default(),
                    },
                    int8_mode: match (stage, args.int8_mode) {
                        (StageName::Denoise, mode) => mode,
                        // It has only this one.
                        (StageName::Text, Some(_)) => Some(Int8Mode::WeightOnly),
                        _ => None,
                    },
                    ..ExportOptions::default()
                };
                let place = args.scratch.as_deref();
                make(component(stage), &configs[index], &options, place, interrupted)
            }
        }
    }
}

/// A folder for what is made here, in the system's place for such where none is named. What killed runs have
/// left in that place is removed.
pub fn scratch(place: Option<&Path>) -> Result<Scratch, Failure> {
    let place = place.map_or_else(std::env::temp_dir, Path::to_owned);
    let folder = Scratch::new_in(&place, "pixart-bench-");
    Ok(folder.with_context(|| format!("cannot make a folder in {}", place.display()))?)
}

/// Exports random weights in the shapes of a configuration, into a folder that lasts as long as the part.
pub fn make(
    component: Component,
    config: &Value,
    options: &ExportOptions,
    place: Option<&Path>,
    interrupted: &Cancel,
) -> Result<Part, Failure> {
    let folder = scratch(place)?;
    let source = folder.path().join("source");
    std::fs::create_dir(&source)?;
    std::fs::write(source.join("config.json"), config.to_string())?;
    let weights = RandomWeights::of(&source, component)?;
    let exported = weights.parameters() * bits(options.precision) / 8;
    let needed = weights.bytes() + exported;
    if let Some(free) = free_space(folder.path()).filter(|free| *free < needed) {
        return Err(Failure::Failed(anyhow::anyhow!(
            "random weights of the {component} take {:.1} GB, but {} has {:.1} GB left; name a folder on \
             another disk with --scratch, or leave the stage out with --stages",
            needed as f64 / 1e9,
            folder.path().parent().unwrap_or(folder.path()).display(),
            free as f64 / 1e9
        )));
    }
    let mut bar = Progress::start(format!("random {component}"), 0, Unit::Bytes);
    let written = weights.write(SEED, &mut |done, total| {
        bar.update(done, total);
        wanted(interrupted)
    });
    bar.finish();
    whole(written, interrupted)?;
    let mut bar = Progress::start(format!("export {component}"), 0, Unit::Bytes);
    let exported =
        export_component_until(&source, component, folder.path(), options, &mut |progress| {
            bar.update(progress.bytes_done, progress.bytes_total);
            wanted(interrupted)
        });
    bar.finish();
    let exported = whole(exported, interrupted)?.folder;
    std::fs::remove_dir_all(&source)?;
    Ok(Part { precision: precision(&exported), folder: exported, _scratch: Some(folder) })
}

/// Whether to go on.
fn wanted(interrupted: &Cancel) -> ControlFlow<()> {
    match interrupted.is_cancelled() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

/// What was made, unless it was interrupted.
fn whole<T, E: Into<anyhow::Error>>(
    made: Result<T, E>,
    interrupted: &Cancel,
) -> Result<T, Failure> {
    made.map_err(|error| match interrupted.is_cancelled() {
        true => Failure::Interrupted("no random weights are left".to_owned()),
        false => error.into().into(),
    })
}

/// Bits of a number in an export, scales included.
fn bits(precision: Precision) -> u64 {
    match precision {
        Precision::Fp32 => 32,
        Precision::Fp16 | Precision::Bf16 => 16,
        // With tables and norms in 32 bits.
        Precision::Int8 => 10,
        Precision::Int4 => 6,
    }
}

/// What a manifest says about the precision.
fn precision(folder: &Path) -> String {
    let text = pixart_runtime::bundle::store::read(&folder.join("manifest.json"));
    let manifest: Value = serde_json::from_slice(&text.unwrap_or_default()).unwrap_or_default();
    let name = manifest["precision"].as_str().unwrap_or("unknown");
    match manifest["int8_mode"].as_str() {
        Some(mode) => format!("{name} {mode}"),
        None => name.to_owned(),
    }
}

/// Bytes of a part's graph and weights.
pub fn stored_bytes(folder: &Path) -> u64 {
    let size = |name: &str| {
        let place = pixart_runtime::bundle::store::place(&folder.join(name)).ok().flatten();
        place.map_or(0, |place| place.bytes)
    };
    size("model.onnx") + size("model.onnx_data")
}
