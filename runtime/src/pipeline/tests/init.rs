//! Pictures to begin from, on the engine that computes next to nothing.

use image::{GrayImage, Luma, Rgb};
use ndarray::ArrayD;

use super::*;

/// A model folder with a VAE encoder.
fn with_encoder() -> TempDir {
    let folder = model();
    let encoder = folder.path().join("vae_encoder");
    let architecture = json!({"latent_channels": 4, "scale_factor": 8, "scaling_factor": 0.5});
    write_json(&encoder.join("manifest.json"), &manifest("vae_encoder", architecture));
    std::fs::write(encoder.join("model.onnx"), "onnx").expect("written");
    folder
}

/// A request that begins from a picture of a red ramp.
fn from_picture(width: u32, height: u32, strength: f64) -> Request {
    let image = RgbImage::from_fn(width, height, |x, _| Rgb([(x * 255 / width) as u8, 40, 90]));
    let init = InitImage { image: Arc::new(image), strength, mask: None };
    Request { init: Some(init), sampling_steps: 10, ..request(&["red"]) }
}

fn with_mask(mut request: Request, white: impl Fn(u32, u32) -> bool, paste_back: bool) -> Request {
    let init = request.init.as_mut().expect("a picture");
    let (width, height) = init.image.dimensions();
    let mask = GrayImage::from_fn(width, height, |x, y| Luma([255 * u8::from(white(x, y))]));
    init.mask = Some(Mask { image: Arc::new(mask), blur: 0.0, paste_back });
    request
}

/// The inputs of this name over all calls of a component.
fn inputs(toy: &Toy, component: &str, name: &str) -> Vec<ArrayD<f32>> {
    let calls = toy.calls.lock().expect("one thread");
    let inputs = calls.iter().filter(|(called, _)| called == component).flat_map(|(_, i)| i);
    let named = inputs.filter(|(n, _)| n == name);
    named.map(|(_, value)| value.as_f32().expect("floats").clone()).collect()
}

#[test]
fn only_the_last_steps_are_taken_and_counted() {
    let (folder, toy) = (with_encoder(), Arc::new(Toy::default()));
    let mut log = Vec::new();
    let request = Request { prompts: vec!["red".into(), "a".into()], ..from_picture(64, 64, 0.3) };
    pipeline(&folder, &toy, false)
        .sample(&request, &mut |event| match event {
            Event::StageStarted { stage, total } => log.push(format!("{stage} of {total}")),
            Event::Step { index, total } => log.push(format!("{index}/{total}")),
            _ => {}
        })
        .expect("pictures");
    let expected = "text of 2|1/2|2/2|picture of 1|1/1|denoise of 6|1/6|2/6|3/6|4/6|5/6|6/6|decode of 2|1/2|2/2";
    assert_eq!(log.join("|"), expected);
    let times = inputs(&toy, "transformer", "timestep");
    assert_eq!(times.len(), 6);
    // Times of 10 steps from 999 down to 0: the eighth is the first that is taken.
    assert!((times[0][[0]] - 299.7).abs() < 1e-3, "{}", times[0]);
    assert_eq!(toy.most_alive.load(Ordering::SeqCst), 1);
    assert_eq!(toy.alive.load(Ordering::SeqCst), 0);
}

#[test]
fn guidance_ends_where_it_does_without_a_picture() {
    let folder = with_encoder();
    // The steps 8, 9 and 10 are taken.
    for (end, expected) in [(8, [2, 1, 1]), (3, [1, 1, 1]), (10, [2, 2, 2])] {
        let toy = Arc::new(Toy::default());
        let guidance_end = GuidanceEnd::Step(end);
        let request = Request { guidance_end, ..from_picture(64, 64, 0.3) };
        sample(&mut pipeline(&folder, &toy, false), &request);
        assert_eq!(batches(&toy), expected, "guidance up to step {end}");
    }
}

