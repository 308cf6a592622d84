//! A component that is loaded when it is needed.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use ndarray::ArrayD;

use crate::{
    bundle::store,
    engine::{self, Changes, Engine, EngineError, Session, Value},
    error::{LikelyCause, PipelineError},
    lora::{Exported, LoraPlan},
    model_folder::{Architecture, Component, ComponentFolder, ModelError},
    tensor::Tensor,
};

/// An exported component and, while it is in use, its session.
pub(crate) struct LazyComponent<A> {
    pub(crate) folder: ComponentFolder<A>,
    engine: Arc<dyn Engine>,
    lora: Option<Arc<LoraPlan>>,
    /// With more bytes of weights than this it is run a stretch of blocks at a time.
    streamed_above: Option<u64>,
    loaded: Option<Box<dyn Session>>,
}

/// A component ready to run.
pub(crate) struct LoadedComponent<'a> {
    component: Component,
    precision: &'a str,
    /// Whether LoRAs change its weights.
    lora: bool,
    engine: &'a dyn Engine,
    session: &'a mut dyn Session,
}

impl<A: Architecture> LazyComponent<A> {
    /// A component that is nowhere on disk; whoever uses it brings a session.
    pub(crate) fn elsewhere(engine: &Arc<dyn Engine>, architecture: A) -> Self {
        let folder = ComponentFolder {
            model: PathBuf::new(),
            precision: "fp32".to_owned(),
            int8_mode: None,
            architecture,
            identity: String::new(),
            origin: String::new(),
        };
        Self::of(folder, engine)
    }

    /// Reads the manifest; the weights stay on disk.
    pub(crate) fn open(engine: &Arc<dyn Engine>, folder: &Path) -> Result<Self, ModelError> {
        let folder = ComponentFolder::open(folder)?;
        Ok(Self::of(folder, engine))
    }

    fn of(folder: ComponentFolder<A>, engine: &Arc<dyn Engine>) -> Self {
        Self { folder, engine: engine.clone(), lora: None, streamed_above: None, loaded: None }
    }

    /// From the next load on, runs it a stretch of blocks at a time ([`engine::stream`]) where the processor
    /// computes it and it has more than `bytes` of weights.
    pub(crate) fn stream_above(&mut self, bytes: u64) {
        self.unload();
        self.streamed_above = Some(bytes);
    }

    /// The component, loaded now if it is not yet.
    pub(crate) fn load(&mut self) -> Result<LoadedComponent<'_>, PipelineError> {
        let component = A::COMPONENT;
        let session = match self.loaded.take() {
            Some(session) => session,
            None if self.is_streamed() => {
                let changes = self.lora.clone().map(|lora| -> Changes {
                    Box::new(move |names| {
                        let merged = lora.merge_some(&|name| names.contains(name));
                        merged.map_err(|error| error.to_string())
                    })
                });
                engine::stream(&self.engine, &self.folder.model, changes)
                    .map_err(|source| PipelineError::Engine { component, source })?
            }
            None => {
                let overrides = self.lora.as_ref().map_or(Ok(Vec::new()), |lora| lora.merge())?;
                self.engine
                    .load_with(&self.folder.model, overrides)
                    .map_err(|source| PipelineError::Engine { component, source })?
            }
        };
        let session = self.loaded.insert(session).as_mut();
        let (precision, lora) = (self.folder.precision.as_str(), self.lora.is_some());
        let engine = self.engine.as_ref();
        Ok(LoadedComponent { component, precision, lora, engine, session })
    }

    /// Whether each run reads all weights.
    pub(crate) fn is_streamed(&self) -> bool {
        let large = self.streamed_above.is_some_and(|bytes| self.stored_bytes() > bytes);
        large && self.engine.is_on_processor()
    }

    /// The component with a session that is somebody else's.
    pub(crate) fn with<'a>(&'a self, session: &'a mut dyn Session) -> LoadedComponent<'a> {
        let (precision, lora) = (self.folder.precision.as_str(), self.lora.is_some());
        let (component, engine) = (A::COMPONENT, self.engine.as_ref());
        LoadedComponent { component, precision, lora, engine, session }
    }

    /// Changes the weights from the next load on; what is loaded goes.
    pub(crate) fn set_lora(&mut self, plan: LoraPlan) {
        self.unload();
        self.lora = (!plan.is_empty()).then(|| Arc::new(plan));
    }

    /// What LoRAs are matched with.
    pub(crate) fn exported(&self) -> Exported<'_> {
        Exported { model: &self.folder.model, precision: &self.folder.precision }
    }

    /// An error if `output` does not have this shape.
    pub(crate) fn check_shape(
        &self,
        output: &ArrayD<f32>,
        expected: &[usize],
    ) -> Result<(), PipelineError> {
        check_shape(A::COMPONENT, output, expected)
    }

    /// An error if a value is NaN or infinite; `step` is for the message.
    pub(crate) fn check_finite(
        &self,
        values: &ArrayD<f32>,
        step: Option<(usize, usize)>,
    ) -> Result<(), PipelineError> {
        let lora = self.lora.is_some();
        check_finite(A::COMPONENT, &self.folder.precision, lora, values, step)
    }

    /// The engine and the graph file, for running parts of it.
    pub(crate) fn places(&self) -> (&dyn Engine, &Path) {
        (self.engine.as_ref(), &self.folder.model)
    }

    /// Bytes of its graph and weights on disk.
    pub(crate) fn stored_bytes(&self) -> u64 {
        let data = self.folder.model.with_file_name("model.onnx_data");
        let size = |path: &Path| store::place(path).ok().flatten().map_or(0, |place| place.bytes);
        size(&self.folder.model) + size(&data)
    }

    /// Frees the memory of the weights.
    pub(crate) fn unload(&mut self) {
        self.loaded = None;
    }
}

