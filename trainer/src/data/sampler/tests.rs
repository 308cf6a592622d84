use super::*;
use crate::data::{Captions, DataOptions, Labels, Place, Record, Sizing};
use image::RgbImage;
use std::collections::BTreeMap;

/// Pictures of 64 × 64 (as many as `square`) and of 96 × 48 (as many as `wide`).
fn dataset(square: usize, wide: usize) -> (tempfile::TempDir, Dataset) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut labels = Labels::default();
    for k in 0..square + wide {
        let (width, height) = if k < square { (64, 64) } else { (96, 48) };
        let path = std::path::PathBuf::from(format!("{k}.png"));
        RgbImage::new(width, height).save(folder.path().join(&path)).expect("written");
        labels.records.push(Record {
            place: Place { entry: k + 1, line: None },
            path,
            captions: Captions::new(Some(format!("picture {k}")), None),
            declared: None,
        });
    }
    let options = DataOptions::new(Sizing { sample_size: 8, multi_scale: true });
    let dataset = Dataset::open(labels, folder.path(), &options, &mut |_, _| {});
    assert_eq!(dataset.items().len(), square + wide);
    (folder, dataset)
}

fn epoch(sampler: &mut Sampler) -> Vec<BatchPlan> {
    (0..sampler.batches_per_epoch()).map(|_| sampler.next_batch()).collect()
}

#[test]
fn an_epoch_has_every_picture_once_and_one_bucket_a_batch() {
    let (_folder, dataset) = dataset(11, 6);
    let mut sampler = Sampler::new(&dataset, BatchOptions::new(4, 3)).expect("a sampler");
    assert_eq!(sampler.batches_per_epoch(), 5);
    let mut orders = Vec::new();
    for number in 0..3 {
        let batches = epoch(&mut sampler);
        let mut items: Vec<usize> = batches.iter().flat_map(|plan| plan.items.clone()).collect();
        orders.push(items.clone());
        items.sort_unstable();
        assert_eq!(items, (0..17).collect::<Vec<_>>());
        for (k, plan) in batches.iter().enumerate() {
            assert_eq!((plan.epoch, plan.batch), (number, k as u64));
            let bucket = &dataset.buckets()[plan.bucket].items;
            assert!(plan.items.len() <= 4 && plan.items.iter().all(|item| bucket.contains(item)));
        }
    }
    assert!(orders[0] != orders[1] && orders[1] != orders[2], "epochs are shuffled anew");
}

