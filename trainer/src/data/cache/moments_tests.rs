use super::*;
use crate::data::cache::fill::{FillOptions, Filled};
use crate::data::loader::item_pixels;
use crate::data::{
    CaptionSettings, CaptionType, Captions, DataOptions, Labels, Place, Record, Sizing,
};
use image::RgbImage;
use pixart_runtime::pipeline::Cancel;
use std::time::Duration;

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

fn cache(folder: &Path) -> MomentCache {
    MomentCache::new(&folder.join("cache"), "a VAE".into())
}

/// Stands for an encoder: each latent pixel is the mean of its 64, in eight channels times their number.
fn encode(pixels: &Array4<f32>) -> Array4<f32> {
    let (count, _, height, width) = pixels.dim();
    Array4::from_shape_fn((count, 8, height / 8, width / 8), |(b, c, y, x)| {
        let patch = ndarray::s![b, 0, 8 * y..8 * y + 8, 8 * x..8 * x + 8];
        pixels.slice(patch).mean().expect("pixels") * (c + 1) as f32
    })
}

/// Fills the cache with an encoder that may fail or stop the work.
fn fill_with(
    cache: &MomentCache,
    dataset: &Dataset,
    mut encode: impl FnMut(&Array4<f32>, &Cancel) -> Result<Array4<f32>, PipelineError>,
) -> Result<Filled, CacheError> {
    let cancel = Cancel::new();
    let (settings, kept) = (CaptionSettings::default(), CaptionType::F16);
    let options = FillOptions { settings, kept, workers: 2, cancel: cancel.clone() };
    let mut last = 0;
    let mut progress = |done, total| {
        assert!(done == last + 1 && done <= total);
        last = done;
    };
    let mut fill = Fill::new(dataset.items().len(), &options, &mut progress);
    let mut encode = |pixels: Array4<f32>| encode(&pixels, &cancel);
    let skipped = cache.fill(dataset, options.workers, &mut encode, &mut fill)?;
    Ok(Filled { skipped, ..fill.filled })
}

/// Fills the cache; also how many pictures were encoded at once.
fn fill(cache: &MomentCache, dataset: &Dataset) -> (Filled, Vec<usize>) {
    let mut batches = Vec::new();
    let filled = fill_with(cache, dataset, |pixels, _| {
        batches.push(pixels.dim().0);
        Ok(encode(pixels))
    });
    let filled = filled.expect("filled");
    let counted = filled.computed + filled.present + filled.skipped.len();
    assert_eq!((counted, filled.total), (9, 9));
    (filled, batches)
}

fn expected(dataset: &Dataset, item: usize) -> Array3<f32> {
    let pixels = item_pixels(dataset, item).expect("a picture").insert_axis(Axis(0));
    encode(&pixels).index_axis_move(Axis(0), 0)
}

#[test]
fn what_is_kept_is_what_the_encoder_gave() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let cache = cache(folder.path());
    assert_eq!(cache.get(&dataset, 0), Err(Lack::Missing));
    assert_eq!(cache.has(&dataset, 0), Err(Lack::Missing));
    let (filled, batches) = fill(&cache, &dataset);
    assert_eq!((filled.computed, filled.present, batches), (9, 0, vec![4, 5]));
    for item in 0..9 {
        assert_eq!(cache.get(&dataset, item), Ok(expected(&dataset, item)), "{item}");
        assert_eq!(cache.has(&dataset, item), Ok(()), "{item}");
    }
    let other = MomentCache::new(&folder.path().join("cache"), "another VAE".into());
    assert_eq!(other.get(&dataset, 0), Err(Lack::Missing));
    let (again, batches) = fill(&cache, &dataset);
    assert_eq!((again.computed, again.present, batches), (0, 9, vec![]));
}

#[test]
fn large_pictures_go_alone() {
    assert_eq!([64, 512, 520, 2048].map(|side| at_once(side * side)), [64, 1, 1, 1]);
    assert_eq!(at_once(256 * 512), 2);
}

#[test]
fn an_interrupted_run_goes_on_with_what_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let cache = cache(folder.path());
    let mut calls = 0;
    let fails = |pixels: &Array4<f32>, _: &Cancel| {
        calls += 1;
        if calls == 2 { Err(PipelineError::NoEncoder) } else { Ok(encode(pixels)) }
    };
    let error = fill_with(&cache, &dataset, fails).expect_err("interrupted");
    assert!(matches!(error, CacheError::Encoder(_)), "{error}");
    let (filled, batches) = fill(&cache, &dataset);
    assert_eq!((filled.computed, filled.present, batches), (5, 4, vec![5]));
}

#[test]
fn a_cancelled_run_ends_after_a_batch() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let cache = cache(folder.path());
    let cancels = |pixels: &Array4<f32>, cancel: &Cancel| {
        cancel.cancel();
        Ok(encode(pixels))
    };
    let filled = fill_with(&cache, &dataset, cancels).expect("ended");
    assert_eq!((filled.computed, filled.total), (4, 9));
    assert_eq!(fill(&cache, &dataset).0.present, 4);
}

