//! Batches as training reads them, from a cache and encoded live, against diffusers and transformers.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use image::RgbImage;
use ndarray::{Array3, ArrayD, Axis, concatenate, s};
use pixart_exporter::{Component, Profile};
use pixart_runtime::{
    engine::Engine,
    noise::TorchGenerator,
    pipeline::Cancel,
    size::{Size, SizePlan},
    tensor::Tensor,
    text::{CaptionEncoder, PromptCleaning},
    vae::PictureEncoder,
};
use pixart_tests::{
    component::{TOLERANCE, run},
    engines,
    errors::assert_close,
    exports::Export,
    fixtures::{self, Case},
    ranks::together,
};
use pixart_trainer::data::{
    BatchEncoder, BatchOptions, CacheError, CachedEncoder, CaptionKind, CaptionOptions,
    CaptionSettings, CaptionSource, CaptionType, Captions, DataOptions, Dataset, EncodeOptions,
    EncodedBatch, EncodedBatches, EncodingCache, Features, FillOptions, Filling, Labels,
    LiveEncoder, MomentSource, Place, Record, Sampler, Sizing, TextDescription, VaeDescription,
    empty_caption,
};
use pixart_trainer::ranks::Ranks;

const SETTINGS: CaptionSettings = CaptionSettings { cleaning: PromptCleaning::Raw, max_length: 60 };

/// The fixture's pictures, and copies of one of them so that a batch has several.
const PICTURES: [(&str, &str); 6] = [
    ("wide", "a red circle"),
    ("small", SMALL),
    ("exact", "noise"),
    ("exact1", "a red circle"),
    ("exact2", SMALL),
    ("exact3", "a red"),
];
const SMALL: &str =
    "a blue square to the left of a green triangle, and a yellow circle above both of them";

fn dataset(folder: &Path) -> Arc<Dataset> {
    let mut labels = Labels::default();
    for (k, (name, caption)) in PICTURES.into_iter().enumerate() {
        let path = PathBuf::from(format!("{name}.png"));
        let source = format!("{}.png", name.trim_end_matches(char::is_numeric));
        let source = fixtures::root().join("training_pictures").join(source);
        fs::copy(source, folder.join(&path)).expect("copied");
        let captions = Captions::new(Some(caption.into()), None);
        let place = Place { entry: k + 1, line: None };
        labels.records.push(Record { place, path, captions, declared: None });
    }
    let options = DataOptions::new(Sizing { sample_size: 8, multi_scale: true });
    Arc::new(Dataset::open(labels, folder, &options, &mut |_, _| {}))
}

/// The tiny model's encoders on an engine.
struct Encoders {
    engine: Arc<dyn Engine>,
    text: Export,
    vae: Export,
}

impl Encoders {
    fn on(engine: Arc<dyn Engine>) -> Self {
        let profile = if engine.name() == "ort" { Profile::Ort } else { Profile::Portable };
        let export = |component| Export::component(&fixtures::tiny(), component, profile);
        Self { engine, text: export(Component::TextEncoder), vae: export(Component::VaeEncoder) }
    }

    fn text(&self) -> CaptionEncoder {
        let folder = self.text.path().join("text_encoder");
        CaptionEncoder::new(&self.engine, &folder, &tokenizer(), None).expect("a text encoder")
    }

    fn vae(&self) -> PictureEncoder {
        PictureEncoder::open(&self.engine, &self.vae.path().join("vae_encoder")).expect("a VAE")
    }

    fn fill(&self, folder: &Path, dataset: &Dataset, kept: CaptionType) -> EncodingCache {
        self.fill_among(folder, dataset, kept, None)
    }