#[test]
fn a_seed_repeats_and_another_does_not() {
    let (_folder, dataset) = dataset(20, 12);
    let run = |seed| {
        let mut sampler = Sampler::new(&dataset, BatchOptions::new(3, seed)).expect("a sampler");
        (0..25).map(|_| sampler.next_batch().items).collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn a_saved_position_goes_on_exactly() {
    let (_folder, dataset) = dataset(9, 8);
    let options = BatchOptions::new(2, 5);
    let mut whole = Sampler::new(&dataset, options).expect("a sampler");
    let batches: Vec<_> = (0..30).map(|_| whole.next_batch()).collect();
    for stop in [1, 8, 9, 17, 18, 29] {
        let saved = serde_json::to_string(&batches[stop - 1].after).expect("JSON");
        let saved: Position = serde_json::from_str(&saved).expect("a position");
        let mut resumed = Sampler::resume(&dataset, options, &saved).expect("the same run");
        let rest: Vec<_> = (stop..30).map(|_| resumed.next_batch()).collect();
        assert_eq!(rest, batches[stop..], "after {stop} batches");
    }
}

#[test]
fn a_position_of_another_run_is_refused() {
    let (_folder, first) = dataset(9, 8);
    let (_other_folder, second) = dataset(9, 7);
    let options = BatchOptions::new(2, 5);
    let position = Sampler::new(&first, options).expect("a sampler").next_batch().after;
    let refused = |dataset, options, position: &Position| {
        Sampler::resume(dataset, options, position).expect_err("another run").to_string()
    };
    let error = refused(&second, options, &position);
    assert!(error.contains("set of pictures"), "{error}");
    for (changed, what) in [
        (BatchOptions { seed: 6, ..options }, "seed is 5, now it is 6"),
        (BatchOptions { batch_size: 3, ..options }, "batch_size is 2"),
        (BatchOptions { drop_last: true, ..options }, "drop_last"),
    ] {
        let error = refused(&first, changed, &position);
        assert!(error.contains(what), "{error}");
    }
    let beyond = Position { batch: 9, ..position };
    assert!(refused(&first, options, &beyond).contains("batch in the epoch"));
}

#[test]
fn workers_share_the_pictures_and_stay_together() {
    let (_folder, dataset) = dataset(11, 7);
    for (world, drop_last) in [(2, false), (3, false), (2, true), (4, false)] {
        let run = |rank| {
            let options = BatchOptions { rank, world, drop_last, ..BatchOptions::new(2, 1) };
            epoch(&mut Sampler::new(&dataset, options).expect("a sampler"))
        };
        let workers: Vec<_> = (0..world).map(run).collect();
        let mut times = BTreeMap::new();
        for step in 0..workers[0].len() {
            for worker in &workers {
                assert_eq!(worker.len(), workers[0].len());
                assert_eq!(worker[step].bucket, workers[0][step].bucket);
                assert_eq!(worker[step].items.len(), workers[0][step].items.len());
                worker[step].items.iter().for_each(|item| *times.entry(*item).or_insert(0) += 1);
            }
        }
        if drop_last {
            assert!(times.values().all(|&times| times == 1));
            assert_eq!(times.len(), 8 + 4);
        } else {
            assert_eq!(times.len(), 18, "every picture occurs");
            let more: i32 = times.values().map(|times| times - 1).sum();
            assert!(more <= 2 * (world as i32 - 1), "{more} pictures twice");
            let fillers = |worker: &Vec<BatchPlan>| {
                let counts =
                    |BatchPlan { items, share: Share { first, whole }, .. }: &BatchPlan| {
                        items.len() - whole.saturating_sub(*first).min(items.len())
                    };
                worker.iter().map(counts).sum::<usize>()
            };
            assert_eq!(workers.iter().map(fillers).sum::<usize>(), more as usize);
        }
    }
}

/// The pictures that count, of all workers of an equal share in `whole`.
fn all(
    world: usize,
    batch_size: usize,
    dataset: &Dataset,
    from: Option<&Position>,
) -> Vec<Vec<usize>> {
    let mut batches = Vec::<Vec<usize>>::new();
    for rank in 0..world {
        let options = BatchOptions { rank, world, ..BatchOptions::new(batch_size, 9) };
        let mut sampler = match from {
            None => Sampler::new(dataset, options).expect("a sampler"),
            Some(position) => Sampler::resume(dataset, options, position).expect("goes on"),
        };
        for k in 0.. {
            let BatchPlan { items, share, after, .. } = sampler.next_batch();
            let own = share.whole.saturating_sub(share.first).min(items.len());
            if batches.len() == k {
                batches.push(Vec::new());
            }
            batches[k].extend(&items[..own]);
            if after.epoch > 0 && after.batch == 0 {
                break;
            }
        }
    }
    batches
}

#[test]
fn several_workers_get_the_batches_of_one() {
    let (_folder, dataset) = dataset(19, 8);
    let one = all(1, 12, &dataset, None);
    for world in [2, 3, 4] {
        assert_eq!(all(world, 12 / world, &dataset, None), one, "{world} workers");
    }
}

#[test]
fn another_number_of_workers_goes_on_in_the_epoch() {
    let (_folder, dataset) = dataset(19, 8);
    let options = |rank, world, size| BatchOptions { rank, world, ..BatchOptions::new(size, 9) };
    let mut first = Sampler::new(&dataset, options(0, 2, 2)).expect("a sampler");
    let whole = all(2, 2, &dataset, None);
    for _ in 0..3 {
        first.next_batch();
    }
    // As large a batch of all: exactly as it would have gone on.
    assert_eq!(all(1, 4, &dataset, Some(first.position())), whole[3..]);
    assert_eq!(all(4, 1, &dataset, Some(first.position())), whole[3..]);
    // Another one: each picture that is left once, and from there on to yet another.
    let rest = all(3, 2, &dataset, Some(first.position()));
    let mut seen: Vec<usize> = whole[..3].iter().chain(&rest).flatten().copied().collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..27).collect::<Vec<_>>());
    let mut second =
        Sampler::resume(&dataset, options(0, 3, 2), first.position()).expect("goes on");
    let after = second.next_batch().after;
    let third = all(1, 5, &dataset, Some(&after));
    let mut seen: Vec<usize> =
        whole[..3].iter().chain(&rest[..1]).chain(&third).flatten().copied().collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..27).collect::<Vec<_>>());
    // The next epoch is a whole one again.
    let epoch = whole.len() as u64;
    while second.next_batch().after.epoch == 0 {}
    assert!(second.position().earlier.is_empty() && second.position().batch == 0, "{epoch}");
}

#[test]
fn impossible_options_are_refused() {
    let (_folder, few) = dataset(3, 2);
    let (_empty_folder, empty) = dataset(0, 0);
    let new = |dataset, options| Sampler::new(dataset, options).expect_err("impossible");
    let options = BatchOptions::new(4, 0);
    assert_eq!(new(&empty, options), SamplerError::NoPictures);
    assert_eq!(
        new(&few, BatchOptions { drop_last: true, ..options }),
        SamplerError::NoBatches { buckets: 2, needed: 4, largest: 3 }
    );
    for options in [
        BatchOptions::new(0, 0),
        BatchOptions { world: 0, ..options },
        BatchOptions { rank: 2, world: 2, ..options },
    ] {
        assert!(matches!(new(&few, options), SamplerError::Option { .. }));
    }
}
