//! Losses and gradients against PyTorch: the upstream loss, and every weight of whole transformers.

use std::collections::{BTreeMap, HashMap};

use ndarray::{Array2, ArrayD, Ix2};
use pixart_exporter::checkpoint::{Checkpoint, OpenOptions};
use pixart_exporter::graph::dim::Dim;
use pixart_exporter::naming::{TransformerConfig, in_diffusers_names};
use pixart_exporter::{KvSampling, VariantFlags};
use pixart_runtime::engine::{Engine, Value};
use pixart_runtime::sampler::{NoiseSchedule, SchedulerConfig};
use pixart_runtime::tensor::Tensor;
use pixart_tests::errors::{assert_close, max_relative_error};
use pixart_tests::{engines, fixtures};
use pixart_trainer::gradient::{Inputs, TrainedTransformer, Training, Weights};
use pixart_trainer::loss::{Diffusion, LossKind, Target};
use pixart_trainer::optimizer::{
    Accumulated, Accumulator, Algorithm, Came, Optimizer, Step, clip_factor,
};
use pixart_trainer::to_tensors;

const TOLERANCE: f64 = 1e-4;

fn diffusion() -> Diffusion {
    Diffusion::new(&NoiseSchedule::new(&SchedulerConfig::default()))
}

/// The tensors of a file, taken out one by one.
struct Fixture(BTreeMap<String, Tensor>);

impl Fixture {
    fn open(name: &str) -> Self {
        Self(fixtures::tensors(&format!("gradients/{name}.safetensors")))
    }

    fn take(&mut self, name: &str) -> Tensor {
        self.0.remove(name).unwrap_or_else(|| panic!("no {name}"))
    }

    fn floats(&mut self, name: &str) -> ArrayD<f32> {
        self.take(name).into_f32(name).expect("floats")
    }

    fn times(&mut self) -> Vec<usize> {
        let times = self.take("times");
        times.as_i64().expect("integers").iter().map(|&t| t as usize).collect()
    }
}

#[test]
fn losses_and_their_gradients_equal_the_upstream_formulas() {
    let mut fixture = Fixture::open("loss");
    let [clean, noise, noisy] = ["clean", "noise", "noisy"].map(|name| fixture.floats(name));
    let (prediction, times) = (fixture.floats("output"), fixture.times());
    let plain = diffusion();
    let weighted = plain.clone().with_min_snr(5.0).expect("a limit");
    let found = plain.add_noise(&clean, &noise, &times).expect("fits");
    assert_close("noisy latents", &found, &noisy, 1e-6);
    let target = Target { clean: &clean, noise: &noise, noisy: &noisy, times: &times };
    for (name, kind, diffusion) in [
        ("whole", LossKind::WithVariance, &plain),
        ("noise_error", LossKind::NoiseError, &plain),
        ("whole_min_snr", LossKind::WithVariance, &weighted),
        ("min_snr", LossKind::NoiseError, &weighted),
    ] {
        let loss = diffusion.loss(kind, &prediction, &target).expect("a loss");
        let expected = fixture.floats(&format!("{name}/loss"));
        let mean = ArrayD::from_elem(vec![], loss.mean() as f32);
        assert_close(name, &mean, &expected, 1e-6);
        assert_close(name, &loss.gradient, &fixture.floats(&format!("{name}/gradient")), 1e-5);
    }
}

/// A checkpoint's tensors under diffusers' names, and what they are the weights of.
fn model(source: &str, flags: &VariantFlags) -> (TransformerConfig, Weights) {
    let path = fixtures::root().join(source);
    let checkpoint = Checkpoint::open(&path, &OpenOptions::default()).expect("a checkpoint");
    let (checkpoint, _) = in_diffusers_names(checkpoint).expect("known names");
    let config = TransformerConfig::read(&checkpoint, None, flags).expect("a configuration");
    let weights = checkpoint.names().map(|name| {
        let view = checkpoint.tensor(name).expect("listed");
        let elements = view.to_f32().expect("floats");
        let array = ArrayD::from_shape_vec(view.shape.to_vec(), elements).expect("a tensor");
        (name.to_owned(), array.into())
    });
    (config, weights.collect())
}

/// The fixtures' heads are not 72 wide.
fn flags(sample_size: usize) -> VariantFlags {
    VariantFlags {
        sample_size: Some(sample_size),
        num_attention_heads: Some(2),
        ..VariantFlags::default()
    }
}

