use super::*;
use crate::data::{
    BatchOptions, Captions, DataOptions, Labels, PictureLimits, Place, Position, Record, Sizing,
};
use image::RgbImage;
use ndarray::Axis;
use std::fs;

/// Ten pictures of noise, six square and four wide.
fn dataset(folder: &std::path::Path) -> Arc<Dataset> {
    let mut labels = Labels::default();
    for k in 0..10u32 {
        let (width, height) = if k < 6 { (70, 64) } else { (140, 72) };
        let path = PathBuf::from(format!("{k}.png"));
        let noise = |x: u32, y: u32, c: u32| {
            ((x * 31 + y * 17 + c * 5 + k).wrapping_mul(2_654_435_761) >> 24) as u8
        };
        RgbImage::from_fn(width, height, |x, y| image::Rgb([0, 1, 2].map(|c| noise(x, y, c))))
            .save(folder.join(&path))
            .expect("written");
        let captions = Captions::new(Some(format!("short {k}")), Some(format!("long {k}")));
        let place = Place { entry: k as usize + 1, line: None };
        labels.records.push(Record { place, path, captions, declared: None });
    }
    let options = DataOptions::new(Sizing { sample_size: 8, multi_scale: true });
    Arc::new(Dataset::open(labels, folder, &options, &mut |_, _| {}))
}

fn loader(dataset: &Arc<Dataset>, from: Option<&Position>, epochs: u64) -> Loader {
    let options = BatchOptions::new(4, 11);
    let sampler = match from {
        None => Sampler::new(dataset, options),
        Some(position) => Sampler::resume(dataset, options, position),
    };
    let sampler = sampler.expect("a sampler");
    Loader::start(dataset.clone(), sampler, epochs, LoaderOptions::default())
}

type Seen = (BatchPlan, Array4<f32>, Vec<Caption>);

fn seen(batch: Result<Batch, LoadError>) -> Seen {
    let batch = batch.expect("a batch");
    assert!(batch.skipped.is_empty());
    (batch.plan, batch.pixels, batch.captions)
}

#[test]
fn batches_hold_their_pictures_and_captions() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let mut count = 0;
    for batch in loader(&dataset, None, 2) {
        let (plan, pixels, captions) = seen(batch);
        let size = dataset.buckets()[plan.bucket].size;
        let shape = [plan.items.len(), 3, size.height as usize, size.width as usize];
        assert_eq!(pixels.shape(), shape);
        assert!(pixels.iter().all(|value| (-1.0..=1.0).contains(value)));
        for (k, &item) in plan.items.iter().enumerate() {
            let bytes = fs::read(dataset.file(item)).expect("a file");
            let picture = decode_picture(&bytes, PictureLimits::default()).expect("a picture");
            let expected = training_tensor(&dataset.sizing().fit(&picture));
            assert_eq!(pixels.index_axis(Axis(0), k), expected);
            let number = format!("{item}");
            assert!(captions[k].text.ends_with(&number), "{:?} of {item}", captions[k]);
        }
        count += 1;
    }
    assert_eq!(count, 2 * 3);
}

#[test]
fn a_run_goes_on_exactly_where_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let whole: Vec<Seen> = loader(&dataset, None, 3).map(seen).collect();
    for stop in [1, 3, 5] {
        let position = &whole[stop - 1].0.after;
        let rest: Vec<Seen> = loader(&dataset, Some(position), 3).map(seen).collect();
        assert_eq!(rest, whole[stop..]);
    }
}

