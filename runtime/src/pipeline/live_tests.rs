//! Batches, cancellation, early decoding and previews, on the engine that computes next to nothing.

use std::{path::Path, sync::atomic::Ordering};

use serde_json::json;
use tempfile::TempDir;

use super::{
    tests::{Toy, ToyEngine, batches, manifest, model, request, sample, write_json},
    *,
};
use crate::{sampler::SamplingMethod, vae::LatentPreview};

fn pipeline(folder: &TempDir, toy: &Arc<Toy>, options: PipelineOptions) -> Pipeline {
    let paths = ModelPaths::from_folder(folder.path());
    Pipeline::new(Arc::new(ToyEngine(toy.clone())), paths, options).expect("a pipeline")
}

fn batched(batch_size: usize) -> PipelineOptions {
    PipelineOptions { batch_size, ..PipelineOptions::default() }
}

/// What happened, in short.
fn told(event: Event<'_>) -> String {
    match event {
        Event::StageStarted { stage, total } => format!("{stage} of {total}"),
        Event::Step { index, .. } => index.to_string(),
        Event::StageFinished { stage, .. } => format!("{stage} done"),
        Event::Picture { index, .. } => format!("#{index}"),
        Event::Latents { .. } => String::new(),
        Event::Note { text } | Event::Info { text } => text.to_owned(),
    }
}

/// Runs a request and gives its log from denoising on. `on` is told each line with its stage.
fn log(
    pipeline: &mut Pipeline,
    request: &Request,
    on: &mut dyn FnMut(&str),
) -> (String, Result<Vec<Picture>, PipelineError>) {
    let mut log = Vec::new();
    let mut current = String::new();
    let result = pipeline.sample(request, &mut |event| {
        if let Event::StageStarted { stage, .. } = event {
            current = stage.to_string();
        }
        let line = told(event);
        on(&format!("{current}: {line}"));
        log.push(line);
    });
    let start = log.iter().position(|line| line.starts_with("denoise")).unwrap_or(log.len());
    log.retain(|line| !line.is_empty());
    (log[start.min(log.len())..].join(" "), result)
}

#[test]
fn a_picture_does_not_depend_on_its_batch() {
    let folder = model();
    // Captions of 2 to 21 tokens, so of two lengths after padding.
    let prompts = ["red", "a b a b a b a b a b", "a", "red", "b"];
    for method in SamplingMethod::ALL {
        for guidance_scale in [1.0, 4.5] {
            if guidance_scale != 1.0 && !method.takes_guidance() {
                continue;
            }
            let request = Request {
                sampling_method: method,
                sampling_steps: method.default_steps(),
                guidance_scale,
                ..request(&prompts)
            };
            let draw = |batch_size| {
                let toy = Arc::new(Toy::default());
                *toy.variance.lock().expect("one thread") = 0.0;
                let mut pipeline = pipeline(&folder, &toy, batched(batch_size));
                (sample(&mut pipeline, &request), batches(&toy))
            };
            let (alone, calls) = draw(1);
            let halves = calls[0];
            assert_eq!(calls, vec![halves; 5 * request.sampling_steps]);
            for (batch_size, rows) in [(2, vec![2, 2, 1]), (4, vec![4, 1]), (9, vec![5])] {
                let (together, calls) = draw(batch_size);
                let expected = rows.iter().flat_map(|n| vec![n * halves; request.sampling_steps]);
                assert_eq!(calls, expected.collect::<Vec<_>>(), "{method}");
                for (a, b) in alone.iter().zip(&together) {
                    assert_eq!((a.seed, &a.prompt), (b.seed, &b.prompt));
                    assert_eq!(a.latents, b.latents, "{method} in batches of {batch_size}");
                    assert_eq!(a.image, b.image);
                }
            }
        }
    }
}

#[test]
fn a_batch_pads_captions_and_hides_the_padding() {
    let (folder, toy) = (model(), Arc::new(Toy::default()));
    let request = request(&["red", "a b a b a b a b a b"]);
    sample(&mut pipeline(&folder, &toy, batched(2)), &request);
    let calls = toy.calls.lock().expect("one thread");
    let (_, inputs) = calls.iter().find(|(name, _)| name == "transformer").expect("a call");
    let input = |name: &str| &inputs.iter().find(|(n, _)| n == name).expect("an input").1;
    assert_eq!(input("encoder_hidden_states").shape(), [4, 24, 4]);
    let mask = input("encoder_attention_mask").as_i64().expect("a mask");
    // Each unconditional half has the mask of its own prompt.
    let attended: Vec<i64> = mask.outer_iter().map(|row| row.sum()).collect();
    assert_eq!(attended, [2, 21, 2, 21]);
    let embeddings = input("encoder_hidden_states").as_f32().expect("floats");
    for row in [0, 2] {
        let padding = embeddings.index_axis(ndarray::Axis(0), row);
        let padding = padding.slice_axis(ndarray::Axis(0), (8..).into());
        assert!(padding.iter().all(|value| *value == 0.0));
    }
}

