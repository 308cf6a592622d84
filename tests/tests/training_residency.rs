//! Weights, gradients, averages and the optimizer's state stay on the device: a step moves the prediction,
//! its gradient, the inputs and a few numbers, and nothing of the model's size.

use std::{collections::BTreeMap, sync::Arc};

use ndarray::ArrayD;
use pixart_exporter::VariantFlags;
use pixart_exporter::checkpoint::{Checkpoint, OpenOptions};
use pixart_exporter::naming::TransformerConfig;
use pixart_runtime::{engine::Engine, noise::TorchGenerator, tensor::Tensor};
use pixart_tests::{
    device::{Device, Traffic},
    engines,
    errors::assert_close,
    fixtures,
};
use pixart_trainer::{
    Tensors, Values, checkpoint,
    ema::{Average, Warmup},
    gradient::{Inputs, TrainedTransformer, Training},
    optimizer::{Accumulated, Accumulator, AdamW, Algorithm, Came, Optimizer, Step, clip_factor},
    to_tensors, to_values,
};
use serde_json::json;

const STEPS: usize = 3;
/// Batches of a step.
const BATCHES: u32 = 2;

fn tiny() -> (TransformerConfig, Tensors) {
    let folder = fixtures::tiny().join("transformer");
    let checkpoint = Checkpoint::open(&folder, &OpenOptions::default()).expect("a checkpoint");
    let json = folder.join("config.json");
    let config = TransformerConfig::read(&checkpoint, Some(&json), &VariantFlags::default());
    let tensors = checkpoint.names().map(|name| {
        let view = checkpoint.tensor(name).expect("listed");
        let elements = view.to_f32().expect("floats");
        let array = ArrayD::from_shape_vec(view.shape.to_vec(), elements).expect("a tensor");
        (name.to_owned(), array)
    });
    (config.expect("a configuration"), tensors.collect())
}

struct Trained {
    weights: Values,
    average: Average,
    optimizer: Optimizer,
    /// Bytes in and out of every step, and bytes of its inputs and of the prediction.
    traffic: Vec<[usize; 2]>,
    inputs: usize,
    prediction: usize,
}

fn train(engine: &dyn Engine, algorithm: Algorithm, traffic: &Traffic) -> Trained {
    let (config, tensors) = tiny();
    let mut model = TrainedTransformer::load(engine, &config, &Training::full()).expect("graphs");
    let mut weights = to_values(engine, tensors).expect("room");
    let read: Vec<String> = model.weights().into_iter().map(|(name, _)| name).collect();
    weights.retain(|name, _| read.contains(name));
    let mut optimizer = Optimizer::new(engine, algorithm, vec![], &weights).expect("graphs");
    let mut accumulator = Accumulator::new(engine, BATCHES).expect("graphs");
    let mut average = Average::new(engine, 0.9, Warmup::None, &weights).expect("graphs");
    let mut generator = TorchGenerator::new(5);
    let mut random = |shape: &[usize]| {
        let numbers = generator.randn(shape.iter().product());
        ArrayD::from_shape_vec(shape, numbers).expect("as many")
    };
    let mut trained = Vec::new();
    let (mut inputs, mut prediction) = (0, 0);
    for _ in 0..STEPS {
        traffic.take();
        let mut steps = 0;
        for _ in 0..BATCHES {
            let captions = random(&[1, 3, config.caption_channels]);
            let latents = random(&[1, config.in_channels, 6, 4]);
            inputs = 4 * (captions.len() + latents.len() + 1) + 8 * 3;
            let place = |tensor: Tensor| engine.to_device(tensor).expect("room");
            let inputs = Inputs {
                hidden_states: place(latents.into()),
                encoder_hidden_states: place(captions.into()),
                encoder_attention_mask: place(ArrayD::from_elem(vec![1, 3], 1i64).into()),
                timestep: place(ArrayD::from_elem(vec![1], 500f32).into()),
                conditions: None,
            };
            let pass = model.forward(&weights, &inputs).expect("a prediction");
            prediction = 4 * pass.output.len();
            let gradient = pass.output.clone();
            let gradients = model.backward(&weights, pass, gradient).expect("gradients");
            if let Accumulated::Complete(mean) = accumulator.add(gradients, 1.0).expect("added") {
                let gradient_scale = mean.scale * clip_factor(mean.norm, 0.01);
                let step = Step { learning_rate: 1e-3, weight_decay: 0.1, gradient_scale };
                optimizer.step(&mut weights, mean.tensors, &step).expect("a step");
                average.update(&weights).expect("an average");
                steps += 1;
            }
        }
        assert_eq!(steps, 1);
        trained.push(traffic.take());
    }
    Trained { weights, average, optimizer, traffic: trained, inputs, prediction }
}

