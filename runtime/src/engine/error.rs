//! What can go wrong between the program and an engine.

use std::path::PathBuf;

/// An engine could not be opened, or could not load or run a graph.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No engine of this name.
    #[error("there is no engine named \"{name}\"; choose auto, ort or tract")]
    UnknownEngine {
        /// What was asked for.
        name: String,
    },

    /// No device of this name.
    #[error("there is no device named \"{name}\"; choose one of {}", available.join(", "))]
    UnknownDevice {
        /// What was asked for.
        name: String,
        /// What exists.
        available: Vec<&'static str>,
    },

    /// A number or name of a device where there is only one.
    #[error("\"{device}:{suffix}\": {device} has no several devices; write {device}")]
    DeviceSuffix {
        /// The provider.
        device: &'static str,
        /// What followed the colon.
        suffix: String,
    },

    /// No option of this name.
    #[error(
        "\"{option}\" is no option of {device}; {}",
        if known.is_empty() { format!("{device} has no options") }
        else { format!("its options are {}", known.join(", ")) }
    )]
    UnknownOption {
        /// The provider.
        device: &'static str,
        /// What was asked for.
        option: String,
        /// What exists.
        known: Vec<&'static str>,
    },

    /// tract is to take all sizes with one preparation.
    #[error("static_shapes: tract prepares itself for each size, always; leave the setting out")]
    StaticShapes,

    /// A value that an option cannot have.
    #[error("the option {option} of {device}: found \"{found}\", expected {expected}")]
    OptionValue {
        /// The provider.
        device: String,
        /// The option.
        option: &'static str,
        /// What was given.
        found: String,
        /// What it may hold.
        expected: String,
    },

    /// A device that the chosen engine does not compute on.
    #[error("the engine {engine} does not compute on {device}; leave --engine or --device out")]
    DeviceEngine {
        /// The engine.
        engine: &'static str,
        /// The device.
        device: String,
    },

    /// Nothing installed brings a provider.
    #[error("{device}: nothing that brings it is installed; {how}")]
    ProviderMissing {
        /// The device asked for.
        device: String,
        /// How to get it.
        how: String,
    },

    /// The ONNX Runtime at hand was built without a provider.
    #[error(
        "{device}: the ONNX Runtime in {} was built without it; it has {}; {how}",
        path.display(), available.join(", ")
    )]
    ProviderAbsent {
        /// The device asked for.
        device: String,
        /// The library.
        path: PathBuf,
        /// The devices it knows.
        available: Vec<&'static str>,
        /// How to get one that has it.
        how: String,
    },

    /// A provider is there but does not compute.
    #[error("{device} cannot be used with {}: {reason}; it needs {needs}", path.display())]
    ProviderFailed {
        /// The device asked for.
        device: String,
        /// The library that brings it.
        path: PathBuf,
        /// What it said.
        reason: String,
        /// What the machine must have for it.
        needs: &'static str,
    },

    /// A file that should be a plugin for ONNX Runtime.
    #[error("the plugin {} cannot be used: {reason}", path.display())]
    Plugin {
        /// The file named.
        path: PathBuf,
        /// Why.
        reason: String,
    },

    /// A thread count that cannot be had.
    #[error("{threads} threads were asked for; give a number from 1 to {most}")]
    Threads {
        /// What was asked for.
        threads: usize,
        /// The most that is accepted.
        most: usize,
    },

    /// No ONNX Runtime in any of the places searched.
    #[error("no usable ONNX Runtime was found ({}); {INSTALL_HINT}", tried.join("; "))]
    NoLibrary {
        /// Each place searched and what was there.
        tried: Vec<String>,
        /// Why an installed library was passed over, where one was.
        broken: Option<String>,
    },

    /// The named library does not exist.
    #[error(
        "the ONNX Runtime library {} ({origin}) does not exist; correct the path, or {INSTALL_HINT}",
        path.display()
    )]
    LibraryMissing {
        /// The file named.
        path: PathBuf,
        /// Who named it.
        origin: String,
    },

    /// The named file cannot be loaded as a shared library.
    #[error(
        "{} ({origin}) cannot be loaded as a shared library: {reason}; name the ONNX Runtime \
         library itself, or {INSTALL_HINT}",
        path.display()
    )]
    NotALibrary {
        /// The file named.
        path: PathBuf,
        /// Who named it.
        origin: String,
        /// What the system's loader said.
        reason: String,
    },

    /// A shared library, but not ONNX Runtime.
    #[error(
        "{} ({origin}) is a shared library but not ONNX Runtime: {reason}; name the ONNX Runtime \
         library itself, or {INSTALL_HINT}",
        path.display()
    )]
    NotOnnxRuntime {
        /// The file named.
        path: PathBuf,
        /// Who named it.
        origin: String,
        /// What is missing in it.
        reason: String,
    },

    /// An ONNX Runtime older than the program can use.
    #[error(
        "{} ({origin}) is ONNX Runtime {found}, but {needed} or newer is needed; {INSTALL_HINT}",
        path.display()
    )]
    LibraryTooOld {
        /// The file named.
        path: PathBuf,
        /// Who named it.
        origin: String,
        /// Its version.
        found: String,
        /// The oldest version that serves.
        needed: String,
    },

    /// An installed library that differs from what was installed.
    #[error(
        "the installed {} is damaged: {reason}; run `pixart engine install {name}` again",
        path.display()
    )]
    LibraryDamaged {
        /// The library or its record.
        path: PathBuf,
        /// Name of the installed engine.
        name: String,
        /// What differs.
        reason: String,
    },

    /// ONNX Runtime is already at work in this process, from another file.
    #[error(
        "{} cannot be loaded: this process already uses the ONNX Runtime in {}, and only one is \
         possible in a process",
        wanted.display(),
        in_use.display()
    )]
    OtherLibraryInUse {
        /// The library asked for.
        wanted: PathBuf,
        /// The library loaded before.
        in_use: PathBuf,
    },

    /// The library was accepted but could not be started.
    #[error("ONNX Runtime in {} could not be started: {reason}", path.display())]
    Start {
        /// The library.
        path: PathBuf,
        /// What it said.
        reason: String,
    },

    /// The graph file is missing or unreadable.
    #[error("cannot read the model {}: {source}; export the model again", model.display())]
    ModelFile {
        /// The `model.onnx`.
        model: PathBuf,
        /// Why.
        source: std::io::Error,
    },

    /// The graph file is not an ONNX model that can be used.
    #[error("{} is not a usable ONNX model: {reason}; export the model again", model.display())]
    ModelFormat {
        /// The `model.onnx`.
        model: PathBuf,
        /// What is wrong in it.
        reason: String,
    },

    /// The weights of a tensor lie where they must not, or not where they should.
    #[error(
        "{}: the external data of tensor \"{}\" is refused: {reason}; export the model again",
        model.display(), tensor.escape_debug()
    )]
    ExternalData {
        /// The `model.onnx`.
        model: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// What was found and what is expected.
        reason: String,
    },

    /// Other elements for an initializer do not fit the graph.
    #[error(
        "{}: the tensor \"{}\" cannot be replaced: {reason}", model.display(), tensor.escape_debug()
    )]
    Override {
        /// The `model.onnx`.
        model: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// What was found and what is expected.
        reason: String,
    },

    /// The engine refuses the graph.
    #[error("{engine} cannot load {}: {reason}", model.display())]
    Load {
        /// The engine's name.
        engine: &'static str,
        /// The `model.onnx`.
        model: PathBuf,
        /// What the engine said, with the node where it said which.
        reason: String,
    },

    /// An input is missing, unknown or of the wrong type or shape.
    #[error("{}: input \"{}\": {reason}", model.display(), input.escape_debug())]
    Input {
        /// The `model.onnx`.
        model: PathBuf,
        /// Name of the input.
        input: String,
        /// What was found and what is expected.
        reason: String,
    },

    /// The engine failed while computing.
    #[error("{engine} failed in {} on {inputs}: {reason}", model.display())]
    Run {
        /// The engine's name.
        engine: &'static str,
        /// The `model.onnx`.
        model: PathBuf,
        /// Names, types and shapes of the inputs.
        inputs: String,
        /// What the engine said, with the node where it said which.
        reason: String,
    },

    /// An output has another element type than the caller needs.
    #[error("the output \"{output}\" holds {found} values, expected {expected}")]
    OutputType {
        /// Name of the output.
        output: String,
        /// The element type found.
        found: String,
        /// The element types that serve.
        expected: &'static str,
    },

    /// Values lie in memory that cannot be read from here.
    #[error("values in the memory of {device} cannot be copied into the processor's")]
    Unreadable {
        /// Where they lie.
        device: String,
    },

    /// Values could not be copied to a device or back.
    #[error(
        "values could not be copied between the processor's memory and that of {device}: {reason}"
    )]
    Transfer {
        /// The device.
        device: String,
        /// What the engine says.
        reason: String,
    },

    /// No folder for the user's data can be determined.
    #[error(
        "no folder for the program's data: neither PIXART_DATA_DIR nor the home folder is known; \
         set PIXART_DATA_DIR"
    )]
    NoDataFolder,
}

/// What to type for an engine that works.
pub(super) const INSTALL_HINT: &str =
    "`pixart engine install cpu` fetches one, `--engine tract` needs none";