#[test]
fn a_batch_holds_neighbours_of_one_size() {
    let (folder, toy) = (model(), Arc::new(Toy::default()));
    let size = |side| PictureSize { width: Some(side), height: Some(64), aspect_ratio: None };
    let request = Request {
        sizes: [64, 64, 32, 32, 32, 64].map(size).to_vec(),
        use_resolution_binning: false,
        guidance_scale: 1.0,
        ..request(&["a"; 6])
    };
    let pictures = sample(&mut pipeline(&folder, &toy, batched(2)), &request);
    assert_eq!(batches(&toy), [[2; 3], [2; 3], [1; 3], [1; 3]].concat());
    let widths: Vec<u32> = pictures.iter().map(|picture| picture.image.width()).collect();
    assert_eq!(widths, [64, 64, 32, 32, 32, 64]);
}

#[test]
fn batches_that_cannot_be_are_refused() {
    let (folder, toy) = (model(), Arc::new(Toy::default()));
    let refused = |batch_size| {
        let mut pipeline = pipeline(&folder, &toy, batched(batch_size));
        pipeline.sample(&request(&["a"]), &mut |_| ()).expect_err("refused").to_string()
    };
    assert!(refused(0).contains("batch_size: found 0, expected 1 or more"));
    let architecture = json!({
        "sample_size": 8, "in_channels": 4, "out_channels": 8, "caption_channels": 4,
    });
    let mut dynamic = manifest("transformer", architecture);
    dynamic["precision"] = json!("int8");
    dynamic["int8_mode"] = json!("dynamic");
    write_json(&folder.path().join("transformer/manifest.json"), &dynamic);
    assert!(refused(2).contains("batch_size: found 2, expected 1 with this transformer"));
    sample(&mut pipeline(&folder, &toy, batched(1)), &request(&["a"]));
}

#[test]
fn pictures_are_decoded_as_early_as_asked_with_one_component_at_a_time() {
    let folder = model();
    let steps = "denoise of 9 1 2 3 denoise done decode of 3 1 #0 decode done \
                 denoise of 9 4 5 6 denoise done decode of 3 2 #1 decode done \
                 denoise of 9 7 8 9 denoise done decode of 3 3 #2 decode done";
    for keep_resident in [false, true] {
        let toy = Arc::new(Toy::default());
        let decode_interval = if keep_resident { Duration::MAX } else { Duration::ZERO };
        let options = PipelineOptions { keep_resident, decode_interval, ..Default::default() };
        let mut pipeline = pipeline(&folder, &toy, options);
        let (log, result) = log(&mut pipeline, &request(&["a", "b", "red"]), &mut |_| ());
        assert_eq!(log, steps);
        assert_eq!(result.expect("pictures").len(), 3);
        let most = toy.most_alive.load(Ordering::SeqCst);
        assert_eq!(most, if keep_resident { 3 } else { 1 });
    }
}

#[test]
fn cancelled_it_ends_after_the_step_and_keeps_what_is_drawn() {
    let folder = model();
    let run = |moment: &str, batch_size| {
        let (toy, cancel) = (Arc::new(Toy::default()), Cancel::new());
        let options =
            PipelineOptions { batch_size, cancel: cancel.clone(), ..PipelineOptions::default() };
        let mut pipeline = pipeline(&folder, &toy, options);
        let (log, result) = log(&mut pipeline, &request(&["a", "b", "red"]), &mut |line| {
            if line == moment {
                cancel.cancel();
            }
        });
        (log, result.expect("no error").len())
    };
    // In the middle of the second picture, and of the first.
    let expected = "denoise of 9 1 2 3 4 5 denoise done decode of 3 1 #0 decode done";
    assert_eq!(run("denoise: 5", 1), (expected.to_owned(), 1));
    assert_eq!(run("denoise: 2", 1), ("denoise of 9 1 2 denoise done".to_owned(), 0));
    // A batch is finished or dropped as a whole.
    let expected = "denoise of 9 2 4 6 denoise done decode of 3 1 #0 2 #1 decode done";
    assert_eq!(run("denoise: 6", 2), (expected.to_owned(), 2));
    // While captions are encoded, and when all is drawn.
    assert_eq!(run("text: 1", 1), (String::new(), 0));
    assert_eq!(run("decode: decode of 3", 1).1, 3);
}

