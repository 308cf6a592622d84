//! Checkpoints of training: going on from one is going on, and the weights in one are a model.

use std::{collections::BTreeMap, fs, path::Path};

use ndarray::ArrayD;
use pixart_exporter::{
    Component, Profile,
    checkpoint::{Checkpoint, OpenOptions},
};
use pixart_runtime::{
    engine::Engine,
    lora::{Lora, LoraSpec},
    noise::{GeneratorState, TorchGenerator},
};
use pixart_tests::{binary::Sandbox, engines, exports::Export, fixtures};
use pixart_trainer::{
    Tensors, Values,
    checkpoint::{CheckpointError, Contents, Model, Saved, latest, list, prune, save},
    ema::{Average, Warmup},
    lora::{Adapter, AdapterSettings},
    optimizer::{AdamW, Algorithm, Came, Group, Optimizer, Step},
    scaler::{Dynamic, LossScaler, Scaling},
    to_tensors, to_values,
};
use serde_json::{Value, json};

fn tiny() -> (Tensors, Value) {
    let folder = fixtures::tiny().join("transformer");
    let checkpoint = Checkpoint::open(&folder, &OpenOptions::default());
    let checkpoint = checkpoint.unwrap_or_else(|error| panic!("{error}"));
    let tensors = checkpoint.names().map(|name| {
        let view = checkpoint.tensor(name).expect("there");
        let values = view.bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let array = ArrayD::from_shape_vec(view.shape.to_vec(), values).expect("f32");
        (name.to_owned(), array)
    });
    (tensors.collect(), fixtures::json("tiny/transformer/config.json"))
}

/// A training whose gradients are drawn.
struct Training {
    weights: Values,
    optimizer: Optimizer,
    average: Average,
    scaler: LossScaler,
    generator: TorchGenerator,
    steps: u64,
}

impl Training {
    fn new(engine: &dyn Engine, algorithm: Algorithm, weights: Tensors) -> Self {
        let weights = to_values(engine, weights).expect("room");
        let optimizer = Optimizer::new(engine, algorithm, vec![Group::without_decay()], &weights);
        let average = Average::new(engine, 0.99, Warmup::Ratio, &weights);
        let dynamic = Dynamic { initial: 1024.0, factor: 2.0, window: 3 };
        Self {
            optimizer: optimizer.unwrap_or_else(|error| panic!("{error}")),
            average: average.unwrap_or_else(|error| panic!("{error}")),
            scaler: LossScaler::new(Scaling::Dynamic(dynamic)).expect("fits"),
            generator: TorchGenerator::new(1),
            steps: 0,
            weights,
        }
    }

    fn train(&mut self, steps: u64) {
        for _ in 0..steps {
            let mut gradients = Values::new();
            for (name, weight) in &self.weights {
                let values = self.generator.randn(weight.size());
                let gradient = ArrayD::from_shape_vec(weight.shape(), values);
                gradients.insert(name.clone(), gradient.expect("as many").into());
            }
            let scale = self.scaler.scale().recip();
            let step = Step { learning_rate: 1e-3, weight_decay: 0.1, gradient_scale: scale };
            self.optimizer.step(&mut self.weights, gradients, &step).expect("a step");
            self.average.update(&self.weights).expect("an average");
            self.scaler.update(self.steps % 5 == 4);
            self.steps += 1;
        }
    }

    fn state(&self) -> BTreeMap<String, Value> {
        let json = |value| serde_json::to_value(value).expect("JSON");
        BTreeMap::from([
            ("generator".to_owned(), json(self.generator.state())),
            ("scaler".to_owned(), serde_json::to_value(self.scaler.state()).expect("JSON")),
        ])
    }

    fn save(&self, root: &Path, config: &Value) {
        let model = Model::Whole { config, weights: &self.weights };
        let contents = Contents {
            step: self.steps,
            epoch: 2,
            model,
            average: Some(&self.average),
            optimizer: Some(&self.optimizer),
            shares: &[],
            state: &self.state(),
        };
        save(root, &contents).unwrap_or_else(|error| panic!("{error}"));
    }

    fn resume(engine: &dyn Engine, algorithm: Algorithm, root: &Path) -> Self {
        let saved = Saved::open(root).unwrap_or_else(|error| panic!("{error}"));
        let mut training = Self::new(engine, algorithm, saved.weights().expect("weights"));
        saved.restore_optimizer(&mut training.optimizer, false).expect("the same optimizer");
        assert!(saved.restore_average(&mut training.average, None).expect("the same weights"));
        let state = |key: &str| saved.state()[key].clone();
        let generator: GeneratorState = serde_json::from_value(state("generator")).expect("one");
        training.generator = TorchGenerator::from_state(&generator).expect("a state");
        let scaler = serde_json::from_value(state("scaler")).expect("a state");
        training.scaler.restore(scaler).expect("fits");
        training.steps = saved.step();
        assert_eq!(saved.epoch(), 2);
        training
    }
}

