//! What computes each part of the model, as the settings have it.

use super::settings::{Settings, parsed};
use crate::commands::engine::devices::{idle_plugin, split_options};
use crate::exit::Failure;
use pixart_exporter::Profile;
use pixart_runtime::engine::provider::{
    Compiled, Device, DeviceOptions, Keeps, Outcome, Placement, Provider,
};
use pixart_runtime::engine::{self, Engine, EngineChoice, EngineError, EngineOptions, Opened};
use pixart_runtime::pipeline::Engines;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Engines that are open, one for each part; parts may share one.
pub struct OpenEngines {
    text_encoder: Arc<dyn Engine>,
    transformer: Arc<dyn Engine>,
    vae: Arc<dyn Engine>,
    /// What the graphs must suit.
    pub providers: Providers,
    /// Lines for the user.
    pub notes: Vec<String>,
}

/// What computes each part.
#[derive(Clone, Copy)]
pub struct Providers {
    pub text_encoder: &'static Provider,
    pub transformer: &'static Provider,
    pub vae: &'static Provider,
}

impl Providers {
    /// The same for all parts: the processor, by one of its two engines.
    pub fn on_processor(engine: &str) -> Self {
        let provider = match engine {
            "tract" => Provider::tract(),
            _ => Provider::cpu(),
        };
        Self { text_encoder: provider, transformer: provider, vae: provider }
    }
}

impl OpenEngines {
    /// For the pipeline.
    pub fn engines(&self) -> Engines {
        Engines {
            text_encoder: self.text_encoder.clone(),
            transformer: self.transformer.clone(),
            vae: self.vae.clone(),
        }
    }

    /// The engine that does most of the work.
    pub fn main(&self) -> &Arc<dyn Engine> {
        &self.transformer
    }

    /// The engine of the text encoder.
    pub fn text_encoder(&self) -> &Arc<dyn Engine> {
        &self.text_encoder
    }

    /// What the engines are, each once.
    pub fn describe(&self) -> String {
        let all = [&self.transformer, &self.text_encoder, &self.vae];
        let mut names: Vec<String> = all.iter().map(|engine| engine.describe()).collect();
        names.dedup();
        names.join(", ")
    }

    /// Each engine once.
    fn each(&self) -> Vec<&Arc<dyn Engine>> {
        let mut each: Vec<&Arc<dyn Engine>> = Vec::new();
        for engine in [&self.text_encoder, &self.transformer, &self.vae] {
            if !each.iter().any(|known| Arc::ptr_eq(known, engine)) {
                each.push(engine);
            }
        }
        each
    }

    /// What was compiled so far, where compiled graphs are kept.
    pub fn compiled(&self) -> Vec<Compiled> {
        self.each().into_iter().flat_map(|engine| engine.compiled()).collect()
    }

    /// Warnings about work that was left to the processor though another device was asked for, and about
    /// compiled graphs that were no good or could not be kept.
    pub fn warnings(&self) -> Vec<String> {
        let placements = self.each().into_iter().flat_map(|engine| engine.placements());
        let mut warnings: Vec<String> = placements.filter_map(|each| left_over(&each)).collect();
        warnings.extend(self.compiled().iter().filter_map(|compiled| match &compiled.outcome {
            Outcome::Remade(_, reason) => {
                Some(format!("{}: compiled anew, because {reason}", part_of(&compiled.model)))
            }
            // All parts are kept in one folder.
            Outcome::Failed(reason) => Some(format!("compiled graphs are not kept: {reason}")),
            Outcome::Found(_) | Outcome::Made(_) | Outcome::NotKept(_) => None,
        }));
        // Several sizes of one network say the same.
        let mut known = HashSet::new();
        warnings.retain(|warning| known.insert(warning.clone()));
        warnings
    }
}

/// The part of the model that a graph is, by its folder.
pub fn part_of(model: &Path) -> String {
    let part = model.parent().and_then(|folder| folder.file_name());
    part.unwrap_or(model.as_os_str()).to_string_lossy().into_owned()
}

/// A warning where the processor does much of the work.
pub fn left_over(placement: &Placement) -> Option<String> {
    // Where there is only a log, nodes that are all on one side have no names.
    let all = placement.device_nodes() == 0 && placement.cpu_nodes() > 0;
    if placement.heavy_on_cpu().is_empty() && !all {
        return None;
    }
    let part = part_of(&placement.model);
    Some(format!("{part}: {placement}; an export in another --profile may suit the device better"))
}

/// The export profile whose graphs suit a provider.
pub fn profile_for(provider: &Provider) -> Profile {
    // A test sees to it that every name in the table is a profile.
    provider.profile.parse().unwrap_or_default()
}