#[test]
fn pictures_drawn_before_a_failure_are_told() {
    let folder = model();
    for (broken, sound_calls, shown) in [("transformer", 7, 2), ("vae_decoder", 1, 1)] {
        let toy = Arc::new(Toy { broken: Some(broken), ..Toy::default() });
        toy.sound_calls.store(sound_calls, Ordering::SeqCst);
        let mut pipeline = pipeline(&folder, &toy, PipelineOptions::default());
        let (log, result) = log(&mut pipeline, &request(&["a", "b", "red"]), &mut |_| ());
        let message = result.expect_err("not finite").to_string();
        assert!(message.contains(broken) && message.contains("not finite"), "{message}");
        assert_eq!(log.matches('#').count(), shown, "{log}");
    }
}

#[test]
fn each_step_tells_the_latents_and_what_they_will_be() {
    let (folder, toy) = (model(), Arc::new(Toy::default()));
    let mut seen = Vec::new();
    let mut pipeline = pipeline(&folder, &toy, batched(2));
    // This one ends on its last prediction.
    let request = Request { sampling_method: SamplingMethod::Ddim, ..request(&["red", "a"]) };
    let pictures = pipeline
        .sample(&request, &mut |event| {
            if let Event::Latents { index, step, steps, latents, predicted } = event {
                seen.push((index, step, steps, latents.clone(), predicted.clone()));
            }
        })
        .expect("pictures");
    let order: Vec<_> = seen.iter().map(|s| (s.0, s.1, s.2)).collect();
    assert_eq!(order, [(0, 1, 3), (1, 1, 3), (0, 2, 3), (1, 2, 3), (0, 3, 3), (1, 3, 3)]);
    for (k, picture) in pictures.iter().enumerate() {
        let (.., latents, predicted) = &seen[4 + k];
        assert_eq!(latents, &picture.latents);
        let apart = (latents - predicted).mapv(f32::abs);
        assert!(apart.iter().all(|d| *d < 1e-5), "{apart}");
        assert_ne!(seen[k].3, seen[2 + k].3);
    }
}

#[test]
fn guidance_that_outgrows_fp32_is_told_apart_from_bad_weights() {
    let (folder, toy) = (model(), Arc::new(Toy::default()));
    let mut pipeline = pipeline(&folder, &toy, PipelineOptions::default());
    let request = Request { guidance_scale: 1e38, ..request(&["red"]) };
    let error = pipeline.sample(&request, &mut |_| ()).expect_err("too far").to_string();
    assert!(error.contains("guidance_scale 1"), "{error}");
    assert!(error.contains("after step") && error.contains("of 3"), "{error}");
}

#[test]
fn the_preview_is_fitted_to_the_vae_once() {
    let (folder, cache) = (model(), tempfile::tempdir().expect("a folder"));
    let preview = |cache: Option<&Path>| {
        let toy = Arc::new(Toy::default());
        let mut pipeline = pipeline(&folder, &toy, PipelineOptions::default());
        let preview = pipeline.latent_preview(cache).expect("a map");
        assert_eq!(toy.most_alive.load(Ordering::SeqCst), 1.min(calls(&toy)));
        (preview, calls(&toy))
    };
    fn calls(toy: &Toy) -> usize {
        toy.calls.lock().expect("one thread").len()
    }
    let (fitted, count) = preview(Some(cache.path()));
    assert_eq!(count, 16);
    // This VAE shows its first three channels, and nothing of the fourth.
    for (k, row) in fitted.weights().iter().enumerate() {
        let strongest = row.iter().map(|w| w.abs()).fold(0.0, f32::max);
        assert_eq!(row[k], strongest, "{fitted:?}");
        assert!(row[3].abs() < 1e-5 && row[4].abs() < 1e-5, "{fitted:?}");
    }
    assert_eq!(preview(Some(cache.path())), (fitted.clone(), 0));
    assert_eq!(preview(None), (fitted.clone(), 16));
    // What is no map of this VAE is fitted again.
    let file = std::fs::read_dir(cache.path()).expect("a folder").next().expect("an entry");
    let file = file.expect("an entry").path();
    for damaged in ["", "[]", "[[1.0,0.0],[1.0,0.0],[1.0,0.0]]"] {
        std::fs::write(&file, damaged).expect("written");
        assert_eq!(preview(Some(cache.path())), (fitted.clone(), 16), "{damaged}");
    }
    let read: [Vec<f32>; 3] =
        serde_json::from_slice(&std::fs::read(&file).expect("read")).expect("JSON");
    assert_eq!(LatentPreview::new(read), Some(fitted));
}
