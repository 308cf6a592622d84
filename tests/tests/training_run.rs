//! Whole runs of a small model through the library: that they learn, that equal ones are equal, that going on is
//! not having stopped, and what becomes of numbers that are not finite.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use pixart_exporter::{
    VariantFlags,
    checkpoint::OpenOptions,
    naming::{KvCompression, KvSampling, TransformerConfig},
};
use pixart_runtime::{engine::Engine, pipeline::Cancel};
use pixart_tests::{
    engines, fixtures,
    learning::{Encoder, load, pictures},
};
use pixart_trainer::{
    checkpoint::{Saved, list},
    data::{BatchOptions, Dataset, Sampler},
    ema::Warmup,
    gradient::Precision,
    lora::AdapterSettings,
    loss::LossKind,
    optimizer::{AdamW, Algorithm, Came},
    run::{
        AverageOptions, Event, Length, NotFinite, Outcome, Policy, PriorOptions, PriorPictures,
        Run, RunError, RunOptions, SaveOptions, StartingPoint, StepReport,
    },
    scaler::{Dynamic, Scaling},
    schedule::Shape,
};

const PICTURES: usize = 6;

/// Pictures, and a folder for checkpoints.
struct World {
    folder: tempfile::TempDir,
    dataset: Arc<Dataset>,
}

impl World {
    fn new() -> Self {
        let (folder, dataset) = pictures(PICTURES);
        Self { folder, dataset }
    }

    fn checkpoints(&self) -> std::path::PathBuf {
        self.folder.path().join("ckpt")
    }

    fn options(&self) -> RunOptions {
        RunOptions {
            seed: 3,
            length: Length::Epochs(2),
            accumulation: 1,
            loss: LossKind::WithVariance,
            precision: Precision::default(),
            snr_gamma: None,
            prior: None,
            latent_scale: 1.0,
            algorithm: Algorithm::AdamW(AdamW::default()),
            learning_rate: 2e-3,
            warmup_steps: 0,
            scheduler: Shape::Constant,
            weight_decay: 0.01,
            largest_norm: Some(1.0),
            scaling: Scaling::Dynamic(Dynamic { initial: 1024.0, factor: 2.0, window: 4 }),
            on_overflow: Policy::Skip,
            on_nan: Policy::Stop,
            average: Some(AverageOptions { decay: 0.9, warmup: Warmup::Ratio }),
            lora: None,
            save: SaveOptions {
                folder: self.checkpoints(),
                every_epochs: Some(1),
                every_steps: None,
                keep: 10,
            },
            together: None,
        }
    }

    fn sampler(&self, batch_size: usize, saved: Option<&Saved>) -> Sampler {
        let options = BatchOptions::new(batch_size, 3);
        match saved {
            None => Sampler::new(&self.dataset, options).expect("a sampler"),
            Some(saved) => {
                let position = Run::position(saved).expect("a position");
                Sampler::resume(&self.dataset, options, &position).expect("the same data")
            }
        }
    }
}

/// The configuration of the tiny model.
fn config() -> TransformerConfig {
    let file = fixtures::tiny().join("transformer/config.json");
    TransformerConfig::read_file(&file, &VariantFlags::default()).expect("a config")
}

fn random() -> StartingPoint {
    StartingPoint::random(config(), 5).expect("weights")
}

fn tiny() -> StartingPoint {
    load(&fixtures::tiny().join("transformer"))
}

/// What a run told.
#[derive(Default)]
struct Told {
    steps: Vec<StepReport>,
    skipped: Vec<NotFinite>,
    unreadable: Vec<usize>,
    saved: Vec<u64>,
    epochs: Vec<(u64, bool)>,
}

