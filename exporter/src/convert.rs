//! Checkpoints into safetensors, under the original names or diffusers', without touching an element.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::naming::official::{self, NULL_CAPTION};
use crate::naming::{self, ConfigError, Naming, TransformerConfig, VariantFlags, WeightProblem};
use crate::naming::{WeightsError, is_droppable};
use crate::profile::Profile;
use crate::source::Located;
use crate::write::safetensors::{self, Announced};
use crate::write::{self, ConfigFile, DIFFUSERS_FILE, Kind, StagedFile, Staging, WriteError};
use crate::{Component, ExportError, models};

/// Names that a converted file shall have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TargetNaming {
    /// Those of the source, exactly. Any model can be converted so, not only a transformer.
    Keep,
    /// Those of a naming.
    Of(Naming),
}

impl fmt::Display for TargetNaming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("keep"),
            Self::Of(naming) => naming.fmt(f),
        }
    }
}

/// A naming that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("unknown naming `{0}`: expected `official`, `diffusers` or `keep`")]
pub struct UnknownNaming(String);

impl FromStr for TargetNaming {
    type Err = UnknownNaming;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "keep" => Ok(Self::Keep),
            "official" => Ok(Self::Of(Naming::Official)),
            "diffusers" => Ok(Self::Of(Naming::Diffusers)),
            other => Err(UnknownNaming(other.to_owned())),
        }
    }
}

/// How to convert.
#[derive(Clone, Debug, Default)]
pub struct ConvertOptions {
    /// The names; `None` keeps them in a file and takes diffusers' in a folder.
    pub naming: Option<TargetNaming>,
    /// What the tensors of the transformer do not show; only for a folder's `config.json`.
    pub variant: VariantFlags,
    /// Which files of a folder and which part of a file are read.
    pub open: OpenOptions,
    /// Replace an existing file, or a folder that holds nothing but a converted checkpoint.
    pub force: bool,
}

/// A finished conversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    /// The file or the folder.
    pub target: PathBuf,
    /// Tensors in it.
    pub tensors: usize,
    /// Size of their elements.
    pub bytes: u64,
    /// What a user should know: what was left out, and who cannot read the result.
    pub notes: Vec<String>,
}

/// Writes a checkpoint as `target`: a `.safetensors` file, or a diffusers folder with `config.json`
/// where the name has no extension of a file of weights.
///
/// Element types stay as they are. Split and fused matrices are cut and joined; nothing is computed.
/// Memory stays at the size of the largest tensor. `progress` gets the bytes done and in all.
///
/// # Errors
///
/// Everything that is wrong with the source is found before anything is written; under another
/// naming than the source's own, tensors that are missing or left over are refused. An existing
/// target is refused unless `options.force` is set.
pub fn convert(
    source: &Path,
    target: &Path,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Converted, ExportError> {
    let kind = TargetKind::of(target)?;
    let naming = match (kind, options.naming) {
        (TargetKind::File, naming) => naming.unwrap_or(TargetNaming::Keep),
        (TargetKind::Folder, None) => TargetNaming::Of(Naming::Diffusers),
        (TargetKind::Folder, Some(naming)) if naming == TargetNaming::Of(Naming::Diffusers) => {
            naming
        }
        (TargetKind::Folder, Some(naming)) => {
            return Err(ExportError::BadTarget {
                path: target.to_owned(),
                problem: format!(
                    "a diffusers folder has diffusers' names, not `{naming}`; leave the naming out, \
                     or name a .safetensors file"
                ),
            });
        }
    };
    let plan = match naming {
        TargetNaming::Keep => Plan::kept(source, options)?,
        TargetNaming::Of(naming) => Plan::renamed(source, options, naming, kind)?,
    };
    let Plan { ref path, .. } = plan;
    let target = match kind {
        TargetKind::File => {
            let mut staged = StagedFile::begin(target, options.force, path)?;
            let (file, name) = staged.file();
            plan.write(file, name, progress)?;
            staged.commit()?
        }
        TargetKind::Folder => {
            let staging = Staging::begin(target, Kind::Checkpoint, options.force, &[path])?;
            let name = staging.folder().join(DIFFUSERS_FILE);
            let created = File::create_new(&name);
            let mut file = created.map_err(WriteError::io(&name, "create", plan.bytes()))?;
            plan.write(&mut file, &name, progress)?;
            file.sync_all().map_err(WriteError::io(&name, "flush", plan.bytes()))?;
            let config = staging.folder().join("config.json");
            match &plan.config {
                Some(ConfigFile::Copied(from)) => write::copy_file(from, &config)?,
                Some(ConfigFile::Written(value)) => {
                    write::write_text(&config, &format!("{value:#}\n"))?;
                }
                None => {}
            }
            staging.commit()?
        }
    };
    let (tensors, bytes) = (plan.tensors.len(), plan.bytes());
    Ok(Converted { target, tensors, bytes, notes: plan.notes })
}

/// What a target's name asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TargetKind {
    File,
    Folder,
}

