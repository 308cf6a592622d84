//! tract behind the engine traits.
//!
//! tract computes fast on sizes that it knows. So a graph is kept as it was read, with symbolic
//! sizes, and a plan is made for each combination of input shapes; the plans used last are kept.

mod apart;
mod checked;
mod plan;
mod pool;
mod profile;
mod replaced;
mod rows;
mod value;
mod weights;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use tract_onnx::tract_hir::internal::{
    DatumType, IntoArcTensor as _, IntoTValue as _, IntoTensor as _, TValue, TVec, TractResult,
    TypedSimplePlan,
};

use self::{
    plan::{Plans, Source},
    pool::Pool,
    replaced::Replaced,
    weights::build,
};
use super::{
    Engine, EngineError, GraphPart, Session,
    model_file::ModelFile,
    part,
    provider::TimeShares,
    signature::{Described, Signature, describe_all},
    value::Value,
    weights as graph_weights,
    weights::Override,
};
use crate::tensor::Tensor;

const NAME: &str = "tract";

/// The version built in; a test compares it with the lock file.
pub(super) const VERSION: &str = "0.23.9";

/// tract on the processor.
pub(super) struct TractEngine {
    pool: Pool,
    threads: usize,
}

impl TractEngine {
    /// An engine that computes with `threads` threads.
    pub fn new(threads: usize) -> Self {
        Self { pool: Pool::new(threads), threads }
    }

    /// A session of what is in `file`, whose path was given as `model`, of which it may be a `part`.
    fn session(
        &self,
        model: &Path,
        mut file: ModelFile,
        part: Option<GraphPart>,
        overrides: Vec<Override>,
    ) -> Result<TractSession, EngineError> {
        graph_weights::check(&file, &overrides)?;
        let built = guarded(|| {
            let replaced = Replaced::new(overrides)?;
            Ok((build(&mut file, &replaced)?, replaced))
        });
        let (graph, replaced) = built.map_err(|reason| EngineError::Load {
            engine: NAME,
            model: model.to_path_buf(),
            reason,
        })?;
        let source = Source { path: file.path.clone(), part, replaced };
        let plans = Plans::new(source, graph, self.pool.executor.clone());
        let pool = self.pool.clone();
        Ok(TractSession { model: file.path, signature: file.signature, plans, pool })
    }
}

impl Engine for TractEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn describe(&self) -> String {
        let plural = if self.threads == 1 { "thread" } else { "threads" };
        format!("tract {VERSION} (cpu, {} {plural})", self.threads)
    }

    fn load_with(
        &self,
        model: &Path,
        overrides: Vec<Override>,
    ) -> Result<Box<dyn Session>, EngineError> {
        let file = ModelFile::open(model)?;
        Ok(Box::new(self.session(model, file, None, overrides)?))
    }

    fn load_part(
        &self,
        model: &Path,
        part: &GraphPart,
        overrides: Vec<Override>,
    ) -> Result<Box<dyn Session>, EngineError> {
        let mut file = ModelFile::open(model)?;
        part::cut(&mut file, part)?;
        Ok(Box::new(self.session(model, file, Some(part.clone()), overrides)?))
    }

    fn plans_per_size(&self) -> bool {
        true
    }

    fn time_shares(
        &self,
        model: &Path,
        inputs: &[(&str, &Tensor)],
    ) -> Result<Option<TimeShares>, EngineError> {
        let mut session = self.session(model, ModelFile::open(model)?, None, Vec::new())?;
        let read = |tensor: &Tensor| Ok(copy_in(tensor));
        let times = session.with_plan(inputs, read, profile::seconds)?.into_iter();
        let times = times.map(|(operator, seconds)| ((NAME.to_owned(), operator), seconds));
        Ok(Some(TimeShares { times: times.collect() }))
    }
}

struct TractSession {
    model: PathBuf,
    signature: Signature,
    plans: Plans,
    pool: Pool,
}

impl TractSession {
    /// Computes the outputs, in the order of the graph, from inputs that become tract's with `read`.
    fn compute<T: Described>(
        &mut self,
        inputs: &[(&str, &T)],
        read: impl Fn(&T) -> Result<TValue, EngineError>,
    ) -> Result<Vec<TValue>, EngineError> {
        let run = |plan: &Arc<TypedSimplePlan>, values| plan.run(values);
        Ok(self.with_plan(inputs, read, run)?.into_iter().collect())
    }

