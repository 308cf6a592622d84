//! A provider at work in sessions of ONNX Runtime.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

use ort::{
    environment::Environment,
    memory::DeviceType,
    session::{Session, builder::SessionBuilder},
};

use super::{
    super::{EngineError, library::Library, ort::Transfer},
    Device, DeviceOptions, Keeps, Placement, Provider,
    compiled::{self, Cache, Compiled, Make, Using, Wanted},
    identity::Identity,
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
    /// Where compiled graphs are kept.
    cache: Option<Cache>,
    compiled: Mutex<Vec<Compiled>>,
    /// Copies to and from the device, once they were asked for.
    transfer: OnceLock<Option<Arc<Transfer>>>,
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
            cache: None,
            compiled: Mutex::default(),
            transfer: OnceLock::new(),
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
        accelerator.open_cache(library, options);
        Ok(accelerator)
    }

    fn open_cache(&mut self, library: &Library, options: &DeviceOptions) {
        let provider = self.device.provider;
        // Whoever names a folder of the provider's own looks after it.
        let own = provider.keeps.settings().iter().any(|(name, _)| {
            options.options.iter().any(|(given, _)| given.eq_ignore_ascii_case(name))
        });
        let Some(folder) = options.compiled.clone().filter(|_| !own) else { return };
        let plugin = self.plugin.as_deref();
        // Without knowing what the machine is, nothing can be kept for it.
        if let Ok(machine) = Identity::of_machine(provider, library, plugin) {
            self.cache = Some(Cache::new(folder, provider, &self.settings, machine));
        }
    }

    /// Whether compiled graphs are kept, so that the identity of graphs matters.
    pub fn caches(&self) -> bool {
        let keeps = &self.device.provider.keeps;
        self.cache.is_some() && !matches!(keeps, Keeps::Nothing(_))
    }

    /// What was compiled so far, where compiled graphs are to be kept.
    pub fn compiled(&self) -> Vec<Compiled> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes a session with [`Self::commit`] as its last step, or several, until what is compiled is kept.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn load(
        &self,
        wanted: &Wanted<'_>,
        identity: &dyn Fn() -> io::Result<Identity>,
        make: &Make<'_, Session, ort::Error>,
    ) -> ort::Result<Session> {
        let Some(cache) = &self.cache else { return make(&Using::default()) };
        let (begin, known) = (Instant::now(), self.lock().len());
        let loaded = cache.load(wanted, identity, make);
        // Of several sessions of one graph, the first tells where its nodes went.
        self.lock().truncate(known + 1);
        let (session, outcome) = loaded?;
        let report = compiled::report(wanted, outcome, begin);
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner).push(report);
        Ok(session)
    }

    /// Copies to and from the device; `None` where it works in the processor's memory, or cannot copy.
    pub fn transfer(&self, environment: &Environment) -> Option<Arc<Transfer>> {
        let start = || {
            let make = |graph: &[u8]| {
                let builder = Session::builder(environment)?;
                self.register_to_copy(builder, environment)?.commit_from_memory(graph)
            };
            Transfer::start(self.device.to_string(), make).ok().flatten().map(Arc::new)
        };
        self.transfer.get_or_init(start).clone()
    }

    /// Registers what copies best: not what compiles a graph for it.
    fn register_to_copy(
        &self,
        builder: SessionBuilder,
        environment: &Environment,
    ) -> ort::Result<SessionBuilder> {
        let device = self.settings.iter().filter(|(name, _)| name == "device_id").cloned();
        match (self.device.provider.name, &self.plugin) {
            // The two share their memory.
            ("tensorrt", None) => {
                let cuda = Provider::named("cuda").map_err(|e| ort::Error::new(e.to_string()))?;
                let dispatch = register::dispatch(cuda, &device.collect::<Vec<_>>());
                Ok(builder.with_execution_providers(dispatch.as_slice())?)
            }
            ("cann", None) => {
                let single = [("enable_cann_graph".to_owned(), "0".to_owned())];
                let settings: Vec<_> = device.chain(single).collect();
                let dispatch = register::dispatch(self.device.provider, &settings);
                Ok(builder.with_execution_providers(dispatch.as_slice())?)
            }
            _ => self.register(builder, environment, &[]),
        }
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
        using: &Using,
        commit: impl FnOnce(SessionBuilder) -> ort::Result<Session>,
    ) -> ort::Result<Session> {
        let (builder, log) = match self.logs {
            true => PlacementLog::listen(builder).map(|(builder, log)| (builder, Some(log)))?,
            false => (builder.with_config_entry(RECORD, "1")?, None),
        };
        let mut builder = builder;
        for (name, value) in &using.config {
            builder = builder.with_config_entry(name, value)?;
        }
        let session = commit(self.register(builder, environment, &using.settings)?)?;
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
        more: &[(String, String)],
    ) -> ort::Result<SessionBuilder> {
        let settings: Vec<_> = self.settings.iter().chain(more).cloned().collect();
        if self.plugin.is_none() {
            let dispatch = register::dispatch(self.device.provider, &settings);
            return Ok(builder.with_execution_providers(dispatch.as_slice())?);
        }
        let device = self.plugin_device(environment)?;
        // The device is chosen already.
        let chosen = self.device.provider.suffix;
        let name = device.ep()?;
        let settings: Vec<(String, String)> = settings
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
        self.commit(builder, environment, Path::new("the probe"), &Using::default(), commit)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Placement>> {
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