impl TargetKind {
    fn of(target: &Path) -> Result<Self, ExportError> {
        let extension = target.extension().unwrap_or_default().to_string_lossy();
        match &*extension {
            "safetensors" => Ok(Self::File),
            "pth" | "pt" | "bin" | "ckpt" | "onnx" | "gguf" | "json" | "yaml" => {
                Err(ExportError::BadTarget {
                    path: target.to_owned(),
                    problem: format!(
                        ".{extension} files are not written; expected a name that ends in \
                         .safetensors, or a diffusers folder"
                    ),
                })
            }
            _ => Ok(Self::Folder),
        }
    }
}

/// What is written, from which tensors.
struct Plan {
    checkpoint: Checkpoint,
    /// Where it was found.
    path: PathBuf,
    /// In the order of the file.
    tensors: Vec<Announced>,
    /// Names in the checkpoint whose rows, one after the other, are the tensor of that name.
    parts: BTreeMap<String, Vec<String>>,
    config: Option<ConfigFile>,
    notes: Vec<String>,
}

impl Plan {
    /// Every tensor as it is.
    fn kept(source: &Path, options: &ConvertOptions) -> Result<Self, ExportError> {
        let path = match source.exists() {
            // A pipeline's folder stands for its transformer, as everywhere.
            true => Located::find(source, Component::Transformer)
                .map_or_else(|_| source.to_owned(), |located| located.path),
            false => Located::find(source, Component::Transformer)?.path,
        };
        let checkpoint = Checkpoint::open(&path, &options.open)?;
        let parts = checkpoint.names().map(|name| (name.to_owned(), vec![name.to_owned()]));
        let parts = parts.collect();
        Self::new(checkpoint, path, parts, None, Vec::new())
    }

    /// A transformer under the names of a naming.
    fn renamed(
        source: &Path,
        options: &ConvertOptions,
        target: Naming,
        kind: TargetKind,
    ) -> Result<Self, ExportError> {
        let located = Located::find(source, Component::Transformer)?;
        let open = || Checkpoint::open(&located.path, &options.open);
        let (view, from) = naming::in_diffusers_names(open()?)?;
        let config = read_config(&view, &located, &options.variant, kind)?;
        let graph = models::transformer::build(&config, Profile::Portable)
            .map_err(|source| ExportError::Graph { component: Component::Transformer, source })?;
        naming::find(&graph, &view, Component::Transformer)
            .map_err(|error| naming::in_stored_names(error, from))?;

        let mut notes = Vec::new();
        let (checkpoint, parts) = if from == target {
            let raw = open()?;
            let mut parts = BTreeMap::new();
            for stored in raw.names() {
                let name = official::unwrapped(stored).to_owned();
                parts.entry(name).or_insert_with(|| vec![stored.to_owned()]);
            }
            (raw, parts)
        } else {
            let parts = renamed_parts(&view, target, &mut notes);
            (view, parts)
        };
        if target == Naming::Official && !parts.contains_key(NULL_CAPTION) {
            notes.push(format!(
                "{NULL_CAPTION} is not in the source and cannot be restored; training needs it, \
                 sampling does not"
            ));
        }
        let mut config_file = None;
        if kind == TargetKind::Folder {
            if config.qk_norm || config.kv_compression.is_some() {
                notes.push(
                    "diffusers' class has no KV compression and no qk_norm: only pixart reads this \
                     folder in full"
                        .to_owned(),
                );
            }
            config_file = Some(located.config_file(&config, &options.variant)?);
        }
        Self::new(checkpoint, located.path.clone(), parts, config_file, notes)
    }

