//! Engines: what computes an exported graph.
//!
//! Two are known: ONNX Runtime, loaded at run time where the user has it, on the processor or on an
//! accelerator ([`provider`]), and tract, which is built in. Both sit behind the traits [`Engine`] and [`Session`], so nothing else in the crate knows
//! which one is at work.

mod chain;
mod data_folder;
mod error;
mod external_data;
pub mod install;
pub mod library;
pub(crate) mod model_file;
mod ort;
mod ort_value;
mod part;
pub mod provider;
mod signature;
mod streamed;
mod stretches;
mod tract;
mod value;
mod value_types;
mod weights;
mod wiring;

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

#[cfg(test)]
pub(crate) use chain::samples::{Enlarging, decoder};
pub(crate) use chain::{Chain, Knot, Norm, Part, Plane};
pub use data_folder::data_folder;
pub use error::EngineError;
pub(crate) use external_data::is_plain_file_name;
pub use part::{GraphPart, PartValue};
pub(crate) use signature::{Dim, Input, Signature};
pub use streamed::{Changes, LARGE, stream};
pub use value::{Buffer, Elements, Value};
pub use weights::{GraphWeight, GraphWeights, Layout, Override, WeightType};

use self::{
    library::Places,
    provider::{Compiled, DeviceOptions, Placement, Provider, TimeShares},
};
use crate::tensor::Tensor;

/// Something that loads and runs ONNX graphs.
pub trait Engine: Send + Sync {
    /// The name used on the command line: `ort` or `tract`.
    fn name(&self) -> &'static str;

    /// Name, version and processor, for people: `ONNX Runtime 1.32.0 (cpu)`.
    fn describe(&self) -> String;

    /// Loads `model`, the `model.onnx` of an exported folder, with the external data beside it.
    ///
    /// # Errors
    /// When the file or its external data is missing, broken or reaches outside its folder, or when
    /// the engine refuses the graph.
    fn load(&self, model: &Path) -> Result<Box<dyn Session>, EngineError> {
        self.load_with(model, Vec::new())
    }

    /// Loads `model` as [`Engine::load`] does, with other elements for some of its initializers. The
    /// session holds these; the files stay as they are.
    ///
    /// # Errors
    /// As [`Engine::load`], and when an override names no initializer of the graph or has another type
    /// or shape.
    fn load_with(
        &self,
        model: &Path,
        overrides: Vec<Override>,
    ) -> Result<Box<dyn Session>, EngineError>;

    /// Loads a stretch of `model` alone, with other elements for some of its initializers.
    ///
    /// # Errors
    /// As [`Engine::load_with`], and when the graph has no such stretch. An engine that does not implement
    /// this refuses.
    fn load_part(
        &self,
        model: &Path,
        part: &GraphPart,
        overrides: Vec<Override>,
    ) -> Result<Box<dyn Session>, EngineError> {
        let _ = (part, overrides);
        Err(EngineError::Load {
            engine: self.name(),
            model: model.to_path_buf(),
            reason: "it loads no parts of graphs".to_owned(),
        })
    }

    /// The tensor where this engine's sessions read it fastest.
    ///
    /// # Errors
    /// When there is no room, or the device fails.
    fn to_device(&self, tensor: Tensor) -> Result<Value, EngineError> {
        Ok(tensor.into())
    }

    /// Whether a size of inputs that was not seen before costs so much time that callers should see to it that
    /// few occur.
    fn compiles_per_size(&self) -> bool {
        false
    }

    /// Whether another size of inputs costs more than a run at a size that was seen already, so that rather
    /// some rows are computed in vain.
    fn plans_per_size(&self) -> bool {
        self.compiles_per_size()
    }

    /// Whether sessions hold their weights in the processor's memory.
    fn is_on_processor(&self) -> bool {
        true
    }

    /// What was compiled for the sessions made so far, and what of it came out of a cache, the latest last.
    fn compiled(&self) -> Vec<Compiled> {
        Vec::new()
    }

    /// Whether matrices of this type are multiplied by kernels of its own. Other types may still be
    /// accepted, and converted.
    fn multiplies(&self, dtype: &WeightType) -> bool {
        *dtype == WeightType::F32
    }

    /// The same engine, but computing each graph node by node as it is written: slower, without what
    /// its optimiser might get wrong, and in less memory, because the weights stay in the file.
    ///
    /// With `repack`, kernels may lay out weights anew in memory as they always do; ONNX Runtime's
    /// quantised matrix product computes in 8 bits only then. `None` if the engine knows no such way.
    fn plain(&self, repack: bool) -> Option<Arc<dyn Engine>> {
        let _ = repack;
        None
    }

    /// Where the nodes of the graphs loaded so far are computed, the latest last. Empty for an engine that
    /// computes on the processor only.
    fn placements(&self) -> Vec<Placement> {
        Vec::new()
    }

