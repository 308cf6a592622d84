//! A graph that was just built, loaded by an engine.

use pixart_exporter::graph::ir::Graph;
use pixart_exporter::write::{MODEL_FILE, WriteError, to_bytes};
use pixart_runtime::engine::{Engine, EngineError, Session, Value};
use pixart_runtime::tensor::Tensor;
use tempfile::TempDir;

/// Why a graph of the trainer cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// It cannot be written as ONNX.
    #[error("the {graph} graph: {source}")]
    Write {
        /// The graph's name.
        graph: String,
        /// Why.
        source: WriteError,
    },
    /// There is no place for it on its way to the engine.
    #[error(
        "cannot write the {graph} graph to the folder for temporary files: {source}; expected room \
         for it there"
    )]
    Temporary {
        /// The graph's name.
        graph: String,
        /// Why.
        source: std::io::Error,
    },
    /// The engine refuses it or cannot run it.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A loaded graph and the names of its inputs.
pub(crate) struct GraphSession {
    session: Box<dyn Session>,
    inputs: Vec<String>,
}

/// Results by name, in the graph's order.
pub(crate) type Results = Vec<(String, Value)>;

/// A session with the file of its graph, which engines that prepare themselves for a size read again for each.
struct WithFile {
    session: Box<dyn Session>,
    _folder: TempDir,
}

impl Session for WithFile {
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, EngineError> {
        self.session.run(inputs)
    }

    fn run_values(
        &mut self,
        inputs: &[(&str, &Value)],
    ) -> Result<Vec<(String, Value)>, EngineError> {
        self.session.run_values(inputs)
    }

    fn run_to_tensors(
        &mut self,
        inputs: &[(&str, &Value)],
    ) -> Result<Vec<(String, Tensor)>, EngineError> {
        self.session.run_to_tensors(inputs)
    }
}

/// Loads a graph that has all its constants inside. Engines load files, so it is written to a temporary one.
pub(crate) fn load(engine: &dyn Engine, graph: &Graph) -> Result<Box<dyn Session>, SessionError> {
    let name = || graph.name.clone();
    let bytes = to_bytes(graph).map_err(|source| SessionError::Write { graph: name(), source })?;
    let temporary = |source| SessionError::Temporary { graph: name(), source };
    let folder = tempfile::tempdir().map_err(temporary)?;
    let path = folder.path().join(MODEL_FILE);
    std::fs::write(&path, bytes).map_err(temporary)?;
    let session = engine.load(&path)?;
    Ok(Box::new(WithFile { session, _folder: folder }))
}

impl GraphSession {
    pub fn load(engine: &dyn Engine, graph: &Graph) -> Result<Self, SessionError> {
        let session = load(engine, graph)?;
        Ok(Self { session, inputs: graph.inputs.iter().map(|input| input.name.clone()).collect() })
    }

    /// The names of the inputs, in the graph's order.
    pub fn inputs(&self) -> &[String] {
        &self.inputs
    }

    pub fn run(&mut self, inputs: &[(&str, &Value)]) -> Result<Results, SessionError> {
        Ok(self.session.run_values(inputs)?)
    }
}