#[test]
fn a_step_moves_nothing_of_the_models_size() {
    for inner in engines::both() {
        for algorithm in [Algorithm::AdamW(AdamW::default()), Algorithm::Came(Came::default())] {
            let case = format!("{algorithm} on {}", inner.name());
            let device = Device::new(inner.clone());
            let on_device = train(&device, algorithm, &device.traffic());
            let count = on_device.weights.len();
            let batches = BATCHES as usize;
            // Of every weight, the square of its gradient comes out for each batch and for their sum; in
            // go a handful of numbers for each of these, for adding, for the step and for the average.
            let out = batches * on_device.prediction + 4 * count * (batches + 1);
            let numbers = 4 * count * (batches + 1 + batches + 4 + 1);
            let most_in = batches * (on_device.inputs + on_device.prediction) + numbers;
            // In the first step, the optimizer's state of zeros goes to the device.
            for [into, found] in &on_device.traffic[1..] {
                assert_eq!(*found, out, "{case}: out");
                assert!(*into <= most_in, "{case}: {into} bytes in, at most {most_in}");
            }
            let size: usize = on_device.weights.values().map(|value| 4 * value.size()).sum();
            assert!(most_in < size / 4, "{case}: the bounds {most_in} would not show {size} bytes");

            // The same weights as where everything can be read; sums are taken in another order.
            let plain = train(&*inner, algorithm, &Traffic::default());
            let compare = |found: &Values, expected: &Values| {
                let [found, expected] = [found, expected].map(|v| to_tensors(v).expect("floats"));
                assert_eq!(found.len(), expected.len());
                // Nothing depends on the bias of all keys but rounding.
                for (name, expected) in expected.iter().filter(|(n, _)| !n.ends_with("to_k.bias")) {
                    assert_close(&format!("{case}: {name}"), &found[name], expected, 1e-5);
                }
            };
            compare(&on_device.weights, &plain.weights);
            compare(on_device.average.weights(), plain.average.weights());
        }
    }
}

#[test]
fn a_checkpoint_of_what_is_on_the_device_is_one_of_what_is_not() {
    let folder = tempfile::tempdir().expect("folder");
    let inner: Arc<dyn Engine> = engines::tract();
    let device = Device::new(inner.clone());
    let trained = train(&device, Algorithm::Came(Came::default()), &device.traffic());
    let save = |name: &str, weights: &Values| {
        let contents = checkpoint::Contents {
            step: 3,
            epoch: 0,
            model: checkpoint::Model::Whole { config: &json!({}), weights },
            average: Some(&trained.average),
            optimizer: Some(&trained.optimizer),
            shares: &[],
            state: &BTreeMap::new(),
        };
        checkpoint::save(&folder.path().join(name), &contents).expect("saved")
    };
    device.traffic().take();
    let first = save("device", &trained.weights);
    let [_, out] = device.traffic().take();
    let floats = trained.weights.values().map(|value| value.size()).sum::<usize>();
    assert!(out > 4 * 3 * floats, "weights, their average and moments, {out} bytes");
    let saved = checkpoint::Saved::open(&first).expect("complete");
    let weights = saved.weights().expect("floats");
    assert_eq!(weights, to_tensors(&trained.weights).expect("floats"));
    let mut again = Optimizer::new(
        &*inner,
        Algorithm::Came(Came::default()),
        vec![],
        &to_values(&*inner, weights).expect("room"),
    )
    .expect("graphs");
    saved.restore_optimizer(&mut again, false).expect("the same optimizer");
    for ((name, expected), (_, found)) in trained.optimizer.state().zip(again.state()) {
        let [found, expected] = [found, expected].map(|value| value.to_tensor().expect("floats"));
        assert_eq!(found, expected, "{name}");
    }
}

/// Weights are results of the optimizer's sessions, and must stay when these are gone.
#[test]
fn values_outlive_the_session_that_made_them() {
    for engine in engines::both() {
        let algorithm = Algorithm::Came(Came::default());
        let weight = ArrayD::<f32>::ones(vec![64, 300]);
        let mut weights = Values::from([("weight".to_owned(), weight.clone().into())]);
        let gradients = weights.clone();
        let step = Step { learning_rate: 0.5, weight_decay: 0.0, gradient_scale: 1.0 };
        let mut optimizer = Optimizer::new(&*engine, algorithm, vec![], &weights).expect("graphs");
        optimizer.step(&mut weights, gradients, &step).expect("a step");
        drop(optimizer);
        let first = to_tensors(&weights).expect("floats");
        // Somebody else's memory, in case theirs was given back.
        let other = train(&*engine, algorithm, &Traffic::default());
        assert_eq!(to_tensors(&weights).expect("floats"), first, "{}", engine.name());
        assert!(first["weight"].iter().all(|&x| x < 0.999), "it has moved");
        drop(other);
    }
}
