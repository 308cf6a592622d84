//! ONNX Runtime behind the engine traits.

mod profile;

use std::{
    fmt::Debug,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use half::{bf16, f16};
use ndarray::{ArrayD, IxDyn};
use ort::{
    environment::{Environment, GlobalThreadPoolOptions},
    ep::CPU,
    logging::LogLevel,
    session::{
        SessionInputValue,
        builder::{AutoDevicePolicy, GraphOptimizationLevel, SessionBuilder},
    },
    value::{DynTensor, PrimitiveTensorElementType, TensorElementType, TensorRef},
};
use prost::Message as _;

use super::{
    Engine, EngineError, GraphPart, Session,
    library::Library,
    model_file::ModelFile,
    ort_value, part,
    provider::{Accelerator, DeviceOptions, Placement, TimeShares},
    signature::{Described, Signature, describe_all},
    value::Value,
    weights::{self, Override, WeightType},
};
use crate::tensor::Tensor;

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
    /// Kernels lay out weights anew.
    repack: bool,
    /// What computes instead of the processor.
    accelerator: Option<Arc<Accelerator>>,
}

impl OrtEngine {
    /// Starts ONNX Runtime from a library that has been looked at.
    pub fn start(library: Library, threads: usize) -> Result<Self, EngineError> {
        let Started { environment, threads: shared, .. } = started(&library, threads)?;
        let own_threads = threads != shared;
        let (plain, repack, accelerator) = (false, true, None);
        Ok(Self { environment, library, threads, own_threads, plain, repack, accelerator })
    }

    /// The same with a device other than the processor, and with the plugin that brings it, if one does.
    pub fn start_on(
        library: Library,
        threads: usize,
        options: &DeviceOptions,
        plugin: Option<PathBuf>,
    ) -> Result<Self, EngineError> {
        let engine = Self::start(library, threads)?;
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
        let ModelFile { path, proto, signature, bundled, .. } = file;
        // ONNX Runtime replaces what lies outside the graph; for the rest, it gets a changed graph.
        let graph = (changed || bundled.is_some()).then(|| proto.encode_to_vec());
        drop(proto);
        let folder = bundled.as_deref();
        let session = self.build(&path, folder, graph, overrides).map_err(|error| {
            EngineError::Load { engine: NAME, model: path.clone(), reason: error.to_string() }
        })?;
        Ok(Box::new(OrtSession { model: path, signature, session }))
    }

    fn load_part(&self, model: &Path, part: &GraphPart) -> Result<Box<dyn Session>, EngineError> {
        let mut file = ModelFile::open(model)?;
        part::cut(&mut file, part)?;
        let ModelFile { path, proto, signature, bundled, .. } = file;
        let graph = proto.encode_to_vec();
        let session =
            self.build(&path, bundled.as_deref(), Some(graph), Vec::new()).map_err(|error| {
                EngineError::Load { engine: NAME, model: path.clone(), reason: error.to_string() }
            })?;
        Ok(Box::new(OrtSession { model: path, signature, session }))
    }

    fn plain(&self, repack: bool) -> Option<Arc<dyn Engine>> {
        Some(Arc::new(Self { plain: true, repack, accelerator: None, ..self.clone() }))
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
    /// A session of `graph`, or of the file `model` without one. The weights lie beside `model`, or in a
    /// `folder` of their own.
    fn build(
        &self,
        model: &Path,
        folder: Option<&Path>,
        graph: Option<Vec<u8>>,
        overrides: Vec<Override>,
    ) -> ort::Result<ort::session::Session> {
        self.build_profiled(model, folder, graph, overrides, None)
    }

    /// The same with a profile written to a file whose name begins like `profile`.
    fn build_profiled(
        &self,
        model: &Path,
        folder: Option<&Path>,
        graph: Option<Vec<u8>>,
        overrides: Vec<Override>,
        profile: Option<PathBuf>,
    ) -> ort::Result<ort::session::Session> {
        let level = match self.plain {
            true => GraphOptimizationLevel::Disable,
            false => GraphOptimizationLevel::All,
        };
        let accelerator = self.accelerator.as_deref();
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
            .with_prepacking(self.repack)?
            // A pattern takes its memory from the second run of a shape on, beside what the first took: up
            // to twice as much, and nothing is faster for it (docs/big-pictures.md).
            .with_memory_pattern(false)?;
        if self.own_threads {
            builder = builder.with_independent_thread_pool()?.with_intra_threads(self.threads)?;
        }
        if let Some(profile) = profile {
            builder = builder.with_profiling(profile)?;
        }
        for new in overrides {
            let tensor = owned_tensor(&new)?.into_dyn();
            builder = builder.with_external_initializer(&new.name, tensor)?;
        }
        let commit = |mut builder: SessionBuilder| {
            let Some(graph) = graph else { return builder.commit_from_file(model) };
            let folder = folder.or(model.parent()).filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new(".")).to_string_lossy();
            builder.with_config_entry(EXTERNAL_DATA_FOLDER, folder)?.commit_from_memory(&graph)
        };
        match accelerator {
            Some(accelerator) => accelerator.commit(builder, &self.environment, model, commit),
            None => commit(builder),
        }
    }
}

