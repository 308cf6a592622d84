//! Gradients with products of 16 bits against torch's autocast, and training with them.
//!
//! Two computations that round the same values at other places do not agree digit by digit: each is some
//! way from the exact gradient, and their ways are as good as independent. So the bars come from the distance
//! that torch's own gradient has from the exact one (float64): ours must be about as far from it, and
//! both not further from each other than two independent errors of that size. On the processor, torch computes
//! what is inside of attention in 32 bits. Here it has operands of 16, as on graphics cards, and the
//! gradients of queries, whose terms nearly cancel, are up to three times as far from exact for it.

use std::{collections::BTreeMap, sync::Arc};

use half::{bf16, f16};
use ndarray::{Array2, ArrayD};
use pixart_exporter::VariantFlags;
use pixart_exporter::checkpoint::{Checkpoint, OpenOptions};
use pixart_exporter::graph::{GraphBuilder, dim::Dim, ir::DType};
use pixart_exporter::naming::{TransformerConfig, in_diffusers_names};
use pixart_exporter::profile::Profile;
use pixart_exporter::write::{MODEL_FILE, to_bytes};
use pixart_runtime::engine::Engine;
use pixart_runtime::noise::TorchGenerator;
use pixart_runtime::sampler::{NoiseSchedule, SchedulerConfig};
use pixart_runtime::tensor::Tensor;
use pixart_tests::errors::rms_relative_error;
use pixart_tests::{device::Device, engines, fixtures};
use pixart_trainer::gradient::{
    Arithmetic, Inputs, Precision, TrainedTransformer, Training, Weights, in_precision,
};
use pixart_trainer::loss::{Diffusion, LossKind, Target};
use pixart_trainer::optimizer::{Accumulated, Accumulator, AdamW, Algorithm, Optimizer, Step};
use pixart_trainer::scaler::{Dynamic, LossScaler, Scaling};
use pixart_trainer::{Tensors, to_tensors};

/// What the fixture's loss was multiplied by.
const LOSS_SCALE: f64 = 1024.0;

/// As `tests/fixtures/make/mixed_precision.py` has it: weights with more digits than 16 bits hold.
const STRETCH: f32 = 1.01;

fn model() -> (TransformerConfig, Weights) {
    let path = fixtures::root().join("gradients/sigma_weights.safetensors");
    let checkpoint = Checkpoint::open(&path, &OpenOptions::default()).expect("a checkpoint");
    let (checkpoint, _) = in_diffusers_names(checkpoint).expect("known names");
    let flags = VariantFlags {
        sample_size: Some(64),
        num_attention_heads: Some(2),
        ..VariantFlags::default()
    };
    let config = TransformerConfig::read(&checkpoint, None, &flags).expect("a configuration");
    let weights = checkpoint.names().map(|name| {
        let view = checkpoint.tensor(name).expect("listed");
        let elements = view.to_f32().expect("floats");
        let array = ArrayD::from_shape_vec(view.shape.to_vec(), elements).expect("a tensor");
        (name.to_owned(), (array * STRETCH).into())
    });
    (config, weights.collect())
}

/// The batch of the fixture, and the other tensors in it.
struct Batch {
    inputs: Inputs,
    clean: ArrayD<f32>,
    noise: ArrayD<f32>,
    noisy: ArrayD<f32>,
    times: Vec<usize>,
    rest: BTreeMap<String, Tensor>,
}

impl Batch {
    fn open() -> Self {
        let mut all = fixtures::tensors("gradients/mixed.safetensors");
        let mut take = |name: &str| all.remove(name).unwrap_or_else(|| panic!("no {name}"));
        let floats = |tensor: &Tensor| tensor.as_f32().expect("floats").clone();
        let [clean, noise, noisy] = ["clean", "noise", "hidden_states"].map(&mut take);
        let times = take("times");
        let times: Vec<usize> =
            times.as_i64().expect("integers").iter().map(|&time| time as usize).collect();
        let timestep: Vec<f32> = times.iter().map(|&time| time as f32).collect();
        let inputs = Inputs {
            hidden_states: noisy.clone().into(),
            encoder_hidden_states: take("encoder_hidden_states").into(),
            encoder_attention_mask: take("encoder_attention_mask").into(),
            timestep: ndarray::Array1::from(timestep).into(),
            conditions: None,
        };
        let [clean, noise, noisy] = [clean, noise, noisy].map(|tensor| floats(&tensor));
        Self { inputs, clean, noise, noisy, times, rest: all }
    }

