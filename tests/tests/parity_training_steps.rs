//! Optimizers, clipping, averages, schedules and loss scales against torch, diffusers and, for CAME,
//! its formulas in torch.

use std::collections::BTreeMap;

use ndarray::ArrayD;
use pixart_runtime::{
    engine::{Engine, Value},
    noise::TorchGenerator,
    tensor::Tensor,
};
use pixart_tests::{component::TOLERANCE, engines, errors::max_relative_error, fixtures};
use pixart_trainer::{
    Tensors, Values,
    ema::{Average, Warmup},
    optimizer::{
        Accumulated, Accumulator, AdamW, Algorithm, Came, Group, Mean, Optimizer, OptimizerError,
        Step, clip_factor,
    },
    scaler::{Dynamic, LossScaler, Scaling},
    schedule::{Schedule, Shape},
    to_tensors,
};
use serde::Deserialize;

/// Steps of the reference.
const STEPS: usize = 20;

#[derive(Deserialize)]
struct Numbers {
    steps: Vec<Rates>,
    norms: Vec<Norm>,
    average_decays: BTreeMap<String, Vec<f64>>,
    schedules: BTreeMap<String, Vec<f64>>,
    scaler: Scaler,
}

#[derive(Deserialize)]
struct Rates {
    learning_rate: f64,
    weight_decay: f64,
}

#[derive(Deserialize)]
struct Norm {
    case: String,
    largest: f64,
    norm: f64,
}

#[derive(Deserialize)]
struct Scaler {
    initial: f64,
    window: u64,
    overflows: Vec<bool>,
    scales: Vec<f64>,
}

fn numbers() -> Numbers {
    fixtures::json("training/steps.json")
}

fn cases() -> BTreeMap<String, Tensors> {
    let cases = fixtures::cases("training/steps.safetensors").into_iter();
    let floats = |(name, tensor): (String, Tensor)| {
        let array = tensor.into_f32(&name).expect("floats");
        (name, array)
    };
    cases.map(|(case, tensors)| (case, tensors.into_iter().map(floats).collect())).collect()
}

fn values(tensors: &Tensors) -> Values {
    tensors.iter().map(|(name, array)| (name.clone(), array.clone().into())).collect()
}

fn arrays(values: &Values) -> Tensors {
    to_tensors(values).unwrap_or_else(|error| panic!("{error}"))
}

fn error(case: &str, found: &Tensors, expected: &Tensors) -> f64 {
    assert_eq!(found.len(), expected.len(), "{case}");
    let each = expected.iter().map(|(name, expected)| {
        max_relative_error(&format!("{case}, {name}"), &found[name], expected)
    });
    each.fold(0.0, f64::max)
}

/// The largest error, as a part of the longest way that an element of the weight has gone.
fn error_of_way(case: &str, start: &Tensors, found: &Tensors, expected: &Tensors) -> f64 {
    let way = |to: &Tensors| -> Tensors {
        let each = to.iter().map(|(name, value)| (name.clone(), value - &start[name]));
        each.collect()
    };
    error(case, &way(found), &way(expected))
}

fn algorithms() -> [Algorithm; 2] {
    [Algorithm::AdamW(AdamW::default()), Algorithm::Came(Came::default())]
}

fn optimizer(engine: &dyn Engine, algorithm: Algorithm, weights: &Values) -> Optimizer {
    let groups = vec![Group::without_decay()];
    Optimizer::new(engine, algorithm, groups, weights).unwrap_or_else(|error| panic!("{error}"))
}

/// Does the steps from `first` (counted from 1) to `last`; `each` sees the weights after every one.
fn train(
    optimizer: &mut Optimizer,
    weights: &mut Values,
    (first, last): (usize, usize),
    mut each: impl FnMut(usize, &Tensors),
) {
    let (cases, numbers) = (cases(), numbers());
    for step in first..=last {
        let Rates { learning_rate, weight_decay } = numbers.steps[step - 1];
        // As a loss scale would leave them.
        let gradients = cases[&format!("gradient_{step:02}")].iter();
        let gradients = gradients.map(|(name, value)| (name.clone(), (value * 4.0).into()));
        let now = Step { learning_rate, weight_decay, gradient_scale: 0.25 };
        let moved = optimizer.step(weights, gradients.collect(), &now);
        moved.unwrap_or_else(|error| panic!("{error}"));
        each(step, &arrays(weights));
    }
}