    /// Runs `model` on `inputs` and measures how long each provider computes. `None` for an engine that
    /// cannot tell.
    ///
    /// # Errors
    /// As [`Engine::load`] and [`Session::run`].
    fn time_shares(
        &self,
        model: &Path,
        inputs: &[(&str, &Tensor)],
    ) -> Result<Option<TimeShares>, EngineError> {
        let _ = (model, inputs);
        Ok(None)
    }
}

/// A loaded graph.
pub trait Session: Send {
    /// Computes every output from `inputs` (name and value, in any order), in the graph's order.
    ///
    /// Shapes may differ from one call to the next. An engine may prepare itself for a shape it sees
    /// for the first time, so that the first call of a shape can take longer.
    ///
    /// # Errors
    /// When an input is missing, unknown or of the wrong type or rank, or when the engine fails.
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, EngineError>;

    /// Runs on several sets of inputs, for less than [`Session::run`] on one after the other where that is
    /// possible.
    ///
    /// # Errors
    /// As [`Session::run`], the first.
    fn run_each(
        &mut self,
        sets: &[Vec<(&str, &Tensor)>],
    ) -> Result<Vec<Vec<(String, Tensor)>>, EngineError> {
        sets.iter().map(|inputs| self.run(inputs)).collect()
    }

    /// As [`Session::run`], but the results stay where the engine has computed them, and inputs that lie
    /// there are not copied. An engine that does not implement this goes by way of tensors.
    ///
    /// # Errors
    /// As [`Session::run`].
    fn run_values(
        &mut self,
        inputs: &[(&str, &Value)],
    ) -> Result<Vec<(String, Value)>, EngineError> {
        let tensors = inputs.iter().map(|(name, value)| Ok((*name, value.to_tensor()?)));
        let tensors = tensors.collect::<Result<Vec<_>, EngineError>>()?;
        let inputs: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let results = self.run(&inputs)?.into_iter();
        Ok(results.map(|(name, tensor)| (name, tensor.into())).collect())
    }

    /// As [`Session::run_values`], but the results come into the processor's memory: for results that are
    /// read at once, from inputs some of which stay where they are from run to run.
    ///
    /// # Errors
    /// As [`Session::run`].
    fn run_to_tensors(
        &mut self,
        inputs: &[(&str, &Value)],
    ) -> Result<Vec<(String, Tensor)>, EngineError> {
        let results = self.run_values(inputs)?.into_iter();
        results.map(|(name, value)| Ok((name, value.into_tensor()?))).collect()
    }
}

/// Checks the bytes of a `model.onnx` as every engine's `load` does before it builds anything: that
/// they can be decoded, and that the weights they name lie in the folder of `model` and are as many
/// as their shapes say. Nothing is computed; `model` itself is not read.
///
/// # Errors
/// When the bytes are no usable model, or its external data is missing or refused.
pub fn check_model(model: &Path, bytes: &[u8]) -> Result<(), EngineError> {
    model_file::ModelFile::parse(model, bytes).map(drop)
}

/// Checks the bytes of a `model.onnx` as [`check_model`] does, and as the graph of a bundle besides; gives the
/// names of the files that hold its weights, which lie in the folder of `model`.
///
/// # Errors
/// As [`check_model`], and when weights lie outside the graph that could not be reached in a bundle.
pub(crate) fn weight_files(model: &Path, bytes: &[u8]) -> Result<Vec<String>, EngineError> {
    model_file::ModelFile::parse(model, bytes)?.files_to_bundle()
}

/// The inputs and outputs that the graph in `model` declares.
pub(crate) fn signature(model: &Path) -> Result<Signature, EngineError> {
    Ok(model_file::ModelFile::open(model)?.signature)
}

/// Name, type and shape of a value, for messages.
pub(crate) fn describe_value(name: &str, value: &Tensor) -> String {
    signature::describe_all(&[(name, value)])
}

/// Which engine is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// ONNX Runtime where a usable library is found, else tract.
    #[default]
    Auto,
    /// ONNX Runtime or an error.
    Ort,
    /// tract.
    Tract,
}

impl FromStr for EngineChoice {
    type Err = EngineError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "auto" => Ok(Self::Auto),
            "ort" => Ok(Self::Ort),
            "tract" => Ok(Self::Tract),
            _ => Err(EngineError::UnknownEngine { name: name.to_owned() }),
        }
    }
}

/// How an engine is opened.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// An ONNX Runtime library to use instead of searching for one.
    pub library: Option<PathBuf>,
    /// Threads of computation; the number of processors where not given.
    pub threads: Option<usize>,
    /// What computes; the processor where not given.
    pub device: DeviceOptions,
}