    fn fill_among(
        &self,
        folder: &Path,
        dataset: &Dataset,
        kept: CaptionType,
        ranks: Option<Arc<Ranks>>,
    ) -> EncodingCache {
        let (mut text, mut vae) = (self.text(), self.vae());
        let description = TextDescription::new(text.folder().expect("there"), &tokenizer());
        let description = description.expect("a tokenizer");
        let mut filling =
            Filling::open(folder, description, VaeDescription::new(vae.folder()), ranks);
        let filling = filling.as_mut().expect("a cache");
        let cancel = Cancel::new();
        let options = FillOptions { settings: SETTINGS, kept, workers: 2, cancel };
        let filled = filling.fill_captions(dataset, &mut text, &options, &mut |_, _| {});
        assert_eq!(filled.expect("filled").computed, 5);
        let (progress, tell) = (&mut |_, _| {}, &mut |_: &str| {});
        let filled = filling.fill_moments(dataset, &mut vae, &options, progress, tell);
        assert_eq!(filled.expect("filled").computed, PICTURES.len());
        EncodingCache::open(folder).expect("a cache")
    }

    fn live(&self, dataset: &Arc<Dataset>, dropped: f64) -> Box<dyn BatchEncoder> {
        let (text, vae) = (self.text(), self.vae());
        let live = LiveEncoder::new(dataset.clone(), text, vae, options(dropped));
        Box::new(live.expect("an encoder"))
    }
}

fn tokenizer() -> PathBuf {
    fixtures::tiny().join("tokenizer")
}

/// With every caption dropped, or none.
fn options(dropped: f64) -> EncodeOptions {
    let captions = CaptionOptions { class_dropout_prob: dropped, real_prompt_ratio: 1.0 };
    EncodeOptions { captions, settings: SETTINGS, workers: 2 }
}

fn cached(cache: &EncodingCache, dataset: &Arc<Dataset>, dropped: f64) -> Box<dyn BatchEncoder> {
    let encoder = CachedEncoder::new(cache.clone(), dataset.clone(), options(dropped));
    Box::new(encoder.expect("everything is there"))
}

/// The batches of an epoch.
fn epoch(dataset: &Dataset, encoder: Box<dyn BatchEncoder>, size: usize) -> Vec<EncodedBatch> {
    let sampler = Sampler::new(dataset, BatchOptions::new(size, 3)).expect("a sampler");
    let batches: Result<_, _> = EncodedBatches::start(encoder, sampler, 1, 1).collect();
    batches.expect("batches")
}

fn floats(case: &Case, name: &str) -> ArrayD<f32> {
    case[name].as_f32().expect("floats").clone()
}

/// Compares batches with the reference; states within `tolerance`.
fn assert_reference(batches: &[EncodedBatch], dataset: &Dataset, dropped: bool, tolerance: f64) {
    assert_reference_within(batches, dataset, dropped, [tolerance, TOLERANCE]);
}

/// The same with a tolerance of moments, too.
fn assert_reference_within(
    batches: &[EncodedBatch],
    dataset: &Dataset,
    dropped: bool,
    [tolerance, of_moments]: [f64; 2],
) {
    let cases: BTreeMap<String, Case> = fixtures::cases("training_encoded.safetensors");
    let null = floats(&cases["null"], "states");
    let mut compared = 0;
    for batch in batches {
        let length = batch.mask.ncols();
        assert!(length.is_multiple_of(8) && length < SETTINGS.max_length);
        for (k, &item) in batch.plan.items.iter().enumerate() {
            let name = dataset.items()[item].path.with_extension("").display().to_string();
            let Some(case) = cases.get(&name) else { continue };
            let compare = |what: &str, ours: ArrayD<f32>, expected: ArrayD<f32>, tolerance| {
                assert_close(&format!("{name}: {what}"), &ours, &expected, tolerance);
            };
            let of = |array: &ndarray::Array4<f32>| array.index_axis(Axis(0), k).to_owned();
            let (mean, log_variance) = (of(&batch.mean), of(&batch.log_variance));
            let draw = TorchGenerator::new(7).randn(mean.len());
            let draw = Array3::from_shape_vec(mean.dim(), draw).expect("as many");
            let latents = (&mean + &(log_variance.mapv(|v| (v / 2.0).exp()) * draw)) * 0.13025;
            compare("mean", mean.into_dyn(), floats(case, "mean"), of_moments);
            let expected = floats(case, "log_variance");
            compare("variance", log_variance.into_dyn(), expected, of_moments);
            compare("latents", latents.into_dyn(), floats(case, "latents"), of_moments);

            let conditions = &batch.conditions;
            let Size { width, height } = dataset.items()[item].size;
            let sides = ndarray::arr1(&[height as f32, width as f32]);
            assert_eq!(conditions.resolution.row(k), sides, "{name}: size");
            let ratio = SizePlan::ratio_label(Size { width, height }, 8) as f32;
            assert_eq!(conditions.aspect_ratio[[k, 0]], ratio, "{name}: ratio");

            let mask = case["mask"].as_i64().expect("integers");
            let tokens = mask.sum() as usize;
            let ours = batch.mask.row(k);
            assert_eq!(ours.sum() as usize, tokens, "{name}: tokens");
            assert!(ours.iter().take(tokens).all(|&attends| attends == 1), "{name}: the first");
            // What a mask of 0 covers has no weight.
            let states = if dropped { null.clone() } else { floats(case, "states") };
            let kept = states.slice(s![..tokens, ..]).to_owned();
            let ours = batch.captions.slice(s![k, ..tokens, ..]).to_owned();
            compare("states", ours.into_dyn(), kept.into_dyn(), tolerance);
            compared += 1;
        }
    }
    assert_eq!(compared, 3);
}

