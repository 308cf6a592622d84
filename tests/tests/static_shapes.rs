//! Networks whose sizes are fixed before the device sees them, one session for each size, draw the same
//! pictures as those that take all sizes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use pixart_exporter::Profile;
use pixart_runtime::{
    engine::{
        self, Engine, EngineChoice, EngineError, EngineOptions,
        provider::{DeviceOptions, Keeps, Outcome},
    },
    pipeline::{Picture, PictureSize, Pipeline, PipelineOptions, Request},
    tensor::Tensor,
};
use pixart_tests::{
    engines,
    errors::{assert_close, psnr},
    exports::Export,
    fixtures,
};

/// ONNX Runtime on the device named for tests, or on the processor.
fn open(options: DeviceOptions) -> Arc<dyn Engine> {
    let device = engines::test_device().unwrap_or_default();
    let device = DeviceOptions { device, ..options };
    let options = EngineOptions { library: engines::test_library(), threads: Some(2), device };
    engine::open(EngineChoice::Ort, &options).expect("ONNX Runtime, by scripts/test").engine
}

fn fixed(fixed: bool) -> Arc<dyn Engine> {
    open(DeviceOptions { static_shapes: Some(fixed), ..DeviceOptions::default() })
}

#[test]
fn pictures_of_several_sizes_are_the_same() {
    let size = |width, height| PictureSize {
        width: Some(width),
        height: Some(height),
        aspect_ratio: None,
    };
    let request = Request {
        // The fourth comes back to the first size; the last batch is not full.
        prompts: ["a", "a house with a garden, seen from the street", "b", "c", "d"]
            .map(str::to_owned)
            .to_vec(),
        sizes: vec![size(64, 64), size(64, 64), size(96, 64), size(64, 64), size(64, 96)],
        sampling_steps: 3,
        use_resolution_binning: false,
        ..Request::default()
    };
    let profile = engines::profiles()[0];
    let export = Export::pipeline(&fixtures::tiny(), profile);
    let draw = |engine: Arc<dyn Engine>| -> Vec<Picture> {
        let options =
            PipelineOptions { batch_size: 2, keep_resident: true, ..PipelineOptions::default() };
        let paths = pixart_runtime::pipeline::ModelPaths::from_folder(export.path());
        let mut pipeline = Pipeline::new(engine, paths, options).expect("a pipeline");
        pipeline.sample(&request, &mut |_| ()).expect("pictures")
    };
    let (expected, found) = (draw(fixed(false)), draw(fixed(true)));
    // Some devices have other kernels for sizes that they know.
    let allowed = if engines::test_device().is_some() { 2e-4 } else { 1e-5 };
    assert_eq!(found.len(), 5);
    for (k, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_close(&format!("picture {k}"), &found.latents, &expected.latents, allowed);
        let ratio = psnr(&format!("picture {k}"), &found.image, &expected.image);
        assert!(ratio > 50.0, "picture {k}: {ratio:.1} dB");
    }
}

#[test]
fn each_size_has_a_session_that_takes_no_other() {
    let export = Export::pipeline(&fixtures::tiny(), Profile::Portable);
    let model = export.path().join("text_encoder/model.onnx");
    let (free, fixed) = (fixed(false), fixed(true));
    assert!(fixed.compiles_per_size() && !free.compiles_per_size());
    let mut sessions = [free.load(&model).expect("loads"), fixed.load(&model).expect("loads")];
    // More sizes than are kept, and back to the first.
    for tokens in [4, 5, 6, 7, 8, 9, 4, 9] {
        let values = inputs(tokens);
        let values: Vec<_> = values.iter().map(|(name, value)| (*name, value)).collect();
        let [free, fixed] = &mut sessions;
        let expected = free.run(&values).expect("embeddings").remove(0).1;
        let found = fixed.run(&values).expect("embeddings").remove(0).1;
        let [found, expected] = [found, expected].map(|t| t.into_f32("").expect("floats"));
        assert_close(&format!("{tokens} tokens"), &found, &expected, 1e-5);
    }
    // Times are measured with fixed sizes, too.
    let values = inputs(4);
    let values: Vec<_> = values.iter().map(|(name, value)| (*name, value)).collect();
    assert!(fixed.time_shares(&model, &values).expect("a profile").is_some());
    // What does not fit is told before anything is compiled.
    let values =
        [("input_ids", inputs(4)[0].1.clone()), ("attention_mask", inputs(5)[1].1.clone())];
    let values: Vec<_> = values.iter().map(|(name, value)| (*name, value)).collect();
    let error = sessions[1].run(&values).expect_err("two lengths");
    assert!(matches!(error, EngineError::Input { .. }), "{error}");
}