/// Runs it; `cancel_at` is the step after which it is stopped.
fn go(run: Run, encoder: Encoder, cancel_at: Option<u64>) -> (Result<Outcome, RunError>, Told) {
    let cancel = Cancel::new();
    let mut told = Told::default();
    let outcome = run.go(Box::new(encoder), &cancel, &mut |event| {
        match event {
            Event::Step(step) => {
                if cancel_at == Some(step.step) {
                    cancel.cancel();
                }
                told.steps.push(step);
            }
            Event::Skipped(skipped) => told.skipped.push(skipped.what),
            Event::Unreadable(skipped) => told.unreadable.push(skipped.item),
            Event::Saved { step, .. } => told.saved.push(step),
            Event::Epoch(report, _) => told.epochs.push((report.epoch, report.last)),
            _ => {}
        }
        Ok(())
    });
    (outcome, told)
}

fn new(engine: &Arc<dyn Engine>, world: &World, start: StartingPoint, options: RunOptions) -> Run {
    let sampler = world.sampler(2, None);
    Run::new(engine, start, sampler, options).unwrap_or_else(|error| panic!("{error}"))
}

fn resumed(engine: &Arc<dyn Engine>, world: &World, options: RunOptions, saved: &Saved) -> Run {
    let start = match options.lora {
        Some(_) => tiny(),
        None => load(saved.folder()),
    };
    let sampler = world.sampler(2, Some(saved));
    let run = Run::resume(engine, start, sampler, options, saved);
    run.unwrap_or_else(|error| panic!("{error}"))
}

fn done(result: Result<Outcome, RunError>) -> Outcome {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// Every file of a checkpoint; of `training.json` what does not count checkpoints.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for below in ["", "ema"] {
        let Ok(entries) = fs::read_dir(folder.join(below)) else { continue };
        for entry in entries.map(|entry| entry.expect("an entry")) {
            if entry.path().is_dir() {
                continue;
            }
            let name = format!("{below}/{}", entry.file_name().to_string_lossy());
            let mut bytes = fs::read(entry.path()).expect("read");
            if name == "/training.json" {
                let mut json: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
                json["sequence"] = 0.into();
                bytes = json.to_string().into_bytes();
            }
            found.insert(name, bytes);
        }
    }
    found
}

#[test]
fn a_model_learns_from_random_weights() {
    let world = World::new();
    for engine in engines::both() {
        let options = RunOptions {
            length: Length::Steps(45),
            save: SaveOptions {
                folder: world.folder.path().join(engine.name()),
                ..world.options().save
            },
            ..world.options()
        };
        let (outcome, told) = go(new(&engine, &world, random(), options), Encoder::default(), None);
        let outcome = done(outcome);
        assert_eq!((outcome.step, outcome.epoch, outcome.interrupted), (45, 15, false));
        // The bound of a time near 0 can be many times the others.
        let median = |part: &[StepReport]| {
            let mut losses: Vec<f64> = part.iter().map(|step| step.loss).collect();
            losses.sort_by(f64::total_cmp);
            losses[part.len() / 2]
        };
        let (first, last) = (median(&told.steps[..5]), median(&told.steps[30..]));
        // Nothing is predicted at first, and noise has variance 1.
        assert!((0.7..3.0).contains(&first), "{first}");
        assert!(last < 0.9 * first, "{}: from {first} to {last}", engine.name());
        assert_eq!(told.epochs.len(), 15);
        assert!(told.steps.iter().all(|step| step.images == 2 && step.gradient_norm > 0.0));
    }
}

#[test]
fn equal_runs_are_equal_and_other_seeds_are_not() {
    let engine = engines::ort();
    let result = |seed| {
        let world = World::new();
        let options = RunOptions { seed, ..world.options() };
        let outcome = done(go(new(&engine, &world, tiny(), options), Encoder::default(), None).0);
        files(&outcome.checkpoint.expect("saved"))
    };
    let first = result(3);
    assert!(first.len() == 6, "{:?}", first.keys());
    assert!(first == result(3));
    let other = result(4);
    let weights = "/diffusion_pytorch_model.safetensors";
    assert!(first[weights] != other[weights]);
}