/// An engine ready for use.
pub struct Opened {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// What it computes with.
    pub provider: &'static Provider,
    /// One line for the user when a faster engine could be had, or the device is not the one asked for.
    pub note: Option<String>,
}

/// More threads than any machine has processors.
const MOST_THREADS: usize = 1024;

/// Opens an engine.
///
/// [`EngineChoice::Auto`] takes ONNX Runtime where a usable library is found, else tract, with a
/// note that says what would be faster and how to get it.
///
/// # Errors
/// When ONNX Runtime is asked for and none is found, when the library named by `options` or by the
/// environment cannot be used, when the device cannot be used and nothing else is allowed, when tract is to leave
/// sizes open, or when the thread count is out of range.
pub fn open(choice: EngineChoice, options: &EngineOptions) -> Result<Opened, EngineError> {
    let threads = thread_count(options.threads)?;
    let places = Places::of_process(options.library.as_deref());
    open_device(choice, &options.device, &places, threads)
}

/// Opens what computes on a device.
fn open_device(
    choice: EngineChoice,
    options: &DeviceOptions,
    places: &Places,
    threads: usize,
) -> Result<Opened, EngineError> {
    // Wrong options are wrong even where nothing is installed.
    options.settings()?;
    let provider = options.device.provider;
    let refuse =
        |engine| Err(EngineError::DeviceEngine { engine, device: options.device.to_string() });
    let tract = provider.is_tract() || choice == EngineChoice::Tract;
    match choice {
        EngineChoice::Ort if provider.is_tract() => return refuse("ort"),
        EngineChoice::Tract if !provider.is_tract() && !provider.is_cpu() => {
            return refuse("tract");
        }
        _ if tract && options.static_shapes == Some(false) => {
            return Err(EngineError::StaticShapes);
        }
        _ if provider.is_tract() => {
            return open_from(EngineChoice::Tract, options, places, threads);
        }
        _ if provider.is_cpu() => return open_from(choice, options, places, threads),
        _ => {}
    }
    let opened = library::find_for(options, places)
        .and_then(|(library, plugin)| ort::OrtEngine::start_on(library, threads, options, plugin));
    match opened {
        Ok(engine) => Ok(Opened { engine: Arc::new(engine), provider, note: None }),
        Err(error) if options.allow_cpu_fallback => {
            // What is set for the device is not meant for the processor.
            let opened = open_from(choice, &DeviceOptions::default(), places, threads)?;
            let instead = opened.engine.describe();
            let note = format!("computing on {instead} instead, because {error}");
            Ok(Opened { note: Some(note), ..opened })
        }
        Err(error) => Err(error),
    }
}

fn open_from(
    choice: EngineChoice,
    options: &DeviceOptions,
    places: &Places,
    threads: usize,
) -> Result<Opened, EngineError> {
    let tract = |note| Opened {
        engine: Arc::new(tract::TractEngine::new(threads)),
        provider: Provider::tract(),
        note,
    };
    if choice == EngineChoice::Tract {
        return Ok(tract(None));
    }
    // One process holds one ONNX Runtime, and every build of it computes on the processor.
    let found = match ort::in_use().filter(|_| places.named().is_empty()) {
        Some(library) => Ok(library),
        None => library::find_in(places),
    };
    match found {
        Ok(library) => {
            let engine = Arc::new(ort::OrtEngine::start(library, threads, options)?);
            Ok(Opened { engine, provider: Provider::cpu(), note: None })
        }
        Err(EngineError::NoLibrary { .. })
            if choice == EngineChoice::Auto && options.static_shapes == Some(false) =>
        {
            Err(EngineError::StaticShapes)
        }
        Err(EngineError::NoLibrary { broken, .. }) if choice == EngineChoice::Auto => {
            Ok(tract(Some(match broken {
                None => "running on tract, which is built in; ONNX Runtime would be faster: \
                         `pixart engine install cpu` fetches it"
                    .to_owned(),
                Some(broken) => format!("running on tract, which is built in, because {broken}"),
            })))
        }
        Err(error) => Err(error),
    }
}

