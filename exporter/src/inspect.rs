//! What a checkpoint is, without exporting it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use serde::Serialize;

use crate::checkpoint::{Checkpoint, Container, Dtype, OpenOptions, TensorView};
use crate::naming::{
    self, ConfigError, Family, Naming, TransformerConfig, VariantFlags, is_droppable,
};
use crate::profile::Profile;
use crate::source::Located;
use crate::{Component, ExportError, models};

/// What to look at.
#[derive(Clone, Debug)]
pub struct InspectOptions {
    /// What the tensors of a transformer do not show.
    pub variant: VariantFlags,
    /// Which files of a folder and which part of a file are read.
    pub open: OpenOptions,
    /// Look at every element, for values that no trained model has.
    pub values: bool,
}

impl Default for InspectOptions {
    fn default() -> Self {
        Self { variant: VariantFlags::default(), open: OpenOptions::default(), values: true }
    }
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The files that were read.
    pub files: Vec<InspectedFile>,
    /// Tensors in all.
    pub tensors: usize,
    /// Their elements.
    pub parameters: u64,
    /// Size of their elements.
    pub bytes: u64,
    /// By element type, as safetensors spells it.
    pub dtypes: BTreeMap<String, DtypeCount>,
    /// What kind of transformer it is; absent for other models.
    pub transformer: Option<InspectedTransformer>,
    /// Tensors with values that no trained model has; absent if the elements were not looked at.
    pub suspicious: Option<Vec<Suspicion>>,
}

/// A file of a checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct InspectedFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its kind.
    pub container: String,
    /// The key of a PyTorch file that holds the weights.
    pub weights_key: Option<String>,
}

/// Tensors of one element type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DtypeCount {
    /// How many.
    pub tensors: usize,
    /// Their elements.
    pub parameters: u64,
}

/// A transformer's variant.
#[derive(Clone, Debug, Serialize)]
pub struct InspectedTransformer {
    /// `official` or `diffusers`.
    pub naming: String,
    /// `sigma` or `alpha`; both have one architecture, so without evidence it is `sigma`.
    pub family: String,
    /// Elements that the exported graph reads.
    pub parameters: u64,
    /// The configuration, as `config.json` has it; absent where something in `problems` keeps it from
    /// being worked out.
    pub config: Option<serde_json::Value>,
    /// Tensors that sampling does not need.
    pub unused: Vec<String>,
    /// What would keep it from being exported.
    pub problems: Vec<String>,
}

/// A tensor with values that no trained model has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Suspicion {
    /// The tensor.
    pub tensor: String,
    /// Its elements.
    pub elements: u64,
    /// How many are NaN.
    pub nan: u64,
    /// How many are infinite.
    pub infinite: u64,
    /// Whether all of them are zero.
    pub all_zero: bool,
}

/// Looks at a checkpoint: a file, or the folder of a model or of a pipeline, whose transformer then
/// is meant. `progress` gets the bytes looked at and in all.
///
/// # Errors
///
/// There is no checkpoint, or it cannot be read. What only keeps it from being exported is no error
/// here, but listed.
pub fn inspect(
    source: &Path,
    options: &InspectOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Inspection, ExportError> {
    let (path, config) = match Located::find(source, Component::Transformer) {
        Ok(Located { path, config }) => (path, config),
        // Another model's folder, perhaps.
        Err(_) if source.exists() => (source.to_owned(), None),
        Err(error) => return Err(error),
    };
    let checkpoint = Checkpoint::open(&path, &options.open)?;
    let files = checkpoint.shards().iter().map(|shard| InspectedFile {
        path: shard.path().to_owned(),
        container: container(shard.container()).to_owned(),
        weights_key: shard.weights_key().map(str::to_owned),
    });
    let files = files.collect();

    let mut dtypes: BTreeMap<String, DtypeCount> = BTreeMap::new();
    let (mut tensors, mut parameters, mut bytes) = (0, 0, 0);
    for (_, dtype, elements) in sizes(&checkpoint) {
        let count = dtypes.entry(dtype.to_string()).or_default();
        count.tensors += 1;
        count.parameters += elements;
        tensors += 1;
        parameters += elements;
        bytes += (elements * dtype.bitsize() as u64).div_ceil(8);
    }
    let suspicious = match options.values {
        true => Some(suspicions(&checkpoint, bytes, progress)),
        false => None,
    };
    let transformer = Naming::of(checkpoint.names())
        .map(|_| transformer(checkpoint, config.as_deref(), &options.variant));
    Ok(Inspection { files, tensors, parameters, bytes, dtypes, transformer, suspicious })
}

fn container(container: Container) -> &'static str {
    match container {
        Container::Safetensors => "safetensors",
        Container::TorchZip => "PyTorch (zip)",
        Container::TorchLegacy => "PyTorch (before 1.6)",
        Container::MindSpore => "MindSpore",
    }
}