/// Stops a run after `stop` steps, goes on, and compares with one that was not stopped.
fn goes_on(options: impl Fn(&World) -> RunOptions, start: impl Fn() -> StartingPoint, stop: u64) {
    for engine in engines::both() {
        let world = World::new();
        let run = new(&engine, &world, start(), options(&world));
        let whole = done(go(run, Encoder::default(), None).0);
        let expected = files(&whole.checkpoint.expect("saved"));

        let world = World::new();
        let run = new(&engine, &world, start(), options(&world));
        let (outcome, told) = go(run, Encoder::default(), Some(stop));
        let outcome = done(outcome);
        assert!(outcome.interrupted);
        assert_eq!((outcome.step, told.saved.last()), (stop, Some(&stop)));
        let saved = Saved::open(&world.checkpoints()).expect("a checkpoint");
        assert_eq!(saved.step(), stop);
        let run = resumed(&engine, &world, options(&world), &saved);
        let (outcome, told) = go(run, Encoder::default(), None);
        let outcome = done(outcome);
        assert_eq!(told.steps.first().map(|step| step.step), Some(stop + 1));
        assert_eq!((outcome.step, outcome.interrupted), (whole.step, false));
        let found = files(&outcome.checkpoint.expect("saved"));
        for (name, bytes) in &expected {
            assert!(found[name] == *bytes, "{}: {name}", engine.name());
        }
    }
}

#[test]
fn going_on_is_not_having_stopped() {
    // In the middle of an epoch, with a scale that grows and a learning rate that changes.
    let options = |world: &World| RunOptions {
        length: Length::Epochs(3),
        warmup_steps: 3,
        scheduler: Shape::Cosine,
        algorithm: Algorithm::Came(Came::default()),
        ..world.options()
    };
    goes_on(options, tiny, 4);
}

#[test]
fn going_on_with_accumulated_batches_is_not_having_stopped() {
    // Steps of two batches, three batches an epoch: the stop is in the middle of an epoch.
    let options = |world: &World| RunOptions {
        length: Length::Epochs(4),
        accumulation: 2,
        ..world.options()
    };
    goes_on(options, random, 2);
}

#[test]
fn going_on_with_a_lora_is_not_having_stopped() {
    let options = |world: &World| RunOptions {
        loss: LossKind::NoiseError,
        lora: Some(lora(&["to_q", "to_v", "ff.net.2", "proj_out"])),
        ..world.options()
    };
    goes_on(options, tiny, 4);
}

fn lora(targets: &[&str]) -> AdapterSettings {
    let targets = targets.iter().map(|&target| target.to_owned()).collect();
    AdapterSettings { targets, rank: 4, alpha: 8.0, ..AdapterSettings::default() }
}

#[test]
fn a_step_that_has_begun_is_finished_before_a_run_stops() {
    let (engine, world) = (engines::ort(), World::new());
    let options = RunOptions { accumulation: 6, length: Length::Epochs(4), ..world.options() };
    // It is told in the first epoch, which has three of the six batches of a step.
    let encoder = Encoder { unreadable: Some(0), ..Encoder::default() };
    let cancel = Cancel::new();
    let run = new(&engine, &world, tiny(), options);
    let outcome = run.go(Box::new(encoder), &cancel, &mut |event| {
        if let Event::Unreadable(_) = event {
            cancel.cancel();
        }
        Ok(())
    });
    let outcome = outcome.expect("an end");
    assert!(outcome.interrupted && outcome.step == 1, "{outcome:?}");
    assert_eq!(Saved::open(&outcome.checkpoint.expect("saved")).expect("complete").step(), 1);
}

#[test]
fn a_run_that_is_over_has_nothing_left_to_do() {
    let (engine, world) = (engines::ort(), World::new());
    let outcome =
        done(go(new(&engine, &world, tiny(), world.options()), Encoder::default(), None).0);
    let saved = Saved::open(&world.checkpoints()).expect("a checkpoint");
    let run = resumed(&engine, &world, world.options(), &saved);
    let (again, told) = go(run, Encoder::default(), None);
    assert_eq!(done(again), outcome);
    assert!(told.steps.is_empty() && told.saved.is_empty());
    // More epochs go on.
    let options = RunOptions { length: Length::Epochs(3), ..world.options() };
    let (more, told) = go(resumed(&engine, &world, options, &saved), Encoder::default(), None);
    assert_eq!((done(more).step, told.steps.len()), (9, 3));
}