#[test]
fn the_picture_gives_the_size_that_is_not_given() {
    let (folder, toy) = (with_encoder(), Arc::new(Toy::default()));
    let mut pipeline = pipeline(&folder, &toy, true);
    let drawn = |request: &Request, pipeline: &mut Pipeline| {
        let picture = sample(pipeline, request).remove(0);
        (picture.image.dimensions(), picture.latents.shape()[2..].to_vec())
    };
    let plain = from_picture(300, 150, 0.5);
    assert_eq!(drawn(&plain, &mut pipeline).0, (300, 150));
    let wide = Request { width: Some(100), ..plain.clone() };
    assert_eq!(drawn(&wide, &mut pipeline).0, (100, 50));
    let high = Request { height: Some(75), ..plain.clone() };
    assert_eq!(drawn(&high, &mut pipeline).0, (150, 75));
    let both = Request { width: Some(60), height: Some(60), ..plain.clone() };
    assert_eq!(drawn(&both, &mut pipeline), ((60, 60), vec![8, 8]));
    let exact = Request { use_resolution_binning: false, ..from_picture(96, 48, 0.5) };
    assert_eq!(drawn(&exact, &mut pipeline), ((96, 48), vec![6, 12]));
    let ratio = PictureSize { aspect_ratio: Some((1, 1)), ..PictureSize::default() };
    let square = Request { sizes: vec![ratio], ..plain.clone() };
    assert_eq!(drawn(&square, &mut pipeline), ((64, 64), vec![8, 8]));
    // The encoder sees what is drawn: the size generated.
    let samples = inputs(&toy, "vae_encoder", "sample");
    let sizes: Vec<_> =
        samples.iter().map(|sample| (sample.shape()[3], sample.shape()[2])).collect();
    assert_eq!(sizes, [(96, 48), (96, 48), (96, 48), (64, 64), (96, 48), (64, 64)]);
    let unfit = Request { use_resolution_binning: false, ..plain };
    let message = unfit.check().expect_err("300 is no multiple of 16").to_string();
    for said in ["init_image, 300x150", "image_width: found 300", "give image_width and"] {
        assert!(message.contains(said), "{message}");
    }
}

#[test]
fn the_picture_is_encoded_once_for_every_size() {
    let (folder, toy) = (with_encoder(), Arc::new(Toy::default()));
    let size = |side| PictureSize { width: Some(side), height: Some(64), aspect_ratio: None };
    let request = Request {
        prompts: vec!["red".into(); 4],
        sizes: vec![size(64), size(200), size(64), size(200)],
        ..from_picture(64, 64, 0.5)
    };
    sample(&mut pipeline(&folder, &toy, false), &request);
    assert_eq!(inputs(&toy, "vae_encoder", "sample").len(), 2);
}

#[test]
fn what_the_mask_keeps_is_the_picture() {
    let (folder, toy) = (with_encoder(), Arc::new(Toy::default()));
    let mut pipeline = pipeline(&folder, &toy, true);
    let left = |x: u32, _: u32| x < 32;
    for strength in [0.4, 1.0] {
        let request = with_mask(from_picture(64, 64, strength), left, true);
        let original = request.init.as_ref().expect("a picture").image.clone();
        let picture = sample(&mut pipeline, &request).remove(0);
        let mut changed = 0;
        for (x, y, pixel) in picture.image.enumerate_pixels() {
            match left(x, y) {
                true => changed += u32::from(pixel != original.get_pixel(x, y)),
                false => assert_eq!(pixel, original.get_pixel(x, y), "{x} {y}"),
            }
        }
        assert!(changed > 1000, "{changed}");
        // Without pasting the kept half is what the decoder makes of the picture's own latents.
        let unpasted = with_mask(from_picture(64, 64, strength), left, false);
        let unpasted = sample(&mut pipeline, &unpasted).remove(0);
        assert_eq!(unpasted.latents, picture.latents);
        let ddim = with_mask(from_picture(64, 64, strength), left, false);
        let ddim = Request { sampling_method: SamplingMethod::Ddim, ..ddim };
        let other = sample(&mut pipeline, &ddim).remove(0);
        let kept = |latents: &ArrayD<f32>| latents.slice(ndarray::s![.., .., .., 4..]).to_owned();
        assert_eq!(kept(&other.latents), kept(&picture.latents), "whatever the solver");
    }
}

