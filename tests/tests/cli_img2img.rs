//! Pictures from pictures, masks, variations and rows between two seeds through the binary, on the tiny
//! pipeline; and what is refused before any model is touched.

use image::{GrayImage, ImageBuffer, Luma, Rgb, RgbImage};
use pixart_tests::binary::{Run, Sandbox};
use safetensors::SafeTensors;
use std::fs;

const FAILED: i32 = 1;
const WRONG_REQUEST: i32 = 2;

/// A sandbox with a copy of the tiny pipeline in `model`, a picture of 70 × 50 and masks for it.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::with_tiny_model();
    picture().save(sandbox.path().join("picture.png")).unwrap();
    mask(70, 50, |x, _| x >= 40).save(sandbox.path().join("mask.png")).unwrap();
    mask(50, 70, |_, _| true).save(sandbox.path().join("turned.png")).unwrap();
    mask(70, 50, |_, _| false).save(sandbox.path().join("black.png")).unwrap();
    sandbox
}

fn picture() -> RgbImage {
    RgbImage::from_fn(70, 50, |x, y| Rgb([3 * x as u8, 5 * y as u8, 200 - x as u8]))
}

fn mask(width: u32, height: u32, white: impl Fn(u32, u32) -> bool) -> GrayImage {
    GrayImage::from_fn(width, height, |x, y| Luma([255 * u8::from(white(x, y))]))
}

fn run(sandbox: &Sandbox, more: &[&str]) -> Run {
    let mut args = vec!["sample"];
    let defaults = [
        ["--model", "model"],
        ["--prompt", "a red circle"],
        ["--engine", "tract"],
        ["--sampling_steps", "4"],
    ];
    for default in defaults {
        if !more.contains(&default[0]) {
            args.extend(default);
        }
    }
    args.extend(more);
    sandbox.pixart(&args)
}

/// The pictures of a run.
fn sample(sandbox: &Sandbox, more: &[&str]) -> Vec<RgbImage> {
    let run = run(sandbox, more);
    assert_eq!(run.code, 0, "{run:?}");
    run.stdout.lines().map(|line| sandbox.pixels(line)).collect()
}

fn one(sandbox: &Sandbox, more: &[&str]) -> RgbImage {
    let mut pictures = sample(sandbox, more);
    assert_eq!(pictures.len(), 1);
    pictures.remove(0)
}

#[test]
fn a_picture_from_a_picture_has_its_size_and_depends_on_the_strength() {
    let sandbox = sandbox();
    let from = ["--init_image", "picture.png"];
    let default = one(&sandbox, &from);
    assert_eq!(default.dimensions(), (70, 50));
    let [weak, strong, whole] = ["0.25", "0.8", "1"]
        .map(|strength| one(&sandbox, &[&from[..], &["--strength", strength]].concat()));
    assert_eq!(default, strong, "0.8 is the default");
    assert!(weak != strong && strong != whole);
    // The same as keys of a config, and in other spellings.
    let config = "init_image: picture.png\nstrength: 0.25\n";
    fs::write(sandbox.path().join("config.yaml"), config).unwrap();
    assert_eq!(one(&sandbox, &["-c", "config.yaml"]), weak);
    let spelt = ["--init-image", "picture.png", "--denoising_strength", "0.25"];
    assert_eq!(one(&sandbox, &spelt), weak);
    // A size that is given wins.
    let wide = one(&sandbox, &[&from[..], &["--image_width", "140"]].concat());
    assert_eq!(wide.dimensions(), (140, 100));
    let exact = ["--use_resolution_binning", "false", "-W", "96", "-H", "64"];
    assert_eq!(one(&sandbox, &[&from[..], &exact].concat()).dimensions(), (96, 64));
}

#[test]
fn the_encoder_is_exported_when_it_is_needed_and_once() {
    let sandbox = sandbox();
    let exported = |more: &[&str]| {
        let run = run(&sandbox, more);
        assert_eq!(run.code, 0, "{run:?}");
        run.stderr.lines().filter(|line| line.starts_with("exporting")).count()
    };
    assert_eq!(exported(&[]), 3);
    assert_eq!(exported(&["--init_image", "picture.png"]), 1);
    assert_eq!(exported(&["--init_image", "picture.png"]), 0);
}

