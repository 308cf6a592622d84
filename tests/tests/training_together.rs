//! Several ranks that train one model: the model is that of one process with the batch of all of them.

use std::{fs, path::Path, sync::Arc};

use ndarray::ArrayD;
use pixart_runtime::pipeline::Cancel;
use pixart_tests::{
    engines, fixtures,
    learning::{Encoder, load, pictures},
    ranks::together,
};
use pixart_trainer::{
    Tensors,
    checkpoint::Saved,
    data::{BatchOptions, Dataset, Sampler},
    ema::Warmup,
    gradient::Precision,
    lora::{AdapterSettings, Start},
    loss::LossKind,
    optimizer::{AdamW, Algorithm, Came},
    ranks::Ranks,
    run::{
        AverageOptions, Event, Length, NotFinite, Outcome, Policy, Run, RunError, RunOptions,
        SaveOptions, TogetherOptions,
    },
    scaler::Scaling,
    schedule::Shape,
};
use safetensors::SafeTensors;

/// Batches of 12 do not come out even.
const PICTURES: usize = 41;
const STEPS: u64 = 20;

struct World {
    folder: tempfile::TempDir,
    dataset: Arc<Dataset>,
}

/// How a model is trained.
#[derive(Clone, Copy)]
struct Way {
    world: usize,
    algorithm: Algorithm,
    lora: bool,
    accumulation: u32,
    shard_optimizer: bool,
}

/// How a rank ended, the steps it told of, and how many batches it left out.
type Ended = (Result<Outcome, RunError>, Vec<Told>, usize);

/// What a rank told of a step.
struct Told {
    loss: f64,
    images: usize,
    /// Bytes that were given to be sent by then.
    sent: u64,
}

impl Way {
    fn alone(algorithm: Algorithm) -> Self {
        Self { world: 1, algorithm, lora: false, accumulation: 1, shard_optimizer: false }
    }

    fn of(self, world: usize) -> Self {
        Self { world, ..self }
    }
}

impl World {
    fn new() -> Self {
        let (folder, dataset) = pictures(PICTURES);
        Self { folder, dataset }
    }

    fn options(&self, way: Way, name: &str, ranks: Option<Arc<Ranks>>) -> RunOptions {
        let shard_optimizer = way.shard_optimizer;
        RunOptions {
            seed: 3,
            length: Length::Steps(STEPS),
            accumulation: way.accumulation,
            loss: if way.lora { LossKind::NoiseError } else { LossKind::WithVariance },
            precision: Precision::default(),
            snr_gamma: None,
            prior: None,
            latent_scale: 1.0,
            algorithm: way.algorithm,
            // Faster, CAME is not stable on this model, and what is lost in rounding grows with every step.
            learning_rate: if way.algorithm.as_str() == "came" { 1e-4 } else { 1e-3 },
            warmup_steps: 0,
            scheduler: Shape::Constant,
            weight_decay: 0.01,
            largest_norm: Some(0.5),
            scaling: Scaling::None,
            on_overflow: Policy::Skip,
            on_nan: Policy::Skip,
            average: Some(AverageOptions { decay: 0.9, warmup: Warmup::Ratio }),
            lora: way.lora.then(lora),
            save: SaveOptions {
                folder: self.folder.path().join(name),
                every_epochs: None,
                every_steps: Some(7),
                keep: 10,
            },
            together: ranks.map(|ranks| TogetherOptions { ranks, shard_optimizer }),
        }
    }