fn inputs(fixture: &mut Fixture, config: &TransformerConfig) -> Inputs {
    Inputs {
        hidden_states: fixture.take("hidden_states").into(),
        encoder_hidden_states: fixture.take("encoder_hidden_states").into(),
        encoder_attention_mask: fixture.take("encoder_attention_mask").into(),
        timestep: fixture.take("timestep").into(),
        conditions: config
            .use_additional_conditions
            .then(|| ["resolution", "aspect_ratio"].map(|name| fixture.take(name).into())),
    }
}

fn array(value: &Value) -> ArrayD<f32> {
    value.to_tensor().and_then(|tensor| tensor.into_f32("")).expect("floats")
}

/// One training step on one engine against the fixture.
fn assert_step(engine: &dyn Engine, name: &str, config: &TransformerConfig, weights: &Weights) {
    let case = |what: &str| format!("{name} on {}: {what}", engine.name());
    let mut fixture = Fixture::open(name);
    let inputs = inputs(&mut fixture, config);
    let [clean, noise] = ["clean", "noise"].map(|name| fixture.floats(name));
    let times = fixture.times();

    let mut model = TrainedTransformer::load(engine, config, &Training::full()).expect("graphs");
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    for (name, shape) in model.weights() {
        let sizes: Option<Vec<i64>> = shape.iter().map(Dim::as_const).collect();
        shapes.push((name, sizes.expect("constant").iter().map(|&n| n as usize).collect()));
    }
    let is_read = |name: &str| !["pos_embed", "y_embedding"].iter().any(|end| name.ends_with(end));
    let read = weights.iter().filter(|(name, _)| is_read(name));
    let mut expected: Vec<_> =
        read.map(|(name, value)| (name.clone(), value.shape().to_vec())).collect();
    shapes.sort();
    expected.sort();
    assert_eq!(shapes, expected, "{}", case("weights"));
    let pass = model.forward(weights, &inputs).expect("a prediction");
    let error = assert_close(
        &case("prediction"),
        &pass.output,
        &fixture.floats("out_hidden_states"),
        TOLERANCE,
    );
    let noisy = array(&inputs.hidden_states);
    let target = Target { clean: &clean, noise: &noise, noisy: &noisy, times: &times };
    let loss = diffusion().loss(LossKind::WithVariance, &pass.output, &target).expect("a loss");
    let mean = ArrayD::from_elem(vec![], loss.mean() as f32);
    assert_close(&case("loss"), &mean, &fixture.floats("loss"), TOLERANCE);

    let gradients = model.backward(weights, pass, loss.gradient).expect("gradients");
    let gradients = to_tensors(&gradients).expect("floats");
    let expected: HashMap<String, ArrayD<f32>> = fixture
        .0
        .into_iter()
        .map(|(name, tensor)| {
            let name = name.strip_prefix("gradient.").expect("only gradients are left").to_owned();
            let array = tensor.into_f32(&name).expect("floats");
            (name, array)
        })
        .collect();
    assert_eq!(gradients.len(), expected.len(), "{}", case("number of gradients"));
    let mut worst = (0.0, String::new());
    for (weight, expected) in &expected {
        let found = &gradients[weight];
        let largest = |x: &ArrayD<f32>| x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        // Softmax does not change when all keys move alike, so the last bias before it has no gradient but
        // what is left by rounding; that must be small beside the gradient of the weight.
        let of_keys =
            ["to_k", "k_norm"].into_iter().find(|of| weight.ends_with(&format!("{of}.bias")));
        let size = match of_keys {
            Some(_) if largest(expected) < 1e-12 => {
                assert_eq!(found.shape(), expected.shape(), "{}", case(weight));
                let beside = &gradients[&weight.replace(".bias", ".weight")];
                f64::from(largest(found) / largest(beside))
            }
            _ => max_relative_error(&case(weight), found, expected),
        };
        if size > worst.0 || size.is_nan() {
            worst = (size, weight.clone());
        }
    }
    println!(
        "{}: prediction {error:.1e}, worst gradient {:.1e} ({})",
        case("errors"),
        worst.0,
        worst.1
    );
    assert!(worst.0 <= TOLERANCE, "{}: relative error {:.2e}", case(&worst.1), worst.0);
}

/// The model, the inputs and what they are noisy versions of, as the fixture of PixArt-Σ has them.
fn sigma() -> (TransformerConfig, Weights, Inputs, Fixture) {
    let (config, weights) = model("gradients/sigma_weights.safetensors", &flags(64));
    let mut fixture = Fixture::open("sigma");
    let inputs = inputs(&mut fixture, &config);
    (config, weights, inputs, fixture)
}

