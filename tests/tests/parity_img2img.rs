//! Pictures from a picture, whole and with a mask, against a loop of diffusers' img2img and inpainting over the
//! modules of its PixArt-Σ pipeline, and against the same in mindone's times; on both engines.

use std::{path::PathBuf, sync::Arc};

use image::RgbImage;
use pixart_exporter::Profile;
use pixart_runtime::{
    image::{read_mask, read_picture},
    pipeline::{InitImage, Mask, NoiseSeed, Picture, Pipeline, Reference, Request, Variation},
    sampler::SamplingMethod,
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

#[derive(Deserialize)]
struct Cases {
    prompt: String,
    negative_prompt: String,
    seed: u64,
    diffusers: Vec<Case>,
    mindone: Vec<Case>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    method: String,
    steps: usize,
    strength: f64,
    guidance_scale: Option<f32>,
    picture: Option<String>,
    mask: Option<String>,
    paste_back: Option<bool>,
    /// Height and width that binning picks, where the picture is not drawn at its own size.
    drawn: Option<(usize, usize)>,
}

fn file(name: &str) -> PathBuf {
    fixtures::root().join("img2img").join(name)
}

fn request(cases: &Cases, case: &Case, reference: Reference) -> Request {
    let picture = format!("{}.png", case.picture.as_deref().unwrap_or("picture"));
    let mask = case.mask.as_ref().map(|name| Mask {
        image: Arc::new(read_mask(&file(&format!("{name}.png"))).expect("the mask")),
        blur: 0.0,
        paste_back: case.paste_back.expect("masked cases say"),
    });
    let method: SamplingMethod = case.method.parse().expect("a solver");
    Request {
        prompts: vec![cases.prompt.clone()],
        negative_prompts: vec![cases.negative_prompt.clone()],
        sampling_method: method,
        sampling_steps: case.steps,
        guidance_scale: case.guidance_scale.unwrap_or(4.5),
        seed: cases.seed,
        reference,
        cleaning: (reference == Reference::Diffusers).then_some(PromptCleaning::Lower),
        use_resolution_binning: case.drawn.is_some(),
        init: Some(InitImage {
            image: Arc::new(read_picture(&file(&picture)).expect("the picture")),
            strength: case.strength,
            mask,
        }),
        ..Request::default()
    }
}

fn sample(name: &str, pipeline: &mut Pipeline, request: &Request) -> Vec<Picture> {
    pipeline.sample(request, &mut |_| ()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn assert_picture(name: &str, actual: &RgbImage, expected: &RgbImage) -> f64 {
    let ratio = psnr(name, actual, expected);
    assert!(ratio >= PSNR, "{name}: {ratio:.1} dB, at least {PSNR} dB expected");
    ratio
}

fn assert_parity(reference: Reference) {
    let latents = fixtures::tensors("img2img/latents.safetensors");
    let all: Cases = fixtures::json("img2img/cases.json");
    let cases = match reference {
        Reference::Diffusers => &all.diffusers,
        Reference::Mindone => &all.mindone,
    };
    let (mut worst_error, mut worst_ratio) = (0.0f64, f64::INFINITY);
    for (profile, engine) in [(Profile::Ort, engines::ort()), (Profile::Portable, engines::tract())]
    {
        let export = Export::pipeline(&fixtures::tiny(), profile);
        let on = engine.name();
        let mut pipeline = export.open(engine);
        for case in cases {
            let name = format!("{reference} {}, on {on}", case.name);
            let picture = sample(&name, &mut pipeline, &request(&all, case, reference)).remove(0);
            let path = file(&format!("{reference}/{}.png", case.name));
            let expected = image::open(&path)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
                .into_rgb8();
            let ratio = assert_picture(&name, &picture.image, &expected);
            worst_ratio = worst_ratio.min(ratio);
            match case.drawn {
                Some((height, width)) => {
                    assert_eq!(picture.latents.shape(), [1, 4, height / 8, width / 8], "{name}");
                    println!("{name}: {ratio:.1} dB");
                }
                None => {
                    let expected = latents[&format!("{reference}/{}", case.name)].as_f32();
                    let expected = expected.expect("latents are floats");
                    let error = assert_close(&name, &picture.latents, expected, LATENTS);
                    println!("{name}: {error:.1e}, {ratio:.1} dB");
                    worst_error = worst_error.max(error);
                }
            }
        }
    }
    println!("{reference}: latents within {worst_error:.2e}, pictures at {worst_ratio:.1} dB");
}

#[test]
fn pictures_from_a_picture_equal_those_of_diffusers() {
    assert_parity(Reference::Diffusers);
}

#[test]
fn pictures_from_a_picture_equal_those_of_mindone() {
    assert_parity(Reference::Mindone);
}

/// A request for small pictures without one to begin from.
fn plain(prompts: usize) -> Request {
    Request {
        prompts: vec!["a red circle".to_owned(); prompts],
        sampling_steps: 4,
        width: Some(64),
        height: Some(48),
        use_resolution_binning: false,
        ..Request::default()
    }
}

fn towards(seed: u64, to: u64, strength: f64) -> NoiseSeed {
    NoiseSeed { seed, variation: Some(Variation { seed: to, strength }) }
}

#[test]
fn the_ends_of_a_row_are_the_pictures_of_the_seeds_with_every_solver() {
    let export = Export::pipeline(&fixtures::tiny(), Profile::Portable);
    let mut pipeline = export.open(engines::tract());
    for method in SamplingMethod::ALL {
        let request = Request {
            sampling_method: method,
            sampling_steps: method.default_steps().min(4),
            guidance_scale: method.default_guidance_scale(),
            seed: 7,
            ..plain(2)
        };
        let name = method.name();
        let seeds = sample(name, &mut pipeline, &request);
        let row = Request {
            prompts: vec!["a red circle".to_owned(); 3],
            noise_seeds: [0.0, 0.5, 1.0].map(|part| towards(7, 8, part)).to_vec(),
            ..request.clone()
        };
        let row = sample(name, &mut pipeline, &row);
        assert_eq!(row[0].latents, seeds[0].latents, "{name}");
        assert_eq!(row[2].latents, seeds[1].latents, "{name}");
        assert_eq!((&row[0].image, &row[2].image), (&seeds[0].image, &seeds[1].image), "{name}");
        assert!(row[1].latents != row[0].latents && row[1].latents != row[2].latents, "{name}");
    }
}

#[test]
fn a_picture_from_a_picture_is_the_same_alone_or_in_a_row() {
    let cases: Cases = fixtures::json("img2img/cases.json");
    let export = Export::pipeline(&fixtures::tiny(), Profile::Portable);
    let mut pipeline = export.open(engines::tract());
    for name in ["dpm_mask_60", "sa_solver_60", "iddpm_40"] {
        let case = cases.diffusers.iter().find(|case| case.name == name).expect("a case");
        let one = request(&cases, case, Reference::Diffusers);
        let row = Request {
            prompts: vec!["a blue square".to_owned(), one.prompts[0].clone()],
            negative_prompts: vec![String::new(), one.negative_prompts[0].clone()],
            seed: one.seed - 1,
            ..one.clone()
        };
        let alone = sample(name, &mut pipeline, &one).remove(0);
        let second = sample(name, &mut pipeline, &row).remove(1);
        assert_eq!(alone.latents, second.latents, "{name}");
        assert_eq!(alone.image, second.image, "{name}");
    }
}
