//! A LoRA file, read and made uniform: factors, scale and magnitudes of each layer.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use ndarray::Array2;

use super::{
    LoraError, LoraSpec,
    adapter_config::{AdapterConfig, FILE, METADATA_KEY},
    file::{self, Contents, Values},
    key::{self, Key, Module, Network, Role},
};

/// A LoRA in memory, not yet matched with a model.
#[derive(Clone, Debug)]
pub struct Lora {
    path: PathBuf,
    strength: f32,
    sha256: String,
    pub(super) layers: Vec<Layer>,
    /// Keys that nothing is known of.
    pub(super) unknown: Vec<String>,
    pub(super) keys: usize,
}

/// The change of one layer.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub module: Module,
    /// The keys it comes from.
    pub keys: Vec<String>,
    /// `[r, in]`, the pixels of a kernel counted as inputs.
    pub down: Array2<f32>,
    /// `[out, r]`.
    pub up: Array2<f32>,
    /// The factor on the product, without the strength.
    pub scale: f32,
    pub magnitude: Option<Magnitude>,
}

/// What DoRA sets norms to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Magnitude {
    /// One for each output.
    Outputs(Vec<f32>),
    /// One for each input channel, with this many numbers of a row each.
    Inputs(Vec<f32>, usize),
}

impl Lora {
    /// Reads a safetensors file, or that of a folder, with `adapter_config.json` where PEFT wrote it.
    ///
    /// Without any alpha, the scale is 1, as diffusers has it; but PEFT's own files need their
    /// configuration.
    ///
    /// # Errors
    /// When the file is missing, a pickle, damaged, uses another method than LoRA or DoRA, or lacks
    /// something.
    pub fn open(spec: &LoraSpec) -> Result<Self, LoraError> {
        let contents = file::read(&spec.path)?;
        let mut parts: BTreeMap<Module, Vec<(String, Role)>> = BTreeMap::new();
        let mut unknown = Vec::new();
        for name in contents.tensors.keys() {
            match key::parse(name) {
                Key::Part(module, role) => {
                    parts.entry(module).or_default().push((name.clone(), role));
                }
                Key::Other(method) => {
                    return Err(LoraError::Unsupported {
                        path: contents.path,
                        method: method.to_owned(),
                        key: name.clone(),
                    });
                }
                Key::Unknown => unknown.push(name.clone()),
            }
        }
        let settings = Settings::find(&contents, &parts)?;
        let layers = parts.into_iter().map(|(module, keys)| {
            let name = module.name.clone();
            layer(&contents, &settings, module, keys).map_err(|problem| match problem {
                Problem::Lora(error) => error,
                Problem::Reason(reason) => {
                    LoraError::Module { path: contents.path.clone(), module: name, reason }
                }
            })
        });
        Ok(Self {
            strength: spec.strength,
            layers: layers.collect::<Result<_, _>>()?,
            unknown,
            keys: contents.tensors.len(),
            sha256: contents.sha256,
            path: contents.path,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The factor on its changes.
    pub fn strength(&self) -> f32 {
        self.strength
    }

    /// The SHA-256 of the file, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
}

/// Where the scale of a layer without an alpha of its own comes from.
#[derive(Default)]
struct Settings {
    peft: Option<(AdapterConfig, PathBuf)>,
    metadata: BTreeMap<Network, AdapterConfig>,
}

impl Settings {
    fn find<T>(contents: &Contents, parts: &BTreeMap<Module, T>) -> Result<Self, LoraError> {
        let path = &contents.path;
        let mut settings = Self::default();
        if let Some(text) = contents.metadata.get(METADATA_KEY) {
            settings.metadata = AdapterConfig::from_metadata(text, path)?;
        }
        // Another file of the folder may have nothing to do with the configuration.
        let config = path.with_file_name(FILE);
        let peft = parts.keys().any(|module| module.peft)
            || path.file_name().is_some_and(|name| name == "adapter_model.safetensors");
        if peft && config.is_file() {
            settings.peft = Some((AdapterConfig::read(&config)?, config));
        }
        Ok(settings)
    }

    fn scale(
        &self,
        module: &Module,
        alpha: Option<f32>,
        rank: usize,
        file: &Path,
    ) -> Result<f32, LoraError> {
        if let Some(alpha) = alpha {
            return Ok(alpha / rank as f32);
        }
        if let Some((config, path)) = &self.peft {
            return config.scale(&module.name, rank, path);
        }
        if let Some(config) = self.metadata.get(&module.network()) {
            return config.scale(&module.name, rank, file);
        }
        if module.peft {
            return Err(LoraError::Config {
                path: file.to_owned(),
                reason: format!(
                    "its keys are PEFT's and it holds no alpha, expected {FILE} beside it, where \
                     PEFT stores it; copy that file too"
                ),
            });
        }
        Ok(1.0)
    }

    fn wants_dora(&self, module: &Module) -> bool {
        let config =
            self.peft.as_ref().map(|(config, _)| config).or(self.metadata.get(&module.network()));
        config.is_some_and(|config| config.use_dora == Some(true))
    }
}

enum Problem {
    Lora(LoraError),
    Reason(String),
}

impl From<LoraError> for Problem {
    fn from(error: LoraError) -> Self {
        Self::Lora(error)
    }
}

impl From<String> for Problem {
    fn from(reason: String) -> Self {
        Self::Reason(reason)
    }
}

fn layer(
    contents: &Contents,
    settings: &Settings,
    module: Module,
    keys: Vec<(String, Role)>,
) -> Result<Layer, Problem> {
    let mut parts: BTreeMap<&str, (&Values, Role)> = BTreeMap::new();
    for (name, role) in &keys {
        let kind = match role {
            Role::Down => "A (lora_A, lora_down)",
            Role::Up => "B (lora_B, lora_up)",
            Role::Alpha => "alpha",
            Role::Magnitude | Role::DoraScale => "magnitudes",
        };
        if parts.insert(kind, (&contents.tensors[name], *role)).is_some() {
            return Err(format!("found two tensors for its {kind}, expected one").into());
        }
    }
    let part = |kind: &str| parts.get(kind).copied();
    let matrix = |kind: &str| {
        let (values, _) = part(kind)
            .ok_or_else(|| format!("found no {kind}, expected one beside {}", keys[0].0))?;
        let &[rows, ref rest @ ..] = &values.shape[..] else {
            return Err(format!("found {kind} without axes, expected a matrix"));
        };
        if rest.is_empty() || rest.len() > 3 {
            return Err(format!("found {kind} {:?}, expected a matrix", values.shape));
        }
        let columns = rest.iter().product();
        let array = Array2::from_shape_vec((rows, columns), values.data.clone());
        let array = array.map_err(|error| format!("{kind} {:?}: {error}", values.shape))?;
        Ok((array, &values.shape[..]))
    };
    let (down, down_shape) = matrix("A (lora_A, lora_down)")?;
    let (up, up_shape) = matrix("B (lora_B, lora_up)")?;
    let rank = down.nrows();
    if rank == 0 || up.ncols() != rank {
        return Err(format!(
            "found A {down_shape:?} and B {up_shape:?}, expected [r, in] and [out, r] with the same r"
        )
        .into());
    }
    let alpha = match part("alpha") {
        None => None,
        Some((Values { data, .. }, _)) if data.len() == 1 && data[0].is_finite() => Some(data[0]),
        Some((values, _)) => {
            return Err(format!(
                "found alpha {:?} {:?}, expected one finite number",
                values.shape,
                values.data.first()
            )
            .into());
        }
    };
    let magnitude = match part("magnitudes") {
        Some((values, role)) => {
            Some(magnitude(values, role, up.nrows(), down_shape[1], down.ncols())?)
        }
        None if settings.wants_dora(&module) => {
            return Err("found no magnitudes, expected them, as the settings say DoRA"
                .to_owned()
                .into());
        }
        None => None,
    };
    let scale = settings.scale(&module, alpha, rank, &contents.path)?;
    let keys = keys.into_iter().map(|(name, _)| name).collect();
    Ok(Layer { module, keys, down, up, scale, magnitude })
}

fn magnitude(
    values: &Values,
    role: Role,
    outputs: usize,
    channels: usize,
    inputs: usize,
) -> Result<Magnitude, String> {
    let (shape, count) = (&values.shape, values.data.len());
    // PEFT's convolutions have [1, out, 1, 1].
    let for_outputs = count == outputs
        && (role == Role::Magnitude || shape.first().is_none_or(|&first| first == outputs));
    if for_outputs {
        return Ok(Magnitude::Outputs(values.data.clone()));
    }
    if role == Role::DoraScale && count == channels && shape.first() == Some(&1) {
        return Ok(Magnitude::Inputs(values.data.clone(), inputs / channels));
    }
    Err(format!(
        "found magnitudes {shape:?}, expected one for each of its {outputs} outputs or {channels} \
         inputs"
    ))
}