#[test]
fn training_steps_lower_the_loss_and_repeat_to_the_bit() {
    for engine in [engines::ort(), engines::tract()] {
        let run = || {
            let (config, mut weights, inputs, mut fixture) = sigma();
            let [clean, noise] = ["clean", "noise"].map(|name| fixture.floats(name));
            let times = fixture.times();
            let noisy = array(&inputs.hidden_states);
            let target = Target { clean: &clean, noise: &noise, noisy: &noisy, times: &times };
            let mut model = TrainedTransformer::load(engine.as_ref(), &config, &Training::full())
                .expect("graphs");
            let mut accumulator = Accumulator::new(engine.as_ref(), 1).expect("graphs");
            let mut optimizer: Option<Optimizer> = None;
            let (diffusion, kind) = (diffusion(), LossKind::WithVariance);
            let mut losses = Vec::new();
            for _ in 0..6 {
                let pass = model.forward(&weights, &inputs).expect("a prediction");
                let loss = diffusion.loss(kind, &pass.output, &target).expect("a loss");
                losses.push(loss.mean());
                let gradients = model.backward(&weights, pass, loss.gradient).expect("gradients");
                let optimizer = optimizer.get_or_insert_with(|| {
                    let algorithm = Algorithm::Came(Came::default());
                    Optimizer::new(engine.as_ref(), algorithm, vec![], &gradients).expect("graphs")
                });
                let Accumulated::Complete(mean) = accumulator.add(gradients, 1.0).expect("a mean")
                else {
                    panic!("one batch is a step, and its gradients are finite");
                };
                let gradient_scale = mean.scale * clip_factor(mean.norm, 0.01);
                let step = Step { learning_rate: 2e-5, weight_decay: 0.0, gradient_scale };
                optimizer.step(&mut weights, mean.tensors, &step).expect("a step");
            }
            (losses, to_tensors(&weights).expect("floats"))
        };
        let (losses, weights) = run();
        println!("{}: {losses:?}", engine.name());
        assert!(losses.is_sorted_by(|a, b| a > b), "{}: {losses:?}", engine.name());
        assert!((losses, weights) == run(), "{}: another result", engine.name());
    }
}

#[test]
fn only_the_chosen_weights_have_gradients_and_those_are_the_same() {
    let engine = engines::ort();
    let (config, weights, inputs, _) = sigma();
    let gradients = |trained: Training| {
        let mut model =
            TrainedTransformer::load(engine.as_ref(), &config, &trained).expect("graphs");
        let pass = model.forward(&weights, &inputs).expect("a prediction");
        let gradient = pass.output.clone();
        let gradients = model.backward(&weights, pass, gradient).expect("gradients");
        to_tensors(&gradients).expect("floats")
    };
    let all = gradients(Training::full());
    let chosen = gradients(Training::weights(|name| {
        name.starts_with("attn2.to_k") || name == "proj_out.bias"
    }));
    let names: Vec<&String> = chosen.keys().collect();
    let expected: Vec<String> = ["proj_out.bias".to_owned()]
        .into_iter()
        .chain((0..2).flat_map(|layer| {
            ["bias", "weight"].map(|kind| format!("transformer_blocks.{layer}.attn2.to_k.{kind}"))
        }))
        .collect();
    assert_eq!(names, expected.iter().collect::<Vec<_>>());
    for (name, gradient) in chosen.iter().filter(|(name, _)| !name.ends_with("to_k.bias")) {
        assert_close(name, gradient, &all[name], 1e-6);
    }
}