    fn target(&self) -> Target<'_> {
        let Self { clean, noise, noisy, times, .. } = self;
        Target { clean, noise, noisy, times }
    }

    /// What torch found in a precision, `exact` in 64 bits.
    fn torch(&self, precision: &str) -> Tensors {
        let prefix = format!("{precision}/");
        let named = self.rest.iter().filter_map(|(name, tensor)| {
            let array = tensor.as_f32()?.clone();
            Some((name.strip_prefix(&prefix)?.to_owned(), array))
        });
        named.collect()
    }
}

fn diffusion() -> Diffusion {
    Diffusion::new(&NoiseSchedule::new(&SchedulerConfig::default()))
}

/// The prediction, and the gradient of every weight, under the fixture's names.
fn step(engine: &dyn Engine, precision: Precision) -> Tensors {
    let (config, weights) = model();
    let batch = Batch::open();
    let training = Training::full().in_precision(precision);
    let mut model = TrainedTransformer::load(engine, &config, &training).expect("graphs");
    let pass = model.forward(&weights, &batch.inputs).expect("a prediction");
    let mut found = Tensors::from([("out_hidden_states".to_owned(), pass.output.clone())]);
    let loss = diffusion().loss(LossKind::WithVariance, &pass.output, &batch.target());
    let gradient = loss.expect("a loss").gradient * LOSS_SCALE as f32;
    let gradients = model.backward(&weights, pass, gradient).expect("gradients");
    for (name, array) in to_tensors(&gradients).expect("floats") {
        found.insert(format!("gradient.{name}"), array / LOSS_SCALE as f32);
    }
    found
}

/// Softmax does not change when all keys move alike: nothing of this gradient is left but rounding.
fn is_rounding_alone(name: &str) -> bool {
    name.ends_with("to_k.bias")
}