#[test]
fn twenty_steps_are_torch_s() {
    let cases = cases();
    for engine in engines::both() {
        for algorithm in algorithms() {
            let mut weights = values(&cases["start"]);
            let mut optimizer = optimizer(&*engine, algorithm, &weights);
            let (mut worst, mut compared) = (0.0f64, 0);
            train(&mut optimizer, &mut weights, (1, STEPS), |step, weights| {
                let Some(expected) = cases.get(&format!("{algorithm}_{step:02}")) else { return };
                let name = format!("{algorithm} on {}, step {step}", engine.name());
                worst = worst.max(error_of_way(&name, &cases["start"], weights, expected));
                compared += 1;
            });
            let name = engine.name();
            println!("{algorithm} on {name}: largest error {worst:.2e} of the way a weight went");
            assert_eq!((compared, optimizer.steps()), (4, STEPS as u64));
            assert!(worst < TOLERANCE, "{algorithm} on {}: {worst:.2e}", engine.name());
        }
    }
}

/// What is not trained stays, and values that others share are not changed for them.
#[test]
fn only_what_is_trained_moves_and_only_where_it_is_meant_to() {
    let cases = cases();
    for engine in engines::both() {
        for algorithm in algorithms() {
            let step = Step { learning_rate: 0.1, weight_decay: 0.1, gradient_scale: 1.0 };
            let gradients = values(&cases["gradient_01"]);
            let mut alone = values(&cases["start"]);
            optimizer(&*engine, algorithm, &gradients)
                .step(&mut alone, gradients.clone(), &step)
                .expect("a step");
            let mut weights = values(&cases["start"]);
            weights.insert("ids".to_owned(), ArrayD::<i64>::zeros(vec![3]).into());
            weights.insert("frozen".to_owned(), ArrayD::<f32>::ones(vec![3]).into());
            let before = weights.clone();
            let average = Average::new(&*engine, 0.5, Warmup::None, &values(&cases["start"]));
            let mut average = average.expect("an average");
            optimizer(&*engine, algorithm, &gradients)
                .step(&mut weights, gradients.clone(), &step)
                .expect("a step");
            average.update(&weights).expect("updated");
            let frozen = weights["frozen"].to_tensor().expect("floats");
            assert_eq!(frozen, ArrayD::<f32>::ones(vec![3]).into());
            for (name, array) in &arrays(&alone) {
                let tensor = |value: &Value| value.to_tensor().expect("floats");
                assert_eq!(tensor(&weights[name]), array.clone().into(), "{name}");
                assert_eq!(tensor(&before[name]), cases["start"][name].clone().into(), "{name}");
                let middle = (array + &cases["start"][name]) / 2.0;
                let average = &arrays(average.weights())[name];
                assert!(max_relative_error(name, average, &middle) < 1e-6);
            }
            assert_eq!(arrays(&gradients), cases["gradient_01"], "gradients are read only");
        }
    }
}

fn state(optimizer: &Optimizer) -> Tensors {
    arrays(&optimizer.state().map(|(key, value)| (key, value.clone())).collect())
}

