//! A graph whose weights are in memory a stretch at a time.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Engine, EngineError, GraphPart, Override, Session, Value,
    model_file::ModelFile,
    signature::Signature,
    stretches::{self, Stretch},
};
use crate::tensor::Tensor;

/// The most bytes of weights in a stretch, as far as the ends of blocks allow.
const MOST_BYTES: u64 = 256 << 20;

/// The least number of stretches as far as these allow it, for networks that are small.
const LEAST_STRETCHES: u64 = 8;

/// Weights of more bytes than this are large: to have all of them in memory at once should have a reason.
pub const LARGE: u64 = 1 << 30;

/// Gives other elements for initializers with these names, as far as there are any.
pub type Changes = Box<dyn Fn(&HashSet<String>) -> Result<Vec<Override>, String> + Send>;

/// Gets `model` ready to be run a stretch of blocks at a time: each run loads the weights of a stretch,
/// computes it and frees them before the next. So at most 256 MiB of weights are in memory, or an eighth of
/// them if that is less, or what one layer has if that is more, besides what the engine makes of them. Results
/// are those of the whole graph; every run reads all weights again.
///
/// `changes` gives other elements for the initializers of a stretch, as [`Engine::load_with`] takes them.
///
/// # Errors
/// As [`Engine::load`], and when the graph has no blocks between which it can be cut. What the engine does not
/// like about a stretch is found when it is run.
pub fn stream(
    engine: &Arc<dyn Engine>,
    model: &Path,
    changes: Option<Changes>,
) -> Result<Box<dyn Session>, EngineError> {
    let file = ModelFile::open(model)?;
    let inline = file.proto.graph.iter().flat_map(|graph| &graph.initializer);
    let inline: usize = inline.map(|tensor| tensor.raw_data.len()).sum();
    let most_bytes = MOST_BYTES.min((file.stored_bytes() + inline as u64) / LEAST_STRETCHES);
    let stretches = stretches::cut(&file, most_bytes)?;
    let (engine, model, signature) = (engine.clone(), file.path, file.signature);
    Ok(Box::new(Streamed { engine, model, signature, stretches, changes }))
}

/// A graph and where it is cut.
struct Streamed {
    engine: Arc<dyn Engine>,
    model: PathBuf,
    signature: Signature,
    stretches: Vec<Stretch>,
    changes: Option<Changes>,
}

/// Inputs of one run, and values on their way from stretch to stretch.
struct Way<'a> {
    inputs: &'a [(&'a str, &'a Value)],
    carried: HashMap<String, Value>,
    results: Vec<(String, Tensor)>,
}

impl Streamed {
    /// Loads each stretch once and runs it for every set of inputs.
    fn compute(
        &self,
        sets: &[&[(&str, &Value)]],
    ) -> Result<Vec<Vec<(String, Tensor)>>, EngineError> {
        let mut ways = Vec::with_capacity(sets.len());
        for &inputs in sets {
            self.signature.sort(inputs).map_err(|mismatch| mismatch.in_model(&self.model))?;
            ways.push(Way { inputs, carried: HashMap::new(), results: Vec::new() });
        }
        for (place, stretch) in self.stretches.iter().enumerate() {
            self.run_stretch(stretch, &mut ways)?;
            let later = &self.stretches[place + 1..];
            let is_read = |name: &String| later.iter().any(|stretch| stretch.reads(name));
            ways.iter_mut().for_each(|way| way.carried.retain(|name, _| is_read(name)));
        }
        let place = |name: &String| self.signature.outputs.iter().position(|output| output == name);
        let results = ways.into_iter().map(|mut way| {
            way.results.sort_by_key(|(name, _)| place(name));
            way.results
        });
        Ok(results.collect())
    }

    /// Loads a stretch, runs it and frees it. Its results are copied: values that a session keeps would keep
    /// the memory of its weights as well.
    fn run_stretch(&self, stretch: &Stretch, ways: &mut [Way<'_>]) -> Result<(), EngineError> {
        let mut part = GraphPart {
            inputs: stretch.inputs.clone(),
            outputs: stretch.outputs.clone(),
            ..GraphPart::default()
        };
        // As many in all runs.
        let axes = |name: &String| Some(ways.first()?.carried.get(name)?.shape().len());
        part.inputs.iter_mut().for_each(|input| input.axes = axes(&input.name));
        let overrides = match &self.changes {
            Some(changes) => changes(&stretch.weights).map_err(|reason| EngineError::Load {
                engine: self.engine.name(),
                model: self.model.clone(),
                reason,
            })?,
            None => Vec::new(),
        };
        let mut session = self.engine.load_part(&self.model, &part, overrides)?;
        let outside: Vec<_> =
            part.inputs.iter().map(|input| (input.outside(), &input.name)).collect();
        for Way { inputs, carried, results } in ways {
            let given =
                inputs.iter().filter(|(name, _)| stretch.given.iter().any(|own| own == name));
            let mut read: Vec<(&str, &Value)> = given.copied().collect();
            read.extend(
                outside.iter().filter_map(|(name, own)| Some((&**name, carried.get(*own)?))),
            );
            for (name, tensor) in session.run_to_tensors(&read)? {
                let output = part.outputs.iter().find(|output| output.outside() == name);
                let name = output.map_or(name, |output| output.name.clone());
                if self.signature.outputs.contains(&name) {
                    results.push((name.clone(), tensor.clone()));
                }
                // What no later stretch reads goes at once.
                carried.insert(name, tensor.into());
            }
        }
        Ok(())
    }

    fn one(&self, inputs: &[(&str, &Value)]) -> Result<Vec<(String, Tensor)>, EngineError> {
        Ok(self.compute(&[inputs])?.pop().unwrap_or_default())
    }
}

impl Session for Streamed {
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, EngineError> {
        Ok(self.run_each(&[inputs.to_vec()])?.pop().unwrap_or_default())
    }

    fn run_each(
        &mut self,
        sets: &[Vec<(&str, &Tensor)>],
    ) -> Result<Vec<Vec<(String, Tensor)>>, EngineError> {
        let value = |(_, tensor): &(&str, &Tensor)| Value::from((*tensor).clone());
        let values: Vec<Vec<Value>> =
            sets.iter().map(|inputs| inputs.iter().map(value).collect()).collect();
        let named: Vec<Vec<(&str, &Value)>> = sets
            .iter()
            .zip(&values)
            .map(|(inputs, values)| inputs.iter().map(|(name, _)| *name).zip(values).collect())
            .collect();
        self.compute(&named.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    fn run_values(
        &mut self,
        inputs: &[(&str, &Value)],
    ) -> Result<Vec<(String, Value)>, EngineError> {
        let results = self.one(inputs)?.into_iter();
        Ok(results.map(|(name, tensor)| (name, tensor.into())).collect())
    }

    fn run_to_tensors(
        &mut self,
        inputs: &[(&str, &Value)],
    ) -> Result<Vec<(String, Tensor)>, EngineError> {
        self.one(inputs)
    }
}
