//! Sizes, tiles and upstream's own commands through the binary.

use std::fs;
use std::path::Path;

use pixart_tests::binary::{Run, Sandbox, copy_folder};
use pixart_tests::fixtures;

fn repository() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The tree of `models/README.md` with small random weights, and the configs.
fn released_tree() -> Sandbox {
    let sandbox = Sandbox::new();
    let models = sandbox.path().join("models");
    let shared = models.join("pixart_sigma_sdxlvae_T5_diffusers");
    for part in ["scheduler", "text_encoder", "tokenizer", "vae"] {
        copy_folder(&fixtures::tiny().join(part), &shared.join(part));
    }
    let transformer = models.join("PixArt-Sigma-XL-2-1024-MS/transformer");
    copy_folder(&fixtures::tiny().join("transformer"), &transformer);
    // Weights do not depend on the size a model was trained at.
    let config = transformer.join("config.json");
    let text = fs::read_to_string(&config).expect("a config");
    let mut json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    json["sample_size"] = 128.into();
    json["interpolation_scale"] = 2.into();
    fs::write(&config, json.to_string()).expect("written");
    copy_folder(&repository().join("configs"), &sandbox.path().join("configs"));
    sandbox
}

fn tiny() -> Sandbox {
    Sandbox::with_tiny_model()
}

fn draw(sandbox: &Sandbox, more: &[&str]) -> Run {
    let base = ["sample", "--model", "model", "--prompt", "a red circle", "--sampling_steps", "2"];
    let run = sandbox.pixart(&[&base[..], more].concat());
    assert_eq!(run.code, 0, "{run:?}");
    run
}

/// Width and height in a PNG's header.
fn size(png: &[u8]) -> (u32, u32) {
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().expect("four bytes"));
    (number(16), number(20))
}

#[test]
fn the_example_of_the_readme_works_unchanged() {
    let sandbox = released_tree();
    let command = "sample -c configs/inference/pixart-sigma-1024-MS.yaml --image_width 1024 \
                   --image_height 512 --seed 1024";
    let run = sandbox.pixart(&command.split_whitespace().collect::<Vec<_>>());
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(run.stdout, "samples/0.png\n");
    let png = fs::read(sandbox.path().join("samples/0.png")).expect("a picture");
    assert_eq!(size(&png), (1024, 512));
    assert!(run.stderr.contains("seed 1024"), "{}", run.stderr);
}

#[test]
fn a_config_without_released_weights_says_so() {
    let sandbox = released_tree();
    for config in ["2K", "4K"] {
        let path = format!("configs/inference/pixart-sigma-{config}-MS-KV-Compress.yaml");
        let run = sandbox.pixart(&["sample", "-c", &path]);
        assert_eq!(run.code, 2, "{run:?}");
        for said in ["checkpoint", "never released", "--checkpoint PATH"] {
            assert!(run.stderr.contains(said), "{}", run.stderr);
        }
    }
}

#[test]
fn upstreams_settings_without_effect_are_told_and_others_refused() {
    let sandbox = tiny();
    let yaml = "enable_flash_attention: True\nmode: 0\njit_level: O1\ndevice_target: CPU\n\
                use_parallel: False\n";
    fs::write(sandbox.path().join("upstream.yaml"), yaml).expect("written");
    let run = draw(&sandbox, &["-c", "upstream.yaml"]);
    for said in ["mode: 0 has no effect", "jit_level: O1 has no effect"] {
        assert_eq!(run.stderr.matches(said).count(), 1, "{}", run.stderr);
    }
    // A flag goes before the file.
    let flags = ["--enable_flash_attention", "false", "--mode", "1", "--jit_level", "O0"];
    let typed = draw(&sandbox, &[&["-c", "upstream.yaml"][..], &flags].concat());
    for said in ["enable_flash_attention: false", "mode: 1 has no effect", "jit_level: O0"] {
        assert_eq!(typed.stderr.matches(said).count(), 1, "{}", typed.stderr);
    }
    for silent in ["device_target", "enable_flash_attention", "use_parallel"] {
        assert!(!run.stderr.contains(silent), "{}", run.stderr);
    }
    for (flag, value, code, said) in [
        ("--device_target", "Ascend", 1, "engine install cann"),
        ("--device_target", "TPU", 2, "device_target: found `TPU`, expected CPU, GPU or Ascend"),
        ("--use_parallel", "True", 2, "use_parallel"),
    ] {
        let run = sandbox.pixart(&["sample", "--model", "model", "--prompt", "a", flag, value]);
        assert_eq!(run.code, code, "{run:?}");
        assert!(run.stderr.contains(said), "{}", run.stderr);
    }
}

#[test]
fn tiles_leave_the_picture_as_it_is() {
    let sandbox = tiny();
    for engine in ["ort", "tract"] {
        let folder = |name: &str| format!("{engine}-{name}");
        let sample = |name: &str, tiling: &[&str]| {
            let (engine, folder) = (["--engine", engine], folder(name));
            let run = draw(&sandbox, &[&engine[..], &["--output_path", &folder], tiling].concat());
            assert!(!run.stderr.contains("tiles"), "only `auto` has to explain: {}", run.stderr);
            sandbox.pixels(&format!("{folder}/0.png")).into_raw()
        };
        let whole = sample("whole", &["--vae_tiling", "false"]);
        let tiled = sample("tiled", &["--vae_tiling", "true", "--vae_tile_size", "64"]);
        let differing = whole.iter().zip(&tiled).filter(|(a, b)| a != b).count();
        let most = whole.iter().zip(&tiled).map(|(a, b)| a.abs_diff(*b)).max();
        // Rounding can tip a value over the edge between two levels.
        assert!(
            most <= Some(1) && differing * 1000 < whole.len(),
            "{differing} of {}",
            whole.len()
        );
        let size = ["--vae_tile_size", "128", "--vae_tile_overlap", "64"];
        let blended = sample("blended", &[&["--vae_tiling", "blend"], &size[..]].concat());
        assert_ne!(blended, whole);
    }
}

#[test]
fn wrong_tiles_are_refused() {
    let sandbox = tiny();
    for (flag, value) in [
        ("--vae_tiling", "sometimes"),
        ("--vae_tile_size", "63"),
        ("--vae_tile_size", "65"),
        ("--vae_tile_size", "8192"),
        ("--vae_tile_overlap", "512"),
        ("--vae_tile_overlap", "12"),
    ] {
        let run = sandbox.pixart(&["sample", "--model", "model", "--prompt", "a", flag, value]);
        assert_eq!(run.code, 2, "{run:?}");
        assert!(run.stderr.contains(&flag[2..]) && run.stderr.contains(value), "{}", run.stderr);
        assert!(!sandbox.path().join("samples").exists());
    }
}