#[test]
fn a_model_without_an_encoder_says_so_before_any_work() {
    let (folder, toy) = (model(), Arc::new(Toy::default()));
    let mut pipeline = pipeline(&folder, &toy, false);
    let error = pipeline.sample(&from_picture(64, 64, 0.5), &mut |_| ()).expect_err("no encoder");
    assert!(matches!(error, PipelineError::NoEncoder));
    assert!(error.to_string().contains("pixart export vae_encoder"), "{error}");
    assert!(toy.calls.lock().expect("one thread").is_empty());
    // Everything else works.
    sample(&mut pipeline, &request(&["red"]));
}

#[test]
fn an_encoder_of_another_vae_is_refused() {
    let folder = with_encoder();
    let architecture = json!({"latent_channels": 4, "scale_factor": 8, "scaling_factor": 0.25});
    let path = folder.path().join("vae_encoder/manifest.json");
    write_json(&path, &manifest("vae_encoder", architecture));
    let engine = Arc::new(ToyEngine(Arc::default()));
    let paths = ModelPaths::from_folder(folder.path());
    let error = Pipeline::new(engine, paths, PipelineOptions::default()).err().expect("refused");
    assert!(error.to_string().contains("the scaling factor 0.25"), "{error}");
}

#[test]
fn values_that_are_no_numbers_name_the_encoder() {
    let folder = with_encoder();
    let toy = Arc::new(Toy { broken: Some("vae_encoder"), ..Toy::default() });
    let result = pipeline(&folder, &toy, false).sample(&from_picture(64, 64, 0.5), &mut |_| ());
    let message = result.expect_err("broken").to_string();
    assert!(message.contains("the vae_encoder (fp32)"), "{message}");
}

#[test]
fn seeds_of_single_pictures_are_checked_and_used() {
    let (folder, toy) = (model(), Arc::new(Toy::default()));
    let mut pipeline = pipeline(&folder, &toy, true);
    let towards =
        |strength| NoiseSeed { seed: 5, variation: Some(Variation { seed: 9, strength }) };
    let seeds = vec![NoiseSeed::new(9), towards(0.0), towards(1.0)];
    let request = Request { noise_seeds: seeds, ..request(&["red", "red", "red"]) };
    let pictures = sample(&mut pipeline, &request);
    assert_eq!(pictures[0].latents, pictures[2].latents);
    assert_ne!(pictures[0].latents, pictures[1].latents);
    assert_eq!([9, 5, 5], [0, 1, 2].map(|k: usize| pictures[k].seed));
    for (seeds, said) in [
        (vec![NoiseSeed::new(1)], "noise_seeds: found 1 for 3 prompts"),
        (vec![towards(1.1); 3], "variation_strength: found 1.1, expected 0 to 1"),
        (vec![towards(f64::NAN); 3], "variation_strength: found NaN"),
    ] {
        let wrong = Request { noise_seeds: seeds, ..request.clone() };
        let message = wrong.check().expect_err(said).to_string();
        assert!(message.contains(said), "{message}");
    }
}

#[test]
fn steps_are_left_out_of_those_that_are_taken() {
    let (folder, toy) = (with_encoder(), Arc::new(Toy::default()));
    let easycache = Some(EasyCache { threshold: 1e9, start: 0.0, end: 1.0 });
    let request = Request { easycache, ..from_picture(64, 64, 0.5) };
    let pictures = sample(&mut pipeline(&folder, &toy, false), &request);
    // Of the steps 6 to 10 the first two and the last are computed.
    assert_eq!((batches(&toy), pictures[0].reused_steps), (vec![2, 2, 2], 2));
}
