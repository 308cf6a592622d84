//! A provider at work in sessions of ONNX Runtime.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use ort::{
    environment::Environment,
    memory::DeviceType,
    session::{Session, builder::SessionBuilder},
};

use super::{
    super::{EngineError, library::Library},
    Device, DeviceOptions, Placement,
    log::PlacementLog,
    placement::{self, RECORD},
    probe, register,
};

/// What is registered in every session, and where the nodes went.
pub(in super::super) struct Accelerator {
    device: Device,
    settings: Vec<(String, String)>,
    /// The library of a plugin; without one, the provider is built into ONNX Runtime.
    plugin: Option<PathBuf>,
    allow_cpu: bool,
    /// This build of ONNX Runtime keeps no record of where nodes go, but logs it.
    logs: bool,
    placements: Mutex<Vec<Placement>>,
}

/// Plugins stay registered until the process ends.
static PLUGINS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

impl Accelerator {
    /// Looks for the provider in the ONNX Runtime at work, or loads `plugin`, and lets it compute a small
    /// graph.
    ///
    /// # Errors
    /// When the provider is not there, or does not compute.
    pub fn start(
        environment: &Environment,
        library: &Library,
        options: &DeviceOptions,
        plugin: Option<PathBuf>,
    ) -> Result<Self, EngineError> {
        let device = options.device.clone();
        let provider = device.provider;
        let built_in = register::is_built_in(provider);
        // What was named is meant; what is merely installed stands in.
        let plugin = plugin.filter(|_| options.plugin.is_some() || !built_in);
        match &plugin {
            Some(plugin) => load_plugin(environment, plugin)?,
            None if built_in => {}
            None => {
                return Err(EngineError::ProviderAbsent {
                    device: device.to_string(),
                    path: library.path.clone(),
                    available: register::built_in(),
                    how: provider.how_to_get(),
                });
            }
        }
        let mut accelerator = Self {
            settings: options.settings()?,
            device,
            plugin,
            allow_cpu: options.allow_cpu_fallback,
            logs: false,
            placements: Mutex::default(),
        };
        if let Err(reason) = accelerator.try_out(environment) {
            return Err(EngineError::ProviderFailed {
                device: accelerator.device.to_string(),
                path: accelerator.plugin.as_ref().unwrap_or(&library.path).clone(),
                reason: reason.trim().to_owned(),
                needs: provider.needs,
            });
        }
        accelerator.lock().clear();
        Ok(accelerator)
    }

    /// The device, for people.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Where the nodes of each graph loaded so far are computed.
    pub fn placements(&self) -> Vec<Placement> {
        self.lock().clone()
    }

    /// Makes a session with the provider, `commit` being the last step, and notes where the nodes of `model`
    /// went.
    ///
    /// # Errors
    /// When the session cannot be made, or none of its nodes went to the device and the user does not allow
    /// that.
    pub fn commit(
        &self,
        builder: SessionBuilder,
        environment: &Environment,
        model: &Path,
        commit: impl FnOnce(SessionBuilder) -> ort::Result<Session>,
    ) -> ort::Result<Session> {
        let (builder, log) = match self.logs {
            true => PlacementLog::listen(builder).map(|(builder, log)| (builder, Some(log)))?,
            false => (builder.with_config_entry(RECORD, "1")?, None),
        };
        let session = commit(self.register(builder, environment)?)?;
        let (name, device) = (self.device.provider.ort_name, self.device.to_string());
        let (name, model) = (name.unwrap_or_default(), model.to_path_buf());
        let placement = match log {
            Some(log) => placement::of_counts(log.finish(), model, device, name),
            None => placement::read(&session, model, device, name)?,
        };
        if placement.device_nodes() == 0 && !self.allow_cpu {
            return Err(ort::Error::new(format!(
                "{} takes none of its {} nodes, so that the processor would compute all of them; \
                 --allow_cpu_fallback accepts that",
                self.device,
                placement.cpu_nodes()
            )));
        }
        self.lock().push(placement);
        Ok(session)
    }

