//! LoRA: two small factors for each of some layers, trained in the place of their weights.
//!
//! A layer with the weight `W` works with `W + scale·(B·A)`. Networks need to know nothing of it: they
//! get the weights of [`Adapter::merged`], and [`Adapter::gradients`] turns the gradients of these
//! into those of the factors, which an [`Optimizer`](crate::optimizer::Optimizer) then moves. Both work
//! on any part of the weights, so one block of a network after the other can be done.
//!
//! Files are PEFT's (`adapter_model.safetensors` with `adapter_config.json`) and diffusers'
//! (`pytorch_lora_weights.safetensors`); `pixart sample --lora` loads both.

mod error;
mod settings;

use std::{collections::BTreeMap, path::Path};

use ndarray::{Array2, ArrayD, ArrayView2, IxDyn};
use pixart_exporter::write::{Floats, Kind, Staging, sync_folder, write_floats, write_text};
use pixart_runtime::noise::TorchGenerator;

pub use error::AdapterError;
pub use settings::{AdapterSettings, DEFAULT_TARGETS, LINEAR_TARGETS, Start};

use crate::{
    files::read_floats,
    tensors::{Tensors, floats},
};

/// PEFT's file of factors.
pub const PEFT_FILE: &str = "adapter_model.safetensors";
/// PEFT's file of settings.
pub const PEFT_CONFIG: &str = "adapter_config.json";
/// diffusers' file of factors.
pub const DIFFUSERS_LORA_FILE: &str = "pytorch_lora_weights.safetensors";

const PEFT_PREFIX: &str = "base_model.model.";
const DIFFUSERS_PREFIX: &str = "transformer.";
/// Where diffusers stores the settings in the metadata of its file.
const DIFFUSERS_METADATA: &str = "lora_adapter_metadata";

/// A LoRA that is being trained.
#[derive(Clone, Debug)]
pub struct Adapter {
    settings: AdapterSettings,
    /// The shape of the weight of every layer.
    layers: BTreeMap<String, Vec<usize>>,
    factors: Tensors,
}

