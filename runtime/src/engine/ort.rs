//! ONNX Runtime behind the engine traits.

mod binding;
mod portions;
mod profile;
mod session;
mod source;
mod specialised;
mod transfer;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ort::{
    environment::{Environment, GlobalThreadPoolOptions},
    ep::CPU,
    logging::LogLevel,
    session::builder::{AutoDevicePolicy, GraphOptimizationLevel, SessionBuilder},
};
pub(super) use transfer::Transfer;

use super::{
    Engine, EngineError, GraphPart, Session,
    library::Library,
    model_file::ModelFile,
    part,
    provider::{Accelerator, Compiled, DeviceOptions, Placement, TimeShares, Using, Wanted},
    value::Value,
    weights::{self, Override},
};
use crate::tensor::Tensor;
use session::{OrtSession, run_failed};
use source::{Source, gains_by_repacking};
use specialised::Specialised;

const NAME: &str = "ort";

/// ONNX Runtime on the processor or another device.
#[derive(Clone)]
pub(super) struct OrtEngine {
    environment: Environment,
    library: Library,
    threads: usize,
    /// Sessions have threads of their own: those of the process are another number.
    own_threads: bool,
    /// Graphs are computed as they are written.
    plain: bool,
    /// Kernels lay out weights anew, where that pays.
    repack: bool,
    /// Weights stay for long, so that it pays more often.
    to_stay: bool,
    /// What computes instead of the processor.
    accelerator: Option<Arc<Accelerator>>,
    /// Each size of a graph's inputs has a session of its own.
    per_size: bool,
}

impl OrtEngine {
    /// Starts ONNX Runtime from a library that has been looked at.
    pub fn start(
        library: Library,
        threads: usize,
        options: &DeviceOptions,
    ) -> Result<Self, EngineError> {
        let Started { environment, threads: shared, .. } = started(&library, threads)?;
        let own_threads = threads != shared;
        let (plain, repack, accelerator) = (false, true, None);
        let (to_stay, per_size) = (options.repack_weights, options.fixes_sizes());
        Ok(Self {
            environment,
            library,
            threads,
            own_threads,
            plain,
            repack,
            to_stay,
            accelerator,
            per_size,
        })
    }

    /// The same with a device other than the processor, and with the plugin that brings it, if one does.
    pub fn start_on(
        library: Library,
        threads: usize,
        options: &DeviceOptions,
        plugin: Option<PathBuf>,
    ) -> Result<Self, EngineError> {
        let engine = Self::start(library, threads, options)?;
        let accelerator =
            Accelerator::start(&engine.environment, &engine.library, options, plugin)?;
        Ok(Self { accelerator: Some(Arc::new(accelerator)), ..engine })
    }
}

impl Engine for OrtEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn describe(&self) -> String {
        let plain = if self.plain { ", graph as written" } else { "" };
        let device = self.accelerator.as_ref().map(|accelerator| accelerator.device().to_string());
        let device = device.as_deref().unwrap_or("cpu");
        format!("ONNX Runtime {} ({device}{plain})", self.library.version)
    }

    fn load_with(
        &self,
        model: &Path,
        overrides: Vec<Override>,
    ) -> Result<Box<dyn Session>, EngineError> {
        let mut file = ModelFile::open(model)?;
        weights::check(&file, &overrides)?;
        let (overrides, changed) = weights::place_inline(&mut file, overrides);
        let repack = self.repacks(&file);
        let portioned = self.cut_into_portions(&mut file, &HashSet::new());
        self.load_source(file, changed || portioned, repack, overrides)
    }

    fn load_part(
        &self,
        model: &Path,
        part: &GraphPart,
        overrides: Vec<Override>,
    ) -> Result<Box<dyn Session>, EngineError> {
        let mut file = ModelFile::open(model)?;
        let repack = self.repacks(&file);
        let ends = part.inputs.iter().chain(&part.outputs).map(|end| end.name.as_str()).collect();
        self.cut_into_portions(&mut file, &ends);
        part::cut(&mut file, part)?;
        weights::check(&file, &overrides)?;
        let (overrides, _) = weights::place_inline(&mut file, overrides);
        self.load_source(file, true, repack, overrides)
    }

    fn to_device(&self, tensor: Tensor) -> Result<Value, EngineError> {
        match self.transfer() {
            Some(transfer) => transfer.send(tensor),
            None => Ok(tensor.into()),
        }
    }

    fn compiles_per_size(&self) -> bool {
        self.per_size
    }

    fn is_on_processor(&self) -> bool {
        self.accelerator.is_none()
    }

    fn compiled(&self) -> Vec<Compiled> {
        self.accelerator.iter().flat_map(|accelerator| accelerator.compiled()).collect()
    }

    fn plain(&self, repack: bool) -> Option<Arc<dyn Engine>> {
        let (plain, accelerator, per_size) = (true, None, false);
        Some(Arc::new(Self { plain, repack, accelerator, per_size, ..self.clone() }))
    }

    fn placements(&self) -> Vec<Placement> {
        self.accelerator.iter().flat_map(|accelerator| accelerator.placements()).collect()
    }

    fn time_shares(
        &self,
        model: &Path,
        inputs: &[(&str, &Tensor)],
    ) -> Result<Option<TimeShares>, EngineError> {
        self.profile(model, inputs).map(Some)
    }
}

