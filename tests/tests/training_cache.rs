//! Moments kept on disk against those of the exported VAE encoder itself.

use std::path::{Path, PathBuf};

use image::RgbImage;
use ndarray::Array4;
use pixart_exporter::{Component, Profile};
use pixart_runtime::engine::{EngineError, Session};
use pixart_tests::{
    component::TOLERANCE, engines, errors::assert_close, exports::Export, fixtures,
};
use pixart_trainer::data::{
    BatchOptions, Captions, DataOptions, Dataset, FillOptions, Labels, Loader, LoaderOptions,
    MomentCache, Place, Record, Sampler, Sizing,
};

fn dataset(folder: &Path) -> Dataset {
    let mut labels = Labels::default();
    for k in 0..5u32 {
        let (width, height) = if k < 3 { (70, 64) } else { (140, 72) };
        let path = PathBuf::from(format!("{k}.png"));
        let image = RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([(x * 3 + k * 40) as u8, (y * 4) as u8, ((x ^ y) * 2) as u8])
        });
        image.save(folder.join(&path)).expect("written");
        let captions = Captions::new(Some("a".into()), None);
        let place = Place { entry: k as usize + 1, line: None };
        labels.records.push(Record { place, path, captions, declared: None });
    }
    let options = DataOptions::new(Sizing { sample_size: 8, multi_scale: true });
    Dataset::open(labels, folder, &options, &mut |_, _| {})
}

fn encode(session: &mut dyn Session, pixels: &Array4<f32>) -> Result<Array4<f32>, EngineError> {
    let pixels = pixels.clone().into();
    let (name, moments) = session.run(&[("sample", &pixels)])?.remove(0);
    assert_eq!(name, "latent_parameters");
    let moments = moments.into_f32(&name).expect("floats");
    Ok(moments.into_dimensionality().expect("four dimensions"))
}

#[test]
fn what_training_reads_is_what_the_encoder_makes_of_the_batch() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let export = Export::component(&fixtures::tiny(), Component::VaeEncoder, Profile::Portable);
    let mut session = engines::tract().load(&export.graph(Component::VaeEncoder)).expect("loads");
    let cache = MomentCache::new(&folder.path().join("cache"), "tiny");
    let options = FillOptions { batch_size: 2, workers: 2 };
    let filled =
        cache.fill(&dataset, options, |pixels| encode(&mut *session, pixels), &mut |_, _| {});
    assert_eq!(filled.expect("filled").computed, 5);

    let dataset = std::sync::Arc::new(dataset);
    let sampler = Sampler::new(&dataset, BatchOptions::new(3, 0)).expect("a sampler");
    for batch in Loader::start(dataset.clone(), sampler, 1, LoaderOptions::default()) {
        let batch = batch.expect("a batch");
        let moments = encode(&mut *session, &batch.pixels).expect("encoded");
        for (&item, expected) in batch.plan.items.iter().zip(moments.outer_iter()) {
            let kept = cache.get(&dataset, item).expect("kept").into_dyn();
            let expected = expected.to_owned().into_dyn();
            assert_close(&format!("picture {item}"), &kept, &expected, TOLERANCE);
        }
    }
}