/// Where the external data of a graph lies that does not come from a file.
const EXTERNAL_DATA_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// The elements of an override as a value that owns them: ONNX Runtime reads them where they lie.
fn owned_tensor(new: &Override) -> ort::Result<DynTensor> {
    fn numbers<T: PrimitiveTensorElementType + Debug + Clone + 'static, const N: usize>(
        new: &Override,
        read: fn([u8; N]) -> T,
    ) -> ort::Result<DynTensor> {
        let (bytes, _) = new.data.as_chunks();
        let numbers: Vec<T> = bytes.iter().map(|&bytes| read(bytes)).collect();
        Ok(ort::value::Tensor::from_array((new.shape.clone(), numbers))?.upcast())
    }
    match &new.dtype {
        WeightType::F32 => numbers(new, f32::from_le_bytes),
        WeightType::F16 => numbers(new, f16::from_le_bytes),
        WeightType::Bf16 => numbers(new, bf16::from_le_bytes),
        WeightType::Other(name) => Err(ort::Error::new(format!("{name} weights"))),
    }
}

struct OrtSession {
    model: PathBuf,
    signature: Signature,
    session: ort::session::Session,
}

/// A run of `model` that failed.
fn run_failed<T: Described>(
    model: &Path,
    inputs: &[(&str, &T)],
    reason: impl ToString,
) -> EngineError {
    EngineError::Run {
        engine: NAME,
        model: model.to_path_buf(),
        inputs: describe_all(inputs),
        reason: reason.to_string(),
    }
}

impl Session for OrtSession {
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, EngineError> {
        let values =
            self.signature.sort(inputs).map_err(|mismatch| mismatch.in_model(&self.model))?;
        let failed = |error: ort::Error| run_failed(&self.model, inputs, error);
        // ONNX Runtime reads a value where it lies if its elements lie in order.
        let ordered: Vec<Ordered> = values.into_iter().map(Ordered::of).collect();
        let named = self
            .signature
            .inputs
            .iter()
            .zip(&ordered)
            .map(|(input, value)| Ok((input.name.as_str(), value.view()?)));
        let named = named.collect::<ort::Result<Vec<_>>>().map_err(failed)?;
        let outputs = self.session.run(named).map_err(failed)?;
        let mut results = Vec::with_capacity(outputs.len());
        for (name, value) in &outputs {
            results.push((name.to_owned(), copy_out(name, &value)?));
        }
        Ok(results)
    }

    fn run_values(
        &mut self,
        inputs: &[(&str, &Value)],
    ) -> Result<Vec<(String, Value)>, EngineError> {
        let values =
            self.signature.sort(inputs).map_err(|mismatch| mismatch.in_model(&self.model))?;
        let failed = |error: ort::Error| run_failed(&self.model, inputs, error);
        let values = values.into_iter().map(ort_value::readable).collect::<Result<Vec<_>, _>>()?;
        let named = self.signature.inputs.iter().zip(&values);
        let named = named.map(|(input, value)| Ok((&*input.name, ort_value::view(value)?)));
        let named = named.collect::<ort::Result<Vec<_>>>().map_err(failed)?;
        let mut outputs = self.session.run(named).map_err(failed)?;
        let mut results = Vec::with_capacity(self.signature.outputs.len());
        for name in &self.signature.outputs {
            if let Some(value) = outputs.remove(name) {
                results.push((name.clone(), ort_value::held(name, value)?));
            }
        }
        Ok(results)
    }
}

/// An input whose elements lie in order; borrowed where they already did.
enum Ordered<'a> {
    F32(ndarray::CowArray<'a, f32, IxDyn>),
    I64(ndarray::CowArray<'a, i64, IxDyn>),
}

impl<'a> Ordered<'a> {
    fn of(tensor: &'a Tensor) -> Self {
        match tensor {
            Tensor::F32(array) => Self::F32(array.as_standard_layout()),
            Tensor::I64(array) => Self::I64(array.as_standard_layout()),
        }
    }

    fn view(&self) -> ort::Result<SessionInputValue<'_>> {
        Ok(match self {
            Self::F32(array) => TensorRef::from_array_view(array.view())?.into(),
            Self::I64(array) => TensorRef::from_array_view(array.view())?.into(),
        })
    }
}

fn copy_out(name: &str, value: &ort::value::DynValue) -> Result<Tensor, EngineError> {
    let wrong = |found: String| EngineError::OutputType {
        output: name.to_owned(),
        found,
        expected: "f32 or int64",
    };
    match value.dtype().tensor_type() {
        Some(TensorElementType::Float32) => value
            .try_extract_array::<f32>()
            .map(|array| Tensor::F32(own(array)))
            .map_err(|error| wrong(error.to_string())),
        Some(TensorElementType::Int64) => value
            .try_extract_array::<i64>()
            .map(|array| Tensor::I64(own(array)))
            .map_err(|error| wrong(error.to_string())),
        Some(other) => Err(wrong(other.to_string())),
        None => Err(wrong(value.dtype().to_string())),
    }
}

fn own<T: Clone>(array: ndarray::ArrayViewD<'_, T>) -> ArrayD<T> {
    array.to_owned()
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