impl OrtEngine {
    /// Has the processor compute large products in portions, and says whether the graph was changed for it.
    fn cut_into_portions(&self, file: &mut ModelFile, ends: &HashSet<&str>) -> bool {
        let here = self.accelerator.is_none() && !self.plain;
        // Where weights cannot be had with a graph from memory, it is computed as it lies in its file.
        here && file.follow_links().is_ok() && portions::cut(file, ends, self.threads)
    }

    fn repacks(&self, file: &ModelFile) -> bool {
        gains_by_repacking(file, self.to_stay)
    }

    fn load_source(
        &self,
        file: ModelFile,
        changed: bool,
        repack: bool,
        overrides: Vec<Override>,
    ) -> Result<Box<dyn Session>, EngineError> {
        let source = self.source(file, changed, repack, overrides)?;
        Ok(match self.per_size {
            true => Box::new(Specialised::new(self.clone(), source)),
            false => Box::new(self.session(&source, &[])?),
        })
    }

    fn source(
        &self,
        mut file: ModelFile,
        changed: bool,
        repack: bool,
        overrides: Vec<Override>,
    ) -> Result<Source, EngineError> {
        if changed {
            file.follow_links()?;
        }
        let path = file.path.clone();
        let hashed = self.accelerator.as_ref().is_some_and(|accelerator| accelerator.caches());
        Source::new(file, changed, repack, overrides, hashed)
            .map_err(|error| load_failed(&path, error))
    }

    /// A session of a graph whose open sizes are fixed as far as they are given.
    fn session(
        &self,
        source: &Source,
        sizes: &[(String, usize)],
    ) -> Result<OrtSession, EngineError> {
        let session = match self.accelerator.as_deref() {
            None => {
                self.builder(source, sizes, None).and_then(|builder| source.commit(builder, None))
            }
            Some(accelerator) => accelerator.load(
                &Wanted { model: &source.model, sizes, changed: source.is_changed() },
                &|| source.identity(),
                &|using| self.make(source, sizes, None, using),
            ),
        };
        let session = session.map_err(|error| load_failed(&source.model, error))?;
        let (model, signature) = (source.model.clone(), source.signature.clone());
        Ok(OrtSession { model, signature, session, transfer: self.transfer() })
    }

    /// The same, for a provider that uses its cache in this way.
    fn make(
        &self,
        source: &Source,
        sizes: &[(String, usize)],
        profile: Option<&Path>,
        using: &Using,
    ) -> ort::Result<ort::session::Session> {
        let builder = self.builder(source, sizes, profile)?;
        let commit = |builder| source.commit(builder, using.graph.as_deref());
        match self.accelerator.as_deref() {
            None => commit(builder),
            Some(accelerator) => {
                accelerator.commit(builder, &self.environment, &source.model, using, commit)
            }
        }
    }

    /// Copies to and from the device, where it has a memory of its own.
    fn transfer(&self) -> Option<Arc<Transfer>> {
        self.accelerator.as_ref()?.transfer(&self.environment)
    }