/// A caption of so many tokens.
fn inputs(tokens: usize) -> [(&'static str, Tensor); 2] {
    let of = |value: i64| Tensor::from(ndarray::Array2::from_elem((1, tokens), value));
    [("input_ids", of(3)), ("attention_mask", of(1))]
}

/// The record of a profile must not be kept in threads that other sessions use.
#[test]
fn a_profile_leaves_other_sessions_alone() {
    let export = Export::pipeline(&fixtures::tiny(), Profile::Portable);
    let model = export.path().join("text_encoder/model.onnx");
    let engine = fixed(false);
    let captions = inputs(4);
    let captions: Vec<_> = captions.iter().map(|(name, value)| (*name, value)).collect();
    // Large enough for several threads to be at it nearly all the time.
    let mut busy = engine.load(&export.path().join("vae_decoder/model.onnx")).expect("loads");
    let latents = Tensor::from(ndarray::Array4::from_elem((1, 4, 32, 32), 0.1f32));
    let done = AtomicBool::new(false);
    let runs = thread::scope(|scope| {
        let others = scope.spawn(|| {
            let mut runs = 0;
            while !done.load(Ordering::Relaxed) || runs == 0 {
                busy.run(&[("latent_sample", &latents)])
                    .expect("a picture while others are measured");
                runs += 1;
            }
            runs
        });
        for _ in 0..20 {
            let shares = engine.time_shares(&model, &captions);
            done.store(shares.is_err(), Ordering::Relaxed);
            assert!(shares.expect("a profile").is_some());
        }
        done.store(true, Ordering::Relaxed);
        others.join().expect("no run failed")
    });
    assert!(runs > 1, "only {runs} runs beside the profiles");
}

#[test]
fn the_processor_that_stands_in_takes_all_sizes() {
    let open = |static_shapes| {
        // Some device that compiles for each size and is not here.
        let device = DeviceOptions {
            device: "cann".parse().expect("a device"),
            allow_cpu_fallback: true,
            static_shapes,
            ..DeviceOptions::default()
        };
        let options = EngineOptions { library: engines::test_library(), threads: Some(2), device };
        engine::open(EngineChoice::Ort, &options).expect("ONNX Runtime, by scripts/test")
    };
    for static_shapes in [None, Some(true)] {
        let opened = open(static_shapes);
        assert!(opened.note.is_some_and(|note| note.contains("instead")));
        assert!(!opened.engine.compiles_per_size(), "{static_shapes:?}");
    }
    let plain = fixed(true).plain(true).expect("ONNX Runtime has it");
    assert!(!plain.compiles_per_size());
}

#[test]
fn tract_cannot_do_without() {
    let device = DeviceOptions { static_shapes: Some(false), ..DeviceOptions::default() };
    let options = EngineOptions { device, ..EngineOptions::default() };
    let error = engine::open(EngineChoice::Tract, &options).err().expect("refused");
    assert!(matches!(error, EngineError::StaticShapes), "{error}");
}

/// On a device that keeps compiled graphs (named in `PIXART_TEST_DEVICE`), they are found again, and made anew when
/// they are damaged; on others, nothing is written.
#[test]
fn compiled_graphs_are_found_again() {
    let cache = tempfile::tempdir().expect("a folder");
    let compiled = Some(cache.path().join("compiled"));
    let profile = engines::profiles()[0];
    let export = Export::pipeline(&fixtures::tiny(), profile);
    let model = export.path().join("text_encoder/model.onnx");
    let keeps = engines::test_device().unwrap_or_default().provider.keeps;
    let values = ["input_ids", "attention_mask"]
        .map(|name| (name, Tensor::from(ndarray::Array2::<i64>::ones((1, 8)))));
    let values: Vec<_> = values.iter().map(|(name, value)| (*name, value)).collect();
    let mut expected = None;
    for static_shapes in [Some(false), Some(true)] {
        let open = || {
            open(DeviceOptions {
                static_shapes,
                compiled: compiled.clone(),
                ..DeviceOptions::default()
            })
        };
        let mut run = || {
            let engine = open();
            let mut session = engine.load(&model).expect("loads");
            let found = session.run(&values).expect("embeddings").remove(0).1;
            let found = found.into_f32("").expect("floats");
            assert_close("embeddings", &found, expected.get_or_insert_with(|| found.clone()), 1e-5);
            engine.compiled().pop().map(|compiled| compiled.outcome)
        };
        if matches!(keeps, Keeps::Nothing(_)) {
            assert!(!matches!(run(), Some(Outcome::Made(_) | Outcome::Found(_))));
            assert!(!cache.path().join("compiled").exists());
            continue;
        }
        let entry = match run() {
            Some(Outcome::Made(entry)) => entry,
            // OpenVINO 2025.4 on processors does not read its own files. That is noticed once.
            Some(Outcome::NotKept(reason)) => {
                assert!(reason.contains("does not read"), "{reason}");
                assert_eq!(run(), Some(Outcome::NotKept(reason)));
                continue;
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(run(), Some(Outcome::Found(entry.clone())));
        let blob = std::fs::read_dir(&entry.folder)
            .expect("an entry")
            .map(|file| file.expect("one").path());
        let blob = blob
            .filter(|file| !file.ends_with("entry.json"))
            .max_by_key(|file| std::fs::metadata(file).expect("a file").len());
        let blob = blob.expect("a file");
        let bytes = std::fs::read(&blob).expect("bytes");
        std::fs::write(&blob, &bytes[..bytes.len() / 2]).expect("cut short");
        let outcome = run();
        assert!(matches!(outcome, Some(Outcome::Remade(..))), "{outcome:?}");
        assert!(matches!(run(), Some(Outcome::Found(_))));
        // Another graph under the same name: its weights changed.
        let data = export.path().join("text_encoder/model.onnx_data");
        let file = std::fs::File::options().write(true).open(&data).expect("weights");
        file.set_modified(std::time::SystemTime::now()).expect("touched");
        assert!(matches!(run(), Some(Outcome::Made(_))));
    }
}