impl Settings {
    /// Opens what computes, with one device.
    pub fn open_engines(&self) -> Result<OpenEngines, Failure> {
        match self.devices.as_slice() {
            [] => {
                let device = self.main_device()?;
                self.check_plugin(std::slice::from_ref(&device))?;
                self.open_engines_on(device)
            }
            _ => Err(Failure::request("devices: this takes one; name it with --device")),
        }
    }

    /// The same for each of the devices that share the prompts.
    pub fn open_each(&self) -> Result<Vec<OpenEngines>, Failure> {
        if self.devices.is_empty() {
            return Ok(vec![self.open_engines()?]);
        }
        if self.device.is_some() {
            return Err(Failure::request("device and devices: give one of the two"));
        }
        if self.devices.len() > 1 && self.preview.is_some() {
            return Err(Failure::request("preview: it is for one device; leave it or devices out"));
        }
        let devices = self.devices.iter().map(|device| named("devices", device));
        let devices = devices.collect::<Result<Vec<Device>, Failure>>()?;
        self.check_plugin(&devices)?;
        let mut devices: Vec<_> = devices.into_iter().enumerate().collect();
        // One process holds one ONNX Runtime, and only some builds of it have an accelerator.
        devices.sort_by_key(|(_, device)| device.provider.is_processor());
        let opened = devices.into_iter().map(|(place, d)| Ok((place, self.open_engines_on(d)?)));
        let mut opened = opened.collect::<Result<Vec<_>, Failure>>()?;
        opened.sort_by_key(|(place, _)| *place);
        Ok(opened.into_iter().map(|(_, engines)| engines).collect())
    }

    /// A plugin is for the accelerator that computes the transformer; without one it would be left aside.
    fn check_plugin(&self, devices: &[Device]) -> Result<(), Failure> {
        let Some(plugin) = &self.device_plugin else { return Ok(()) };
        if devices.iter().any(|device| !device.provider.is_processor()) {
            return Ok(());
        }
        let parts =
            [("text_encoder_device", &self.text_encoder_device), ("vae_device", &self.vae_device)];
        for (name, given) in parts {
            let device = given.as_deref().map(|given| named(name, given)).transpose()?;
            if let Some(device) = device.filter(|device| !device.provider.is_processor()) {
                let own: Vec<String> = devices.iter().map(Device::to_string).collect();
                let (own, plugin) = (own.join(", "), plugin.display());
                return Err(Failure::request(format!(
                    "device_plugin: found {plugin}, but it belongs to the device of the transformer (--device), \
                     which is {own}; for {name} {device}, `pixart engine install` one that brings it and leave \
                     device_plugin out"
                )));
            }
        }
        Err(idle_plugin(plugin))
    }

    fn open_engines_on(&self, device: Device) -> Result<OpenEngines, Failure> {
        let part = |name, given: &Option<String>| match given {
            Some(given) => named(name, given),
            None => Ok(device.clone()),
        };
        let text_encoder = part("text_encoder_device", &self.text_encoder_device)?;
        let vae = part("vae_device", &self.vae_device)?;
        if self.is_sparing()? && !text_encoder.provider.is_processor() {
            return Err(Failure::request(format!(
                "low_memory: it reads the text encoder from the disk layer by layer for the processor, but \
                 {text_encoder} is to compute it; add --text_encoder_device cpu, or leave low_memory out"
            )));
        }
        let mut wanted: Vec<Device> = vec![device.clone(), text_encoder.clone(), vae.clone()];
        // As in `open_each`.
        wanted.sort_by_key(|device| device.provider.is_processor());
        let mut opened: Vec<(Device, Opened)> = Vec::new();
        for wanted in wanted {
            if !opened.iter().any(|(known, _)| *known == wanted) {
                let engine = self.open_engine(wanted.clone(), &device)?;
                opened.push((wanted, engine));
            }
        }
        let find = |device: &Device| {
            let found = opened.iter().find(|(known, _)| known == device);
            let (_, found) = found.ok_or_else(|| anyhow::anyhow!("{device} was not opened"))?;
            Ok::<_, Failure>((found.engine.clone(), found.provider))
        };
        let (transformer, main) = find(&device)?;
        let (text_encoder, for_text) = find(&text_encoder)?;
        let (vae, for_vae) = find(&vae)?;
        let providers = Providers { text_encoder: for_text, transformer: main, vae: for_vae };
        let notes = opened.iter().filter_map(|(_, opened)| opened.note.clone()).collect();
        Ok(OpenEngines { text_encoder, transformer, vae, providers, notes })
    }

    /// The device of `--device` or `--device_target`.
    pub fn main_device(&self) -> Result<Device, Failure> {
        device_of(self.device.as_deref(), self.device_target.as_deref())
    }