#[test]
fn a_resumed_training_equals_an_uninterrupted_one_bit_for_bit() {
    let (weights, config) = tiny();
    for engine in engines::both() {
        for algorithm in [Algorithm::AdamW(AdamW::default()), Algorithm::Came(Came::default())] {
            let folder = tempfile::tempdir().expect("folder");
            let mut whole = Training::new(&*engine, algorithm, weights.clone());
            whole.train(4);
            whole.save(folder.path(), &config);
            whole.train(3);
            let mut resumed = Training::resume(&*engine, algorithm, folder.path());
            resumed.train(3);
            let tensors = |values| to_tensors(values).expect("floats");
            let trained = tensors(&whole.weights);
            assert_eq!(tensors(&resumed.weights), trained, "{algorithm} on {}", engine.name());
            assert_eq!(tensors(resumed.average.weights()), tensors(whole.average.weights()));
            assert_eq!(resumed.state(), whole.state());
            assert_ne!(trained, weights);
        }
    }
}

#[test]
fn a_checkpoint_is_exported_as_a_model_is() {
    let (weights, config) = tiny();
    let sandbox = Sandbox::new();
    let root = sandbox.path().join("output/ckpt");
    // No step yet, so the export must be that of the source, byte for byte.
    let engine = engines::tract();
    let training = Training::new(&*engine, Algorithm::Came(Came::default()), weights);
    training.save(&root, &config);
    let source = fixtures::tiny().join("transformer");
    let expected = Export::component(&source, Component::Transformer, Profile::Ort);
    let expected = expected.graph(Component::Transformer);
    for (index, folder) in ["step_00000000", "step_00000000/ema"].into_iter().enumerate() {
        let (from, to) = (format!("output/ckpt/{folder}"), format!("exported{index}"));
        let run = sandbox.pixart(&["export", "transformer", "--source", &from, "--output", &to]);
        assert_eq!(run.code, 0, "{run:?}");
        let found = sandbox.path().join(to).join("transformer");
        for file in ["model.onnx", "model.onnx_data"] {
            let read = |path: &Path| fs::read(path).expect("a file");
            let same = read(&found.join(file)) == read(&expected.with_file_name(file));
            assert!(same, "{folder}: {file}");
        }
    }
}

#[test]
fn a_lora_s_checkpoint_is_a_lora() {
    let (weights, _) = tiny();
    let folder = tempfile::tempdir().expect("folder");
    let engine = engines::tract();
    let settings = AdapterSettings { rank: 2, ..AdapterSettings::default() };
    let make = |seed| {
        let shapes = weights.iter().map(|(name, weight)| (name.as_str(), weight.shape()));
        Adapter::new(settings.clone(), shapes, &mut TorchGenerator::new(seed)).expect("fits")
    };
    let adapter = make(1);
    let values = |factors: &Tensors| to_values(&*engine, factors.clone()).expect("room");
    let factors = values(adapter.factors());
    let average = Average::new(&*engine, 0.9, Warmup::None, &factors).expect("average");
    let contents = Contents {
        step: 7,
        epoch: 0,
        model: Model::Lora(&adapter),
        average: Some(&average),
        optimizer: None,
        shares: &[],
        state: &BTreeMap::new(),
    };
    let place = save(folder.path(), &contents).unwrap_or_else(|error| panic!("{error}"));
    for path in [place.clone(), place.join("ema")] {
        Lora::open(&LoraSpec { path, strength: 1.0 }).unwrap_or_else(|error| panic!("{error}"));
    }
    let saved = Saved::open(folder.path()).expect("a checkpoint");
    let mut again = make(2);
    assert_ne!(again.factors(), adapter.factors());
    saved.restore_adapter(&mut again).expect("the same LoRA");
    assert_eq!(again.factors(), adapter.factors());
    let other = values(make(3).factors());
    let mut averaged = Average::new(&*engine, 0.9, Warmup::None, &other).expect("one");
    assert!(saved.restore_average(&mut averaged, Some(&again)).expect("the same LoRA"));
    assert_eq!(&to_tensors(averaged.weights()).expect("floats"), adapter.factors());
    let error = saved.weights().expect_err("no whole model").to_string();
    assert!(error.contains("found a LoRA, expected the weights of a whole model"), "{error}");
}