#[test]
fn encoding_the_picture_is_told() {
    let sandbox = sandbox();
    let counted = |more: &[&str]| {
        let run = run(&sandbox, more);
        assert_eq!(run.code, 0, "{run:?}");
        run.stderr.contains("picture ") && run.stderr.contains("denoise ")
    };
    assert!(counted(&["--init_image", "picture.png", "--strength", "0.5"]));
    assert!(!counted(&[]));
}

#[test]
fn every_kind_of_picture_is_read() {
    let sandbox = sandbox();
    let grey = GrayImage::from_fn(40, 40, |x, _| Luma([6 * x as u8]));
    let deep = ImageBuffer::from_fn(40, 40, |x, _| Luma([257 * (6 * x as u16)]));
    let rgb = RgbImage::from_fn(40, 40, |x, _| Rgb([6 * x as u8; 3]));
    grey.save(sandbox.path().join("grey.png")).unwrap();
    deep.save(sandbox.path().join("deep.png")).unwrap();
    rgb.save(sandbox.path().join("rgb.png")).unwrap();
    rgb.save(sandbox.path().join("rgb.webp")).unwrap();
    rgb.save(sandbox.path().join("rgb.jpg")).unwrap();
    let from = |name: &str| one(&sandbox, &["--init_image", name, "--strength", "0.5"]);
    let expected = from("rgb.png");
    for name in ["grey.png", "deep.png", "rgb.webp"] {
        assert_eq!(from(name), expected, "{name}");
    }
    assert_eq!(from("rgb.jpg").dimensions(), (40, 40));
}

#[test]
fn what_the_mask_keeps_stays_to_the_pixel() {
    let sandbox = sandbox();
    let from = ["--init_image", "picture.png", "--mask", "mask.png"];
    let changed = |picture: &RgbImage, left: bool| {
        let original =
            picture.enumerate_pixels().zip(self::picture().pixels().copied().collect::<Vec<_>>());
        original.filter(|((x, _, new), old)| (*x < 40) == left && *new != old).count()
    };
    for more in [&[][..], &["--strength", "0.5"], &["--reference", "diffusers"]] {
        let painted = one(&sandbox, &[&from[..], more].concat());
        assert_eq!(changed(&painted, true), 0, "{more:?}");
        assert!(changed(&painted, false) > 1000, "{more:?}");
    }
    let unpasted = one(&sandbox, &[&from[..], &["--paste_back", "false"]].concat());
    assert!(changed(&unpasted, true) > 1000);
    let blurred = one(&sandbox, &[&from[..], &["--mask_blur", "2"]].concat());
    let near = changed(&blurred, true);
    assert!(near > 0 && near < 10 * 50, "{near}");
}

#[test]
fn variations_lie_near_the_seed_and_end_at_the_other() {
    let sandbox = sandbox();
    let size = ["-W", "64", "-H", "64"];
    let of = |more: &[&str]| sample(&sandbox, &[&size[..], more].concat());
    let plain = of(&["--seed", "7"]).remove(0);
    let other = of(&["--seed", "100", "--num_trials", "3"]);
    let varied = |strength: &str| {
        let vary = ["--variation_seed", "100", "--variation_strength", strength];
        of(&[&["--seed", "7", "--num_trials", "3"][..], &vary].concat())
    };
    assert_eq!(varied("0"), vec![plain.clone(); 3]);
    assert_eq!(varied("1"), other);
    let near = varied("0.2");
    assert!(near[0] != near[1] && near[1] != near[2] && !near.contains(&plain));
    let drawn = run(&sandbox, &["--variation_seed", "-1", "--variation_strength", "0.1"]);
    assert!(drawn.code == 0 && drawn.stderr.contains("variation_seed: drew "), "{drawn:?}");
}

