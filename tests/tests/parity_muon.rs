//! Muon against torch's.

use std::collections::BTreeMap;

use ndarray::ArrayD;
use pixart_runtime::{engine::Engine, tensor::Tensor};
use pixart_tests::{component::TOLERANCE, engines, errors::max_relative_error, fixtures};
use pixart_trainer::{
    Tensors, Values,
    optimizer::{Algorithm, Group, Muon, Optimizer, Step},
    to_tensors,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Rates {
    learning_rate: f64,
    weight_decay: f64,
}

fn cases() -> BTreeMap<String, Tensors> {
    let floats = |(name, tensor): (String, Tensor)| {
        let array = tensor.into_f32(&name).expect("floats");
        (name, array)
    };
    let cases = fixtures::cases("training/muon.safetensors").into_iter();
    cases.map(|(case, tensors)| (case, tensors.into_iter().map(floats).collect())).collect()
}

fn values(tensors: &Tensors) -> Values {
    tensors.iter().map(|(name, array)| (name.clone(), array.clone().into())).collect()
}

fn arrays(values: &Values) -> Tensors {
    to_tensors(values).expect("floats")
}

fn optimizer(engine: &dyn Engine, weights: &Values) -> Optimizer {
    let algorithm = Algorithm::Muon(Muon::default());
    Optimizer::new(engine, algorithm, vec![Group::without_decay()], weights).expect("an optimizer")
}

/// Does the steps from `first` (counted from 1) to `last`; `each` sees the weights after every one.
fn train(
    optimizer: &mut Optimizer,
    weights: &mut Values,
    (first, last): (usize, usize),
    mut each: impl FnMut(usize, &Tensors),
) {
    let cases = cases();
    let rates: Vec<Rates> = fixtures::json("training/muon.json");
    let steps = (1..=last).zip(rates).skip(first - 1);
    for (step, Rates { learning_rate, weight_decay }) in steps {
        // As a loss scale would leave them.
        let gradients = cases[&format!("gradient_{step:02}")].iter();
        let gradients = gradients.map(|(name, value)| (name.clone(), (value * 4.0).into()));
        let now = Step { learning_rate, weight_decay, gradient_scale: 0.25 };
        optimizer.step(weights, gradients.collect(), &now).expect("a step");
        each(step, &arrays(weights));
    }
}

/// The largest error, as a part of the longest way that an element of the weight has gone.
fn error(name: &str, start: &ArrayD<f32>, found: &ArrayD<f32>, expected: &ArrayD<f32>) -> f64 {
    max_relative_error(name, &(found - start), &(expected - start))
}

#[test]
fn twenty_steps_are_torch_s() {
    let cases = cases();
    for engine in engines::both() {
        let mut weights = values(&cases["start"]);
        let mut optimizer = optimizer(&*engine, &weights);
        let (mut worst, mut compared) = (0.0f64, 0);
        train(&mut optimizer, &mut weights, (1, 20), |step, weights| {
            let Some(expected) = cases.get(&format!("muon_{step:02}")) else { return };
            assert_eq!(weights.len(), expected.len());
            for (name, expected) in expected {
                let label = format!("{name} on {}, step {step}", engine.name());
                let error = error(&label, &cases["start"][name], &weights[name], expected);
                assert!(error < TOLERANCE, "{label}: {error:.2e}");
                worst = worst.max(error);
            }
            compared += 1;
        });
        println!("muon on {}: {worst:.2e} of the way a weight went", engine.name());
        assert_eq!((compared, optimizer.steps()), (4, 20));
    }
}

#[test]
fn a_restored_one_goes_on_bit_for_bit() {
    let cases = cases();
    for engine in engines::both() {
        let mut weights = values(&cases["start"]);
        let mut first = optimizer(&*engine, &weights);
        train(&mut first, &mut weights, (1, 10), |_, _| ());
        let state: Values = first.state().map(|(key, value)| (key, value.clone())).collect();
        // One number for each element of a matrix, two for all others.
        let momenta = state.keys().filter(|key| key.starts_with("momentum/")).count();
        assert_eq!((momenta, state.len()), (3, 3 + 2 * 4));
        let mut again = weights.clone();
        train(&mut first, &mut weights, (11, 20), |_, _| ());

        let mut second = optimizer(&*engine, &again);
        second.restore(10, arrays(&state)).expect("the same optimizer");
        train(&mut second, &mut again, (11, 20), |_, _| ());
        assert_eq!(arrays(&again), arrays(&weights), "on {}", engine.name());
    }
}