fn norm(array: &ArrayD<f32>) -> f64 {
    array.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// Compares with torch's autocast; of the weights, ours may be at most `most` times as far from exact as
/// theirs each, and half of them at most `typical` and at least `least` times: in 32 bits, it would be a
/// thousandth.
fn assert_as_near(
    case: &str,
    precision: Precision,
    found: &Tensors,
    [least, typical, most]: [f64; 3],
) {
    let batch = Batch::open();
    let (exact, torch) = (batch.torch("exact"), batch.torch(precision.as_str()));
    assert_eq!(found.len() + 1, exact.len(), "{case}: all but the loss");
    let (mut all, mut wrong) = (Vec::new(), Vec::new());
    for (name, found) in found {
        if is_rounding_alone(name) {
            let size = norm(found) / norm(&exact[&name.replace(".bias", ".weight")]);
            if size >= 8.0 * precision.unit_roundoff() {
                wrong.push(format!("{name}: {size:.1e} of the matrix's"));
            }
            continue;
        }
        let (exact, torch) = (&exact[name], &torch[name]);
        let theirs = rms_relative_error(name, torch, exact);
        let ours = rms_relative_error(name, found, exact);
        let apart = rms_relative_error(name, found, torch);
        if ours > most * theirs || apart > 1.5 * ours.hypot(theirs) {
            wrong.push(format!(
                "{name}: {ours:.1e} from exact, torch {theirs:.1e}, apart {apart:.1e}"
            ));
        }
        all.push([ours, theirs, ours / theirs, apart]);
    }
    let column = |which: usize| {
        let mut values: Vec<f64> = all.iter().map(|row| row[which]).collect();
        values.sort_by(f64::total_cmp);
        [values[values.len() / 2], values[values.len() - 1]]
    };
    let [ours, theirs, ratio, apart] = [0, 1, 2, 3].map(column);
    println!(
        "{case}: from exact {:.1e} to {:.1e}, torch {:.1e} to {:.1e}, {:.2} to {:.2} times as far; apart \
         {:.1e} to {:.1e} (median, worst)",
        ours[0], ours[1], theirs[0], theirs[1], ratio[0], ratio[1], apart[0], apart[1]
    );
    assert!(wrong.is_empty(), "{case}: {wrong:#?}");
    assert!(ratio[0] < typical, "{case}: half are {:.2} times as far from exact", ratio[0]);
    assert!(ratio[0] >= least, "{case}: nothing is rounded");
}

#[test]
fn gradients_are_as_near_to_the_exact_ones_as_those_of_autocast() {
    for engine in engines::both() {
        for precision in [Precision::Fp16, Precision::Bf16] {
            let case = format!("{precision} on {}", engine.name());
            assert_as_near(&case, precision, &step(&*engine, precision), [0.5, 1.5, 4.0]);
        }
    }
}

/// A graph of 16-bit operators is the same computation where an engine runs it; scores and results have
/// 16 bits as well then.
#[test]
fn operators_of_16_bits_are_nearly_as_near() {
    for engine in engines::both() {
        let case = format!("fp16 operators on {}", engine.name());
        let found = step(&Device::new(engine).with_kernels(), Precision::Fp16);
        assert_as_near(&case, Precision::Fp16, &found, [0.0, 2.0, 4.0]);
    }
}

/// ONNX Runtime has no kernel for products of bf16 on the processor, and says so while it loads.
#[test]
fn what_an_engine_cannot_compute_is_refused_before_training() {
    let (config, _) = model();
    let training = Training::full().in_precision(Precision::Bf16);
    for engine in engines::both() {
        let device = Device::new(engine).with_kernels();
        let error = TrainedTransformer::load(&device, &config, &training).map(drop);
        let error = error.expect_err("no such kernels").to_string();
        println!("{error}");
        assert!(error.contains("bf16") || error.to_lowercase().contains("bfloat16"), "{error}");
    }
}

/// Rounds by multiplying with one.
fn rounded(engine: &dyn Engine, precision: Precision, values: &[f32]) -> Vec<f32> {
    let mut b = GraphBuilder::new("rounded", Profile::Ort);
    let rows = vec![Dim::symbol("rows"), Dim::from(1)];
    let x = b.input("x", DType::F32, rows.clone()).expect("an input");
    let one = b.constant_f32(&[1.0], &[1, 1]);
    let y = b.matmul(&x, &one).expect("a product");
    b.output("y", &y, DType::F32, &rows).expect("an output");
    let graph = in_precision(b.finish(), precision, Arithmetic::Rounded);
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join(MODEL_FILE);
    std::fs::write(&path, to_bytes(&graph).expect("a model")).expect("written");
    let mut session = engine.load(&path).expect("loads");
    let x = Array2::from_shape_vec((values.len(), 1), values.to_vec()).expect("a column");
    let (_, y) = session.run(&[("x", &x.into())]).expect("runs").remove(0);
    y.into_f32("y").expect("floats").iter().copied().collect()
}

#[test]
fn numbers_are_rounded_to_the_nearest_of_16_bits() {
    let mut generator = TorchGenerator::new(3);
    let (mantissas, exponents) = (generator.randn(20_000), generator.randn(20_000));
    let mut values: Vec<f32> =
        mantissas.iter().zip(&exponents).map(|(m, e)| m * (8.0 * e).exp2()).collect();
    values.extend([0.0, 1.0, -1.0, 65504.0, 65519.0, 1e-7, 1e-5, 1.0 + 2f32.powi(-9) * 1.01]);
    values.extend([f32::INFINITY, 65521.0, -1e9]);
    for engine in engines::both() {
        let found = rounded(&*engine, Precision::Fp16, &values);
        for (&x, found) in values.iter().zip(found) {
            assert_eq!(found, f16::from_f32(x).to_f32(), "fp16 of {x} on {}", engine.name());
        }
        let finite: Vec<f32> = values.iter().copied().filter(|x| x.is_finite()).collect();
        let found = rounded(&*engine, Precision::Bf16, &finite);
        for (&x, found) in finite.iter().zip(found) {
            // Of the two that are equally near, any is right.
            let halfway = x.to_bits() & 0xffff == 0x8000;
            let even = bf16::from_f32(x).to_f32();
            let right = found == even || (halfway && (found - x).abs() == (even - x).abs());
            assert!(right, "bf16 of {x} on {}: {found}, not {even}", engine.name());
        }
        // What is too large for the way of rounding is not taken for a number.
        assert!(rounded(&*engine, Precision::Bf16, &[3e38])[0].is_nan());
    }
}

/// What became of a training.
struct Trained {
    /// The loss before each step that was done.
    losses: Vec<f64>,
    skipped: usize,
    scale: f64,
}

fn train(engine: &dyn Engine, precision: Precision, scaling: Scaling, steps: usize) -> Trained {
    let (config, mut weights) = model();
    let batch = Batch::open();
    let training = Training::full().in_precision(precision);
    let mut model = TrainedTransformer::load(engine, &config, &training).expect("graphs");
    weights.retain(|name, _| model.weights().iter().any(|(read, _)| read == name));
    let algorithm = Algorithm::AdamW(AdamW::default());
    let mut optimizer = Optimizer::new(engine, algorithm, vec![], &weights).expect("graphs");
    let mut accumulator = Accumulator::new(engine, 1).expect("graphs");
    let mut scaler = LossScaler::new(scaling).expect("in range");
    let diffusion = diffusion();
    let mut trained = Trained { losses: Vec::new(), skipped: 0, scale: 0.0 };
    while trained.losses.len() < steps {
        let pass = model.forward(&weights, &batch.inputs).expect("a prediction");
        let loss = diffusion.loss(LossKind::NoiseError, &pass.output, &batch.target());
        let loss = loss.expect("a loss");
        let mean = loss.mean();
        let gradient = loss.gradient * scaler.scale() as f32;
        let gradients = model.backward(&weights, pass, gradient).expect("gradients");
        let added = accumulator.add(gradients, scaler.scale()).expect("added");
        let overflow = matches!(added, Accumulated::Overflow);
        assert!(!scaler.update(overflow), "{precision}: overflow without a scale");
        let Accumulated::Complete(gradients) = added else {
            trained.skipped += 1;
            assert!(trained.skipped < 100, "it does not recover");
            continue;
        };
        let gradient_scale = gradients.scale;
        let step = Step { learning_rate: 2e-3, weight_decay: 0.0, gradient_scale };
        optimizer.step(&mut weights, gradients.tensors, &step).expect("a step");
        trained.losses.push(mean);
    }
    trained.scale = scaler.scale();
    trained
}

#[test]
fn twenty_steps_in_16_bits_follow_those_in_32() {
    const STEPS: usize = 20;
    for engine in engines::both() {
        let full = train(&*engine, Precision::Fp32, Scaling::None, STEPS);
        assert!(full.losses[STEPS - 1] < 0.7 * full.losses[0], "{:?}", full.losses);
        let dynamic = |initial| Scaling::Dynamic(Dynamic { initial, ..Dynamic::default() });
        for (precision, scaling, tolerance) in [
            (Precision::Fp16, dynamic(65536.0), 0.01),
            (Precision::Bf16, Scaling::None, 0.05),
            // Far too large: it overflows, is halved, and training goes on.
            (Precision::Fp16, dynamic(2f64.powi(40)), 0.01),
        ] {
            let found = train(&*engine, precision, scaling, STEPS);
            let apart = found.losses.iter().zip(&full.losses).map(|(a, b)| (a / b - 1.0).abs());
            let apart = apart.fold(0.0, f64::max);
            println!(
                "{precision} on {}: losses {:.4} to {:.4}, at most {apart:.1e} from those of fp32, {} \
                 skipped, scale {}",
                engine.name(),
                found.losses[0],
                found.losses[STEPS - 1],
                found.skipped,
                found.scale
            );
            assert!(apart < tolerance, "{precision} on {}: {apart:.1e}", engine.name());
            let Scaling::Dynamic(Dynamic { initial, .. }) = scaling else {
                assert_eq!(found.skipped, 0, "{precision}");
                continue;
            };
            assert_eq!(found.scale, initial / 2f64.powi(found.skipped as i32));
            assert_eq!(initial > 65536.0, found.skipped >= 10, "{} skipped", found.skipped);
        }
    }
}

#[test]
fn precisions_have_the_names_of_the_setting() {
    for precision in [Precision::Fp32, Precision::Fp16, Precision::Bf16] {
        assert_eq!(precision.as_str().parse(), Ok(precision));
    }
    let error = "fp8".parse::<Precision>().expect_err("unknown").to_string();
    assert!(error.contains("\"fp8\"") && error.contains("fp32, fp16 or bf16"), "{error}");
    let engine: Arc<dyn Engine> = engines::tract();
    let found = step(&*engine, Precision::Fp32);
    let exact = Batch::open().torch("exact");
    for (name, found) in found.iter().filter(|(name, _)| !is_rounding_alone(name)) {
        assert!(rms_relative_error(name, found, &exact[name]) < 1e-5, "{name}");
    }
}