#[test]
fn a_row_goes_from_seed_to_seed_for_every_prompt() {
    let sandbox = sandbox();
    let size = ["-W", "64", "-H", "64", "--prompt", "a red circle", "a blue square"];
    let of = |more: &[&str]| sample(&sandbox, &[&size[..], more].concat());
    // Two seeds for two prompts: picture k of a run has seed + k.
    let ends: Vec<RgbImage> = ["7", "6", "9", "8"]
        .into_iter()
        .enumerate()
        .map(|(k, seed)| of(&["--seed", seed]).remove(k % 2))
        .collect();
    let row = ["--seed", "7", "--interpolate_to", "9", "--interpolate_steps", "3"];
    let row = of(&[&row[..], &["--imagegrid", "--save_latents", "row.safetensors"]].concat());
    // Six pictures, then the grids of one prompt each.
    assert_eq!(row.len(), 8);
    assert_eq!((&row[0], &row[3]), (&ends[0], &ends[1]));
    assert_eq!((&row[2], &row[5]), (&ends[2], &ends[3]));
    assert!(row[1] != row[0] && row[1] != row[2]);
    assert_eq!(row[6].dimensions(), (64, 3 * 64));
    let bytes = fs::read(sandbox.path().join("row.safetensors")).unwrap();
    let latents = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(latents.tensor("latents").unwrap().shape(), [6, 4, 32, 32]);
}

#[test]
fn a_model_without_the_encoder() {
    let sandbox = sandbox();
    let export = ["export", "all", "--source", "model", "--output", "exported", "--profile"];
    let done = sandbox.pixart(&[&export[..], &["portable"]].concat());
    assert_eq!(done.code, 0, "{done:?}");
    let from = ["--model", "exported", "--init_image", "picture.png"];
    one(&sandbox, &from);
    fs::remove_dir_all(sandbox.path().join("exported/vae_encoder")).unwrap();
    let refused = run(&sandbox, &from);
    assert_eq!(refused.code, FAILED, "{refused:?}");
    for said in
        ["init_image: found no VAE encoder at exported/vae_encoder", "pixart export vae_encoder"]
    {
        assert!(refused.stderr.contains(said), "{}", refused.stderr);
    }
    // Without a picture it is not missed.
    sample(&sandbox, &["--model", "exported"]);
    // What the message says to do.
    let export = ["export", "vae_encoder", "--source", "model/vae", "--output", "exported"];
    let done = sandbox.pixart(&[&export[..], &["--profile", "portable"]].concat());
    assert_eq!(done.code, 0, "{done:?}");
    one(&sandbox, &from);
}

