use super::*;
use crate::data::{Captions, DataOptions, Labels, Place, Record, Sizing};
use image::RgbImage;
use std::convert::Infallible;

const OPTIONS: FillOptions = FillOptions { batch_size: 3, workers: 2 };

/// Five square pictures and four wide ones, each of one colour.
fn dataset(folder: &Path) -> Dataset {
    let mut labels = Labels::default();
    for k in 0..9u8 {
        let (width, height) = if k < 5 { (64, 64) } else { (140, 70) };
        let path = PathBuf::from(format!("{k}.png"));
        let image = RgbImage::from_pixel(width, height, image::Rgb([k * 20, 0, 255]));
        image.save(folder.join(&path)).expect("written");
        let captions = Captions::new(Some("a".into()), None);
        let place = Place { entry: usize::from(k) + 1, line: None };
        labels.records.push(Record { place, path, captions, declared: None });
    }
    let options = DataOptions::new(Sizing { sample_size: 8, multi_scale: true });
    Dataset::open(labels, folder, &options, &mut |_, _| {})
}

/// Stands for an encoder: each latent pixel is the mean of its 64, in eight channels times their number.
fn encode(pixels: &Array4<f32>) -> Array4<f32> {
    let (count, _, height, width) = pixels.dim();
    Array4::from_shape_fn((count, 8, height / 8, width / 8), |(b, c, y, x)| {
        let patch = ndarray::s![b, 0, 8 * y..8 * y + 8, 8 * x..8 * x + 8];
        pixels.slice(patch).mean().expect("pixels") * (c + 1) as f32
    })
}

fn fill(cache: &MomentCache, dataset: &Dataset) -> (Filled, usize) {
    let mut calls = 0;
    let mut last = 0;
    let filled = cache.fill(
        dataset,
        OPTIONS,
        |pixels| {
            calls += 1;
            assert!(pixels.dim().0 <= OPTIONS.batch_size);
            Ok::<_, Infallible>(encode(pixels))
        },
        &mut |done, total| {
            assert!(done >= last && done <= total);
            last = done;
        },
    );
    assert_eq!(last, dataset.items().len());
    (filled.expect("filled"), calls)
}

fn expected(dataset: &Dataset, item: usize) -> Array3<f32> {
    let pixels = item_pixels(dataset, item).expect("a picture").insert_axis(Axis(0));
    encode(&pixels).index_axis_move(Axis(0), 0)
}

#[test]
fn what_is_kept_is_what_the_encoder_gave() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let cache = MomentCache::new(&folder.path().join("cache"), "an encoder");
    assert_eq!(cache.get(&dataset, 0), None);
    let (filled, calls) = fill(&cache, &dataset);
    assert_eq!((filled.computed, filled.present, calls), (9, 0, 4));
    for item in 0..9 {
        assert_eq!(cache.get(&dataset, item), Some(expected(&dataset, item)), "{item}");
    }
    let (again, calls) = fill(&cache, &dataset);
    assert_eq!((again.computed, again.present, calls), (0, 9, 0));
    let other = MomentCache::new(&folder.path().join("cache"), "another/encoder");
    assert_eq!(other.get(&dataset, 0), None);
}

#[test]
fn an_interrupted_run_goes_on_with_what_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let cache = MomentCache::new(&folder.path().join("cache"), "an encoder");
    let mut calls = 0;
    let fails = |pixels: &Array4<f32>| {
        calls += 1;
        if calls == 3 { Err(io::Error::other("killed")) } else { Ok(encode(pixels)) }
    };
    let error = cache.fill(&dataset, OPTIONS, fails, &mut |_, _| {}).expect_err("interrupted");
    assert!(matches!(error, CacheError::Encoder(_)), "{error}");
    let (filled, calls) = fill(&cache, &dataset);
    assert_eq!((filled.computed, filled.present, calls), (9 - 4, 4, 2));
}

#[test]
fn what_is_damaged_or_changed_is_computed_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let cache = MomentCache::new(&folder.path().join("cache"), "an encoder");
    fill(&cache, &dataset);
    let path = |item| cache.path(&dataset, item).expect("a path");
    let mut bytes = fs::read(path(0)).expect("an entry");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(path(0), bytes).expect("damaged");
    fs::write(path(1), "").expect("damaged");
    // The picture itself.
    let image = RgbImage::from_pixel(66, 64, image::Rgb([9, 9, 9]));
    image.save(dataset.file(2)).expect("written");
    fs::write(dataset.file(3), "no picture").expect("written");
    assert!((0..4).all(|item| cache.get(&dataset, item).is_none()));
    let (filled, _) = fill(&cache, &dataset);
    assert_eq!((filled.computed, filled.present), (3, 5));
    let [skipped] = &filled.skipped[..] else { panic!("one picture: {filled:?}") };
    assert_eq!((skipped.item, &skipped.file), (3, &dataset.file(3)));
    assert_eq!(cache.get(&dataset, 2), Some(expected(&dataset, 2)));
}

#[test]
fn what_is_no_encoders_output_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let cache = MomentCache::new(&folder.path().join("cache"), "an encoder");
    for (result, said) in [
        (Array4::zeros((3, 8, 4, 8)), "gave [3, 8, 4, 8], expected [3, 2 × latent channels, "),
        (Array4::zeros((1, 8, 6, 12)), "gave [1, 8, 6, 12]"),
        (Array4::from_elem((3, 8, 6, 12), f32::NAN), "not finite"),
    ] {
        let encode = |_: &Array4<f32>| Ok::<_, Infallible>(result.clone());
        let error = cache.fill(&dataset, OPTIONS, encode, &mut |_, _| {}).expect_err("refused");
        assert!(error.to_string().contains(said), "{error}");
    }
    assert_eq!(fill(&cache, &dataset).0.computed, 9, "nothing was kept");
}

#[test]
fn what_killed_processes_left_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let cache = MomentCache::new(&folder.path().join("cache"), "an encoder");
    fill(&cache, &dataset);
    let part = cache.path(&dataset, 0).expect("a path");
    let part = part.parent().expect("a folder");
    let [old, young] = ["old", "young"].map(|name| part.join(format!("{UNFINISHED}{name}")));
    for file in [&old, &young] {
        fs::write(file, "half").expect("written");
    }
    let before = SystemTime::now() - 2 * ABANDONED;
    let file = fs::File::options().write(true).open(&old).expect("opened");
    file.set_modified(before).expect("changed");
    fill(&cache, &dataset);
    assert!(!old.exists() && young.exists());
}