#[test]
fn pictures_that_go_bad_are_skipped_counted_and_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    fs::write(dataset.file(2), b"not a picture").expect("written");
    fs::remove_file(dataset.file(7)).expect("removed");
    // Another picture under the name, of another shape.
    fs::copy(dataset.file(0), dataset.file(8)).expect("copied");
    let run = || {
        let mut loader = loader(&dataset, None, 2);
        let mut plans = Vec::new();
        for batch in loader.by_ref() {
            let batch = batch.expect("a batch");
            assert_eq!(batch.pixels.shape()[0], batch.plan.items.len());
            let named = batch.skipped.iter().map(|skipped| skipped.item);
            assert!(named.clone().all(|item| [2, 7, 8].contains(&item)));
            plans.push(batch.plan);
        }
        let problems: Vec<_> = loader.skipped().cloned().collect();
        (plans, problems)
    };
    let (plans, problems) = run();
    let items: Vec<usize> = problems.iter().map(|skipped| skipped.item).collect();
    assert_eq!(items, [2, 7, 8]);
    assert!(problems[0].problem.contains("no PNG"), "{problems:?}");
    assert!(problems[1].problem.contains("no such file"), "{problems:?}");
    assert!(problems[2].problem.contains("has changed: it was 140 × 72"), "{problems:?}");
    assert_eq!(problems[1].file, folder.path().join("7.png"));
    assert!(plans.iter().flat_map(|plan| &plan.items).all(|item| ![2, 7, 8].contains(item)));
    assert_eq!(plans.iter().map(|plan| plan.items.len()).sum::<usize>(), 20);
    assert_eq!(run().0, plans, "what stands for them is repeatable");
}

#[test]
fn a_bucket_without_readable_pictures_ends_the_run_with_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    (6..10).for_each(|item| fs::remove_file(dataset.file(item)).expect("removed"));
    let results: Vec<_> = loader(&dataset, None, 2).collect();
    let error = results.last().expect("a result").as_ref().expect_err("nothing left").to_string();
    assert!(error.contains("none of the 4 pictures of 80 × 48"), "{error}");
    assert!(error.contains("no such file"), "{error}");
    assert!(results.len() <= 3, "and no batch after it");
}

#[test]
fn no_picture_of_another_data_set_stands_for_one_that_is_gone() {
    let [own_folder, other_folder] = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let square = |folder: &std::path::Path| {
        let mut labels = Labels::default();
        for k in 0..3 {
            let path = PathBuf::from(format!("{k}.png"));
            RgbImage::new(64, 64).save(folder.join(&path)).expect("written");
            let captions = Captions::new(Some("a".into()), None);
            let place = Place { entry: k + 1, line: None };
            labels.records.push(Record { place, path, captions, declared: None });
        }
        let options = DataOptions::new(Sizing { sample_size: 8, multi_scale: false });
        Dataset::open(labels, folder, &options, &mut |_, _| {})
    };
    let (own, other) = (square(own_folder.path()), square(other_folder.path()));
    let both = own.and(&other);
    assert_eq!(both.items().len(), 6);
    assert_eq!(both.file(4), other_folder.path().join("1.png"));
    let items: Vec<_> = both.buckets().iter().map(|bucket| bucket.items.clone()).collect();
    assert_eq!(items, [vec![0, 1, 2], vec![3, 4, 5]]);

    let mut sampler = Sampler::new(&own, BatchOptions::new(3, 1)).expect("a sampler");
    let mut load = |dataset: &Dataset| {
        let mut plan = sampler.next_batch();
        plan.items.extend([3, 4]);
        self::load(dataset, plan, &LoaderOptions::default(), &mut BTreeMap::new())
    };
    fs::remove_file(both.file(1)).expect("removed");
    fs::remove_file(both.file(3)).expect("removed");
    let batch = load(&both).expect("others of their kind");
    let of_own = batch.plan.items.iter().filter(|item| **item < 3).count();
    assert_eq!((of_own, &batch.plan.items[3..]), (3, &[4, 4][..]));
    assert!(!batch.plan.items.contains(&1));
    for item in [0, 2] {
        fs::remove_file(both.file(item)).expect("removed");
    }
    let error = load(&both).expect_err("none of its own").to_string();
    assert!(error.contains("none of the 3 pictures of 64 × 64"), "{error}");
}

#[test]
fn a_loader_nobody_listens_to_stops() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let mut unused = loader(&dataset, None, u64::MAX);
    unused.next().expect("a batch").expect("sound");
    drop(unused);
    // The thread holds the pictures' list as long as it lives.
    for _ in 0..500 {
        if Arc::strong_count(&dataset) == 1 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the thread goes on");
}