#[test]
fn several_ranks_fill_a_cache_with_what_one_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let encoders = Encoders::on(engines::tract());
    let one = encoders.fill(&folder.path().join("one"), &dataset, CaptionType::F16);
    // More than there are batches, too.
    for world in [2, 3, 8] {
        let place = folder.path().join(format!("by-{world}"));
        let fill = |ranks| {
            let encoders = Encoders::on(engines::tract());
            encoders.fill_among(&place, &dataset, CaptionType::F16, Some(ranks))
        };
        let caches = together(world, fill);
        assert_eq!(caches[0].description().sizes(), one.description().sizes());
        for item in 0..PICTURES.len() {
            assert_eq!(caches[0].moments().get(&dataset, item), one.moments().get(&dataset, item));
        }
        for (_, text) in PICTURES.iter().chain([&("", "")]) {
            let [found, expected] =
                [&caches[0], &one].map(|cache| cache.captions().get(text, SETTINGS));
            assert!(expected.is_ok(), "{text}");
            assert_eq!(found, expected, "{text}");
        }
    }
}

#[test]
fn what_is_trained_on_is_what_the_references_encode() {
    for engine in engines::both() {
        let folder = tempfile::tempdir().expect("a folder");
        let dataset = dataset(folder.path());
        let encoders = Encoders::on(engine);
        let floats = encoders.fill(&folder.path().join("f32"), &dataset, CaptionType::F32);
        let halves = encoders.fill(&folder.path().join("f16"), &dataset, CaptionType::F16);
        for dropped in [false, true] {
            let share = f64::from(u8::from(dropped));
            for (encoder, tolerance) in [
                (encoders.live(&dataset, share), TOLERANCE),
                (cached(&floats, &dataset, share), TOLERANCE),
                // Half of fp16's smallest step, beside what the engine differs by.
                (cached(&halves, &dataset, share), 5e-4 + TOLERANCE),
            ] {
                let batches = epoch(&dataset, encoder, 2);
                assert_reference(&batches, &dataset, dropped, tolerance);
            }
        }
    }
}

#[test]
fn what_a_picture_and_a_caption_give_does_not_depend_on_their_batch() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let encoders = Encoders::on(engines::tract());
    let captions = |size| -> BTreeMap<usize, Vec<f32>> {
        let batches = epoch(&dataset, encoders.live(&dataset, 0.0), size);
        let rows = batches.iter().flat_map(|batch| {
            batch.plan.items.iter().enumerate().map(|(k, &item)| {
                let tokens = batch.mask.row(k).sum() as usize;
                (item, batch.captions.slice(s![k, ..tokens, ..]).iter().copied().collect())
            })
        });
        rows.collect()
    };
    let alone = captions(1);
    assert_eq!(alone.len(), PICTURES.len());
    assert_eq!(alone, captions(4), "to the bit");
}