    /// A session to be, with a profile written to a file whose name begins like `profile`.
    fn builder(
        &self,
        source: &Source,
        sizes: &[(String, usize)],
        profile: Option<&Path>,
    ) -> ort::Result<SessionBuilder> {
        let level = match self.plain {
            true => GraphOptimizationLevel::Disable,
            false => GraphOptimizationLevel::All,
        };
        let mut builder = ort::session::Session::builder(&self.environment)?;
        if self.plain {
            // Memory goes back to the system as soon as a node is done with it.
            builder = builder
                .with_execution_providers([CPU::default().with_arena_allocator(false).build()])?;
        }
        let mut builder = builder
            // ort's own default adds CoreML on macOS; an engine must be what it says it is.
            .with_auto_device(AutoDevicePolicy::PreferCPU)?
            .with_optimization_level(level)?
            // Repacked weights are copies in memory of what is otherwise mapped from the file.
            .with_prepacking(self.repack && source.repack)?
            // A pattern takes its memory from the second run of a shape on, beside what the first took: up
            // to twice as much, and nothing is faster for it (docs/big-pictures.md).
            .with_memory_pattern(false)?;
        // A profile starts and ends a record in the pool that its session uses, which fails the runs of
        // others in it that are under way at that moment.
        if self.own_threads || profile.is_some() {
            builder = builder.with_independent_thread_pool()?.with_intra_threads(self.threads)?;
        }
        if let Some(profile) = profile {
            builder = builder.with_profiling(profile)?;
        }
        for (name, size) in sizes {
            let size = i64::try_from(*size).map_err(|error| ort::Error::new(error.to_string()))?;
            builder = builder.with_dimension_override(name, size)?;
        }
        Ok(builder)
    }
}

fn load_failed(model: &Path, error: ort::Error) -> EngineError {
    EngineError::Load { engine: NAME, model: model.to_path_buf(), reason: error.to_string() }
}

/// ONNX Runtime at work in this process.
#[derive(Clone)]
struct Started {
    library: Library,
    environment: Environment,
    /// How many threads sessions share. Threads of a session's own wait for its next run busily, and take the
    /// processors from the sessions that run in between.
    threads: usize,
}

/// ONNX Runtime can be loaded and started once in a process, and stays until the process ends.
static STARTED: Mutex<Option<Started>> = Mutex::new(None);

/// The library that is at work in this process.
pub(super) fn in_use() -> Option<Library> {
    let started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    started.as_ref().map(|started| started.library.clone())
}

/// ONNX Runtime as it is at work, or started now with so many threads.
fn started(library: &Library, threads: usize) -> Result<Started, EngineError> {
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(at_work) = &*started {
        return if at_work.library.path == library.path {
            Ok(at_work.clone())
        } else {
            Err(EngineError::OtherLibraryInUse {
                wanted: library.path.clone(),
                in_use: at_work.library.path.clone(),
            })
        };
    }
    silence_telemetry();
    let failed = |reason: String| EngineError::Start { path: library.path.clone(), reason };
    // Loads the library, which the options of the threads are made by.
    let environment = ort::init_from(&library.path).map_err(|error| failed(error.to_string()))?;
    let pool = GlobalThreadPoolOptions::default().with_inter_threads(1);
    let environment = pool
        .and_then(|pool| pool.with_intra_threads(threads))
        .map(|pool| environment.with_global_thread_pool(pool))
        .and_then(|environment| environment.with_name("pixart").with_telemetry(false).build())
        .map_err(|error| failed(error.to_string()))?;
    // Failures come back as errors and are told once; `ORT_LOG` asks to see more.
    if std::env::var_os("ORT_LOG").is_none() {
        environment.set_log_level(LogLevel::Fatal);
    }
    Ok(started.insert(Started { library: library.clone(), environment, threads }).clone())
}

/// Tells ONNX Runtime not to report usage to its makers.
///
/// Releases from 1.29 on start reporting while the environment is created, before the function that
/// ends it can be called; they only look at this variable. A value that the user has set is left
/// alone.
fn silence_telemetry() {
    const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: the standard library locks the environment against its own users. Foreign code
        // that reads the environment in another thread at this very moment is the danger, and
        // there is none in this program: ONNX Runtime, the only foreign library, is not started
        // yet, and this runs once. A host program with such threads sets the variable itself
        // before it starts them; then nothing is written here.
        unsafe { std::env::set_var(VARIABLE, "1") };
    }
}