    /// What `work` does with the plan for `inputs`, which become tract's with `read`.
    fn with_plan<T: Described, R: Send>(
        &mut self,
        inputs: &[(&str, &T)],
        read: impl Fn(&T) -> Result<TValue, EngineError>,
        work: impl FnOnce(&Arc<TypedSimplePlan>, TVec<TValue>) -> TractResult<R> + Send,
    ) -> Result<R, EngineError> {
        let values =
            self.signature.sort(inputs).map_err(|mismatch| mismatch.in_model(&self.model))?;
        let shapes = values.iter().map(|value| value.shape().to_vec()).collect();
        let values = values.into_iter().map(read).collect::<Result<_, _>>()?;
        let (plans, signature) = (&mut self.plans, &self.signature);
        // Constants are folded while a plan is made, which is work for all threads as well.
        let plan = self.pool.outside(|| guarded(|| plans.get(&signature.inputs, shapes)));
        let result = plan.and_then(|plan| self.pool.inside(|| guarded(|| work(&plan, values))));
        result.map_err(|reason| EngineError::Run {
            engine: NAME,
            model: self.model.clone(),
            inputs: describe_all(inputs),
            reason,
        })
    }
}

impl Session for TractSession {
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, EngineError> {
        let results = self.compute(inputs, |tensor| Ok(copy_in(tensor)))?;
        let names = self.signature.outputs.iter();
        names.zip(results).map(|(name, value)| Ok((name.clone(), take_out(name, value)?))).collect()
    }

    fn run_values(
        &mut self,
        inputs: &[(&str, &Value)],
    ) -> Result<Vec<(String, Value)>, EngineError> {
        let results = self.compute(inputs, value::read)?;
        let names = self.signature.outputs.iter();
        let held = |(name, value): (&String, TValue)| {
            Ok((name.clone(), value::held(name, value.into_arc_tensor())?))
        };
        names.zip(results).map(held).collect()
    }

    fn run_to_tensors(
        &mut self,
        inputs: &[(&str, &Value)],
    ) -> Result<Vec<(String, Tensor)>, EngineError> {
        let results = self.compute(inputs, value::read)?;
        let names = self.signature.outputs.iter();
        names.zip(results).map(|(name, value)| Ok((name.clone(), take_out(name, value)?))).collect()
    }
}

fn copy_in(value: &Tensor) -> TValue {
    match value {
        Tensor::F32(array) => array.clone().into_tensor().into_tvalue(),
        Tensor::I64(array) => array.clone().into_tensor().into_tvalue(),
    }
}

fn take_out(name: &str, value: TValue) -> Result<Tensor, EngineError> {
    let wrong = |found: String| EngineError::OutputType {
        output: name.to_owned(),
        found,
        expected: "f32 or int64",
    };
    let tensor = value.into_tensor();
    let dtype = tensor.datum_type();
    let taken = match dtype {
        DatumType::F32 => tensor.into_plain_array().map(Tensor::F32),
        DatumType::I64 => tensor.into_plain_array().map(Tensor::I64),
        // tract computes sizes in a type of its own.
        DatumType::TDim => tensor
            .cast_to::<i64>()
            .and_then(|cast| cast.into_owned().into_plain_array())
            .map(Tensor::I64),
        _ => return Err(wrong(format!("{dtype:?}").to_lowercase())),
    };
    taken.map_err(|error| wrong(format!("{error:#}")))
}

/// Runs `work`; a failure becomes text that names the node, and so does a panic, because tract's
/// code for rare operators still has some.
fn guarded<T>(work: impl FnOnce() -> TractResult<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(shortened(&format!("{error:#}"))),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|| "no reason given".to_owned());
            Err(format!("it stopped: {}", shortened(&text)))
        }
    }
}

/// tract's reasons can quote whole operators; the first lines tell the node and the mistake.
fn shortened(text: &str) -> String {
    const MOST_CHARACTERS: usize = 800;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST_CHARACTERS) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests;