    /// Trains from `saved` on, or from the beginning, with batches of `batch_size` for each rank; gives how it ended
    /// on each.
    fn train(
        &self,
        way: Way,
        batch_size: usize,
        name: &str,
        saved: Option<&Path>,
        encoder: impl Fn(usize) -> Encoder + Sync,
    ) -> Vec<Ended> {
        let rank = |ranks: Option<Arc<Ranks>>| {
            let rank = ranks.as_ref().map_or(0, |ranks| ranks.place().rank);
            let options = self.options(way, name, ranks.clone());
            let saved = saved.map(|saved| Saved::open(saved).expect("a checkpoint"));
            let batches =
                BatchOptions { rank, world: way.world, ..BatchOptions::new(batch_size, 3) };
            let sampler = match &saved {
                None => Sampler::new(&self.dataset, batches),
                Some(saved) => {
                    let position = Run::position(saved).expect("a position");
                    Sampler::resume(&self.dataset, batches, &position)
                }
            };
            let sampler = sampler.expect("a sampler");
            let start = match &saved {
                Some(saved) if !way.lora => load(saved.folder()),
                _ => load(&fixtures::tiny().join("transformer")),
            };
            let engine = &engines::tract();
            let run = match &saved {
                None => Run::new(engine, start, sampler, options),
                Some(saved) => Run::resume(engine, start, sampler, options, saved),
            };
            let (mut steps, mut skipped) = (Vec::new(), 0);
            let run = run.unwrap_or_else(|error| panic!("{error}"));
            let outcome = run.go(Box::new(encoder(rank)), &Cancel::new(), &mut |event| {
                match event {
                    Event::Step(step) => {
                        let sent = ranks.as_ref().map_or(0, |ranks| ranks.sent());
                        steps.push(Told { loss: step.loss, images: step.images, sent });
                    }
                    Event::Skipped(batch) => {
                        assert!(matches!(batch.what, NotFinite::Loss(_) | NotFinite::Gradients));
                        skipped += 1;
                    }
                    _ => {}
                }
                Ok(())
            });
            (outcome, steps, skipped)
        };
        match way.world {
            1 => vec![rank(None)],
            world => together(world, |ranks| rank(Some(ranks))),
        }
    }

    /// Trains to the end; gives the last checkpoint's tensors and the losses.
    fn trained(&self, way: Way, batch_size: usize, saved: Option<&Path>) -> (Tensors, Vec<f64>) {
        let name = format!("{}-{batch_size}-{}", way.world, saved.is_some());
        let folder = self.folder.path().join(&name);
        let _ = fs::remove_dir_all(&folder);
        let mut ranks = self.train(way, batch_size, &name, saved, |_| Encoder::default());
        for (outcome, ..) in &ranks {
            let outcome = outcome.as_ref().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((outcome.step, outcome.interrupted), (STEPS, false));
            assert!(outcome.checkpoint.as_ref().is_some_and(|folder| folder.is_dir()));
        }
        let (_, steps, _) = ranks.swap_remove(0);
        (tensors(&folder.join("step_00000020")), steps.into_iter().map(|step| step.loss).collect())
    }
}

/// All tensors of a checkpoint: weights or factors, their average, and the optimizer's state.
fn tensors(folder: &Path) -> Tensors {
    let mut found = Tensors::new();
    for (below, file) in [
        ("", "diffusion_pytorch_model.safetensors"),
        ("", "adapter_model.safetensors"),
        ("ema", "diffusion_pytorch_model.safetensors"),
        ("ema", "adapter_model.safetensors"),
        ("", "optimizer.safetensors"),
    ] {
        let path = folder.join(below).join(file);
        if path.is_file() {
            let bytes = fs::read(&path).expect("read");
            let file_tensors = SafeTensors::deserialize(&bytes).expect("tensors");
            for (name, view) in file_tensors.tensors() {
                let numbers = view.data().as_chunks().0.iter().map(|&x| f32::from_le_bytes(x));
                let array = ArrayD::from_shape_vec(view.shape(), numbers.collect());
                found.insert(format!("{below}/{file}/{name}"), array.expect("f32"));
            }
        }
    }
    assert!(!found.is_empty(), "{}", folder.display());
    found
}