fn thread_count(asked: Option<usize>) -> Result<usize, EngineError> {
    match asked {
        None => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        Some(threads @ 1..=MOST_THREADS) => Ok(threads),
        Some(threads) => Err(EngineError::Threads { threads, most: MOST_THREADS }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places where nothing is installed.
    fn nowhere(folder: &Path) -> Places {
        let data_folder = Some(folder.to_path_buf());
        Places { option: None, variables: Vec::new(), bundled: || None, data_folder }
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        assert_eq!("auto".parse::<EngineChoice>().expect("known"), EngineChoice::Auto);
        assert_eq!("ort".parse::<EngineChoice>().expect("known"), EngineChoice::Ort);
        assert_eq!("tract".parse::<EngineChoice>().expect("known"), EngineChoice::Tract);
        let error = "cuda".parse::<EngineChoice>().expect_err("unknown").to_string();
        assert!(error.contains("\"cuda\"") && error.contains("auto, ort or tract"), "{error}");
    }

    #[test]
    fn without_onnx_runtime_auto_takes_tract_and_tells_what_is_faster() {
        let folder = tempfile::tempdir().expect("folder");
        let places = nowhere(folder.path());
        let opened =
            open_from(EngineChoice::Auto, &DeviceOptions::default(), &places, 2).expect("tract");
        assert_eq!(opened.engine.name(), "tract");
        let note = opened.note.expect("a note");
        assert!(note.contains("pixart engine install cpu") && !note.contains('\n'), "{note}");
        let opened =
            open_from(EngineChoice::Tract, &DeviceOptions::default(), &places, 2).expect("tract");
        assert!(opened.note.is_none(), "asked for, so nothing to tell");
    }

    #[test]
    fn tract_in_the_place_of_onnx_runtime_cannot_leave_sizes_open() {
        let folder = tempfile::tempdir().expect("folder");
        let places = nowhere(folder.path());
        let open = |options| open_device(EngineChoice::Auto, &options, &places, 1);
        let error = open(DeviceOptions { static_shapes: Some(false), ..device("cpu", false) });
        let error = error.err().expect("refused");
        assert!(matches!(error, EngineError::StaticShapes), "{error:?}");
        for options in [
            DeviceOptions { static_shapes: Some(true), ..device("cpu", false) },
            // Meant for the device that tract stands in for.
            DeviceOptions { static_shapes: Some(false), ..device("cuda", true) },
        ] {
            assert_eq!(open(options).expect("tract").engine.name(), "tract");
        }
    }

    #[test]
    fn without_onnx_runtime_ort_is_an_error_that_tells_what_to_type() {
        let folder = tempfile::tempdir().expect("folder");
        let opened =
            open_from(EngineChoice::Ort, &DeviceOptions::default(), &nowhere(folder.path()), 2);
        let error = opened.err().expect("refused").to_string();
        assert!(error.contains("pixart engine install cpu"), "{error}");
    }

    #[test]
    fn a_damaged_installation_is_told_of_when_tract_takes_over() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::create_dir_all(folder.path().join("engines/cpu-1.32.0")).expect("folder");
        let opened =
            open_from(EngineChoice::Auto, &DeviceOptions::default(), &nowhere(folder.path()), 1)
                .expect("tract");
        let note = opened.note.expect("a note");
        assert!(note.contains("damaged") && note.contains("engine.json"), "{note}");
    }

    fn device(device: &str, allow_cpu_fallback: bool) -> DeviceOptions {
        let device = device.parse().expect("a device");
        DeviceOptions { device, allow_cpu_fallback, ..DeviceOptions::default() }
    }

    #[test]
    fn a_device_that_nothing_brings_is_an_error_unless_the_processor_is_allowed() {
        let folder = tempfile::tempdir().expect("folder");
        let places = nowhere(folder.path());
        let open = |options: &DeviceOptions| open_device(EngineChoice::Auto, options, &places, 1);
        let error = open(&device("cuda:1", false)).err().expect("refused").to_string();
        assert!(error.contains("cuda:1") && error.contains("engine install cuda"), "{error}");
        let opened = open(&device("cuda:1", true)).expect("tract");
        let note = opened.note.expect("it is told");
        assert!(opened.engine.name() == "tract" && note.contains("cuda:1"), "{note}");
        // Wrong options stay wrong.
        let options = vec![("speed".to_owned(), "9".to_owned())];
        let error = open(&DeviceOptions { options, ..device("cuda", true) }).err().expect("wrong");
        assert!(matches!(error, EngineError::UnknownOption { .. }), "{error:?}");
    }

    #[test]
    fn engine_and_device_must_go_together() {
        let folder = tempfile::tempdir().expect("folder");
        let places = nowhere(folder.path());
        for (choice, name, said) in
            [(EngineChoice::Tract, "cuda", "tract"), (EngineChoice::Ort, "tract", "ort")]
        {
            let error = open_device(choice, &device(name, true), &places, 1).err();
            let error = error.expect("refused").to_string();
            assert!(error.contains(&format!("the engine {said} does not")), "{error}");
        }
        let opened = open_device(EngineChoice::Auto, &device("tract", false), &places, 1);
        assert_eq!(opened.expect("tract").provider.name, "tract");
    }

    #[test]
    fn thread_counts_have_bounds() {
        for threads in [0, MOST_THREADS + 1] {
            let options = EngineOptions { threads: Some(threads), ..EngineOptions::default() };
            let error = open(EngineChoice::Tract, &options).err().expect("refused");
            assert!(matches!(error, EngineError::Threads { .. }), "{error:?}");
        }
        assert!(thread_count(None).expect("some") >= 1);
    }
}