impl Adapter {
    /// A new LoRA on the layers of `weights` (their shapes by name, under diffusers' names) that are
    /// targets. It changes nothing yet. The factors are drawn one after the other in the order of
    /// their layers' names.
    ///
    /// # Errors
    /// When a setting is out of its range, no layer is a target, or one is neither a matrix nor a
    /// plain convolution.
    pub fn new<'a>(
        settings: AdapterSettings,
        weights: impl IntoIterator<Item = (&'a str, &'a [usize])>,
        generator: &mut TorchGenerator,
    ) -> Result<Self, AdapterError> {
        settings.check()?;
        let (mut layers, mut others) = (BTreeMap::new(), Vec::new());
        for (name, shape) in weights {
            let Some(layer) = name.strip_suffix(".weight") else { continue };
            if !settings.is_target(layer) {
                others.push(layer);
                continue;
            }
            // A kernel with one input channel for many outputs is one for each channel.
            let depthwise = shape.len() == 4 && shape[1] == 1 && shape[0] > 1;
            if !matches!(shape.len(), 2 | 4) || depthwise {
                return Err(AdapterError::Layer { layer: layer.to_owned(), found: shape.to_vec() });
            }
            layers.insert(layer.to_owned(), shape.to_vec());
        }
        if layers.is_empty() {
            others.truncate(8);
            let (targets, layers) = (settings.targets, others.join(", "));
            return Err(AdapterError::NoTarget { targets, layers });
        }
        let mut factors = Tensors::new();
        for (layer, shape) in &layers {
            let [down, up] = factor_shapes(shape, settings.rank);
            let count = down.iter().product();
            let values = match settings.start {
                Start::KaimingUniform => {
                    let inputs: usize = shape[1..].iter().product();
                    let bound = kaiming_bound(inputs);
                    generator.rand(count, -bound, bound)
                }
                Start::Gaussian => {
                    let deviation = (1.0 / settings.rank as f64) as f32;
                    generator.randn(count).into_iter().map(|x| x * deviation).collect()
                }
            };
            let down = ArrayD::from_shape_vec(IxDyn(&down), values).expect("as many values");
            factors.insert(format!("{layer}.lora_A.weight"), down);
            factors.insert(format!("{layer}.lora_B.weight"), ArrayD::zeros(IxDyn(&up)));
        }
        Ok(Self { settings, layers, factors })
    }

    /// The settings.
    pub fn settings(&self) -> &AdapterSettings {
        &self.settings
    }

    /// The layers, by name.
    pub fn layers(&self) -> impl Iterator<Item = &str> {
        self.layers.keys().map(String::as_str)
    }

    /// The factors: `<layer>.lora_A.weight` `[rank, in]` (for a convolution `[rank, in, side, side]`)
    /// and `<layer>.lora_B.weight` `[out, rank]` (`[out, rank, 1, 1]`).
    pub fn factors(&self) -> &Tensors {
        &self.factors
    }

    /// The factors, for an optimizer; their names and shapes must stay.
    pub fn factors_mut(&mut self) -> &mut Tensors {
        &mut self.factors
    }

    /// The weights that the network works with, of those layers of the LoRA that are among `weights`.
    ///
    /// # Errors
    /// When a weight has another shape than the LoRA was made for.
    pub fn merged(&self, weights: &Tensors) -> Result<Tensors, AdapterError> {
        self.for_layers(weights, |weight, down, up, merged, name| {
            let change = up.dot(&down) * self.settings.scale() as f32;
            let change = change.into_shape_with_order(weight.raw_dim()).expect("the same size");
            merged.insert(format!("{name}.weight"), weight + change);
        })
    }

    /// The gradients of the factors, from those of the weights of [`Adapter::merged`]: for the layers
    /// of the LoRA that are among `gradients`.
    ///
    /// # Errors
    /// When a gradient has another shape than the LoRA was made for.
    pub fn gradients(&self, gradients: &Tensors) -> Result<Tensors, AdapterError> {
        self.for_layers(gradients, |gradient, down, up, found, name| {
            let gradient = matrix(gradient);
            let scale = self.settings.scale() as f32;
            for (part, value) in
                [("A", up.t().dot(&gradient) * scale), ("B", gradient.dot(&down.t()) * scale)]
            {
                let name = format!("{name}.lora_{part}.weight");
                let shape = self.factors[&name].raw_dim();
                let value = value.as_standard_layout().into_owned();
                found.insert(name, value.into_shape_with_order(shape).expect("the same size"));
            }
        })
    }

    /// Calls `each` with the tensor of every layer that is among `tensors`, both factors as matrices,
    /// the results, and the layer's name.
    fn for_layers(
        &self,
        tensors: &Tensors,
        each: impl Fn(&ArrayD<f32>, ArrayView2<'_, f32>, ArrayView2<'_, f32>, &mut Tensors, &str),
    ) -> Result<Tensors, AdapterError> {
        let mut results = Tensors::new();
        for (layer, shape) in &self.layers {
            let name = format!("{layer}.weight");
            let Some(tensor) = tensors.get(&name) else { continue };
            if tensor.shape() != shape {
                let (found, expected) = (format!("f32{:?}", tensor.shape()), shape.clone());
                return Err(AdapterError::Weight { name, found, expected });
            }
            let factor = |part: &str| &self.factors[&format!("{layer}.lora_{part}.weight")];
            let (down, up) = (matrix(factor("A")), matrix(factor("B")));
            each(tensor, down.view(), up.view(), &mut results, layer);
        }
        Ok(results)
    }

    /// Writes the files of PEFT and of diffusers into a folder that has none of them, and flushes them.
    ///
    /// # Errors
    /// When a file is there already, there is no room, or it cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), AdapterError> {
        self.write_factors(folder, &self.factors)
    }

    /// As [`Adapter::write`], with other factors of the same names and shapes, such as an average.
    ///
    /// # Errors
    /// As [`Adapter::write`].
    pub fn write_factors(&self, folder: &Path, factors: &Tensors) -> Result<(), AdapterError> {
        let targets: Vec<&str> = self.settings.targets.iter().map(String::as_str).collect();
        let used = |target: &&str| {
            let alone =
                AdapterSettings { targets: vec![(*target).to_owned()], ..self.settings.clone() };
            self.layers().any(|layer| alone.is_target(layer))
        };
        let targets: Vec<&str> = targets.into_iter().filter(used).collect();
        let config = self.settings.to_json(&targets);
        let metadata: serde_json::Map<_, _> =
            ["r", "lora_alpha", "target_modules", "use_dora", "use_rslora"]
                .iter()
                .map(|key| (format!("{DIFFUSERS_PREFIX}{key}"), config[*key].clone()))
                .collect();
        let metadata = (DIFFUSERS_METADATA, serde_json::Value::Object(metadata).to_string());
        for (file, prefix, metadata) in [
            (PEFT_FILE, PEFT_PREFIX, &[][..]),
            (DIFFUSERS_LORA_FILE, DIFFUSERS_PREFIX, &[metadata][..]),
        ] {
            let tensors: Vec<Floats<'_>> = factors
                .iter()
                .map(|(name, array)| floats(format!("{prefix}{name}"), array))
                .collect();
            write_floats(&folder.join(file), &tensors, metadata)?;
        }
        write_text(&folder.join(PEFT_CONFIG), &format!("{config:#}\n"))?;
        Ok(sync_folder(folder)?)
    }

    /// Writes the files of PEFT and of diffusers as a new folder, which appears complete or not at all.
    /// With `replace`, a folder that holds nothing but such files may be there already.
    ///
    /// # Errors
    /// When something else is there, there is no room, or it cannot be written; what was there before
    /// is there still.
    pub fn save(&self, folder: &Path, replace: bool) -> Result<(), AdapterError> {
        let staging = Staging::begin(folder, Kind::Training, replace, &[])?;
        self.write(staging.folder())?;
        staging.commit()?;
        Ok(())
    }

    /// Reads factors of the same layers and rank from PEFT's file in a folder.
    ///
    /// # Errors
    /// When the file is missing or damaged, or holds other factors; nothing has changed then.
    pub fn restore(&mut self, folder: &Path) -> Result<(), AdapterError> {
        let factors = self.read_factors(folder)?;
        self.check_strength(folder)?;
        self.factors = factors;
        Ok(())
    }

    /// Factors that were learnt at one strength mean something else at another.
    fn check_strength(&self, folder: &Path) -> Result<(), AdapterError> {
        let path = folder.join(PEFT_CONFIG);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let saved: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let expected = self.settings.to_json(&[]);
        for name in ["lora_alpha", "use_rslora"] {
            if saved[name] != expected[name] {
                let (found, expected) = (saved[name].to_string(), expected[name].to_string());
                return Err(AdapterError::Factors { path, name: name.to_owned(), found, expected });
            }
        }
        Ok(())
    }

    /// The factors in PEFT's file in a folder, of the same layers and rank as these.
    ///
    /// # Errors
    /// When the file is missing or damaged, or holds other factors.
    pub fn read_factors(&self, folder: &Path) -> Result<Tensors, AdapterError> {
        let path = folder.join(PEFT_FILE);
        let found = read_floats(&path)?;
        let found: Tensors = found
            .into_iter()
            .map(|(name, array)| {
                let name = name.strip_prefix(PEFT_PREFIX).map(str::to_owned).unwrap_or(name);
                (name, array)
            })
            .collect();
        let mut names: Vec<&String> = self.factors.keys().chain(found.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let shape = |tensors: &Tensors| {
                tensors.get(name).map_or("nothing".to_owned(), |a| format!("f32{:?}", a.shape()))
            };
            let (found, expected) = (shape(&found), shape(&self.factors));
            if found != expected {
                return Err(AdapterError::Factors { path, name: name.clone(), found, expected });
            }
        }
        Ok(found)
    }
}

/// The shapes of `A` and `B` for a weight.
fn factor_shapes(weight: &[usize], rank: usize) -> [Vec<usize>; 2] {
    let mut down = weight.to_vec();
    down[0] = rank;
    let mut up = vec![weight[0], rank];
    // A convolution's second factor is one of single pixels.
    up.resize(weight.len(), 1);
    [down, up]
}

/// The bound that torch's `kaiming_uniform_` has with `a = √5`: 1/√inputs, by way of the gain.
fn kaiming_bound(inputs: usize) -> f32 {
    let gain = (2.0 / (1.0 + 5f64.sqrt().powi(2))).sqrt();
    (3f64.sqrt() * (gain / (inputs as f64).sqrt())) as f32
}

/// The first axis as rows, all others as columns.
fn matrix(array: &ArrayD<f32>) -> Array2<f32> {
    let rows = array.shape()[0];
    let columns = array.len() / rows.max(1);
    let ordered = array.as_standard_layout().into_owned();
    ordered.into_shape_with_order((rows, columns)).expect("the same size")
}