/// The transformer reads a batch's captions, cut to the longest and with zeros for padding, and gives what it gives
/// for all 60 places with T5's states of the padding in them.
#[test]
fn what_is_cut_off_makes_no_difference_to_the_transformer() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let cases = fixtures::cases("training_encoded.safetensors");
    let encoders = Encoders::on(engines::ort());
    let mut compared = 0;
    for dropped in [false, true] {
        let share = f64::from(u8::from(dropped));
        for batch in epoch(&dataset, encoders.live(&dataset, share), 4) {
            let case = |&item: &usize| {
                let name = dataset.items()[item].path.with_extension("").display().to_string();
                cases.get(&name)
            };
            let Some(rows) = batch.plan.items.iter().map(case).collect::<Option<Vec<_>>>() else {
                continue;
            };
            let whole = |name: &str| {
                let of_null = dropped && name == "states";
                let rows = rows.iter().map(|case| if of_null { &cases["null"] } else { case });
                rows.map(|case| case[name].clone()).collect::<Vec<_>>()
            };
            let states: Vec<_> =
                whole("states").iter().map(|t| t.as_f32().expect("floats").clone()).collect();
            let views: Vec<_> = states.iter().map(|s| s.view().insert_axis(Axis(0))).collect();
            let states = concatenate(Axis(0), &views).expect("of one length");
            let masks: Vec<_> =
                whole("mask").iter().map(|t| t.as_i64().expect("integers").clone()).collect();
            let views: Vec<_> = masks.iter().map(|m| m.view().insert_axis(Axis(0))).collect();
            let mask = concatenate(Axis(0), &views).expect("of one length");
            let count = rows.len();
            let inputs = |states: Tensor, mask: Tensor| -> Case {
                [
                    ("hidden_states", batch.mean.clone().into()),
                    ("encoder_hidden_states", states),
                    ("encoder_attention_mask", mask),
                    ("timestep", ndarray::Array1::from_elem(count, 500.0f32).into()),
                ]
                .map(|(name, tensor)| (name.to_owned(), tensor))
                .into()
            };
            for engine in engines::both() {
                let profile = if engine.name() == "ort" { Profile::Ort } else { Profile::Portable };
                let component = Component::Transformer;
                let export = Export::component(&fixtures::tiny(), component, profile);
                let mut session = engine.load(&export.graph(component)).expect("loads");
                let cut = inputs(batch.captions.clone().into(), batch.mask.clone().into());
                let cut = run("cut", session.as_mut(), component, &cut);
                let whole = inputs(states.clone().into(), mask.clone().into());
                let whole = run("whole", session.as_mut(), component, &whole);
                let name = format!("dropped {dropped}, {} of {count}", engine.name());
                assert_close(&name, &cut, &whole, 1e-5);
                compared += 1;
            }
        }
    }
    assert!(compared >= 4, "{compared}");
}

#[test]
fn pictures_that_cannot_be_had_are_skipped_and_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path());
    let encoders = Encoders::on(engines::tract());
    let cache = encoders.fill(&folder.path().join("cache"), &dataset, CaptionType::F16);
    // Another picture of its size under the name of one.
    RgbImage::new(64, 64).save(dataset.file(3)).expect("written");
    let batches = epoch(&dataset, cached(&cache, &dataset, 0.0), 2);
    let skipped: Vec<_> = batches.iter().flat_map(|batch| &batch.skipped).collect();
    assert!(!skipped.is_empty() && skipped.iter().all(|skipped| skipped.item == 3));
    let problem = &skipped[0].problem;
    assert!(problem.contains("the picture has changed since"), "{problem}");
    assert!(problem.contains("run `pixart train cache` again"), "{problem}");
    assert!(batches.iter().all(|batch| !batch.plan.items.contains(&3)));
    let count: usize = batches.iter().map(|batch| batch.mean.dim().0).sum();
    assert_eq!(count, PICTURES.len(), "another one stands for it");

    // Live, one that cannot be read.
    fs::write(dataset.file(3), "no picture").expect("written");
    let batches = epoch(&dataset, encoders.live(&dataset, 0.0), 2);
    let skipped: Vec<_> = batches.iter().flat_map(|batch| &batch.skipped).collect();
    assert!(!skipped.is_empty() && skipped.iter().all(|skipped| skipped.item == 3));
}