#[test]
fn a_restored_optimizer_goes_on_bit_for_bit() {
    let cases = cases();
    for engine in engines::both() {
        for algorithm in algorithms() {
            let mut weights = values(&cases["start"]);
            let mut first = optimizer(&*engine, algorithm, &weights);
            train(&mut first, &mut weights, (1, 10), |_, _| ());
            let state = state(&first);
            let mut again = values(&arrays(&weights));
            train(&mut first, &mut weights, (11, STEPS), |_, _| ());

            let mut second = optimizer(&*engine, algorithm, &again);
            second.restore(10, state).expect("the same optimizer");
            train(&mut second, &mut again, (11, STEPS), |_, _| ());
            assert_eq!(arrays(&again), arrays(&weights), "{algorithm} on {}", engine.name());
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let cases = cases();
    let engine = engines::tract();
    let [adamw, came] = algorithms();
    let mut weights = values(&cases["start"]);
    let mut found = optimizer(&*engine, adamw, &weights);
    let step = Step { learning_rate: 0.1, weight_decay: 0.0, gradient_scale: 1.0 };
    let mut refused = |gradients: Tensors, step: &Step, words: &[&str]| {
        let gradients = values(&gradients);
        let error = found.step(&mut weights, gradients, step).expect_err("refused").to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert_eq!((found.steps(), &arrays(&weights)), (0, &cases["start"]));
    };
    let good = || cases["gradient_01"].clone();
    let mut gradients = good();
    gradients.remove("proj.bias");
    refused(gradients, &step, &["gradient of proj.bias", "found none", "[18]"]);
    let mut gradients = good();
    gradients.insert("proj.bias".to_owned(), gradients["proj.weight"].clone());
    refused(gradients, &step, &["gradient of proj.bias", "[12, 18]", "[18]"]);
    let mut gradients = good();
    gradients.insert("frozen".to_owned(), gradients["proj.bias"].clone());
    refused(gradients, &step, &["gradient of frozen"]);
    refused(good(), &Step { learning_rate: f64::NAN, ..step }, &["learning rate", "NaN"]);
    refused(good(), &Step { gradient_scale: f64::INFINITY, ..step }, &["gradients", "inf"]);

    // The state of the other optimizer, and one with a tensor too few.
    let other = state(&optimizer(&*engine, came, &values(&cases["start"])));
    assert_eq!(other["rows/patch.weight"].shape(), [24, 2, 1]);
    let error = found.restore(3, other).expect_err("another optimizer").to_string();
    assert!(error.contains("first_moment of patch.weight: found f32[24, 2, 3]"), "{error}");
    let mut few = state(&found);
    few.remove("second_moment/proj.bias");
    let error = found.restore(3, few).expect_err("too few").to_string();
    assert!(error.contains("second_moment of proj.bias"), "{error}");
    assert_eq!(found.steps(), 0);
    let nothing = Optimizer::new(&*engine, adamw, Vec::new(), &Values::new());
    assert!(matches!(nothing, Err(OptimizerError::Nothing)));
}

fn complete(accumulated: Accumulated) -> Mean {
    match accumulated {
        Accumulated::Complete(mean) => mean,
        other => panic!("{other:?}"),
    }
}

/// The mean with all its factors.
fn applied(mean: &Mean, factor: f64) -> Tensors {
    scaled(&arrays(&mean.tensors), mean.scale * factor)
}

fn scaled(tensors: &Tensors, factor: f64) -> Tensors {
    tensors.iter().map(|(name, value)| (name.clone(), value * factor as f32)).collect()
}

#[test]
fn norms_and_clipping_are_torch_s() {
    let cases = cases();
    for engine in engines::both() {
        for Norm { case, largest, norm } in numbers().norms {
            let mut accumulator = Accumulator::new(&*engine, 1).expect("accumulator");
            let scaled_up = scaled(&cases["gradient_03"], 1024.0);
            let mean = complete(accumulator.add(values(&scaled_up), 1024.0).expect("added"));
            assert!((mean.norm / norm - 1.0).abs() < 1e-6, "{} for {norm}", mean.norm);
            let found = applied(&mean, clip_factor(mean.norm, largest));
            assert!(error(&case, &found, &cases[&case]) < 1e-6, "{case} on {}", engine.name());
        }
    }
}

#[test]
fn gradients_are_accumulated_as_their_mean() {
    let cases = cases();
    for engine in engines::both() {
        let mut accumulator = Accumulator::new(&*engine, 3).expect("accumulator");
        let add = |accumulator: &mut Accumulator, step: usize| {
            let gradients = scaled(&cases[&format!("gradient_{step:02}")], 8.0);
            accumulator.add(values(&gradients), 8.0).expect("added")
        };
        for round in 0..2 {
            let first = 3 * round;
            assert!(matches!(add(&mut accumulator, first + 1), Accumulated::Incomplete));
            // What is not finite is left out, in whatever tensor it is.
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for name in cases["start"].keys() {
                    let mut gradients = cases["gradient_02"].clone();
                    *gradients.get_mut(name).expect("there").last_mut().expect("elements") = bad;
                    let added = accumulator.add(values(&gradients), 1.0).expect("added");
                    assert!(matches!(added, Accumulated::Overflow), "{bad} in {name}");
                }
            }
            assert_eq!(accumulator.pending(), 1);
            assert!(matches!(add(&mut accumulator, first + 2), Accumulated::Incomplete));
            let mean = complete(add(&mut accumulator, first + 3));
            let expected: Tensors = cases["start"]
                .keys()
                .map(|name| {
                    let sum = |k: usize| &cases[&format!("gradient_{:02}", first + k)][name];
                    (name.clone(), (sum(1) + sum(2) + sum(3)) / 3.0)
                })
                .collect();
            let found = applied(&mean, 1.0);
            assert!(error("mean", &found, &expected) < 1e-6, "on {}", engine.name());
            let squares = expected.values().flatten().map(|&x| f64::from(x).powi(2)).sum::<f64>();
            assert!((mean.norm / squares.sqrt() - 1.0).abs() < 1e-6);
            assert_eq!(accumulator.pending(), 0);
        }
        // Other weights in the middle of a step.
        add(&mut accumulator, 1);
        let mut gradients = cases["gradient_02"].clone();
        gradients.remove("proj.bias");
        let error = accumulator.add(values(&gradients), 1.0).expect_err("one too few").to_string();
        assert!(error.contains("gradient of proj.bias"), "{error}");
    }
}

/// Large weights go through the graphs in pieces.
#[test]
fn large_weights_move_as_their_parts_by_themselves() {
    const PARTS: usize = 50;
    const LENGTH: usize = 1000;
    let mut generator = TorchGenerator::new(11);
    let (mut small, mut gradients) = (Tensors::new(), Tensors::new());
    for part in 0..PARTS {
        for tensors in [&mut small, &mut gradients] {
            let values = generator.randn(LENGTH);
            let array = ArrayD::from_shape_vec(vec![LENGTH], values).expect("as many");
            tensors.insert(format!("{part:02}"), array);
        }
    }
    // One matrix of all parts, whose elements lie in another order in memory.
    let joined = |parts: &Tensors| {
        let all: Vec<f32> = parts.values().flatten().copied().collect();
        let rows = ArrayD::from_shape_vec(vec![PARTS, LENGTH], all).expect("as many");
        let turned = rows.reversed_axes().as_standard_layout().into_owned().reversed_axes();
        Tensors::from([("all".to_owned(), turned)])
    };
    let step = Step { learning_rate: 1e-2, weight_decay: 0.1, gradient_scale: 0.5 };
    for engine in engines::both() {
        let (mut small, mut large) = (values(&small), values(&joined(&small)));
        let algorithm = Algorithm::AdamW(AdamW::default());
        let [mut of_small, mut of_large] =
            [&small, &large].map(|weights| optimizer(&*engine, algorithm, weights));
        let average = |weights| Average::new(&*engine, 0.9, Warmup::None, weights).expect("one");
        let [mut average_small, mut average_large] = [&small, &large].map(average);
        for _ in 0..2 {
            of_small.step(&mut small, values(&gradients), &step).expect("a step");
            of_large.step(&mut large, values(&joined(&gradients)), &step).expect("a step");
            average_small.update(&small).expect("updated");
            average_large.update(&large).expect("updated");
        }
        assert_eq!(arrays(&large), joined(&arrays(&small)), "{}", engine.name());
        let averages = [average_large.weights(), average_small.weights()].map(arrays);
        assert_eq!(averages[0], joined(&averages[1]));
        let squares = gradients.values().flatten().map(|&x| f64::from(x).powi(2)).sum::<f64>();
        let [two, one] = [2, 1].map(|batches| {
            let mut accumulator = Accumulator::new(&*engine, batches).expect("accumulator");
            for _ in 1..batches {
                accumulator.add(values(&joined(&gradients)), 1.0).expect("added");
            }
            complete(accumulator.add(values(&joined(&gradients)), 1.0).expect("added"))
        });
        for mean in [&two, &one] {
            assert!((mean.norm / squares.sqrt() - 1.0).abs() < 1e-6, "{}", mean.norm);
            assert_eq!(applied(mean, 1.0), joined(&gradients));
        }
        // Only the last element of the last piece is bad.
        let mut bad = joined(&gradients);
        *bad.get_mut("all").expect("there").last_mut().expect("elements") = f32::NAN;
        let mut accumulator = Accumulator::new(&*engine, 1).expect("accumulator");
        assert!(matches!(
            accumulator.add(values(&bad), 1.0).expect("added"),
            Accumulated::Overflow
        ));
    }
}

#[test]
fn the_moving_average_is_diffusers() {
    let (cases, numbers) = (cases(), numbers());
    for engine in engines::both() {
        for (kind, decay, warmup) in [
            ("ratio", 0.6, Warmup::Ratio),
            ("power", 0.9, Warmup::Power { inverse_gamma: 2.0, power: 0.75 }),
        ] {
            let mut weights = cases["start"].clone();
            let new = |weights: &Tensors| Average::new(&*engine, decay, warmup, &values(weights));
            let mut average = new(&weights).expect("an average");
            for step in 1..=STEPS {
                for (name, change) in &cases[&format!("gradient_{step:02}")] {
                    *weights.get_mut(name).expect("there") += change;
                }
                let expected = numbers.average_decays[kind][step - 1];
                assert!((average.next_decay() - expected).abs() < 1e-12, "{kind}, step {step}");
                if step == 10 {
                    // From a checkpoint.
                    let (updates, tensors) = (average.updates(), arrays(average.weights()));
                    average = new(&cases["start"]).expect("new");
                    average.restore(updates, tensors).expect("the same weights");
                }
                average.update(&values(&weights)).expect("updated");
            }
            let expected = &cases[&format!("average_{kind}")];
            let worst = error(kind, &arrays(average.weights()), expected);
            assert!(worst < 1e-5, "{kind} on {}: {worst:.2e}", engine.name());
        }
    }
}

#[test]
fn schedules_are_diffusers() {
    let schedules = numbers().schedules;
    assert_eq!(schedules.len(), 3);
    for (name, expected) in schedules {
        let schedule = Schedule {
            learning_rate: 2e-5,
            warmup_steps: if name == "constant_at_once" { 0 } else { 10 },
            shape: if name == "cosine" { Shape::Cosine } else { Shape::Constant },
            total_steps: 50,
        };
        for (step, expected) in expected.into_iter().enumerate() {
            // diffusers' cosine comes up again behind its last step.
            let expected = if name == "cosine" && step >= 50 { 0.0 } else { expected };
            let found = schedule.learning_rate(step as u64);
            assert!((found - expected).abs() < 1e-18, "{name}, step {step}: {found}, {expected}");
        }
    }
}

#[test]
fn the_loss_scale_is_torch_s() {
    let Scaler { initial, window, overflows, scales } = numbers().scaler;
    let dynamic = Dynamic { initial, factor: 2.0, window };
    let mut scaler = LossScaler::new(Scaling::Dynamic(dynamic)).expect("fits");
    for (step, (overflow, expected)) in overflows.into_iter().zip(scales).enumerate() {
        scaler.update(overflow);
        assert_eq!(scaler.scale(), expected, "after batch {step}");
    }
}