/// How far tensors of one name are apart, of their own length, at most.
///
/// A number added to all keys changes no attention, so the gradient of their bias is 0 but for what is lost in
/// rounding, which optimizers blow up to whole steps. Nothing depends on it.
fn difference(a: &Tensors, b: &Tensors) -> f32 {
    assert!(a.keys().eq(b.keys()), "the same names");
    let each = a.iter().filter(|(name, _)| !name.ends_with("to_k.bias")).map(|(name, a)| {
        let own = a.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-6);
        let apart = a.iter().zip(&b[name]).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
        apart.sqrt() / own
    });
    each.fold(0.0, f32::max)
}

fn lora() -> AdapterSettings {
    AdapterSettings {
        targets: ["to_q", "to_v"].map(str::to_owned).to_vec(),
        rank: 4,
        alpha: 8.0,
        rank_stabilised: false,
        start: Start::KaimingUniform,
    }
}

/// The bar: so far may they be apart after 20 steps.
const BAR: f32 = 1e-5;

#[test]
fn several_ranks_equal_one_with_their_batch() {
    let world = World::new();
    for (algorithm, lora, accumulation) in [
        (Algorithm::AdamW(AdamW::default()), false, 1),
        (Algorithm::Came(Came::default()), false, 2),
        (Algorithm::AdamW(AdamW::default()), true, 2),
        (Algorithm::Came(Came::default()), true, 1),
    ] {
        let alone = Way { lora, accumulation, ..Way::alone(algorithm) };
        let (expected, expected_losses) = world.trained(alone, 12, None);
        let before = tensors_of_start();
        let moved = expected.iter().filter_map(|(name, after)| {
            let before = before.get(name.rsplit_once('/')?.1)?;
            Some(after.iter().zip(before).any(|(a, b)| (a - b).abs() > 1e-3))
        });
        assert!(lora || moved.filter(|moved| *moved).count() > 20, "it has learnt");
        for (ranks, shard_optimizer) in [(2, false), (3, true), (4, false), (4, true)] {
            let way = Way { shard_optimizer, ..alone.of(ranks) };
            let (found, losses) = world.trained(way, 12 / ranks, None);
            let apart = difference(&found, &expected);
            let what = format!(
                "{} lora {lora}, {ranks} ranks, shared {shard_optimizer}",
                algorithm.as_str()
            );
            println!("{what}: {apart:e}");
            assert!(apart < BAR, "{what}: {apart}");
            assert_eq!(losses.len(), expected_losses.len());
            for (a, b) in losses.iter().zip(&expected_losses) {
                assert!((a - b).abs() < 1e-5 * b.abs(), "{what}: losses {a} and {b}");
            }
        }
    }
}

#[test]
fn as_much_is_sent_as_the_page_on_scaling_says() {
    let world = World::new();
    let numbers: usize = tensors_of_start().values().map(|tensor| tensor.len()).sum();
    let gradients = 4 * numbers as u64;
    for ranks in [2, 3] {
        for (lora, shard_optimizer) in [(false, false), (false, true), (true, false)] {
            let way = Way::alone(Algorithm::AdamW(AdamW::default())).of(ranks);
            let way = Way { lora, shard_optimizer, ..way };
            let name = format!("sent-{ranks}-{lora}-{shard_optimizer}");
            let all = world.train(way, 4, &name, None, |_| Encoder::default());
            let each: Vec<u64> =
                all.iter().map(|(_, steps, _)| steps[1].sent - steps[0].sent).collect();
            let what = format!("{ranks} ranks, lora {lora}, shared {shard_optimizer}: {each:?}");
            println!("{what}, all gradients are {gradients}");
            match (lora, shard_optimizer) {
                // All gradients, of which a ring sends 2 (n − 1) / n.
                (false, false) => assert!(each.iter().all(|sent| *sent == gradients), "{what}"),
                // All gradients and the own weights, of which it sends (n − 1) / n and n − 1.
                (false, true) => {
                    let own: Vec<u64> = each.iter().map(|sent| sent - gradients).collect();
                    assert_eq!(own.iter().sum::<u64>(), gradients, "{what}");
                    assert!(
                        own.iter()
                            .all(|own| own.abs_diff(gradients / ranks as u64) < gradients / 20)
                    );
                }
                // Two factors of rank 4 for each of the layers.
                (true, _) => assert_eq!(each, vec![4 * factors(4); ranks], "{what}"),
            }
        }
    }
}