/// Features of the fixture's first three pictures, as the official tools write them.
#[test]
fn features_of_the_official_tools_are_what_the_references_encode() {
    let folder = tempfile::tempdir().expect("a folder");
    let all = dataset(folder.path());
    let features = Features::new(&fixtures::root().join("features"), &all, 4, 48);
    let check = |dataset: &Dataset, item| {
        let captions = Some((options(0.0).captions, SETTINGS.max_length));
        Ok(features.check(dataset, item, true, captions)?)
    };
    let dataset = Arc::new(Arc::into_inner(all).expect("ours").keep(2, check, &mut |_, _| {}));
    let names = dataset.items().iter().map(|item| item.path.display().to_string());
    assert_eq!(names.collect::<Vec<_>>(), ["wide.png", "small.png", "exact.png"]);
    assert_eq!(dataset.left_out().len(), 3);
    let encoders = Encoders::on(engines::tract());
    let features = Arc::new(features);
    for dropped in [false, true] {
        let share = f64::from(u8::from(dropped));
        let captions = |empty| CaptionSource::Features { features: features.clone(), empty };
        let read = || MomentSource::Features(features.clone());
        let empty = empty_caption(&mut encoders.text(), SETTINGS).expect("encoded");
        let new = |captions: CaptionSource, moments: MomentSource| {
            LiveEncoder::new(dataset.clone(), captions, moments, options(share))
        };
        // Half of fp16's smallest step, beside what the engine differs by.
        let tolerance = 5e-4 + TOLERANCE;
        for (encoder, tolerance) in [
            (new(captions(Some(empty.clone())), read()), tolerance),
            (new(encoders.text().into(), read()), TOLERANCE),
            (new(captions(Some(empty.clone())), encoders.vae().into()), tolerance),
        ] {
            let encoder = Box::new(encoder.expect("an encoder"));
            let batches = epoch(&dataset, encoder, 2);
            // One picture's deviations are kept as fp16, which their logarithms show twice.
            assert_reference_within(&batches, &dataset, dropped, [tolerance, 2e-3]);
        }
        match new(captions(None), read()) {
            Ok(_) => assert!(!dropped, "without the empty caption, none is dropped"),
            Err(error) => assert!(
                dropped && error.to_string().starts_with("class_dropout_prob: found 1, but"),
                "{error}"
            ),
        }
    }
    // The other caption's features are others.
    let [short, long] = [CaptionKind::Prompt, CaptionKind::Sharegpt4v]
        .map(|kind| features.caption(&dataset, 0, kind, 60).expect("a caption").states);
    assert_eq!(short, -long);
}

#[test]
fn ranks_that_do_not_see_one_folder_are_told() {
    let encoders = Encoders::on(engines::tract());
    let folders = [0, 1].map(|_| tempfile::tempdir().expect("a folder"));
    let opened = together(2, |ranks| {
        let (text, vae) = (encoders.text(), encoders.vae());
        let text = TextDescription::new(text.folder().expect("there"), &tokenizer());
        let text = text.expect("a tokenizer");
        let folder = folders[usize::from(!ranks.is_first())].path();
        Filling::open(folder, text, VaeDescription::new(vae.folder()), Some(ranks)).map(drop)
    });
    let [first, second] = &opened[..] else { panic!("two ranks") };
    assert!(first.is_ok());
    let Err(CacheError::NotShared { folder }) = second else { panic!("{second:?}") };
    assert_eq!(folder, folders[1].path());
}
