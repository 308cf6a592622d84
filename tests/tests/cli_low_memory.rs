//! `--low_memory` through the binary: the same pictures, in less memory.

use std::fs;

use pixart_tests::binary::{Run, Sandbox};
use pixart_tests::fixtures;
use serde_json::{Value, json};

const WRONG_REQUEST: i32 = 2;

/// A run that works.
fn succeeds(run: Run) -> Run {
    assert_eq!(run.code, 0, "{run:?}");
    run
}

fn refused(run: &Run, said: &[&str]) {
    assert_eq!((run.code, run.stdout.as_str()), (WRONG_REQUEST, ""), "{run:?}");
    for said in said {
        assert!(run.stderr.contains(said), "no `{said}` in: {}", run.stderr);
    }
}

/// Draws into a folder of its own and gives the pixels.
fn pixels(sandbox: &Sandbox, folder: &str, more: &[&str]) -> Vec<u8> {
    let base = [
        "sample",
        "--model",
        "model",
        "--prompt",
        "a red circle",
        "--negative_prompt",
        "blue",
        "--steps",
        "2",
        "--output_path",
        folder,
    ];
    succeeds(sandbox.pixart(&[&base[..], more].concat()));
    sandbox.pixels(&format!("{folder}/0.png")).into_raw()
}

#[test]
fn pictures_are_the_same() {
    let sandbox = Sandbox::with_tiny_model();
    let lora = fixtures::root().join("lora/kohya_t5.safetensors");
    let lora = lora.to_str().expect("a path");
    let picture = fixtures::root().join("img2img/photo.png");
    let picture = picture.to_str().expect("a path");
    for engine in ["ort", "tract"] {
        for (name, more) in [
            ("plain", &[][..]),
            ("int8", &["--dtype", "int8"]),
            ("lora", &["--lora", lora, "--lora_allow_unmatched"]),
            ("from-a-picture", &["--init_image", picture]),
            ("two", &["--num_trials", "2", "--batch_size", "2"]),
        ] {
            let folder = |kind: &str| format!("{engine}-{name}-{kind}");
            let own = ["--engine", engine, "--no_text_cache"];
            let whole = pixels(&sandbox, &folder("whole"), &[&own[..], more].concat());
            let sparing = [&own[..], more, &["--low_memory"]].concat();
            let spared = pixels(&sandbox, &folder("spared"), &sparing);
            assert!(whole == spared, "{engine}, {name}: the picture differs");
        }
    }
}

#[test]
fn a_bundle_is_streamed_from_the_executable() {
    let sandbox = Sandbox::with_tiny_model();
    succeeds(sandbox.pixart(&["bundle", "--model", "model", "--output", "tiny"]));
    let bundle = sandbox.path().join("tiny");
    let draw = |folder: &str, more: &[&str]| {
        let base = [
            "--prompt",
            "a red circle",
            "--steps",
            "2",
            "--no_text_cache",
            "--output_path",
            folder,
        ];
        let arguments = [&base[..], more].concat();
        let mut command = sandbox.command_of(&bundle, &arguments);
        succeeds(Run::new(&command.output().expect("the bundle starts")));
        sandbox.pixels(&format!("{folder}/0.png")).into_raw()
    };
    for engine in ["ort", "tract"] {
        let whole = draw(&format!("whole-{engine}"), &["--engine", engine]);
        let spared = draw(&format!("spared-{engine}"), &["--engine", engine, "--low_memory"]);
        assert!(whole == spared, "{engine}: the picture differs");
    }
}

#[test]
fn captions_and_configs_know_it() {
    let sandbox = Sandbox::with_tiny_model();
    let engine = ["--engine", "tract"];
    let whole = pixels(&sandbox, "whole", &[&engine[..], &["--no_text_cache"]].concat());
    let encode = [
        "encode",
        "--model",
        "model",
        "--prompt",
        "a red circle",
        "--negative_prompt",
        "blue",
        "--engine",
        "tract",
        "--low_memory",
    ];
    succeeds(sandbox.pixart(&encode));
    // The encoder is not needed any more.
    fs::remove_dir_all(sandbox.path().join("model/text_encoder")).expect("removed");
    fs::write(sandbox.path().join("sparing.yaml"), "low_memory: True\n").expect("written");
    let config = ["-c", "sparing.yaml"];
    assert!(whole == pixels(&sandbox, "cached", &[&engine[..], &config].concat()));
    // It says nothing about the picture.
    let told = succeeds(sandbox.pixart(&["inspect", "cached/0.png"]));
    assert!(!told.stdout.contains("low_memory"), "{}", told.stdout);
}

#[test]
fn what_it_cannot_go_with_is_refused() {
    let sandbox = Sandbox::with_tiny_model();
    let base = ["sample", "--model", "model", "--prompt", "a", "--low_memory"];
    let run = |more: &[&str]| sandbox.pixart(&[&base[..], more].concat());
    refused(&run(&["--keep_resident"]), &["low_memory", "keep_resident", "one of the two"]);
    refused(&run(&["--devices", "cpu,tract"]), &["low_memory", "several devices"]);
    for device in [&["--device", "cuda"][..], &["--text_encoder_device", "cuda"]] {
        refused(&run(device), &["low_memory", "cuda", "--text_encoder_device cpu"]);
    }
    assert!(!sandbox.path().join("samples").exists());
}

#[test]
fn memory_is_that_of_a_few_blocks() {
    // Twelve blocks of 15 MB in fp32.
    let config = json!({
        "architectures": ["T5EncoderModel"], "model_type": "t5", "d_model": 512, "d_kv": 64, "num_heads": 8,
        "d_ff": 1792, "num_layers": 12, "vocab_size": 1000, "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6, "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new", "is_gated_act": true
    });
    let sandbox = Sandbox::new();
    let transformer = fixtures::tiny().join("transformer/config.json");
    for (part, text) in [
        ("text_encoder", config.to_string()),
        ("transformer", fs::read_to_string(transformer).expect("a config")),
    ] {
        let folder = sandbox.path().join("shapes").join(part);
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("config.json"), text).expect("written");
    }
    const BLOCK: f64 = 4e-6 * (4 * 512 * 512 + 3 * 512 * 1792) as f64;
    for engine in ["ort", "tract"] {
        let arguments = [
            "bench",
            "--random",
            "shapes",
            "--scratch",
            ".",
            "--stages",
            "text",
            "--repeats",
            "1",
            "--warmup",
            "1",
            "--engine",
            engine,
            "--threads",
            "2",
            "--json",
            "-",
            "--low_memory",
        ];
        let run = succeeds(sandbox.pixart(&arguments));
        let report: Value = serde_json::from_str(&run.stdout).expect("JSON");
        assert_eq!(report["low_memory"], json!(true));
        // Only Linux tells.
        if let Some(bytes) = report["rows"][0]["peak_memory_bytes"].as_f64() {
            println!("{engine}: {:.0} MB, all blocks {:.0} MB", bytes / 1e6, 12.0 * BLOCK);
            assert!(bytes / 1e6 < 9.0 * BLOCK, "{engine}: {bytes}");
        }
    }
}