/// Name, element type and number of elements of every tensor.
fn sizes(checkpoint: &Checkpoint) -> impl Iterator<Item = (&str, Dtype, u64)> {
    checkpoint.names().filter_map(|name| {
        let info = checkpoint.info(name)?;
        Some((name, info.dtype, info.shape.iter().map(|&n| n as u64).product()))
    })
}

fn transformer(
    checkpoint: Checkpoint,
    config: Option<&Path>,
    flags: &VariantFlags,
) -> InspectedTransformer {
    let mut found = InspectedTransformer {
        naming: String::new(),
        family: String::new(),
        parameters: 0,
        config: None,
        unused: Vec::new(),
        problems: Vec::new(),
    };
    let (view, names) = match naming::in_diffusers_names(checkpoint) {
        Ok(named) => named,
        Err(error) => {
            found.problems.push(error.to_string());
            return found;
        }
    };
    found.naming = names.to_string();
    found.family = Family::of(&view).as_str().to_owned();
    for (name, _, elements) in sizes(&view) {
        if is_droppable(Component::Transformer, name) {
            found.unused.push(name.to_owned());
        } else {
            found.parameters += elements;
        }
    }
    let (config, missing) = match TransformerConfig::read_shown(&view, config, flags) {
        Ok(shown) => shown,
        Err(error) => {
            found.problems.push(error.to_string());
            return found;
        }
    };
    let mut json = config.to_json();
    for error in &missing {
        if let ConfigError::Missing { field, .. } = error {
            // What follows from a value that stands in for a missing one is as unknown as that.
            let follows: &[&str] = match *field {
                "sample_size" => &["sample_size", "interpolation_scale"],
                _ => &["num_attention_heads", "attention_head_dim"],
            };
            for key in follows {
                json[*key] = serde_json::Value::Null;
            }
        }
        found.problems.push(error.to_string());
    }
    found.config = Some(json);
    match models::transformer::build(&config, Profile::Portable) {
        Ok(graph) => {
            if let Err(error) = naming::find(&graph, &view, Component::Transformer) {
                let error = naming::in_stored_names(error, names);
                found.problems.extend(error.problems.iter().map(ToString::to_string));
            }
        }
        Err(error) => found.problems.push(error.to_string()),
    }
    found
}

