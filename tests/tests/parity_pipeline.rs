//! Whole pictures against diffusers' pipeline, and against the rules of mindone driven by the same
//! modules, on both engines.
//!
//! Both references run with captions padded to 300 tokens, so that these tests also show that
//! trimming captions changes nothing.

use image::RgbImage;
use pixart_runtime::{
    pipeline::{ModelPaths, Picture, Pipeline, PipelineOptions, Reference, Request},
    tensor::Tensor,
    text::PromptCleaning,
};
use pixart_tests::{
    engines,
    errors::{assert_close, psnr},
    exports::Export,
    fixtures,
};
use serde::Deserialize;

/// The largest relative error of the final latents.
const LATENTS: f64 = 1e-4;
/// The smallest ratio of picture to error, in decibels.
const PSNR: f64 = 50.0;
/// The largest share of colour values that may differ at all. Rounding where the reference
/// truncates would keep the ratio above 50 decibels but change every second value.
const DIFFERENT: f64 = 0.02;

#[derive(Deserialize)]
struct Cases {
    diffusers: Vec<Case>,
    mindone: Vec<Case>,
}

/// A request; what is absent is at its default.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    prompts: Vec<String>,
    #[serde(default)]
    negative_prompts: Vec<String>,
    sampling_steps: usize,
    guidance_scale: Option<f32>,
    width: Option<u32>,
    height: Option<u32>,
    use_resolution_binning: Option<bool>,
    seed: Option<u64>,
}

impl Case {
    fn request(&self, reference: Reference) -> Request {
        let default = Request::default();
        Request {
            prompts: self.prompts.clone(),
            negative_prompts: self.negative_prompts.clone(),
            width: self.width,
            height: self.height,
            sampling_steps: self.sampling_steps,
            guidance_scale: self.guidance_scale.unwrap_or(default.guidance_scale),
            seed: self.seed.unwrap_or(default.seed),
            reference,
            // The pictures were made with `clean_caption=False`.
            cleaning: (reference == Reference::Diffusers).then_some(PromptCleaning::Lower),
            use_resolution_binning: self
                .use_resolution_binning
                .unwrap_or(default.use_resolution_binning),
            ..default
        }
    }
}

fn cases(reference: Reference) -> Vec<Case> {
    let cases: Cases = fixtures::json("pipeline/cases.json");
    match reference {
        Reference::Diffusers => cases.diffusers,
        Reference::Mindone => cases.mindone,
    }
}

fn sample(name: &str, pipeline: &mut Pipeline, request: &Request) -> Vec<Picture> {
    pipeline.sample(request, &mut |_| ()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn assert_picture(name: &str, actual: &RgbImage, expected: &RgbImage) -> f64 {
    let ratio = psnr(name, actual, expected);
    assert!(ratio >= PSNR, "{name}: {ratio:.1} dB, at least {PSNR} dB expected");
    let pairs = actual.as_raw().iter().zip(expected.as_raw());
    let different = pairs.filter(|(a, b)| a != b).count() as f64 / expected.as_raw().len() as f64;
    assert!(different <= DIFFERENT, "{name}: {:.1} % of the values differ", 100.0 * different);
    ratio
}

fn assert_parity(reference: Reference) {
    let latents = fixtures::tensors("pipeline/latents.safetensors");
    let (mut worst_error, mut worst_ratio) = (0.0f64, f64::INFINITY);
    for profile in engines::profiles() {
        let export = Export::pipeline(&fixtures::tiny(), profile);
        for engine in engines::both() {
            let on = format!("{profile} on {}", engine.name());
            let mut pipeline = export.open(engine);
            for case in cases(reference) {
                let name = format!("{reference} {}, {on}", case.name);
                let pictures = sample(&name, &mut pipeline, &case.request(reference));
                assert_eq!(pictures.len(), case.prompts.len(), "{name}: number of pictures");
                let expected = match &latents[&format!("{reference}/{}", case.name)] {
                    Tensor::F32(array) => array,
                    Tensor::I64(_) => panic!("latents are floats"),
                };
                for (k, picture) in pictures.iter().enumerate() {
                    let name = format!("{name}, picture {k}");
                    let expected = expected.select(ndarray::Axis(0), &[k]);
                    let error = assert_close(&name, &picture.latents, &expected, LATENTS);
                    worst_error = worst_error.max(error);
                    let file = format!("pipeline/{reference}/{}_{k}.png", case.name);
                    let expected = image::open(fixtures::root().join(&file))
                        .unwrap_or_else(|error| panic!("{file}: {error}"))
                        .into_rgb8();
                    worst_ratio = worst_ratio.min(assert_picture(&name, &picture.image, &expected));
                    assert_eq!(picture.seed, case.seed.unwrap_or(42) + k as u64, "{name}: seed");
                }
            }
        }
    }
    println!("{reference}: latents within {worst_error:.2e}, pictures at {worst_ratio:.1} dB");
}

#[test]
fn pictures_equal_those_of_diffusers() {
    assert_parity(Reference::Diffusers);
}

#[test]
fn pictures_equal_those_of_mindone() {
    assert_parity(Reference::Mindone);
}

#[test]
fn two_prompts_give_the_pictures_of_two_requests() {
    for profile in engines::profiles() {
        let export = Export::pipeline(&fixtures::tiny(), profile);
        for engine in engines::both() {
            let on = format!("{profile} on {}", engine.name());
            // Loaded anew for every request, unlike in the tests above.
            let paths = ModelPaths::from_folder(export.path());
            let mut pipeline = Pipeline::new(engine, paths, PipelineOptions::default())
                .unwrap_or_else(|error| panic!("{on}: {error}"));
            let both = Request {
                prompts: vec!["a red circle".to_owned(), "a very old house at night".to_owned()],
                negative_prompts: vec![String::new(), "dark".to_owned()],
                sampling_steps: 3,
                width: Some(96),
                height: Some(64),
                use_resolution_binning: false,
                ..Request::default()
            };
            let together = sample(&on, &mut pipeline, &both);
            for (k, expected) in together.iter().enumerate() {
                let name = format!("picture {k} alone, {on}");
                let alone = Request {
                    prompts: vec![both.prompts[k].clone()],
                    negative_prompts: vec![both.negative_prompts[k].clone()],
                    seed: both.seed + k as u64,
                    ..both.clone()
                };
                let alone = sample(&name, &mut pipeline, &alone).remove(0);
                assert_close(&name, &alone.latents, &expected.latents, LATENTS);
                assert_picture(&name, &alone.image, &expected.image);
            }
        }
    }
}
