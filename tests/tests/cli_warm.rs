//! `pixart engine warm`, and the settings of `pixart sample` about sizes and compiled graphs. What is compiled
//! is tested on a device that does (`tests/static_shapes.rs`, with PIXART_TEST_DEVICE); here, that nothing goes wrong
//! without.

use std::fs;

use pixart_tests::binary::{Run, Sandbox, says};

const OK: i32 = 0;
const FAILED: i32 = 1;
const REQUEST: i32 = 2;

/// Settings for small pictures of the tiny model.
const SMALL: [&str; 8] = [
    "--model",
    "model",
    "--image_width",
    "64",
    "--image_height",
    "64",
    "--use_resolution_binning",
    "false",
];

fn warm(sandbox: &Sandbox, more: &[&str]) -> Run {
    sandbox.pixart(&[&["engine", "warm"], more].concat())
}

#[test]
fn the_processor_needs_no_warming() {
    let sandbox = Sandbox::with_tiny_model();
    for (device, name) in [("cpu", "cpu"), ("tract", "tract")] {
        let run = warm(&sandbox, &[&SMALL[..], &["--device", device]].concat());
        says(&run, OK, &[]);
        assert!(run.stdout.contains(&format!("{name}: nothing has to be warmed")), "{run:?}");
    }
    // Where the device is missing, the processor stands in only if that is allowed.
    let run = warm(&sandbox, &[&SMALL[..], &["--device", "openvino"]].concat());
    says(&run, FAILED, &["openvino", "pixart engine install openvino"]);
    let run =
        warm(&sandbox, &[&SMALL[..], &["--device", "openvino", "--allow_cpu_fallback"]].concat());
    says(&run, OK, &["instead, because openvino"]);
    assert!(run.stdout.contains("cpu: nothing has to be warmed"), "{run:?}");
    assert!(!sandbox.path().join(".cache/compiled").exists());
}

#[test]
fn wrong_requests_are_told_before_anything_is_compiled() {
    let sandbox = Sandbox::with_tiny_model();
    for (flags, said) in [
        (&["--image_width", "0"][..], &["image_width", "1 to 16384"][..]),
        (&["--image_width", "50", "--use_resolution_binning", "false"], &["multiple of 16"]),
        (&["--batch_size", "0"], &["batch_size"]),
        (&["--all_sizes", "--image_width", "64"], &["all_sizes", "image_width"]),
        (&["--device", "gpu"], &["no device named \"gpu\""]),
        (&["--no_compiled_cache"], &["no_compiled_cache", "leave the flag out"]),
        (&["--device", "tract", "--static_shapes", "false"], &["static_shapes", "tract"]),
        (&["--model", "none"], &["none"]),
    ] {
        let model = if flags.contains(&"--model") { &[][..] } else { &["--model", "model"] };
        says(&warm(&sandbox, &[model, flags].concat()), REQUEST, said);
    }
}

#[test]
fn clearing_removes_entries_and_nothing_else() {
    let sandbox = Sandbox::new();
    let compiled = sandbox.path().join("kept");
    let entry = compiled.join(format!("openvino-{}", "0123456789abcdef".repeat(2)));
    let others = [compiled.join("openvino-notes"), compiled.join("pictures")];
    for folder in others.iter().chain([&entry, &compiled.join(".unfinished-1")]) {
        fs::create_dir_all(folder).expect("made");
        fs::write(folder.join("file"), vec![0; 500_000]).expect("written");
    }
    let clear = ["--clear", "--compiled_cache_dir", "kept"];
    let run = warm(&sandbox, &clear);
    says(&run, OK, &[]);
    assert!(run.stdout.contains("removed 2 entries, 1.0 MB: kept"), "{run:?}");
    assert!(!entry.exists() && others.iter().all(|folder| folder.join("file").is_file()));
    assert!(warm(&sandbox, &clear).stdout.contains("removed 0 entries"));
    // The default folder, which is not there yet.
    assert!(warm(&sandbox, &["--clear"]).stdout.contains("compiled"));
}

#[test]
fn fixed_sizes_draw_the_same_pictures() {
    let sandbox = Sandbox::with_tiny_model();
    fs::write(sandbox.path().join("c.yaml"), "engine: {device: cpu, static_shapes: true}")
        .expect("written");
    let draw = |more: &[&str]| {
        let flags = ["sample", "--prompt", "a", "a red house", "--steps", "2", "--no_text_cache"];
        let run = sandbox.pixart(&[&flags, &SMALL[..], more].concat());
        says(&run, OK, &["ONNX Runtime"]);
    };
    draw(&["--output_path", "free", "--no_compiled_cache"]);
    draw(&["--output_path", "flag", "--static_shapes", "--compiled_cache_dir", "kept"]);
    draw(&["--output_path", "file", "-c", "c.yaml"]);
    for k in 0..2 {
        let of = |folder: &str| sandbox.pixels(&format!("{folder}/{k}.png"));
        for folder in ["flag", "file"] {
            let (free, fixed) = (of("free"), of(folder));
            let apart = free.as_raw().iter().zip(fixed.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(apart <= Some(1), "{folder}/{k}: {apart:?}");
        }
    }
    assert!(!sandbox.path().join("kept").exists(), "the processor compiles nothing");
}

#[test]
fn fixed_sizes_are_for_the_device_of_the_transformer() {
    let sandbox = Sandbox::with_tiny_model();
    let draw = |more: &[&str]| {
        let flags = ["sample", "--prompt", "a", "--steps", "2", "--output_path", "out"];
        sandbox.pixart(&[&flags, &SMALL[..], &["--static_shapes", "false"], more].concat())
    };
    // tract cannot leave sizes open, and is not asked to for the other parts.
    says(&draw(&["--device", "cpu", "--text_encoder_device", "tract"]), OK, &["tract"]);
    says(
        &draw(&["--device", "tract", "--vae_device", "cpu"]),
        REQUEST,
        &["static_shapes", "tract"],
    );
    let bare = Sandbox::with_tiny_model().without_onnx_runtime();
    let run = bare
        .pixart(&[&["sample", "--prompt", "a", "--static_shapes", "false"], &SMALL[..]].concat());
    says(&run, REQUEST, &["static_shapes", "tract"]);
}

#[test]
fn the_list_tells_what_a_device_keeps() {
    let sandbox = Sandbox::new();
    for (device, said) in [
        ("openvino", "compiled graphs, through cache_dir"),
        ("tensorrt", "trt_engine_cache_path"),
        ("qnn", "ep.context_enable"),
        ("cuda", "nothing: it compiles nothing"),
    ] {
        let run = sandbox.pixart(&["engine", "list", device]);
        assert!(run.stdout.contains(said), "{said} in {}", run.stdout);
    }
}