#[test]
fn what_is_damaged_or_changed_is_computed_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let cache = cache(folder.path());
    fill(&cache, &dataset);
    let path = |item| cache.path(&dataset, item);
    let mut bytes = fs::read(path(0)).expect("an entry");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(path(0), bytes).expect("damaged");
    fs::write(path(1), "").expect("damaged");
    // The picture itself.
    let image = RgbImage::from_pixel(66, 64, image::Rgb([9, 9, 9]));
    image.save(dataset.file(2)).expect("written");
    fs::write(dataset.file(3), "no picture").expect("written");
    // An entry under another one's name.
    fs::copy(path(8), path(4)).expect("copied");
    for item in [0, 1, 4] {
        assert!(matches!(cache.get(&dataset, item), Err(Lack::Damaged(_))), "{item}");
    }
    assert_eq!(
        [2, 3].map(|item| cache.get(&dataset, item).err()),
        [Some(Lack::Changed), Some(Lack::Changed)]
    );
    let (filled, _) = fill(&cache, &dataset);
    assert_eq!((filled.computed, filled.present), (4, 4));
    let [skipped] = &filled.skipped[..] else { panic!("one picture: {filled:?}") };
    assert_eq!((skipped.item, &skipped.file), (3, &dataset.file(3)));
    assert_eq!(cache.get(&dataset, 2), Ok(expected(&dataset, 2)));
    let Err(Lack::Unreadable(why)) = cache.has(&dataset, 3) else { panic!("3 cannot be read") };
    assert_eq!(why, skipped.problem);
}

#[test]
fn every_changed_byte_is_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let cache = cache(folder.path());
    fill(&cache, &dataset);
    let path = cache.path(&dataset, 0);
    let good = fs::read(&path).expect("an entry");
    for at in (0..good.len()).step_by(5) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x11;
        fs::write(&path, &bytes).expect("written");
        if let Ok(found) = cache.get(&dataset, 0) {
            assert_eq!(found, expected(&dataset, 0), "byte {at}");
        }
    }
}

#[test]
fn copied_and_removed_pictures_are_still_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let cache = cache(folder.path());
    fill(&cache, &dataset);
    let file = fs::File::options().write(true).open(dataset.file(0)).expect("opened");
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).expect("another time");
    assert!(cache.get(&dataset, 0).is_ok());
    // It was compared once; a second time another content at the same time is not noticed.
    let time = fs::metadata(dataset.file(0)).and_then(|m| m.modified()).expect("a time");
    let good = fs::read(dataset.file(0)).expect("a picture");
    let mut bytes = good.clone();
    bytes[20] ^= 1;
    let write = |bytes: &[u8]| {
        fs::write(dataset.file(0), bytes).expect("written");
        let file = fs::File::options().write(true).open(dataset.file(0)).expect("opened");
        file.set_modified(time).expect("the same time");
    };
    write(&bytes);
    assert!(cache.get(&dataset, 0).is_ok());
    let another_run = self::cache(folder.path());
    assert_eq!(another_run.get(&dataset, 0), Err(Lack::Changed));
    write(&good);
    // Filling again takes the time down, so that nobody has to compare.
    assert_eq!(fill(&self::cache(folder.path()), &dataset).0.present, 9);
    write(&bytes);
    assert!(self::cache(folder.path()).get(&dataset, 0).is_ok());
    write(&good);
    fs::remove_file(dataset.file(1)).expect("removed");
    assert!(cache.get(&dataset, 1).is_ok());
    // Of the same length, at another time, with another content.
    let mut bytes = fs::read(dataset.file(2)).expect("a picture");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(dataset.file(2), bytes).expect("changed");
    assert_eq!(cache.get(&dataset, 2), Err(Lack::Changed));
}

#[test]
fn what_is_no_encoders_output_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let cache = cache(folder.path());
    for (shape, said) in [
        ([4, 8, 4, 8], "gave [4, 8, 4, 8], expected [4, 2 × latent channels, "),
        ([1, 8, 6, 12], "gave [1, 8, 6, 12]"),
    ] {
        let encode = |_: &Array4<f32>, _: &Cancel| Ok(Array4::zeros(shape));
        let error = fill_with(&cache, &dataset, encode).expect_err("refused");
        assert!(error.to_string().contains(said), "{error}");
    }
    assert_eq!(fill(&cache, &dataset).0.computed, 9, "nothing was kept");
}

#[test]
fn what_killed_processes_left_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let cache = cache(folder.path());
    fill(&cache, &dataset);
    let part = cache.path(&dataset, 0);
    let part = part.parent().expect("a folder");
    let [old, young] = ["old", "young"].map(|name| part.join(format!(".pixart-{name}")));
    for file in [&old, &young] {
        fs::write(file, "half").expect("written");
    }
    let before = SystemTime::now() - Duration::from_secs(48 * 3600);
    let file = fs::File::options().write(true).open(&old).expect("opened");
    file.set_modified(before).expect("changed");
    fill(&cache, &dataset);
    assert!(!old.exists() && young.exists());
}