    fn new(
        checkpoint: Checkpoint,
        path: PathBuf,
        parts: BTreeMap<String, Vec<String>>,
        config: Option<ConfigFile>,
        notes: Vec<String>,
    ) -> Result<Self, ExportError> {
        let mut tensors = Vec::with_capacity(parts.len());
        let mut problems = Vec::new();
        for (name, parts) in &parts {
            match joined(&checkpoint, name, parts) {
                Ok(tensor) => tensors.push(tensor),
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            return Err(WeightsError { folder: path, problems }.into());
        }
        safetensors::sort(&mut tensors);
        Ok(Self { checkpoint, path, tensors, parts, config, notes })
    }

    /// Size of all elements.
    fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    fn write(
        &self,
        file: &mut File,
        name: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ExportError> {
        /// Bytes written at a time, so that the progress moves.
        const BLOCK: usize = 8 << 20;
        let total = self.bytes();
        safetensors::write_header(file, name, &self.tensors)?;
        let mut done = 0;
        progress(done, total);
        for tensor in &self.tensors {
            for part in &self.parts[&tensor.name] {
                let (Some(view), Some((shard, range))) =
                    (self.checkpoint.tensor(part), self.checkpoint.position(part))
                else {
                    continue;
                };
                for block in view.bytes.chunks(BLOCK) {
                    file.write_all(block).map_err(WriteError::io(name, "write", total))?;
                    done += block.len() as u64;
                    progress(done, total);
                }
                drop(view);
                self.checkpoint.shards()[shard].release(range);
            }
        }
        // A part that was announced and is not there would shift all that follow.
        if done != total {
            return Err(ExportError::BadTarget {
                path: name.to_owned(),
                problem: format!("{done} bytes were read from the source, expected {total}"),
            });
        }
        Ok(())
    }
}

/// The configuration, to check the tensors against. A file has none, so what no tensor shows and
/// nobody says does not matter there.
fn read_config(
    view: &Checkpoint,
    located: &Located,
    flags: &VariantFlags,
    kind: TargetKind,
) -> Result<TransformerConfig, ConfigError> {
    let file = located.config.as_deref();
    match kind {
        TargetKind::Folder => TransformerConfig::read(view, file, flags),
        TargetKind::File => Ok(TransformerConfig::read_shown(view, file, flags)?.0),
    }
}

/// For every tensor of the other naming, the tensors of the view that it is made of.
fn renamed_parts(
    view: &Checkpoint,
    target: Naming,
    notes: &mut Vec<String>,
) -> BTreeMap<String, Vec<String>> {
    let mut parts: BTreeMap<String, Vec<(usize, String)>> = BTreeMap::new();
    for name in view.names() {
        if is_droppable(Component::Transformer, name) {
            notes.push(format!("left out: {name}, which no implementation reads when sampling"));
            continue;
        }
        let (joined, part) = match target {
            Naming::Diffusers => (name.to_owned(), 0),
            Naming::Official => match official::from_diffusers(name) {
                Some(original) => (original.name, original.part),
                None => (name.to_owned(), 0),
            },
        };
        parts.entry(joined).or_default().push((part, name.to_owned()));
    }
    let in_order = |mut parts: Vec<(usize, String)>| {
        parts.sort();
        parts.into_iter().map(|(_, name)| name).collect()
    };
    parts.into_iter().map(|(name, parts)| (name, in_order(parts))).collect()
}

/// The tensor that some tensors are when their rows follow each other.
fn joined(
    checkpoint: &Checkpoint,
    name: &str,
    parts: &[String],
) -> Result<Announced, WeightProblem> {
    let missing = |part: &String| WeightProblem::Missing { tensor: part.clone(), expected: vec![] };
    let mut whole: Option<Announced> = None;
    for part in parts {
        let info = checkpoint.info(part).ok_or_else(|| missing(part))?;
        let count = info.shape.iter().map(|&n| n as u64).product::<u64>();
        let bytes = (count * info.dtype.bitsize() as u64).div_ceil(8);
        match &mut whole {
            None => {
                let (name, shape) = (name.to_owned(), info.shape);
                whole = Some(Announced { name, dtype: info.dtype, shape, bytes });
            }
            Some(whole) if whole.dtype != info.dtype => {
                return Err(WeightProblem::MixedDtypes {
                    tensor: name.to_owned(),
                    found: vec![whole.dtype.to_string(), info.dtype.to_string()],
                });
            }
            Some(whole) => {
                // The shapes have been checked against the architecture.
                whole.shape[0] += info.shape[0];
                whole.bytes += bytes;
            }
        }
    }
    whole.ok_or_else(|| missing(&name.to_owned()))
}
