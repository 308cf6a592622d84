//! One exported component against its fixtures, on both engines.

use std::path::Path;

use ndarray::{ArrayD, Axis};
use pixart_exporter::{Component, ExportOptions};
use pixart_runtime::{engine::Session, tensor::Tensor};

use crate::{
    engines,
    errors::{assert_close, max_relative_error},
    exports::Export,
    fixtures::{self, Case},
};

/// The largest error allowed in fp32, against the reference and between engines.
pub const TOLERANCE: f64 = 1e-4;

/// The name of a component's only output.
pub fn output(component: Component) -> &'static str {
    match component {
        Component::Transformer => "out_hidden_states",
        Component::TextEncoder => "last_hidden_state",
        Component::VaeDecoder => "sample",
        Component::VaeEncoder => "latent_parameters",
    }
}

/// Runs a session on every tensor of `case` but the component's output.
///
/// # Panics
/// When the engine fails or gives anything but that one output, as floats.
pub fn run(
    name: &str,
    session: &mut dyn Session,
    component: Component,
    case: &Case,
) -> ArrayD<f32> {
    let output = output(component);
    let inputs: Vec<_> = case
        .iter()
        .filter(|(input, _)| *input != output)
        .map(|(input, tensor)| (input.as_str(), tensor))
        .collect();
    let mut outputs = session.run(&inputs).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(outputs.len(), 1, "{name}: number of outputs");
    let (found, tensor) = outputs.remove(0);
    assert_eq!(found, output, "{name}: name of the output");
    tensor.into_f32(output).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Exports `component` of `source` in all profiles, runs every case of `file` on both engines, and
/// compares them with the reference and with one another. Every failure is listed.
///
/// # Panics
/// When anything is further apart than [`TOLERANCE`].
pub fn assert_parity(source: &Path, component: Component, file: &str) {
    assert_parity_with(source, component, file, &ExportOptions::default());
}

/// As [`assert_parity`], with further options than the profile.
///
/// # Panics
/// As [`assert_parity`].
pub fn assert_parity_with(
    source: &Path,
    component: Component,
    file: &str,
    options: &ExportOptions,
) {
    let cases = fixtures::cases(file);
    let output = output(component);
    let mut failures = Vec::new();
    let mut worst = 0.0f64;
    for profile in engines::profiles() {
        let options = ExportOptions { profile, ..options.clone() };
        let export = Export::component_with(source, component, &options);
        let mut sessions: Vec<_> = engines::both()
            .into_iter()
            .map(|engine| {
                let session = engine.load(&export.graph(component));
                let name = engine.name();
                (name, session.unwrap_or_else(|error| panic!("{profile} on {name}: {error}")))
            })
            .collect();
        for (case, tensors) in &cases {
            let expected = tensors[output].as_f32().expect("outputs are floats");
            let mut compare = |what: String, a: &ArrayD<f32>, b: &ArrayD<f32>| {
                let name = format!("{component} {case}, {profile} {what}");
                let error = max_relative_error(&name, a, b);
                worst = worst.max(error);
                if error > TOLERANCE {
                    failures.push(format!("{name}: relative error {error:.2e}"));
                }
            };
            let results: Vec<_> = sessions
                .iter_mut()
                .map(|(engine, session)| {
                    let name = format!("{component} {case}, {profile} on {engine}");
                    (*engine, run(&name, session.as_mut(), component, tensors))
                })
                .collect();
            for (engine, actual) in &results {
                compare(format!("on {engine} against the reference"), actual, expected);
            }
            compare("ort against tract".to_owned(), &results[0].1, &results[1].1);
        }
    }
    println!("{component} ({file}): largest relative error {worst:.2e}");
    assert!(failures.is_empty(), "allowed {TOLERANCE:.0e}:\n{}", failures.join("\n"));
}

/// Runs every case of `file` with more than one row as a whole and row by row, on both engines.
///
/// # Panics
/// When the rows differ by more than rounding.
pub fn assert_rows_are_independent(source: &Path, component: Component, file: &str) {
    // Other sizes are summed in another order, nothing else may change.
    const ROUNDING: f64 = 1e-5;
    let mut compared = 0;
    for profile in engines::profiles() {
        let export = Export::component(source, component, profile);
        for engine in engines::both() {
            let mut session = engine
                .load(&export.graph(component))
                .unwrap_or_else(|error| panic!("{profile} on {}: {error}", engine.name()));
            for (case, tensors) in fixtures::cases(file) {
                let name = format!("{component} {case}, {profile} on {}", engine.name());
                let rows = tensors[output(component)].shape()[0];
                if rows == 1 {
                    continue;
                }
                let whole = run(&name, session.as_mut(), component, &tensors);
                for k in 0..rows {
                    let name = format!("{name}, row {k} of {rows}");
                    let alone = run(&name, session.as_mut(), component, &row(&tensors, k));
                    let expected = whole.select(Axis(0), &[k]);
                    assert_close(&name, &alone, &expected, ROUNDING);
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 0, "{file} has no case with more than one row");
}

fn row(case: &Case, k: usize) -> Case {
    let select = |tensor: &Tensor| match tensor {
        Tensor::F32(array) => Tensor::F32(array.select(Axis(0), &[k])),
        Tensor::I64(array) => Tensor::I64(array.select(Axis(0), &[k])),
    };
    case.iter().map(|(name, tensor)| (name.clone(), select(tensor))).collect()
}
