//! Checkpoints of training: everything that is needed to go on as if nothing had happened.
//!
//! A checkpoint is a folder `step_<number>`:
//!
//! | file | content |
//! |---|---|
//! | `diffusion_pytorch_model.safetensors`, `config.json` | the weights, as diffusers has them: `pixart export transformer --source` and diffusers read them |
//! | or the files of [`lora`](crate::lora) | the factors of a LoRA, as PEFT and diffusers have them |
//! | `ema/…` | the same of the average |
//! | `optimizer.safetensors` | the optimizer's state |
//! | `training.json` | step, epoch, and whatever else the caller needs: positions, scales, generators |
//!
//! The folder is written under a hidden name beside its place, flushed to the disk and renamed, so
//! that it is there as a whole or not at all, whenever the process is killed or the disk is full. What
//! a killed process leaves is removed by the next [`save()`] or [`prune`].

mod error;
mod folder;
mod record;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use pixart_exporter::write::{
    DIFFUSERS_FILE, Floats, Kind as Target, Staging, TRAINING_AVERAGE, WriteError, sync_folder,
    write_floats, write_text,
};
use serde_json::Value;

pub use error::CheckpointError;
pub use folder::{Listing, latest, list, prune};
use record::{Kind, OptimizerRecord, Record};

use crate::{
    ema::Average,
    files::read_floats,
    lora::Adapter,
    optimizer::Optimizer,
    tensors::{Tensors, Values, to_tensors, value_floats},
};

/// The optimizer's file.
const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// What is trained.
#[derive(Clone, Copy)]
pub enum Model<'a> {
    /// All weights, under diffusers' names.
    Whole {
        /// diffusers' `config.json`.
        config: &'a Value,
        /// The weights; what is not floats is left out.
        weights: &'a Values,
    },
    /// A LoRA.
    Lora(&'a Adapter),
}

/// Everything that goes into a checkpoint.
#[derive(Clone, Copy)]
pub struct Contents<'a> {
    /// Steps done; the folder is named by it.
    pub step: u64,
    /// Epochs done.
    pub epoch: u64,
    /// The weights.
    pub model: Model<'a>,
    /// Their average.
    pub average: Option<&'a Average>,
    /// The optimizer.
    pub optimizer: Option<&'a Optimizer>,
    /// What other processes keep of the optimizer's state, if several share it.
    pub shares: &'a [Floats<'a>],
    /// Whatever else is needed to go on: the position in the data, the loss scale, the states of
    /// generators ([`GeneratorState`](pixart_runtime::noise::GeneratorState)). Whole numbers and texts
    /// come back exactly; fractions may lose their last bit, so store the bits of those that matter.
    pub state: &'a BTreeMap<String, Value>,
}

/// The place of the checkpoint of a step in the folder of all of them.
pub fn place(root: &Path, step: u64) -> PathBuf {
    root.join(folder::name(step))
}

/// Saves a checkpoint into the folder of all of them, which is made if it is not there, and returns
/// its place. One of the same step is replaced in one move, unless other files lie in it.
///
/// # Errors
/// When there is no room, or a file cannot be written; what was there before is there still.
pub fn save(root: &Path, contents: &Contents<'_>) -> Result<PathBuf, CheckpointError> {
    let complete = list(root)?.complete;
    let sequence = complete.iter().map(|saved| saved.record.sequence).max().map_or(0, |n| n + 1);
    let target = place(root, contents.step);
    let staging = Staging::begin(&target, Target::Training, true, &[])?;
    let folder = staging.folder();
    let kind = match contents.model {
        Model::Whole { .. } => Kind::Model,
        Model::Lora(_) => Kind::Lora,
    };
    let mut record = Record::new(kind, sequence, [contents.step, contents.epoch]);
    record.state.clone_from(contents.state);
    match contents.model {
        Model::Whole { config, weights } => write_model(folder, config, weights)?,
        Model::Lora(adapter) => adapter.write(folder)?,
    }
    if let Some(average) = contents.average {
        let inner = folder.join(TRAINING_AVERAGE);
        let fail = |source| CheckpointError::Io { path: inner.clone(), action: "create", source };
        fs::create_dir(&inner).map_err(fail)?;
        match contents.model {
            Model::Whole { config, .. } => write_model(&inner, config, average.weights())?,
            Model::Lora(adapter) => {
                adapter.write_factors(&inner, &to_tensors(average.weights())?)?;
            }
        }
        record.average = Some(average.updates());
    }
    if let Some(optimizer) = contents.optimizer {
        let state = optimizer.state().map(|(name, value)| value_floats(name, value));
        let mut state: Vec<Floats<'_>> = state.collect::<Result<_, _>>()?;
        state.extend(contents.shares.iter().map(borrowed));
        write_floats(&folder.join(OPTIMIZER_FILE), &state, &[])?;
        let name = optimizer.algorithm().as_str().to_owned();
        record.optimizer = Some(OptimizerRecord { name, steps: optimizer.steps() });
    }
    record.files = sizes(folder, "")?;
    let text = serde_json::to_string_pretty(&record).map_err(|error| WriteError::Io {
        path: folder.join(record::FILE),
        action: "write",
        source: error.into(),
    })?;
    write_text(&folder.join(record::FILE), &format!("{text}\n"))?;
    Ok(staging.commit()?)
}

fn borrowed<'a>(Floats { name, shape, data }: &'a Floats<'_>) -> Floats<'a> {
    Floats { name: name.clone(), shape: shape.clone(), data: Cow::Borrowed(data) }
}