/// With W' = W + s·B·A, the gradients of A and B follow from that of W', which equals PyTorch's.
#[test]
fn adapters_have_the_gradients_that_follow_from_the_merged_weights() {
    const SCALE: f32 = 0.5;
    let adapted = |layer: &str| {
        ["to_q", "to_out.0", "net.2", "linear_1", "proj_out"].iter().any(|end| layer.ends_with(end))
    };
    for engine in [engines::ort(), engines::tract()] {
        let (config, weights, inputs, _) = sigma();
        let matrix = |value: &Value| array(value).into_dimensionality::<Ix2>().expect("a matrix");
        let (mut with, mut merged) = (weights.clone(), weights.clone());
        with.insert("lora_scale".to_owned(), ArrayD::from_elem(vec![], SCALE).into());
        let mut layers = BTreeMap::new();
        for (name, weight) in weights.iter().filter(|(_, weight)| weight.shape().len() == 2) {
            let Some(layer) = name.strip_suffix(".weight").filter(|layer| adapted(layer)) else {
                continue;
            };
            let weight = matrix(weight);
            let (out, width) = weight.dim();
            let number = |i: usize, j: usize| ((7 * i + 3 * j + layer.len()) as f32).sin() * 0.2;
            let down = Array2::from_shape_fn((3, width), |(i, j)| number(i, j));
            let up = Array2::from_shape_fn((out, 3), |(i, j)| number(i, j));
            merged.insert(name.clone(), (weight + SCALE * up.dot(&down)).into());
            with.insert(format!("{layer}.lora_A.weight"), down.clone().into());
            with.insert(format!("{layer}.lora_B.weight"), up.clone().into());
            layers.insert(layer.to_owned(), (down, up));
        }
        // Five in each block, two in front and one behind.
        assert_eq!(layers.len(), 2 * 5 + 2 + 1, "{:?}", layers.keys());

        let pass_through = |training: &Training, weights: &Weights| {
            let mut model =
                TrainedTransformer::load(engine.as_ref(), &config, training).expect("graphs");
            let pass = model.forward(weights, &inputs).expect("a prediction");
            let (prediction, gradient) = (pass.output.clone(), pass.output.mapv(f32::sin));
            (prediction, model.backward(weights, pass, gradient).expect("gradients"))
        };
        let (expected, of_merged) = pass_through(&Training::full(), &merged);
        let (prediction, gradients) = pass_through(&Training::lora(adapted), &with);
        assert_close(engine.name(), &prediction, &expected, 1e-5);
        assert_eq!(gradients.len(), 2 * layers.len());
        for (layer, (down, up)) in layers {
            let whole = matrix(&of_merged[&format!("{layer}.weight")]);
            for (kind, expected) in
                [("A", SCALE * up.t().dot(&whole)), ("B", SCALE * whole.dot(&down.t()))]
            {
                let name = format!("{layer}.lora_{kind}.weight");
                let case = format!("{name} on {}", engine.name());
                assert_close(&case, &array(&gradients[&name]), &expected.into_dyn(), TOLERANCE);
            }
        }
    }
}

#[test]
fn what_is_missing_or_does_not_fit_is_named() {
    let engine = engines::tract();
    let (config, mut weights, inputs, _) = sigma();
    let mut model =
        TrainedTransformer::load(engine.as_ref(), &config, &Training::full()).expect("graphs");
    let pass = model.forward(&weights, &inputs).expect("a prediction");
    let wrong = ArrayD::zeros(vec![1, 2]);
    let error = model.backward(&weights, pass, wrong).expect_err("a shape").to_string();
    assert!(error.contains("[1, 2]") && error.contains("[2, 8, 10, 8]"), "{error}");
    weights.remove("transformer_blocks.1.attn1.to_q.weight").expect("there");
    let error = model.forward(&weights, &inputs).map(drop).expect_err("a weight").to_string();
    assert!(error.contains("`transformer_blocks.1.attn1.to_q.weight`"), "{error}");
}

fn assert_steps(source: &str, name: &str, flags: &VariantFlags) {
    let (config, weights) = model(source, flags);
    for engine in [engines::ort(), engines::tract()] {
        assert_step(engine.as_ref(), name, &config, &weights);
    }
}

#[test]
fn every_gradient_of_a_transformer_with_size_conditions_equals_diffusers() {
    assert_steps("variants/alpha.safetensors", "alpha", &flags(128));
}

#[test]
fn every_gradient_of_pixart_sigma_equals_diffusers() {
    assert_steps("gradients/sigma_weights.safetensors", "sigma", &flags(64));
}

#[test]
fn every_gradient_of_keys_compressed_by_convolution_equals_torch() {
    assert_steps("variants/kv_conv.safetensors", "kv_conv", &flags(64));
}

#[test]
fn every_gradient_of_normalised_and_chosen_keys_equals_torch() {
    let flags = VariantFlags {
        kv_compress_sampling: Some(KvSampling::Ave),
        kv_compress_scale_factor: Some(2),
        kv_compress_layer: Some(vec![0, 1]),
        ..flags(32)
    };
    assert_steps("variants/qk_norm.safetensors", "qk_norm_ave", &flags);
}