    fn register(
        &self,
        builder: SessionBuilder,
        environment: &Environment,
    ) -> ort::Result<SessionBuilder> {
        if self.plugin.is_none() {
            let dispatch = register::dispatch(self.device.provider, &self.settings);
            return Ok(builder.with_execution_providers(dispatch.as_slice())?);
        }
        let device = self.plugin_device(environment)?;
        // The device is chosen already.
        let chosen = self.device.provider.suffix;
        let name = device.ep()?;
        let settings: Vec<(String, String)> = self
            .settings
            .iter()
            .filter(|(option, _)| Some(option.as_str()) != chosen)
            .map(|(option, value)| (format!("{name}.{option}"), value.clone()))
            .collect();
        Ok(builder.with_devices([device], Some(&settings))?)
    }

    /// The one of the plugin's devices that is meant.
    fn plugin_device<'e>(
        &self,
        environment: &'e Environment,
    ) -> ort::Result<ort::device::Device<'e>> {
        let wanted = self.device.provider.ort_name;
        let suffix = self.device.suffix.as_deref();
        let offered: Vec<_> =
            environment.devices().filter(|device| device.ep().ok() == wanted).collect();
        let kinds: Vec<&str> =
            offered.iter().map(|device| kind(device.hardware_device().ty())).collect();
        let place = match suffix.map(|suffix| (suffix, suffix.parse::<usize>())) {
            None => 0,
            Some((_, Ok(place))) => place,
            Some((suffix, Err(_))) => kinds
                .iter()
                .position(|kind| kind.eq_ignore_ascii_case(suffix))
                .unwrap_or(kinds.len()),
        };
        let count = offered.len();
        offered.into_iter().nth(place).ok_or_else(|| {
            ort::Error::new(match count {
                0 => "the plugin was loaded but offers no device on this machine".to_owned(),
                _ => format!("the plugin offers {}, not {}", kinds.join(", "), self.device),
            })
        })
    }

    /// Lets the device compute a small graph.
    fn try_out(&mut self, environment: &Environment) -> Result<(), String> {
        let allowed = std::mem::replace(&mut self.allow_cpu, true);
        let session = self.probe(environment);
        // Nodes that went nowhere are a record that is not kept.
        let unknown = self.lock().iter().all(|found| found.device_nodes() + found.cpu_nodes() == 0);
        self.allow_cpu = allowed;
        self.logs = session.is_ok() && unknown;
        let session = if self.logs || !allowed { self.probe(environment) } else { session };
        probe::run(&mut session.map_err(|error| error.to_string())?)
    }

    fn probe(&self, environment: &Environment) -> ort::Result<Session> {
        let builder = Session::builder(environment)?;
        let commit = |mut builder: SessionBuilder| builder.commit_from_memory(&probe::graph());
        self.commit(builder, environment, Path::new("the probe"), commit)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Placement>> {
        self.placements.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn load_plugin(environment: &Environment, plugin: &Path) -> Result<(), EngineError> {
    let mut loaded = PLUGINS.lock().unwrap_or_else(PoisonError::into_inner);
    if loaded.iter().any(|known| known == plugin) {
        return Ok(());
    }
    let failed = |reason: String| EngineError::Plugin { path: plugin.to_path_buf(), reason };
    if !plugin.is_file() {
        return Err(failed("there is no such file".to_owned()));
    }
    // The name only has to differ from that of other plugins.
    let name = format!("pixart-{}", loaded.len());
    environment.register_ep_library(name, plugin).map_err(|error| failed(error.to_string()))?;
    loaded.push(plugin.to_path_buf());
    Ok(())
}

/// What a device of a plugin is called.
fn kind(kind: DeviceType) -> &'static str {
    match kind {
        DeviceType::GPU => "GPU",
        DeviceType::NPU => "NPU",
        _ => "CPU",
    }
}