/// Numbers of a LoRA of this rank for the layers that [`lora`] names.
fn factors(rank: u64) -> u64 {
    let targets = lora().targets;
    let weights = tensors_of_start();
    let of = |name: &str| name.strip_suffix(".weight").map(str::to_owned);
    let adapted = weights.iter().filter(|(name, _)| {
        of(name).is_some_and(|name| targets.iter().any(|target| name.ends_with(target.as_str())))
    });
    adapted.map(|(_, weight)| rank * weight.shape().iter().sum::<usize>() as u64).sum()
}

fn tensors_of_start() -> Tensors {
    load(&fixtures::tiny().join("transformer")).weights
}

#[test]
fn another_number_of_ranks_goes_on() {
    let world = World::new();
    let alone = Way::alone(Algorithm::Came(Came::default()));
    let (expected, _) = world.trained(alone, 12, None);
    // The checkpoints of step 7 and 14 are kept: from either, by any number, with any share of the state.
    for (before, after) in [(1, 3), (2, 1), (4, 2)] {
        let way = Way { shard_optimizer: before > 1, ..alone.of(before) };
        world.trained(way, 12 / before, None);
        let saved =
            world.folder.path().join(format!("{before}-{}-false/step_00000007", 12 / before));
        let way = Way { shard_optimizer: after > 1, ..alone.of(after) };
        let (found, losses) = world.trained(way, 12 / after, Some(&saved));
        assert_eq!(losses.len(), 13);
        let apart = difference(&found, &expected);
        assert!(apart < BAR, "{before} ranks, then {after}: {apart}");
        // With another batch it is another training, but it goes on.
        world.trained(way, 5, Some(&saved));
    }
}

#[test]
fn a_batch_that_one_rank_cannot_use_is_left_out_by_all() {
    let world = World::new();
    for accumulation in [1, 3] {
        let way = Way { accumulation, ..Way::alone(Algorithm::AdamW(AdamW::default())).of(3) };
        let broken = |rank| Encoder {
            broken: if rank == 1 { vec![(0, 0), (0, 2)] } else { Vec::new() },
            ..Encoder::default()
        };
        let name = format!("broken-{accumulation}");
        let ranks = world.train(way, 4, &name, None, broken);
        for (outcome, steps, skipped) in ranks {
            let outcome = outcome.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((outcome.step, outcome.skipped, skipped, steps.len()), (20, 2, 2, 20));
            assert!(steps.iter().all(|step| step.loss.is_finite() && step.images <= 12 * 3));
        }
    }
}

#[test]
fn a_rank_without_a_batch_ends_all_and_what_was_learnt_is_saved() {
    let world = World::new();
    for shard_optimizer in [false, true] {
        let way = Way::alone(Algorithm::AdamW(AdamW::default())).of(3);
        let way = Way { shard_optimizer, ..way };
        let gone = |rank| Encoder { gone: (rank == 2).then_some((0, 2)), ..Encoder::default() };
        let name = format!("gone-{shard_optimizer}");
        let ranks = world.train(way, 4, &name, None, gone);
        for (rank, (outcome, ..)) in ranks.into_iter().enumerate() {
            let error = outcome.expect_err("ended");
            match rank {
                2 => assert!(matches!(error, RunError::Encode(_)), "{error}"),
                _ => assert!(error.to_string().contains("rank 2 cannot go on"), "{error}"),
            }
        }
        let saved = world.folder.path().join(name).join("step_00000002");
        world.train(way, 4, "after", Some(&saved), |_| Encoder::default());
        let after = Saved::open(&world.folder.path().join("after")).expect("a checkpoint");
        assert_eq!(after.step(), STEPS);
        fs::remove_dir_all(world.folder.path().join("after")).expect("removed");
    }
}
