//! Exported graphs on random inputs: on two engines, or in two precisions on one.

use std::{path::Path, sync::Arc};

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
pub fn allowed_difference(precision: &str) -> Option<f64> {
    Some(match precision {
        // Only the order of summation differs.
        "fp32" => 1e-4,
        // ONNX Runtime computes in fp32 on processors, tract in fp16; measured up to 8e-2 (VAE).
        "fp16" => 1e-1,
        // Every engine widens the weights and computes in fp32.
        "bf16" => 1e-3,
        // Activations are rounded to 8 bits or not, by engine and way of computing; measured up to
        // 4e-2 in models a hundredth as wide as the released ones.
        "int8" | "int4" => 1e-1,
        _ => return None,
    })
}

/// How far a component may be from the same component in fp32, as [`Difference::max_relative`] on
/// random inputs. `None` for a precision that this version does not know.
///
/// Above what correct exports show, small models with random weights included, where errors have few
/// terms to cancel in; below what wrong ones show: a matrix transposed, shifted or with the wrong
/// scales gives an error near 1.
pub fn allowed_error(precision: &str) -> Option<f64> {
    Some(match precision {
        "fp32" => 1e-4,
        // 11 bits a number; measured up to 3e-3.
        "fp16" => 2e-2,
        // 8 bits a weight; measured up to 2e-2.
        "bf16" => 5e-2,
        // 8 bits a weight of a block's range, and often an activation; measured up to 6e-2.
        "int8" => 2e-1,
        // 4 bits a weight: 15 steps for a block's range; measured up to 5e-1 in models so small.
        "int4" => 8e-1,
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

/// Runs the graphs of two exports of one component on the same random inputs, one after the other, and
/// says how far the outputs of `model` are from those of `reference`.
///
/// Both are computed as they are written where `engine` can, so that memory is needed for one layer
/// at a time; `model` with repacked weights, as it will be computed in earnest. `architecture` is what
/// the manifest says, or would say.
///
/// # Errors
/// As [`compare_engines`].
pub fn compare_models(
    engine: &Arc<dyn Engine>,
    model: &Path,
    reference: &Path,
    architecture: &serde_json::Value,
) -> Result<Difference, VerifyError> {
    let plain = |repack| engine.plain(repack).unwrap_or_else(|| engine.clone());
    let cases = random_cases(reference, architecture, SEED)?;
    let expected = outputs(&*plain(false), reference, &cases)?;
    let found = outputs(&*plain(true), model, &cases)?;
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
    let Some(plain) = engine.plain(false) else {
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
