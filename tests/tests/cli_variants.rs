//! Flags about what files do not show, on every command that reads checkpoints.

use pixart_tests::binary::{Run, Sandbox, copy_folder};
use pixart_tests::fixtures;
use serde_json::Value;
use std::fs;

const FAILED: i32 = 1;
const WRONG_REQUEST: i32 = 2;

/// A transformer of two blocks under the original names.
fn qk_norm() -> String {
    fixtures::root().join("variants/qk_norm.safetensors").display().to_string()
}

/// What its tensors do not show, and a compression that was not trained.
const TOLD: [&str; 12] = [
    "--sample_size",
    "32",
    "--num_attention_heads",
    "2",
    "--interpolation_scale",
    "1.5",
    "--kv_compress_sampling",
    "ave",
    "--kv_compress_scale_factor",
    "2",
    "--kv_compress_layer",
    "1",
];

fn done(sandbox: &Sandbox, arguments: &[&str]) -> Run {
    let run = sandbox.pixart(arguments);
    assert_eq!(run.code, 0, "{run:?}");
    run
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn assert_told(config: &Value) {
    for (key, expected) in [
        ("sample_size", "32"),
        ("num_attention_heads", "2"),
        ("interpolation_scale", "1.5"),
        ("kv_compress_sampling", "\"ave\""),
        ("kv_compress_scale_factor", "2"),
        ("kv_compress_layer", "[1]"),
    ] {
        assert_eq!(config[key].to_string(), expected, "{key} in {config}");
    }
}

#[test]
fn what_a_file_does_not_show_can_be_told_to_every_command() {
    let sandbox = Sandbox::new();
    let source = qk_norm();
    let found = done(&sandbox, &[&["inspect", &source, "--json", "--quick"][..], &TOLD].concat());
    assert_told(&json(&found.stdout)["transformer"]["config"]);
    done(&sandbox, &[&["convert", "--source", &source, "--target", "dit"][..], &TOLD].concat());
    assert_told(&json(&fs::read_to_string(sandbox.path().join("dit/config.json")).unwrap()));
    let export = ["export", "transformer", "--source", &source, "--output", "out"];
    done(&sandbox, &[&export[..], &TOLD].concat());
    let manifest =
        fs::read_to_string(sandbox.path().join("out/transformer/manifest.json")).unwrap();
    assert_told(&json(&manifest)["architecture"]);
    // The weights speak against this one.
    let other = ["--sample_size", "64", "--num_attention_heads", "2"];
    let run = sandbox.pixart(&[&["inspect", &source][..], &other].concat());
    assert!(run.stdout.contains("--sample_size is 64, but the weights say 32"), "{run:?}");
}

#[test]
fn names_of_tensors_can_be_chosen() {
    let sandbox = Sandbox::new();
    let source = qk_norm();
    for (naming, found) in
        [("official", "official"), ("diffusers", "diffusers"), ("keep", "official")]
    {
        let target = format!("{naming}.safetensors");
        let convert = ["convert", "--source", &source, "--target", &target, "--naming", naming];
        done(&sandbox, &[&convert[..], &TOLD[..4]].concat());
        let inspected = done(&sandbox, &["inspect", &target, "--json", "--quick"]);
        assert_eq!(json(&inspected.stdout)["transformer"]["naming"], found, "{naming}");
    }
    let convert = ["convert", "--source", &source, "--target", "x", "--naming", "theirs"];
    let run = sandbox.pixart(&convert);
    assert_eq!(run.code, WRONG_REQUEST, "{run:?}");
    assert!(run.stderr.contains("theirs"), "{run:?}");
}

#[test]
fn the_key_of_the_weights_can_be_chosen() {
    let sandbox = Sandbox::new();
    let file = fixtures::root().join("checkpoints/ema.pth").display().to_string();
    let key = |more: &[&str]| {
        let run = sandbox.pixart(&[&["inspect", &file, "--json"][..], more].concat());
        (run.code, run.stdout, run.stderr)
    };
    for more in [&[][..], &["--weights_key", "ema"]] {
        let (code, stdout, stderr) = key(more);
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(json(&stdout)["files"][0]["weights_key"], "ema");
    }
    let (code, _, stderr) = key(&["--weights-key", "model"]);
    assert_eq!(code, FAILED);
    assert!(
        stderr.contains("found no weights under the key \"model\"; the keys are: ema"),
        "{stderr}"
    );
    let convert =
        ["convert", "--source", &file, "--target", "x.safetensors", "--weights_key", "none"];
    let run = sandbox.pixart(&convert);
    assert_eq!(run.code, FAILED, "{run:?}");
    assert!(
        run.stderr.contains("found no weights") && !sandbox.path().join("x.safetensors").exists()
    );
}

#[test]
fn a_variant_of_the_files_can_be_chosen() {
    let sandbox = Sandbox::new();
    let folder = sandbox.path().join("vae");
    copy_folder(&fixtures::tiny().join("vae"), &folder);
    let [plain, other] = ["diffusion_pytorch_model", "diffusion_pytorch_model.fp16"]
        .map(|name| folder.join(format!("{name}.safetensors")));
    fs::copy(&plain, &other).unwrap();
    for (more, expected) in [(&[][..], &plain), (&["--variant", "fp16"], &other)] {
        let run = done(&sandbox, &[&["inspect", "vae", "--json", "--quick"][..], more].concat());
        let found = json(&run.stdout)["files"][0]["path"].as_str().unwrap().to_owned();
        assert!(expected.ends_with(&found), "{found}");
    }
    fs::remove_file(&plain).unwrap();
    let export = ["export", "vae_decoder", "--source", "vae", "--output", "out"];
    done(&sandbox, &[&export[..], &["--variant", "fp16"]].concat());
    let run = sandbox.pixart(&[&export[..], &["--force", "--variant", "bf16"]].concat());
    assert_eq!(run.code, FAILED, "{run:?}");
    assert!(run.stderr.contains("bf16"), "{run:?}");
}

#[test]
fn settings_of_a_config_are_flags_too() {
    let sandbox = Sandbox::with_tiny_model();
    let common =
        ["--model", "model", "--engine", "tract", "--steps", "2", "--prompt", "a red circle"];
    let small =
        ["--image_width", "64", "--image_height", "64", "--use_resolution_binning", "false"];
    let draw = |more: &[&str]| sandbox.pixart(&[&["sample"][..], &common, &small, more].concat());
    let picture = |more: &[&str]| {
        let run = draw(more);
        assert_eq!(run.code, 0, "{run:?}");
        sandbox.pixels(run.stdout.trim())
    };
    let plain = picture(&[]);
    let compressed = [
        "--kv_compress",
        "--kv_compress_sampling",
        "uniform",
        "--kv_compress_scale_factor",
        "2",
        "--kv_compress_layer",
        "1",
    ];
    assert!(picture(&compressed) != plain);
    // Two tokens of the prompt and the end of the sequence.
    assert!(picture(&["--t5_max_length", "3"]) != plain);
    assert!(picture(&["--sd_scale_factor", "0.13025", "--sample_size", "32"]) == plain);
    for (more, said) in [
        (
            ["--sd_scale_factor", "0.18215"],
            "sd_scale_factor: the settings say 0.18215, but the VAE's is",
        ),
        (["--sample_size", "64"], "sample_size: the settings say 64, but the transformer's is 32"),
        (["--t5_max_length", "0"], "max_length: found 0, expected 1 to 4096"),
        (["--kv_compress_sampling", "mean"], "kv_compress_sampling"),
    ] {
        let switch: &[&str] = if more[0].contains("kv") { &["--kv_compress"] } else { &[] };
        let run = draw(&[switch, &more].concat());
        assert_eq!(run.code, WRONG_REQUEST, "{run:?}");
        assert!(run.stderr.contains(said), "no `{said}` in {}", run.stderr);
    }
}