#[test]
fn accumulated_batches_are_one_large_batch() {
    let engine = engines::ort();
    let result = |batch_size, accumulation| {
        let world = World::new();
        let options = RunOptions {
            accumulation,
            length: Length::Epochs(1),
            algorithm: Algorithm::Came(Came::default()),
            learning_rate: 1e-4,
            ..world.options()
        };
        let sampler = world.sampler(batch_size, None);
        let run = Run::new(&engine, tiny(), sampler, options).expect("a run");
        let (outcome, told) = go(run, Encoder::default(), None);
        assert_eq!(told.steps.len(), 1);
        assert_eq!(told.steps[0].images, PICTURES);
        let weights = load(&done(outcome).checkpoint.expect("saved")).weights;
        (told.steps[0].loss, told.steps[0].gradient_norm, weights)
    };
    // What is drawn belongs to the picture, not to its place in a batch.
    let (loss, norm, weights) = result(6, 1);
    let (other_loss, other_norm, other) = result(2, 3);
    assert!((loss - other_loss).abs() < 1e-5 * loss, "{loss} {other_loss}");
    assert!((norm - other_norm).abs() < 1e-4 * norm, "{norm} {other_norm}");
    let before = tiny().weights;
    for (name, weight) in &weights {
        let apart = (weight - &other[name]).mapv(|x| x * x).sum().sqrt();
        let moved = (weight - &before[name]).mapv(|x| x * x).sum().sqrt();
        // Biases of keys have no gradient but what is rounded.
        assert!(apart < 0.02 * moved || name.ends_with("to_k.bias"), "{name}: {apart} of {moved}");
    }
}

#[test]
fn batches_that_are_too_few_for_a_step_are_told() {
    let (engine, world) = (engines::ort(), World::new());
    let options = RunOptions { accumulation: 4, ..world.options() };
    let (outcome, told) = go(new(&engine, &world, tiny(), options), Encoder::default(), None);
    let outcome = done(outcome);
    assert_eq!((outcome.step, outcome.unused, told.steps.len()), (1, 2, 1));
    assert_eq!(told.epochs, [(1, false), (2, true)]);
    // The end of the first epoch lies within the step.
    assert_eq!(told.saved, [1]);
    let options = RunOptions { accumulation: 7, ..world.options() };
    let run = Run::new(&engine, tiny(), world.sampler(2, None), options);
    let error = run.err().expect("too few batches").to_string();
    assert_eq!(
        error,
        "gradient_accumulation_steps: found 7, expected at most 6, the batches of all epochs"
    );
}

