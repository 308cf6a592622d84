//! Twenty steps of every optimizer against PyTorch, on both engines.

use ndarray::{ArrayD, Axis};
use pixart_runtime::tensor::Tensor;
use pixart_tests::errors::assert_close;
use pixart_tests::{engines, fixtures};
use pixart_trainer::gradient::{Gradients, Weights};
use pixart_trainer::optimizer::{AdamW, Came, Optimizer, Rule};

const TOLERANCE: f64 = 1e-4;
const WEIGHTS: [&str; 4] = ["matrix", "kernel", "vector", "table"];

fn assert_twenty_steps(name: &str, rule: Rule, max_norm: Option<f64>) {
    let tensors = fixtures::tensors("optimizers.safetensors");
    let floats = |key: String| -> ArrayD<f32> {
        let tensor = tensors.get(&key).unwrap_or_else(|| panic!("no {key}"));
        tensor.as_f32().expect("floats").clone()
    };
    let of = |what: &str, weight: &str| floats(format!("{name}/{what}/{weight}"));
    let norms = floats(format!("{name}/norms"));
    for engine in [engines::ort(), engines::tract()] {
        let mut optimizer = Optimizer::load(engine.as_ref(), rule).expect("graphs");
        let mut weights = Weights::from(
            WEIGHTS.map(|weight| (weight.to_owned(), Tensor::F32(of("start", weight)))),
        );
        let mut found = Vec::new();
        for step in 0..20 {
            let gradient = |weight: &str| {
                floats(format!("gradients/{weight}")).index_axis(Axis(0), step).to_owned()
            };
            let gradients: Gradients =
                WEIGHTS.map(|weight| (weight.to_owned(), gradient(weight))).into();
            // A warm-up of five steps, as in the fixture.
            let rate = 1e-2 * ((step + 1) as f64 / 5.0).min(1.0);
            let norm = optimizer.step(&mut weights, gradients, rate, max_norm).expect("a step");
            found.push(norm as f32);
            if step == 0 || step == 19 {
                for weight in WEIGHTS {
                    // How far it moved, which is less than how large it is.
                    let start = of("start", weight);
                    let moved = weights[weight].as_f32().expect("floats") - &start;
                    let expected = of(&(step + 1).to_string(), weight) - &start;
                    let case = format!("{name} on {}, {weight} after {}", engine.name(), step + 1);
                    // The first steps of a warm-up are so short that the last digit of a weight shows.
                    let largest = |x: &ArrayD<f32>| x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
                    let digit = f32::EPSILON * largest(&start) / largest(&expected);
                    let tolerance = TOLERANCE + f64::from(digit);
                    let error = assert_close(&case, &moved, &expected, tolerance);
                    println!("{case}: {error:.1e}");
                }
            }
        }
        let found = ArrayD::from_shape_vec(vec![20], found).expect("twenty");
        assert_close(&format!("{name} on {}, norms", engine.name()), &found, &norms, 1e-6);
        assert_eq!(optimizer.steps(), 20);
    }
}

#[test]
fn adamw_equals_torch() {
    assert_twenty_steps("adamw", Rule::AdamW(AdamW::default()), None);
}

#[test]
fn adamw_with_clipped_gradients_equals_torch() {
    assert_twenty_steps("adamw_clipped", Rule::AdamW(AdamW::default()), Some(0.5));
}

#[test]
fn came_equals_its_formulas_in_torch() {
    assert_twenty_steps("came", Rule::Came(Came::default()), None);
}

#[test]
fn came_with_decay_and_clipped_gradients_equals_its_formulas_in_torch() {
    let came = Came { weight_decay: 0.1, clip_threshold: 0.5, ..Came::default() };
    assert_twenty_steps("came_decayed_clipped", Rule::Came(came), Some(0.01));
}