    fn open_engine(&self, device: Device, main: &Device) -> Result<Opened, Failure> {
        let is_main = device.provider == main.provider;
        let options = EngineOptions {
            threads: self.threads()?,
            device: DeviceOptions {
                // Options, plugin and fixed sizes belong to the device of the transformer.
                options: if is_main { split_options(&self.device_option)? } else { Vec::new() },
                plugin: self.device_plugin.clone().filter(|_| is_main),
                allow_cpu_fallback: self.allow_cpu_fallback.unwrap_or(false),
                static_shapes: self.static_shapes.filter(|_| is_main),
                repack_weights: self.keep_resident.unwrap_or(false),
                compiled: match device.provider.keeps {
                    Keeps::Nothing(_) => None,
                    _ => self.compiled_cache(),
                },
                device,
            },
            ..EngineOptions::default()
        };
        let choice = match parsed("engine", self.engine.as_deref())? {
            // The engine is that of the main device; others bring their own.
            _ if !is_main => EngineChoice::Auto,
            choice => choice,
        };
        engine::open(choice, &options).map_err(not_opened)
    }

    /// Where compiled graphs are kept, if they are: nobody has to have a home.
    pub fn compiled_cache(&self) -> Option<PathBuf> {
        if self.no_compiled_cache == Some(true) {
            return None;
        }
        let default = || Some(crate::model::cache_folder().ok()?.join("compiled"));
        self.compiled_cache_dir.clone().or_else(default)
    }

    /// How many threads to compute with.
    pub fn threads(&self) -> Result<Option<usize>, Failure> {
        match self.threads {
            Some(0) => Err(Failure::request("threads: found 0, expected 1 or more")),
            threads => Ok(threads),
        }
    }
}

/// The device of `--device` or `--device_target`, the processor without either.
pub fn device_of(device: Option<&str>, device_target: Option<&str>) -> Result<Device, Failure> {
    let upstream = device_target.map(|name| {
        let known = [("cpu", "cpu"), ("gpu", "cuda"), ("ascend", "cann")];
        let found = known.iter().find(|(upstream, _)| name.eq_ignore_ascii_case(upstream));
        found.map(|(_, own)| *own).ok_or_else(|| {
            Failure::request(format!(
                "device_target: found `{name}`, expected CPU, GPU or Ascend; --device knows more"
            ))
        })
    });
    match (device, upstream.transpose()?) {
        (Some(device), _) => named("device", device),
        (None, Some(device)) => named("device_target", device),
        (None, None) => Ok(Device::default()),
    }
}

/// What may be done about a device that cannot be used.
pub fn not_opened(error: EngineError) -> Failure {
    match error {
        EngineError::ProviderMissing { .. }
        | EngineError::ProviderAbsent { .. }
        | EngineError::ProviderFailed { .. }
        | EngineError::Plugin { .. } => Failure::Failed(anyhow::anyhow!(
            "{error}; --allow_cpu_fallback computes on the processor instead"
        )),
        error => error.into(),
    }
}

pub fn named(setting: &str, device: &str) -> Result<Device, Failure> {
    device.trim().parse().map_err(|error| Failure::request(format!("{setting}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pixart_runtime::engine::provider::PROVIDERS;

    #[test]
    fn every_provider_names_a_profile() {
        for provider in PROVIDERS {
            assert_eq!(profile_for(provider).as_str(), provider.profile, "{}", provider.name);
        }
    }

    #[test]
    fn the_processor_at_work_instead_of_the_device_is_told() {
        let counts = |list: &[(&str, usize)]| {
            list.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
        };
        let placement = |on_device: &[(&str, usize)], on_cpu: &[(&str, usize)]| Placement {
            model: "vae_decoder/model.onnx".into(),
            device: "webgpu".to_owned(),
            on_device: counts(on_device),
            on_cpu: counts(on_cpu),
        };
        let told = |on_device, on_cpu| left_over(&placement(on_device, on_cpu));
        let heavy = told(&[("Add", 2)], &[("MatMul", 1)]).expect("a warning");
        assert!(heavy.starts_with("vae_decoder: webgpu computes 2 of 3 nodes"), "{heavy}");
        let all = told(&[], &[("all operators", 7)]).expect("a warning");
        assert!(all.contains("webgpu computes 0 of 7 nodes"), "{all}");
        assert_eq!(told(&[("MatMul", 2)], &[("Shape", 1)]), None);
    }

    #[test]
    fn upstreams_names_of_devices_are_known() {
        for (name, expected) in
            [("CPU", Ok("cpu")), ("gpu", Ok("cuda")), ("Ascend", Ok("cann")), ("TPU", Err("TPU"))]
        {
            let settings = Settings { device_target: Some(name.to_owned()), ..Settings::default() };
            match (settings.main_device(), expected) {
                (Ok(device), Ok(expected)) => assert_eq!(device.to_string(), expected),
                (Err(Failure::Request(error)), Err(said)) => {
                    assert!(error.to_string().contains(said), "{error}");
                }
                (found, _) => panic!("{name}: {found:?}"),
            }
        }
    }
}