/// A small checkpoint of a step.
fn put(root: &Path, step: u64) {
    let weights = ArrayD::<f32>::zeros(vec![4, 4]).into();
    let weights = Values::from([("a.weight".to_owned(), weights)]);
    let (config, state) = (json!({}), BTreeMap::new());
    let model = Model::Whole { config: &config, weights: &weights };
    let contents = Contents {
        step,
        epoch: 0,
        model,
        average: None,
        optimizer: None,
        shares: &[],
        state: &state,
    };
    save(root, &contents).unwrap_or_else(|error| panic!("{error}"));
}

fn steps(root: &Path) -> Vec<u64> {
    list(root).expect("listed").complete.iter().map(Saved::step).collect()
}

#[test]
fn the_oldest_go_and_the_newest_complete_one_never() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("ckpt");
    assert!(latest(&root).expect("nothing is fine").is_none());
    for step in [100, 200, 300] {
        put(&root, step);
    }
    // Training went on from step 100: what was saved last is the newest, whatever its number.
    put(&root, 110);
    assert_eq!(steps(&root), [100, 200, 300, 110]);
    assert_eq!(prune(&root, 3).expect("pruned"), [root.join("step_00000100")]);
    put(&root, 200);
    assert_eq!(steps(&root), [300, 110, 200]);

    // Half a copy of a newer one, a foreign folder, and a file.
    fs::create_dir(root.join("step_00000999")).expect("made");
    fs::write(root.join("step_00000999/config.json"), "{}").expect("written");
    fs::create_dir(root.join("step_notes")).expect("made");
    fs::write(root.join("step_00000998"), "a file").expect("written");
    assert_eq!(latest(&root).expect("listed").expect("one").step(), 200);
    prune(&root, 0).expect("pruned");
    assert_eq!(steps(&root), [200], "one always stays");
    for name in ["step_00000999/config.json", "step_notes", "step_00000998"] {
        assert!(root.join(name).exists(), "{name} is not ours to remove");
    }
}

#[test]
fn what_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("ckpt");
    let none = Saved::open(&root).expect_err("nothing").to_string();
    assert!(none.contains("ckpt") && none.contains("training.json"), "{none}");
    put(&root, 5);
    let place = root.join("step_00000005");
    let file = place.join("diffusion_pytorch_model.safetensors");
    let whole = fs::read(&file).expect("a file");
    let check = |word: &str| {
        assert!(latest(&root).expect("listed").is_none());
        let direct = Saved::open(&place).map(drop);
        let direct = direct.expect_err("incomplete").to_string();
        assert!(direct.contains(word), "{direct}");
        let found = Saved::open(&root).expect_err("incomplete").to_string();
        assert!(found.contains(word) && found.contains("step_00000005"), "{found}");
    };
    fs::write(&file, &whole[..whole.len() - 1]).expect("written");
    check("diffusion_pytorch_model.safetensors has");
    fs::remove_file(&file).expect("removed");
    check("diffusion_pytorch_model.safetensors cannot be read");
    fs::write(&file, &whole).expect("written");
    let record = place.join("training.json");
    let text = fs::read_to_string(&record).expect("a file");
    fs::write(&record, &text[..text.len() / 2]).expect("written");
    check("training.json");
    fs::write(&record, text.replace("\"format\": 1", "\"format\": 2")).expect("written");
    check("found format 2, expected 1");
    fs::write(&record, text.replace("\"config.json\"", "\"../config.json\"")).expect("written");
    check("expected files inside the folder");
    fs::write(&record, &text).expect("written");

    // Complete, but not of this training.
    let saved = Saved::open(&place).expect("whole again");
    let weights = saved.weights().expect("weights");
    let weights = to_values(&*engines::tract(), weights).expect("room");
    let algorithm = Algorithm::AdamW(AdamW::default());
    let mut optimizer =
        Optimizer::new(&*engines::tract(), algorithm, vec![], &weights).expect("fits");
    let error = saved.restore_optimizer(&mut optimizer, false).expect_err("none stored");
    assert!(matches!(error, CheckpointError::Other { .. }), "{error}");
    // What somebody else has put there is not replaced.
    fs::write(place.join("notes.txt"), "mine").expect("written");
    let state = BTreeMap::new();
    let model = Model::Whole { config: &json!({}), weights: &weights };
    let contents = Contents {
        step: 5,
        epoch: 0,
        model,
        average: None,
        optimizer: None,
        shares: &[],
        state: &state,
    };
    let error = save(&root, &contents).expect_err("notes").to_string();
    assert!(error.contains("notes.txt"), "{error}");
    assert_eq!(steps(&root), [5]);
}