impl LoadedComponent<'_> {
    /// Runs the component and takes the output of this name.
    pub(crate) fn run(
        &mut self,
        inputs: &[(&str, Tensor)],
        output: &str,
    ) -> Result<ArrayD<f32>, PipelineError> {
        let inputs: Vec<_> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let outputs = self.session.run(&inputs);
        self.pick(outputs, output)
    }

    /// The same for several sets of inputs.
    pub(crate) fn run_each(
        &mut self,
        sets: &[Vec<(&str, Tensor)>],
        output: &str,
    ) -> Result<Vec<ArrayD<f32>>, PipelineError> {
        let sets: Vec<Vec<_>> = sets
            .iter()
            .map(|inputs| inputs.iter().map(|(name, tensor)| (*name, tensor)).collect())
            .collect();
        let component = self.component;
        let results = self.session.run_each(&sets);
        let results = results.map_err(|source| PipelineError::Engine { component, source })?;
        results.into_iter().map(|outputs| self.pick(Ok(outputs), output)).collect()
    }

    /// The same with inputs that lie where [`Self::place`] has put them.
    pub(crate) fn run_values(
        &mut self,
        inputs: &[(&str, &Value)],
        output: &str,
    ) -> Result<ArrayD<f32>, PipelineError> {
        let outputs = self.session.run_to_tensors(inputs);
        self.pick(outputs, output)
    }

    /// A tensor where the component reads it fastest, for inputs that stay the same from run to run.
    pub(crate) fn place(&self, tensor: Tensor) -> Result<Value, PipelineError> {
        let component = self.component;
        let placed = self.engine.to_device(tensor);
        placed.map_err(|source| PipelineError::Engine { component, source })
    }

    /// Whether few sizes of inputs should occur.
    pub(crate) fn compiles_per_size(&self) -> bool {
        self.engine.compiles_per_size()
    }

    /// Whether another size of inputs costs more than some rows computed in vain.
    pub(crate) fn plans_per_size(&self) -> bool {
        self.engine.plans_per_size()
    }

    /// The output of this name.
    fn pick(
        &self,
        outputs: Result<Vec<(String, Tensor)>, EngineError>,
        output: &str,
    ) -> Result<ArrayD<f32>, PipelineError> {
        let component = self.component;
        let failed = |source| PipelineError::Engine { component, source };
        let outputs = outputs.map_err(failed)?;
        let names: Vec<_> = outputs.iter().map(|(name, _)| name.clone()).collect();
        match outputs.into_iter().find(|(name, _)| name == output) {
            Some((_, tensor)) => tensor.into_f32(output).map_err(failed),
            None => Err(PipelineError::Output {
                component,
                problem: format!(
                    "found the outputs [{}], expected one named {output}",
                    names.join(", ")
                ),
            }),
        }
    }

    /// An error if `output` does not have this shape.
    pub(crate) fn check_shape(
        &self,
        output: &ArrayD<f32>,
        expected: &[usize],
    ) -> Result<(), PipelineError> {
        check_shape(self.component, output, expected)
    }

    /// An error if a value is NaN or infinite; `step` is for the message.
    pub(crate) fn check_finite(
        &self,
        values: &ArrayD<f32>,
        step: Option<(usize, usize)>,
    ) -> Result<(), PipelineError> {
        check_finite(self.component, self.precision, self.lora, values, step)
    }
}

fn check_shape(
    component: Component,
    output: &ArrayD<f32>,
    expected: &[usize],
) -> Result<(), PipelineError> {
    if output.shape() == expected {
        return Ok(());
    }
    let problem = format!("found an output of {:?}, expected {expected:?}", output.shape());
    Err(PipelineError::Output { component, problem })
}

fn check_finite(
    component: Component,
    precision: &str,
    lora: bool,
    values: &ArrayD<f32>,
    step: Option<(usize, usize)>,
) -> Result<(), PipelineError> {
    if values.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    let cause = match precision {
        _ if lora => LikelyCause::Lora,
        "fp32" => LikelyCause::Weights,
        _ => LikelyCause::Range,
    };
    Err(PipelineError::NotFinite { component, precision: precision.to_owned(), step, cause })
}