/// The weights as a folder that diffusers and the exporter read.
fn write_model(folder: &Path, config: &Value, weights: &Values) -> Result<(), CheckpointError> {
    let weights = weights.iter().filter(|(_, value)| value.dtype() == "f32");
    let weights = weights.map(|(name, value)| value_floats(name.clone(), value));
    let weights: Vec<Floats<'_>> = weights.collect::<Result<_, _>>()?;
    write_floats(&folder.join(DIFFUSERS_FILE), &weights, &[])?;
    write_text(&folder.join("config.json"), &format!("{config:#}\n"))?;
    Ok(sync_folder(folder)?)
}

/// The size of every file, by its path in the folder.
fn sizes(folder: &Path, below: &str) -> Result<BTreeMap<String, u64>, CheckpointError> {
    let fail = |source| CheckpointError::Io { path: folder.to_owned(), action: "list", source };
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let metadata = entry.metadata().map_err(fail)?;
        let name = format!("{below}{}", entry.file_name().to_string_lossy());
        if metadata.is_dir() {
            found.extend(sizes(&entry.path(), &format!("{name}/"))?);
        } else {
            found.insert(name, metadata.len());
        }
    }
    Ok(found)
}

/// A complete checkpoint on the disk.
#[derive(Clone, Debug)]
pub struct Saved {
    folder: PathBuf,
    record: Record,
}

impl Saved {
    /// Opens a checkpoint, or the newest complete one in a folder of checkpoints.
    ///
    /// # Errors
    /// When there is none, or the one named is incomplete.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        if path.join(record::FILE).is_file() {
            let folder = path.to_owned();
            return match Record::read(path) {
                Ok(record) => Ok(Self { folder, record }),
                Err(problem) => Err(CheckpointError::Incomplete { path: folder, problem }),
            };
        }
        let Listing { mut complete, incomplete } = list(path)?;
        complete.pop().ok_or(CheckpointError::None { path: path.to_owned(), incomplete })
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.record.step
    }

    /// Epochs done.
    pub fn epoch(&self) -> u64 {
        self.record.epoch
    }

    /// What the caller has stored beside tensors.
    pub fn state(&self) -> &BTreeMap<String, Value> {
        &self.record.state
    }

    /// Whether it is one of a LoRA, or one of a whole model, as is expected.
    ///
    /// # Errors
    /// When it is the other.
    pub fn check_kind(&self, lora: bool) -> Result<(), CheckpointError> {
        self.expect(if lora { Kind::Lora } else { Kind::Model })
    }

    /// The weights.
    ///
    /// # Errors
    /// When the checkpoint is one of a LoRA, or the file is damaged.
    pub fn weights(&self) -> Result<Tensors, CheckpointError> {
        self.expect(Kind::Model)?;
        Ok(read_floats(&self.folder.join(DIFFUSERS_FILE))?)
    }

    /// Gives a LoRA the factors of this one.
    ///
    /// # Errors
    /// When the checkpoint is one of a whole model or of another LoRA, or a file is damaged.
    pub fn restore_adapter(&self, adapter: &mut Adapter) -> Result<(), CheckpointError> {
        self.expect(Kind::Lora)?;
        Ok(adapter.restore(&self.folder)?)
    }

    /// Sets the average to where it stood; for a LoRA, the adapter says which factors there are.
    /// Returns whether the checkpoint has one: else the average has not changed.
    ///
    /// # Errors
    /// When it is one of other weights, or the file is damaged.
    pub fn restore_average(
        &self,
        average: &mut Average,
        adapter: Option<&Adapter>,
    ) -> Result<bool, CheckpointError> {
        let Some(updates) = self.record.average else { return Ok(false) };
        let folder = self.folder.join(TRAINING_AVERAGE);
        let tensors = match adapter {
            None => {
                self.expect(Kind::Model)?;
                read_floats(&folder.join(DIFFUSERS_FILE))?
            }
            Some(adapter) => {
                self.expect(Kind::Lora)?;
                adapter.read_factors(&folder)?
            }
        };
        average.restore(updates, tensors)?;
        Ok(true)
    }

    /// Sets the optimizer to where it stood. If it has a share of the weights only, those of the others are left out.
    ///
    /// # Errors
    /// When the checkpoint has none, or one of another kind or of other weights.
    pub fn restore_optimizer(
        &self,
        optimizer: &mut Optimizer,
        is_share: bool,
    ) -> Result<(), CheckpointError> {
        let expected = optimizer.algorithm().as_str();
        let other = |found: String| CheckpointError::Other {
            path: self.folder.clone(),
            found,
            expected: format!("that of {expected}"),
        };
        let Some(OptimizerRecord { name, steps }) = &self.record.optimizer else {
            return Err(other("no state of an optimizer".to_owned()));
        };
        if name != expected {
            return Err(other(format!("the state of the optimizer {name}")));
        }
        let mut state = read_floats(&self.folder.join(OPTIMIZER_FILE))?;
        if is_share {
            state.retain(|key, _| optimizer.keeps(key));
        }
        Ok(optimizer.restore(*steps, state)?)
    }

    fn expect(&self, expected: Kind) -> Result<(), CheckpointError> {
        let words = |kind| match kind {
            Kind::Model => "the weights of a whole model",
            Kind::Lora => "a LoRA",
        };
        if self.record.kind == expected {
            return Ok(());
        }
        let (found, expected) = (words(self.record.kind).to_owned(), words(expected).to_owned());
        Err(CheckpointError::Other { path: self.folder.clone(), found, expected })
    }
}