#[test]
fn a_checkpoint_without_the_encoders_weights() {
    let sandbox = sandbox();
    let file = sandbox.path().join("model/vae/diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let kept = tensors.iter().filter(|(name, _)| !name.starts_with("encoder."));
    let stripped = safetensors::serialize(kept, None).unwrap();
    fs::write(&file, stripped).unwrap();
    sample(&sandbox, &[]);
    let refused = run(&sandbox, &["--init_image", "picture.png"]);
    assert_ne!(refused.code, 0);
    for said in ["init_image: needs the VAE's encoder from model/vae", "encoder."] {
        assert!(refused.stderr.contains(said), "{}", refused.stderr);
    }
}

/// The request is refused before any file is written or any part of the model exported.
fn refuses(sandbox: &Sandbox, more: &[&str], said: &[&str]) {
    let before = sandbox.files();
    let run = run(sandbox, more);
    assert_eq!(run.code, WRONG_REQUEST, "{more:?}: {run:?}");
    assert_eq!(run.stdout, "", "{run:?}");
    for text in said {
        assert!(run.stderr.contains(text), "no `{text}` in: {}", run.stderr);
    }
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    assert_eq!(sandbox.files(), before, "files were left behind");
}

#[test]
fn a_picture_that_is_none() {
    let sandbox = sandbox();
    let put = |name: &str, bytes: &[u8]| fs::write(sandbox.path().join(name), bytes).unwrap();
    let png = fs::read(sandbox.path().join("picture.png")).unwrap();
    put("half.png", &png[..png.len() / 2]);
    put("text.png", b"no picture at all");
    put("empty.png", b"");
    put("moving.gif", b"GIF89a\x01\0\x01\0\0\0\0;");
    // A header that announces 100,000 × 100,000 pixels; the checksum of its 13 bytes is right.
    let mut bomb = png[..16].to_vec();
    bomb.extend([0, 1, 0x86, 0xa0, 0, 1, 0x86, 0xa0, 8, 2, 0, 0, 0]);
    let checksum = crc(&bomb[12..]);
    bomb.extend(checksum.to_be_bytes());
    bomb.extend([0, 0, 0, 2]);
    bomb.extend(b"IDAT\x78\x9c");
    bomb.extend(crc(b"IDAT\x78\x9c").to_be_bytes());
    put("bomb.png", &bomb);
    for (file, said) in [
        ("none.png", "cannot read none.png"),
        ("model", "found a folder at model, expected a PNG, JPEG or WebP file"),
        ("half.png", "half.png: the picture is cut off or damaged"),
        ("text.png", "text.png: found something else, expected a PNG, JPEG or WebP"),
        ("empty.png", "empty.png: found something else"),
        ("moving.gif", "moving.gif: found Gif"),
        ("bomb.png", "bomb.png: found a picture of 100000x100000 pixels, expected at most 16384"),
    ] {
        refuses(&sandbox, &["--init_image", file], &["error: init_image: ", said]);
        let mask = ["--init_image", "picture.png", "--mask", file];
        refuses(&sandbox, &mask, &["error: mask: ", said]);
    }
}

/// The checksum of PNG's chunks.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[test]
fn settings_that_contradict_or_are_out_of_range() {
    let sandbox = sandbox();
    let from = |more: &[&'static str]| [&["--init_image", "picture.png"][..], more].concat();
    for (more, said) in [
        (from(&["--strength", "0"]), "strength: found 0, expected a number above 0 and up to 1"),
        (from(&["--strength", "1.5"]), "strength: found 1.5, expected"),
        (from(&["--strength", "-0.5"]), "strength: found -0.5, expected"),
        (from(&["--strength", "nan"]), "strength: found NaN, expected"),
        (
            from(&["--strength", "0.2"]),
            "strength: 0.2 of 4 steps leaves none, expected at least 0.25",
        ),
        (vec!["--strength", "0.5"], "strength: found it without init_image"),
        (vec!["--mask", "mask.png"], "mask: found it without init_image"),
        (vec!["--mask_blur", "4"], "mask_blur: found it without init_image"),
        (vec!["--paste_back", "false"], "paste_back: found it without init_image"),
        (from(&["--mask_blur", "4"]), "mask_blur: found it without mask"),
        (from(&["--paste_back"]), "paste_back: found it without mask"),
        (from(&["--mask", "turned.png"]), "mask: found 50x70 pixels, expected 70x50"),
        (from(&["--mask", "black.png"]), "mask: found no white"),
        (
            from(&["--mask", "mask.png", "--mask_blur", "-1"]),
            "mask_blur: found -1, expected 0 to 256",
        ),
        (
            from(&["--use_resolution_binning", "false"]),
            "init_image, 70x50, but: image_width: found 70",
        ),
        (
            from(&["--sampling_method", "dmd", "--sampling_steps", "1"]),
            "init_image: the solver dmd draws in one step",
        ),
        (vec!["--variation_seed", "1"], "variation_seed: found it without variation_strength"),
        (
            vec!["--variation_strength", "0.1"],
            "variation_strength: found it without variation_seed",
        ),
        (
            vec!["--variation_seed", "1", "--variation_strength", "1.1"],
            "variation_strength: found 1.1, expected 0 to 1",
        ),
        (vec!["--interpolate_to", "1"], "interpolate_to: found it without interpolate_steps"),
        (vec!["--interpolate_steps", "3"], "interpolate_steps: found it without interpolate_to"),
        (
            vec!["--interpolate_to", "1", "--interpolate_steps", "1"],
            "interpolate_steps: found 1, expected 2 or more",
        ),
        (
            vec!["--interpolate_to", "1", "--interpolate_steps", "3", "--num_trials", "2"],
            "interpolate_steps and num_trials: found both",
        ),
        (
            [
                ["--interpolate_to", "1", "--interpolate_steps", "3"],
                ["--variation_seed", "1", "--variation_strength", "0.5"],
            ]
            .concat(),
            "variation_seed and interpolate_to: found both",
        ),
    ] {
        refuses(&sandbox, &more, &[said]);
    }
}
