//! Exported graphs on random inputs: on two engines, or in two precisions on one.

use std::path::Path;

use super::{Difference, RandomCase, VerifyError, manifest::Manifest, random_cases};
use crate::{
    engine::{self, Engine, EngineChoice, EngineError, EngineOptions},
    tensor::Tensor,
};

/// The inputs are the same in every run.
const SEED: u64 = 20_240_307;

/// tract keeps a copy of all weights in memory, so larger ones are left to ONNX Runtime.
const MOST_BYTES_IN_TRACT: u64 = 4 << 30;

/// How an exported component did on two engines.
#[derive(Clone, Debug)]
pub struct EngineComparison {
    /// The component, as its manifest names it.
    pub component: String,
    /// The precision of its weights.
    pub precision: String,
    /// The engine that is taken as the reference.
    pub reference: String,
    /// The engine compared with it.
    pub second: String,
    /// Why the second engine is not tract, where it is not.
    pub note: Option<String>,
    /// The largest difference between them.
    pub difference: Difference,
    /// The largest relative difference that is accepted in this precision.
    pub allowed: f64,
}

/// How far two engines may be apart, as [`Difference::max_relative`], by the precision of the
/// weights. `None` for a precision that this version does not know.
///
/// In fp32 only the order of summation differs. In the others an engine may compute in the narrow
/// type or in fp32, and may round activations to 8 bits or leave them, which is a difference of the
/// size of the precision itself.
pub fn allowed_difference(precision: &str) -> Option<f64> {
    Some(match precision {
        "fp32" => 1e-4,
        "fp16" => 2e-2,
        "bf16" => 5e-2,
        "int8" | "int8_dynamic" => 1e-1,
        "int4" => 1e-1,
        _ => return None,
    })
}

/// How far a component may be from the same component in fp32, as [`Difference::max_relative`] on
/// random inputs. `None` for a precision that this version does not know.
///
/// First values, well above what correct exports of the released sizes are expected to show and
/// below what a wrong one shows: a transposed or shifted weight gives an error near 1.
pub fn allowed_error(precision: &str) -> Option<f64> {
    Some(match precision {
        "fp32" => 1e-4,
        // 11 bits a weight and a value.
        "fp16" => 2e-2,
        // 8 bits a weight and a value.
        "bf16" => 5e-2,
        // 8 bits a weight, and in the dynamic form a value, of a block's largest.
        "int8" | "int8_dynamic" => 1e-1,
        // 4 bits a weight: one sixteenth of a block's range is half a step.
        "int4" => 5e-1,
        _ => return None,
    })
}

/// Runs the component in `folder` on random inputs on `engine` and a second engine, and compares
/// their outputs.
///
/// The second engine is tract; where tract cannot run the graph, or its weights are too large to be
/// copied into memory, it is `engine` itself, computing the graph node by node as it is written.
///
/// # Errors
/// When the manifest or the graph cannot be read, an engine fails, or the outputs are not even of
/// the same shape. That they are far apart is not an error but the answer.
pub fn compare_engines(
    folder: &Path,
    engine: &dyn Engine,
) -> Result<EngineComparison, VerifyError> {
    let manifest = Manifest::require(folder)?;
    let model = folder.join("model.onnx");
    let allowed = allowed_difference(&manifest.precision).ok_or_else(|| VerifyError::Manifest {
        path: folder.join("manifest.json"),
        reason: format!("found the unknown precision {:?}", manifest.precision),
    })?;
    let cases = random_cases(&model, &manifest.architecture, SEED)?;
    let reference = outputs(engine, &model, &cases)?;
    let bytes = manifest.files.iter().fold(0u64, |sum, file| sum.saturating_add(file.bytes));
    let (second, name, note) = second_outputs(engine, &model, &cases, bytes)?;
    Ok(EngineComparison {
        component: manifest.component,
        precision: manifest.precision,
        reference: engine.describe(),
        second: name,
        note,
        difference: difference(&model, &second, &reference)?,
        allowed,
    })
}

/// Runs the graphs of two exports of one component on the same random inputs on `engine`, one after
/// the other, and says how far the outputs of `model` are from those of `reference`.
///
/// `architecture` is what the manifest says, or would say.
///
/// # Errors
/// As [`compare_engines`].
pub fn compare_models(
    engine: &dyn Engine,
    model: &Path,
    reference: &Path,
    architecture: &serde_json::Value,
) -> Result<Difference, VerifyError> {
    let cases = random_cases(reference, architecture, SEED)?;
    let expected = outputs(engine, reference, &cases)?;
    let found = outputs(engine, model, &cases)?;
    difference(model, &found, &expected)
}

type Outputs = Vec<Vec<(String, Tensor)>>;

/// The outputs for every case. The graph is given back before the next one is loaded.
fn outputs(
    engine: &dyn Engine,
    model: &Path,
    cases: &[RandomCase],
) -> Result<Outputs, EngineError> {
    let mut session = engine.load(model)?;
    let run = |case: &RandomCase| {
        let inputs: Vec<_> =
            case.inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
        session.run(&inputs)
    };
    cases.iter().map(run).collect()
}

fn second_outputs(
    engine: &dyn Engine,
    model: &Path,
    cases: &[RandomCase],
    bytes: u64,
) -> Result<(Outputs, String, Option<String>), VerifyError> {
    let reason = if bytes > MOST_BYTES_IN_TRACT {
        format!("its {bytes} bytes would all be copied into memory")
    } else {
        let tract = engine::open(EngineChoice::Tract, &EngineOptions::default())?.engine;
        match outputs(&*tract, model, cases) {
            Ok(outputs) => return Ok((outputs, tract.describe(), None)),
            Err(error @ (EngineError::Load { .. } | EngineError::Run { .. })) => error.to_string(),
            Err(error) => return Err(error.into()),
        }
    };
    let Some(plain) = engine.plain() else {
        return Err(VerifyError::NoSecondEngine { model: model.to_owned(), reason });
    };
    let outputs = outputs(&*plain, model, cases)?;
    Ok((outputs, plain.describe(), Some(format!("not compared with tract: {reason}"))))
}

fn difference(
    model: &Path,
    found: &Outputs,
    reference: &Outputs,
) -> Result<Difference, VerifyError> {
    let describe = |outputs: &[(String, Tensor)]| {
        let each = outputs.iter().map(|(name, value)| engine::describe_value(name, value));
        each.collect::<Vec<_>>().join(", ")
    };
    let mut worst = Difference::default();
    for (found, reference) in found.iter().zip(reference) {
        let mismatch = || VerifyError::Output {
            model: model.to_owned(),
            found: describe(found),
            expected: describe(reference),
        };
        if describe(found) != describe(reference) {
            return Err(mismatch());
        }
        for ((_, found), (_, reference)) in found.iter().zip(reference) {
            let (Some(found), Some(reference)) = (found.as_f32(), reference.as_f32()) else {
                return Err(mismatch());
            };
            worst = worst.worst(Difference::of(found, reference));
        }
    }
    Ok(worst)
}
