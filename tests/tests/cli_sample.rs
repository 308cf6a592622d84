//! `pixart sample` and `pixart export` through the binary: what a user gets and may rely on.

use pixart_tests::binary::Sandbox;
use pixart_tests::fixtures;
use std::fs;

/// A sandbox with the tiny pipeline in `model` and a config for a short run.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::with_tiny_model();
    let config = "model: model\nsampling_steps: 2\nengine: tract\nprompt: a red circle\n";
    fs::write(sandbox.path().join("short.yaml"), config).unwrap();
    sandbox
}

fn sample(sandbox: &Sandbox, more: &[&str]) -> String {
    let run = sandbox.pixart(&[&["sample", "-c", "short.yaml"][..], more].concat());
    assert_eq!(run.code, 0, "{run:?}");
    run.stdout
}

fn read(sandbox: &Sandbox, name: &str) -> Vec<u8> {
    fs::read(sandbox.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Width and height as the PNG header says.
fn size(png: &[u8]) -> (u32, u32) {
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
    (number(16), number(20))
}

#[test]
fn a_seed_gives_the_same_picture_alone_or_in_a_row() {
    let sandbox = sandbox();
    let two = ["--seed", "7", "--prompt", "a red circle", "a blue square"];
    assert_eq!(sample(&sandbox, &two), "samples/0.png\nsamples/1.png\n");
    // The second picture of seed 7 is the first one of seed 8.
    let args = ["--seed", "8", "--prompt", "a blue square", "--output_path", "again"];
    assert_eq!(sample(&sandbox, &args), "again/0.png\n");
    assert_eq!(sandbox.pixels("samples/1.png"), sandbox.pixels("again/0.png"));
    assert_ne!(sandbox.pixels("samples/0.png"), sandbox.pixels("samples/1.png"));
}

#[test]
fn pictures_of_an_earlier_run_are_kept() {
    let sandbox = sandbox();
    assert_eq!(sample(&sandbox, &[]), "samples/0.png\n");
    let first = read(&sandbox, "samples/0.png");
    assert_eq!(sample(&sandbox, &["--seed", "3"]), "samples/1.png\n");
    assert_eq!(read(&sandbox, "samples/0.png"), first);
}

#[test]
fn the_size_is_exactly_the_one_asked_for() {
    let sandbox = sandbox();
    for (k, (width, height)) in [(256, 256), (200, 120), (97, 301), (640, 480)].iter().enumerate() {
        // Both spellings of a flag are one flag.
        let (w, h) = (width.to_string(), height.to_string());
        let printed = sample(&sandbox, &["--image-width", &w, "--image_height", &h]);
        assert_eq!(printed, format!("samples/{k}.png\n"));
        assert_eq!(size(&read(&sandbox, &format!("samples/{k}.png"))), (*width, *height));
    }
}

#[test]
fn without_binning_the_size_is_drawn_as_it_is() {
    let sandbox = sandbox();
    let asked = ["--image_width", "48", "--image_height", "80"];
    let latents = "l.safetensors";
    let more = ["--use_resolution_binning", "false", "--save_latents", latents];
    sample(&sandbox, &[&asked[..], &more].concat());
    assert_eq!(size(&read(&sandbox, "samples/0.png")), (48, 80));
    let bytes = read(&sandbox, latents);
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor("latents").unwrap();
    assert_eq!(view.shape(), [1, 4, 10, 6]);
    assert_eq!(view.dtype(), safetensors::Dtype::F32);
}

#[test]
fn settings_change_the_picture() {
    let sandbox = sandbox();
    sample(&sandbox, &[]);
    let plain = sandbox.pixels("samples/0.png");
    for (k, more) in [
        &["--seed", "43"][..],
        &["--sampling_steps", "3"],
        &["--guidance_scale", "1"],
        &["--negative_prompt", "a blue square"],
        &["--reference", "diffusers"],
        &["--prompt", "a blue square"],
    ]
    .iter()
    .enumerate()
    {
        sample(&sandbox, more);
        assert_ne!(sandbox.pixels(&format!("samples/{}.png", k + 1)), plain, "{more:?}");
    }
}

#[test]
fn both_engines_give_the_same_picture() {
    let sandbox = sandbox();
    sample(&sandbox, &["--engine", "tract", "--save_latents", "tract.safetensors"]);
    sample(&sandbox, &["--engine", "ort", "--save_latents", "ort.safetensors"]);
    let latents = |name: &str| -> Vec<f32> {
        let bytes = read(&sandbox, name);
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let data = tensors.tensor("latents").unwrap().data().to_vec();
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let (tract, ort) = (latents("tract.safetensors"), latents("ort.safetensors"));
    let largest = tract.iter().fold(0f32, |m, x| m.max(x.abs()));
    let error = tract.iter().zip(&ort).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
    assert!(error < 1e-4, "the engines differ by {error:e}");
}

#[test]
fn without_onnx_runtime_tract_works_and_says_what_would_be_faster() {
    let sandbox = sandbox().without_onnx_runtime();
    let run = sandbox.pixart(&["sample", "-c", "short.yaml", "--engine", "auto"]);
    assert_eq!(run.code, 0, "{run:?}");
    let hints: Vec<_> = run.stderr.lines().filter(|l| l.contains("engine install cpu")).collect();
    assert_eq!(hints.len(), 1, "{}", run.stderr);
    let last = run.stderr.lines().last().unwrap();
    for text in ["samples/0.png", "seed 42", "tract", " s"] {
        assert!(last.contains(text), "no `{text}` in the last line: {last}");
    }
}

#[test]
fn the_second_run_uses_the_export_of_the_first() {
    let sandbox = sandbox();
    let run = || sandbox.pixart(&["sample", "-c", "short.yaml"]).stderr;
    assert_eq!(run().matches("exporting").count(), 3);
    assert_eq!(run().matches("exporting").count(), 0);
    // A changed source is exported anew.
    let config = sandbox.path().join("model/vae/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text + "\n\n").unwrap();
    assert_eq!(run().matches("exporting").count(), 1);
}

#[test]
fn an_exported_folder_is_a_model() {
    let sandbox = sandbox();
    sample(&sandbox, &[]);
    for profile in ["portable", "ort"] {
        let args =
            ["export", "all", "--source", "model", "--output", profile, "--profile", profile];
        let run = sandbox.pixart(&args);
        assert_eq!(run.code, 0, "{run:?}");
        let parts = ["transformer", "text_encoder", "vae_decoder", "vae_encoder"];
        assert_eq!(run.stdout.lines().count(), parts.len(), "{}", run.stdout);
        for part in parts {
            assert!(sandbox.path().join(profile).join(part).join("manifest.json").is_file());
        }
    }
    fs::remove_dir_all(sandbox.path().join("model")).unwrap();
    assert_eq!(sample(&sandbox, &["--model", "portable"]), "samples/1.png\n");
    assert_eq!(sandbox.pixels("samples/1.png"), sandbox.pixels("samples/0.png"));
    // Earlier versions did not export the encoder, and sampling does not need it.
    fs::remove_dir_all(sandbox.path().join("ort/vae_encoder")).unwrap();
    assert_eq!(sample(&sandbox, &["--model", "ort", "--engine", "ort"]), "samples/2.png\n");
}

#[test]
fn engines_are_listed() {
    let run = Sandbox::new().pixart(&["engine", "list"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.stdout.contains("tract") && run.stdout.contains("ONNX Runtime"), "{}", run.stdout);
    let run = Sandbox::new().without_onnx_runtime().pixart(&["engine", "list"]);
    assert!(run.stdout.contains("tract"), "{}", run.stdout);
    assert!(run.stdout.contains("pixart engine install cpu"), "{}", run.stdout);
}

#[test]
fn help_names_every_flag_and_setting() {
    let help = Sandbox::new().pixart(&["sample", "--help"]).stdout;
    for flag in ["--config", "--prompt", "--negative_prompt", "--image_width", "--save_latents"] {
        assert!(help.contains(flag), "no {flag} in the help");
    }
}

/// The fixtures of the transformer's variants.
fn variant(name: &str) -> String {
    fixtures::root().join("variants").join(name).display().to_string()
}

#[test]
fn a_transformer_may_be_a_file_with_the_original_names() {
    let sandbox = sandbox();
    let size = ["--image_width", "64", "--image_height", "96", "--use_resolution_binning", "false"];
    let folder = variant("alpha");
    sample(&sandbox, &[&size[..], &["--checkpoint", &folder]].concat());

    // The same weights in a file, which needs to be told its size; the number of heads can only be
    // told to `export`.
    let file = variant("alpha.safetensors");
    let run = sandbox.pixart(&["sample", "-c", "short.yaml", "--checkpoint", &file]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("num_attention_heads is missing"), "{run:?}");
    let heads = ["--sample_size", "128", "--num_attention_heads", "2"];
    // In the profile that tract gets, or attention would be summed up otherwise.
    let export = ["export", "transformer", "--source", &file, "--output", "out"];
    let run = sandbox.pixart(&[&export[..], &["--profile", "portable"], &heads].concat());
    assert_eq!(run.code, 0, "{run:?}");
    sample(&sandbox, &[&size[..], &["--checkpoint", "out/transformer"]].concat());
    assert_eq!(sandbox.pixels("samples/0.png"), sandbox.pixels("samples/1.png"));
}

#[test]
fn compression_in_the_settings_must_be_the_transformers() {
    let sandbox = sandbox();
    let yaml = "kv_compress: True\nkv_compress_sampling: uniform\nkv_compress_scale_factor: 2\n\
                kv_compress_layer: [1]\n";
    let config = fs::read_to_string(sandbox.path().join("short.yaml")).unwrap() + yaml;
    fs::write(sandbox.path().join("kv.yaml"), config).unwrap();
    let small = ["--image_width", "64", "--image_height", "64"];
    let draw = |more: &[&str]| {
        let common = ["--use_resolution_binning", "false"];
        sandbox.pixart(&[&["sample", "-c", "kv.yaml"][..], &small, &common, more].concat())
    };
    // Exported on the fly with it.
    let run = draw(&[]);
    assert_eq!(run.code, 0, "{run:?}");
    sample(&sandbox, &[&small[..], &["--use_resolution_binning", "false"]].concat());
    assert_ne!(sandbox.pixels("samples/0.png"), sandbox.pixels("samples/1.png"));

    // Exported before, without it.
    let plain = ["export", "transformer", "--source", "model", "--output", "out"];
    assert_eq!(sandbox.pixart(&plain).code, 0);
    let run = draw(&["--checkpoint", "out/transformer"]);
    assert_eq!(run.code, 2, "{run:?}");
    assert!(run.stderr.contains("kv_compress"), "{run:?}");

    let run = draw(&["--kv_compress", "false"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(sandbox.pixels("samples/1.png"), sandbox.pixels("samples/2.png"));
}

#[test]
fn a_pipeline_can_be_exported_from_parts_in_several_places() {
    let sandbox = sandbox();
    fs::rename(sandbox.path().join("model/transformer"), sandbox.path().join("dit")).unwrap();
    let all = ["export", "all", "--output", "out"];
    let run = sandbox.pixart(&[&all[..], &["--source", "model"]].concat());
    assert_eq!(run.code, 2, "{run:?}");
    assert!(run.stderr.contains("model/transformer: not found"), "{run:?}");
    let run = sandbox.pixart(&[&all[..], &["--source", "model", "--transformer", "dit"]].concat());
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(run.stdout.lines().count(), 4, "{run:?}");
    sample(&sandbox, &["--model", "out"]);

    // Every part by itself; a pipeline's folder stands for its part.
    let parts = ["--text_encoder", "model", "--vae", "model/vae", "--tokenizer", "model"];
    let more = ["--transformer", "dit", "--scheduler", "model/scheduler", "--force"];
    let run = sandbox.pixart(&[&all[..], &parts, &more].concat());
    assert_eq!(run.code, 0, "{run:?}");

    for (arguments, expected) in [
        (
            vec!["export", "vae_decoder", "-s", "model", "-o", "x", "--sample_size", "64"],
            "--sample_size",
        ),
        (
            vec!["export", "vae_decoder", "-s", "model", "-o", "x", "--vae", "model"],
            "--vae: only `export all`",
        ),
        (vec!["export", "all", "-o", "x", "--vae", "model"], "--source"),
    ] {
        let run = sandbox.pixart(&arguments);
        assert_eq!(run.code, 2, "{run:?}");
        assert!(run.stderr.contains(expected), "{run:?}");
        assert!(!sandbox.path().join("x").exists());
    }
}

#[test]
fn a_checkpoint_can_be_converted_and_inspected() {
    let sandbox = sandbox();
    let source = variant("alpha.pth");
    let told = ["--sample_size", "128", "--num_attention_heads", "2"];
    let convert = ["convert", "--source", &source, "--target", "dit"];
    let run = sandbox.pixart(&[&convert[..], &told].concat());
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.stdout.trim().ends_with("dit"), "{run:?}");
    assert!(run.stderr.contains("note: left out: y_embedder.y_embedding"), "{run:?}");
    let run = sandbox.pixart(&convert);
    assert_eq!(run.code, 1, "{run:?}");
    let run = sandbox.pixart(&[&convert[..], &told].concat());
    assert_eq!(run.code, 2, "{run:?}");
    assert!(run.stderr.contains("--force"), "{run:?}");

    let run = sandbox.pixart(&["inspect", "dit"]);
    assert_eq!(run.code, 0, "{run:?}");
    let row = |label: &str| {
        let line = run.stdout.lines().find(|line| line.starts_with(label));
        line.unwrap_or_else(|| panic!("no {label} in {run:?}"))[label.len()..].trim().to_owned()
    };
    assert_eq!(row("model"), "PixArt transformer, alpha");
    assert_eq!(row("naming"), "diffusers");
    assert_eq!(row("sample_size"), "128");
    assert_eq!(row("values"), "nothing suspicious");
    let run = sandbox.pixart(&["inspect", &source, "--json", "--quick"]);
    let found: serde_json::Value = serde_json::from_str(&run.stdout).expect("one JSON object");
    assert_eq!(found["files"][0]["weights_key"], "state_dict");
    assert_eq!(found["suspicious"], serde_json::Value::Null);

    let export = ["export", "transformer", "--source", "dit", "--output", "out"];
    assert_eq!(sandbox.pixart(&export).code, 0);
    for path in ["out", "out/transformer"] {
        let run = sandbox.pixart(&["inspect", path]);
        assert_eq!(run.code, 0, "{run:?}");
        for expected in ["component", "fp32", "use_additional_conditions true", "model.onnx_data"] {
            assert!(run.stdout.contains(expected), "{run:?}");
        }
    }
    let run = sandbox.pixart(&["inspect", "nowhere"]);
    assert_eq!(run.code, 2, "{run:?}");
}