#[test]
fn checkpoints_come_as_asked_for() {
    let (engine, world) = (engines::ort(), World::new());
    let save = SaveOptions {
        every_epochs: Some(2),
        every_steps: Some(4),
        keep: 2,
        folder: world.checkpoints(),
    };
    let options = RunOptions { length: Length::Epochs(5), save, ..world.options() };
    let (outcome, told) = go(new(&engine, &world, tiny(), options), Encoder::default(), None);
    // Every second epoch of three steps, every fourth step, and the end.
    assert_eq!(told.saved, [4, 6, 8, 12, 15]);
    assert_eq!(done(outcome).step, 15);
    let left = list(&world.checkpoints()).expect("listed").complete;
    assert_eq!(left.iter().map(Saved::step).collect::<Vec<_>>(), [12, 15]);
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_keeps_what_was_saved() {
    let (engine, world) = (engines::ort(), World::new());
    let encoder = || Encoder { broken: vec![(1, 1)], ..Encoder::default() };
    let (outcome, told) = go(new(&engine, &world, tiny(), world.options()), encoder(), None);
    let error = outcome.expect_err("not finite").to_string();
    let newest = world.checkpoints().join("step_00000003");
    let expected = format!(
        "step 5 (epoch 2, batch 2): the loss is NaN; the newest checkpoint is {}; lower",
        newest.display()
    );
    assert!(error.starts_with(&expected), "{error}");
    assert_eq!((told.steps.len(), told.saved), (4, vec![3]));
    let saved = Saved::open(&world.checkpoints()).expect("usable");
    assert!(saved.weights().expect("weights").values().flatten().all(|x| x.is_finite()));

    // Left out, the others count.
    let world = World::new();
    let options = RunOptions { on_nan: Policy::Skip, ..world.options() };
    let (outcome, told) = go(new(&engine, &world, tiny(), options), encoder(), None);
    let outcome = done(outcome);
    assert_eq!((outcome.step, outcome.skipped), (5, 1));
    assert!(matches!(told.skipped[..], [NotFinite::Loss(loss)] if loss.is_nan()));
    let weights = load(&outcome.checkpoint.expect("saved")).weights;
    assert!(weights.values().flatten().all(|x| x.is_finite()));
}

#[test]
fn nothing_but_broken_batches_ends_the_run() {
    let (engine, world) = (engines::ort(), World::new());
    let all = (0..60).flat_map(|epoch| (0..3).map(move |batch| (epoch, batch))).collect();
    let options = RunOptions { on_nan: Policy::Skip, length: Length::Steps(9), ..world.options() };
    let encoder = Encoder { broken: all, ..Encoder::default() };
    let (outcome, told) = go(new(&engine, &world, tiny(), options), encoder, None);
    let error = outcome.expect_err("nothing is learnt").to_string();
    assert!(error.contains("no checkpoint was saved yet") && error.contains("in a row"), "{error}");
    assert_eq!((told.steps.len(), told.skipped.len()), (0, 100));
    assert!(!world.checkpoints().exists());
}

#[test]
fn an_overflow_lowers_the_loss_scale() {
    let engine = engines::ort();
    // The gradient of the prediction times this is beyond 32 bits.
    let dynamic = Dynamic { initial: 2f64.powi(127), factor: 65536.0, window: 1000 };
    let world = World::new();
    let options = |on_overflow| RunOptions {
        scaling: Scaling::Dynamic(dynamic),
        on_overflow,
        ..world.options()
    };
    let start = || {
        // Large gradients.
        let mut start = tiny();
        start.weights.values_mut().for_each(|weight| *weight *= 3.0);
        start
    };
    let run = new(&engine, &world, start(), options(Policy::Skip));
    let (outcome, told) = go(run, Encoder::default(), None);
    let outcome = done(outcome);
    assert!(outcome.skipped > 0 && outcome.step + outcome.skipped == 6, "{outcome:?}");
    assert!(told.skipped.iter().all(|what| *what == NotFinite::Gradients));
    assert!(told.steps[0].loss_scale < 2f64.powi(127));
    let run = new(&engine, &world, start(), options(Policy::Stop));
    let error = go(run, Encoder::default(), None).0.expect_err("stopped").to_string();
    assert!(error.contains("step 1 (epoch 1, batch 1): the gradients are not finite"), "{error}");
}

#[test]
fn what_was_learnt_is_saved_before_data_that_cannot_be_had() {
    let (engine, world) = (engines::ort(), World::new());
    let encoder = Encoder { gone: Some((1, 2)), unreadable: Some(4), ..Encoder::default() };
    let (outcome, told) = go(new(&engine, &world, tiny(), world.options()), encoder, None);
    outcome.expect_err("no batch");
    assert_eq!((told.steps.len(), told.saved), (5, vec![3, 5]));
    assert_eq!(told.unreadable, [4], "told once");
    let saved = Saved::open(&world.checkpoints()).expect("usable");
    let run = resumed(&engine, &world, world.options(), &saved);
    assert_eq!(done(go(run, Encoder::default(), None).0).step, 6);
}

#[test]
fn a_lora_changes_its_factors_alone() {
    let (engine, world) = (engines::ort(), World::new());
    let options = RunOptions {
        loss: LossKind::NoiseError,
        lora: Some(lora(&["attn1.to_q"])),
        length: Length::Steps(20),
        ..world.options()
    };
    let (outcome, told) =
        go(new(&engine, &world, tiny(), options.clone()), Encoder::default(), None);
    let folder = done(outcome).checkpoint.expect("saved");
    for file in [
        "adapter_model.safetensors",
        "pytorch_lora_weights.safetensors",
        "ema/adapter_model.safetensors",
    ] {
        assert!(folder.join(file).is_file(), "{file}");
    }
    assert!(!folder.join("diffusion_pytorch_model.safetensors").exists());
    assert_eq!(told.steps.len(), 20);
    let mean = |part: &[StepReport]| part.iter().map(|step| step.loss).sum::<f64>();
    assert!(mean(&told.steps[10..]) < mean(&told.steps[..10]));
    // A whole model does not go on from it, nor a LoRA of another rank.
    let saved = Saved::open(&folder).expect("a checkpoint");
    let resume = |options| {
        let sampler = world.sampler(2, Some(&saved));
        let run = Run::resume(&engine, tiny(), sampler, options, &saved);
        run.err().expect("another training").to_string()
    };
    let other = AdapterSettings { rank: 8, ..lora(&["attn1.to_q"]) };
    let error = resume(RunOptions { lora: Some(other), ..options.clone() });
    assert!(error.contains("continue with the settings it was saved with"), "{error}");
    let error = resume(RunOptions { lora: None, ..options });
    assert!(error.contains("continue with the settings it was saved with"), "{error}");
}

#[test]
fn layers_of_some_blocks_alone_get_no_lora() {
    let (engine, world) = (engines::ort(), World::new());
    let refused = |target: &str| {
        let lora = Some(lora(&[target]));
        let options = RunOptions { lora, loss: LossKind::NoiseError, ..world.options() };
        let run = Run::new(&engine, tiny(), world.sampler(2, None), options);
        run.err().expect("refused").to_string()
    };
    let error = refused("transformer_blocks.0.attn1.to_q");
    assert!(
        error.contains("lora_targets: found targets that leave out transformer_blocks.1."),
        "{error}"
    );
    let error = refused("nothing");
    assert!(error.contains("lora_targets: none of"), "{error}");
    let error = refused("pos_embed.proj");
    assert!(error.contains("pos_embed.proj"), "{error}");
}

#[test]
fn a_model_gets_compressed_keys_that_it_did_not_have() {
    let (engine, world) = (engines::ort(), World::new());
    let compression = KvCompression {
        sampling: KvSampling::Conv,
        scale_factor: 2,
        layers: [1].into_iter().collect(),
    };
    let open = OpenOptions::default();
    let folder = fixtures::tiny().join("transformer");
    let none = VariantFlags::default();
    let start = StartingPoint::from_checkpoint(&folder, &open, &none, Some(&compression));
    let start = start.unwrap_or_else(|error| panic!("{error}"));
    let kernel = &start.weights["transformer_blocks.1.attn1.sr.weight"];
    assert!(kernel.iter().all(|&x| x == 0.25) && kernel.shape() == [72, 1, 2, 2]);
    let options = RunOptions { length: Length::Steps(2), ..world.options() };
    let outcome = done(go(new(&engine, &world, start, options), Encoder::default(), None).0);
    // The checkpoint is one of such a model.
    let saved = load(&outcome.checkpoint.expect("saved"));
    assert_eq!(saved.config.kv_compression, Some(compression));
    assert!(saved.weights["transformer_blocks.1.attn1.sr.weight"].iter().any(|&x| x != 0.25));
}

#[test]
fn a_model_with_size_conditions_learns_from_them() {
    let alpha = || load(&fixtures::root().join("variants/alpha/transformer"));
    let (engine, embedder) =
        (engines::ort(), "adaln_single.emb.resolution_embedder.linear_1.weight");
    let before = alpha().weights;
    let result = |start: StartingPoint, side, lora| {
        let world = World::new();
        let options = RunOptions { lora, length: Length::Steps(3), ..world.options() };
        let encoder = Encoder { side, ..Encoder::default() };
        let (outcome, told) = go(new(&engine, &world, start, options), encoder, None);
        let files = files(&done(outcome).checkpoint.expect("saved"));
        let folder = world.checkpoints().join("step_00000003");
        let weights = folder.join("config.json").is_file().then(|| load(&folder).weights);
        (told.steps[0].loss, files, weights)
    };
    let (loss, files, weights) = result(alpha(), 512.0, None);
    let weights = weights.expect("a whole model");
    assert!(weights[embedder] != before[embedder], "it is trained");
    let (other_loss, other, _) = result(alpha(), 1024.0, None);
    assert!(loss != other_loss && files != other, "{loss}: what it is told makes no difference");
    assert!(result(alpha(), 512.0, None).1 == files, "another result");
    // A model that asks for nothing gets nothing.
    assert!(result(tiny(), 512.0, None).1 == result(tiny(), 1024.0, None).1);

    let targets = lora(&["to_q", "linear_1"]);
    let (lora_loss, files, _) = result(alpha(), 512.0, Some(targets.clone()));
    assert_eq!(lora_loss, loss, "it changes nothing at first");
    assert!(result(alpha(), 1024.0, Some(targets)).1 != files);
    for engine in engines::both() {
        let world = World::new();
        let options = RunOptions { length: Length::Steps(1), ..world.options() };
        let encoder = Encoder { side: 512.0, ..Encoder::default() };
        let (outcome, told) = go(new(&engine, &world, alpha(), options), encoder, None);
        done(outcome);
        assert!((told.steps[0].loss - loss).abs() < 1e-4 * loss, "{}", engine.name());
    }
}

#[test]
fn a_run_goes_on_with_the_model_and_the_prior_pictures_it_began_with() {
    let (engine, world) = (engines::ort(), World::new());
    let pictures = PriorPictures {
        names: vec!["a.png".to_owned(), "b.png".to_owned()],
        prompt: "a dog".to_owned(),
    };
    let prior = |fingerprint: &str| {
        let (fingerprint, pictures) = (fingerprint.to_owned(), pictures.clone());
        Some(PriorOptions { items: 4..6, weight: 1.0, fingerprint, pictures })
    };
    let options = RunOptions {
        loss: LossKind::NoiseError,
        lora: Some(lora(&["to_q"])),
        prior: prior("abc"),
        length: Length::Steps(1),
        ..world.options()
    };
    done(go(new(&engine, &world, tiny(), options.clone()), Encoder::default(), None).0);
    let saved = Saved::open(&world.checkpoints()).expect("a checkpoint");
    assert_eq!(Run::prior(&saved).expect("readable"), Some(pictures.clone()));
    let resume = |start, prior| {
        let options = RunOptions { prior, length: Length::Steps(2), ..options.clone() };
        Run::resume(&engine, start, world.sampler(2, Some(&saved)), options, &saved)
    };
    let error = |run: Result<Run, RunError>| run.err().expect("another training").to_string();
    let other = error(resume(tiny(), prior("def")));
    let told = |hash| format!("the prior pictures {hash} (2 of \"a dog\", the first a.png)");
    let said = format!("found {}, expected {}", told("abc"), told("def"));
    assert!(other.contains(&said), "{other}");
    let none = error(resume(tiny(), None));
    let said = format!("found {}, expected no prior pictures", told("abc"));
    assert!(none.contains(&said), "{none}");
    let mut another = tiny();
    *another.weights.get_mut("proj_out.bias").expect("there") += 1e-3;
    let model = error(resume(another, prior("abc")));
    assert!(model.contains("found a LoRA of the model "), "{model}");
    let path = tiny().source.expect("a checkpoint's");
    assert!(model.contains(&format!("(--checkpoint {}), expected", path.display())), "{model}");
    assert!(model.contains("continue with the settings it was saved with"), "{model}");
    resume(tiny(), prior("abc")).unwrap_or_else(|error| panic!("{error}"));
}