fn suspicions(
    checkpoint: &Checkpoint,
    total: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Vec<Suspicion> {
    let mut done = 0;
    let mut found = Vec::new();
    progress(done, total);
    for name in checkpoint.names() {
        let Some(view) = checkpoint.tensor(name) else { continue };
        let tally = Tally::of(&view);
        done += view.bytes.len() as u64;
        drop(view);
        progress(done, total);
        if let Some((shard, range)) = checkpoint.position(name) {
            checkpoint.shards()[shard].release(range);
        }
        let Tally { elements, nan, infinite, zero } = tally;
        let all_zero = elements > 0 && zero == elements;
        if nan > 0 || infinite > 0 || all_zero {
            found.push(Suspicion { tensor: name.to_owned(), elements, nan, infinite, all_zero });
        }
    }
    found
}

/// Counts of special values.
#[derive(Default)]
struct Tally {
    elements: u64,
    nan: u64,
    infinite: u64,
    zero: u64,
}

impl Tally {
    fn of(view: &TensorView<'_>) -> Self {
        /// Elements decoded at a time.
        const BLOCK: usize = 4096;
        let mut tally = Self::default();
        let mut floats = [0f32; BLOCK];
        match view.dtype {
            Dtype::F32 => {
                for block in view.bytes.chunks(4 * BLOCK) {
                    let count = block.len() / 4;
                    for (value, bytes) in floats.iter_mut().zip(block.as_chunks::<4>().0) {
                        *value = f32::from_le_bytes(*bytes);
                    }
                    tally.add(&floats[..count]);
                }
            }
            Dtype::F16 | Dtype::BF16 => {
                let mut bits = [0u16; BLOCK];
                for block in view.bytes.chunks(2 * BLOCK) {
                    let count = block.len() / 2;
                    for (bits, bytes) in bits.iter_mut().zip(block.as_chunks::<2>().0) {
                        *bits = u16::from_le_bytes(*bytes);
                    }
                    let (bits, floats) = (&bits[..count], &mut floats[..count]);
                    match view.dtype {
                        Dtype::F16 => {
                            bits.reinterpret_cast::<f16>().convert_to_f32_slice(floats);
                        }
                        _ => bits.reinterpret_cast::<bf16>().convert_to_f32_slice(floats),
                    }
                    tally.add(floats);
                }
            }
            Dtype::F64 => {
                for bytes in view.bytes.as_chunks::<8>().0 {
                    let value = f64::from_le_bytes(*bytes);
                    tally.elements += 1;
                    tally.nan += u64::from(value.is_nan());
                    tally.infinite += u64::from(value.is_infinite());
                    tally.zero += u64::from(value == 0.0);
                }
            }
            // Whole numbers have no special values; tables of zeros are normal among them.
            _ => tally.elements = view.shape.iter().map(|&n| n as u64).product(),
        }
        tally
    }

    fn add(&mut self, values: &[f32]) {
        let count = |is: fn(&f32) -> bool| values.iter().map(|value| u32::from(is(value))).sum();
        let (nan, infinite, zero): (u32, u32, u32) = (
            count(|value| value.is_nan()),
            count(|value| value.is_infinite()),
            count(|value| *value == 0.0),
        );
        self.elements += values.len() as u64;
        self.nan += u64::from(nan);
        self.infinite += u64::from(infinite);
        self.zero += u64::from(zero);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(dtype: Dtype, bytes: Vec<u8>, count: usize) -> [u64; 4] {
        let view = TensorView { dtype, shape: vec![count].into(), bytes: bytes.into() };
        let Tally { elements, nan, infinite, zero } = Tally::of(&view);
        [elements, nan, infinite, zero]
    }

    #[test]
    fn special_values_are_counted_in_every_width() {
        let mut values = vec![1.5f32; 10_000];
        (values[3], values[9_999]) = (f32::NAN, f32::NEG_INFINITY);
        (values[4_096], values[5_000], values[5_001]) = (0.0, -0.0, f32::INFINITY);
        let of = |encode: &dyn Fn(f32) -> Vec<u8>| values.iter().flat_map(|&v| encode(v)).collect();
        for (dtype, bytes) in [
            (Dtype::F64, of(&|v| f64::from(v).to_le_bytes().to_vec())),
            (Dtype::F32, of(&|v| v.to_le_bytes().to_vec())),
            (Dtype::F16, of(&|v| f16::from_f32(v).to_le_bytes().to_vec())),
            (Dtype::BF16, of(&|v| bf16::from_f32(v).to_le_bytes().to_vec())),
        ] {
            assert_eq!(tally(dtype, bytes, values.len()), [10_000, 1, 2, 2], "{dtype}");
        }
        assert_eq!(tally(Dtype::I64, vec![0; 80], 10), [10, 0, 0, 0]);
    }
}
