//! `pixart engine`, and `pixart sample` on devices. What can be computed here is the processor, with ONNX
//! Runtime and with tract; for others, that nothing falls back without a word.

use std::fs;
use std::path::Path;

use pixart_tests::binary::{Run, Sandbox, says};
use pixart_tests::engines;

const OK: i32 = 0;
const FAILED: i32 = 1;
const REQUEST: i32 = 2;

/// Draws small pictures with the tiny model.
fn draw(sandbox: &Sandbox, more: &[&str]) -> Run {
    let flags = [
        "sample",
        "--model",
        "model",
        "--steps",
        "2",
        "--image_width",
        "64",
        "--image_height",
        "64",
        "--use_resolution_binning",
        "false",
        "--no_text_cache",
        "--no_metadata",
    ];
    sandbox.pixart(&[&flags, more].concat())
}

fn pixels(path: &Path) -> image::RgbImage {
    image::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into_rgb8()
}

#[test]
fn nothing_falls_back_without_a_word() {
    // With ONNX Runtime for the processor alone, and with nothing at all.
    for sandbox in [Sandbox::with_tiny_model(), Sandbox::with_tiny_model().without_onnx_runtime()] {
        let flags = ["--prompt", "a", "--device", "cuda:1", "--output_path", "out"];
        let run = draw(&sandbox, &flags);
        says(&run, FAILED, &["cuda:1", "pixart engine install cuda", "--allow_cpu_fallback"]);
        assert!(!sandbox.path().join("out/0.png").exists());
        let run = draw(&sandbox, &[&flags[..], &["--allow_cpu_fallback"]].concat());
        says(&run, OK, &["instead, because cuda:1"]);
        assert!(sandbox.path().join("out/0.png").is_file());
    }
}

#[test]
fn wrong_devices_and_options_are_wrong_requests() {
    let sandbox = Sandbox::with_tiny_model();
    for (flags, said) in [
        (&["--device", "gpu"][..], &["no device named \"gpu\"", "cpu, tract, cuda"][..]),
        (&["--device", "cpu:1"], &["cpu has no several devices"]),
        (&["--device", "cuda:x"], &["device_id", "0 to 255"]),
        (&["--device", "cuda", "--device_option", "tf32=1"], &["\"tf32\"", "use_tf32"]),
        (&["--device", "cuda", "--device_option", "use_tf32"], &["NAME=VALUE"]),
        (&["--device", "cuda", "--device_option", "use_tf32=2"], &["true or false"]),
        (&["--device", "cuda", "--engine", "tract"], &["engine tract does not compute on cuda"]),
        (&["--text_encoder_device", "gpu"], &["text_encoder_device", "gpu"]),
        (&["--vae_device", "gpu"], &["vae_device", "gpu"]),
        (&["--devices", "cpu,gpu"], &["devices", "gpu"]),
        (&["--devices", "cpu,tract", "--preview", "a.png"], &["preview"]),
    ] {
        says(&draw(&sandbox, &[&["--prompt", "a"], flags].concat()), REQUEST, said);
    }
}

#[test]
fn a_config_file_names_the_device() {
    let sandbox = Sandbox::with_tiny_model();
    let config = sandbox.path().join("c.yaml");
    for (yaml, code, said) in [
        ("engine: {device: tract}", OK, &["tract"][..]),
        ("engine: {name: ort, device: cpu}", OK, &["ONNX Runtime"]),
        ("engine: {device: cuda, options: {use_tf32: true}}", FAILED, &["install cuda"]),
        ("engine: {device: cuda, options: {speed: 3}}", REQUEST, &["speed", "use_tf32"]),
        ("engine: {speed: 3}", REQUEST, &["c.yaml", "speed", "known keys: name, device"]),
        ("engine: {device: cuda, allow_cpu_fallback: true}", OK, &["instead, because cuda"]),
    ] {
        fs::write(&config, yaml).expect("written");
        says(&draw(&sandbox, &["--prompt", "a", "-c", "c.yaml"]), code, said);
    }
    // A flag goes before the file.
    fs::write(&config, "engine: {device: cuda}").expect("written");
    let run = draw(&sandbox, &["--prompt", "a", "-c", "c.yaml", "--device", "cpu"]);
    says(&run, OK, &["ONNX Runtime"]);
}

#[test]
fn parts_may_be_computed_by_different_devices() {
    let sandbox = Sandbox::with_tiny_model();
    let alone = draw(&sandbox, &["--prompt", "a", "--output_path", "alone"]);
    says(&alone, OK, &["ONNX Runtime"]);
    let flags = ["--text_encoder_device", "tract", "--vae_device", "tract"];
    let run = draw(&sandbox, &[&["--prompt", "a", "--output_path", "mixed"][..], &flags].concat());
    says(&run, OK, &["ONNX Runtime", "tract"]);
    let (a, b) =
        (pixels(&sandbox.path().join("alone/0.png")), pixels(&sandbox.path().join("mixed/0.png")));
    let apart = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(apart <= Some(1), "{apart:?}");
}

#[test]
fn devices_share_prompts_and_give_the_same_pictures() {
    let sandbox = Sandbox::with_tiny_model();
    let prompts = ["--prompt", "a", "b", "c", "--output_name", "{seed}"];
    says(&draw(&sandbox, &[&prompts[..], &["--output_path", "one"]].concat()), OK, &["3 pictures"]);
    // Beside the processor: tract, or the device that scripts/test-device names. Either may come first.
    let other = engines::test_device().map_or("tract".to_owned(), |device| device.to_string());
    for (devices, folder) in [(format!("cpu,{other}"), "two"), (format!("{other},cpu"), "turned")] {
        let shared = ["--devices", &devices, "--output_path", folder];
        let run = draw(&sandbox, &[&prompts[..], &shared].concat());
        says(&run, OK, &["3 pictures", "ONNX Runtime"]);
        assert!(run.stderr.contains(&other), "{devices}: {run:?}");
        for seed in [42, 43, 44] {
            let of = |folder: &str| pixels(&sandbox.path().join(format!("{folder}/{seed}.png")));
            let (one, two) = (of("one"), of(folder));
            let apart = one.as_raw().iter().zip(two.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(apart <= Some(1), "{devices}, seed {seed}: {apart:?}");
        }
    }
    // Each leaves out three of the six steps of its pictures.
    let run = sandbox.pixart(
        &[
            &["sample", "--model", "model", "--sampling_steps", "6", "--easycache", "1e9"][..],
            &["--image_width", "64", "--image_height", "64", "--no_text_cache"],
            &["--use_resolution_binning", "false", "--devices", "cpu,tract"],
            &["--output_path", "cached"],
            &prompts,
        ]
        .concat(),
    );
    says(&run, OK, &["easycache: 9 of 18 steps computed"]);
    // More devices than prompts.
    let run = draw(&sandbox, &["--prompt", "a", "--devices", "cpu,cpu", "--output_path", "few"]);
    says(&run, OK, &["few"]);
}

#[test]
fn plugins_that_are_none() {
    let sandbox = Sandbox::with_tiny_model();
    fs::write(sandbox.path().join("text.so"), "no library").expect("written");
    for (plugin, said) in [("text.so", "text.so cannot be used"), ("none.so", "no such file")] {
        let flags = ["--prompt", "a", "--device", "webgpu", "--device_plugin", plugin];
        says(&draw(&sandbox, &flags), FAILED, &["the plugin", said]);
    }
}

#[test]
fn a_plugin_or_an_option_without_its_device_is_a_wrong_request() {
    let sandbox = Sandbox::with_tiny_model();
    fs::write(sandbox.path().join("text.so"), "no library").expect("written");
    let plugin = ["--device_plugin", "text.so"];
    for flags in [&[][..], &["--device", "cpu"], &["--devices", "cpu,tract"]] {
        let run = draw(&sandbox, &[&["--prompt", "a"], flags, &plugin].concat());
        says(&run, REQUEST, &["device_plugin: found text.so without a device"]);
    }
    for part in ["--text_encoder_device", "--vae_device"] {
        let run = draw(&sandbox, &[&["--prompt", "a", part, "webgpu"][..], &plugin].concat());
        let said = ["belongs to the device of the transformer (--device), which is cpu", "webgpu"];
        says(&run, REQUEST, &said);
    }
    for (command, said) in [
        (&["doctor"][..], "these are for one device; name it with --device"),
        (&["doctor", "--device", "tract"], "text.so without a device"),
        (&["selftest", "cpu"], "text.so without a device"),
    ] {
        let run = sandbox.pixart(&[&["engine"], command, &plugin].concat());
        says(&run, REQUEST, &["device_plugin", said]);
    }
}

#[test]
fn the_list_tells_all_about_a_device() {
    let sandbox = Sandbox::new();
    let all = sandbox.pixart(&["engine", "list"]);
    assert_eq!(all.code, OK, "{all:?}");
    for name in ["cpu", "tract", "cuda", "tensorrt", "tensorrt-rtx", "cann", "coreml", "openvino"] {
        assert!(all.stdout.contains(&format!("\n  {name} ")), "{name} in {}", all.stdout);
    }
    let one = sandbox.pixart(&["engine", "list", "cann"]);
    for said in ["Ascend", "export profile  cann", "precision_mode", "force_fp32", "https://"] {
        assert!(one.stdout.contains(said), "{said} in {}", one.stdout);
    }
    says(&sandbox.pixart(&["engine", "list", "gpu"]), REQUEST, &["no device named \"gpu\""]);
}

#[test]
fn what_cannot_be_installed_is_named() {
    let sandbox = Sandbox::new().with("PIXART_PIP", "no-such-pip");
    let install = |flags: &[&str]| sandbox.pixart(&[&["engine", "install"], flags].concat());
    says(&install(&["gpu"]), REQUEST, &["\"gpu\"", "cpu, cuda, openvino"]);
    says(&install(&["xnnpack"]), REQUEST, &["--use_xnnpack", "PIXART_ORT_LIBRARY"]);
    says(&install(&["migraphx"]), FAILED, &["no-such-pip", "PIXART_PIP"]);
    says(&install(&["openvino", "--version", "1.2.3"]), FAILED, &["1.2.3", "1.24 or newer"]);
    says(&install(&["cpu", "--force"]), FAILED, &["no-such-pip"]);
}

#[test]
fn the_doctor_says_what_works() {
    let sandbox = Sandbox::with_tiny_model();
    let all = sandbox.pixart(&["engine", "doctor"]);
    assert_eq!(all.code, OK, "{all:?}");
    for said in ["libraries", "  cpu: works, ONNX Runtime", "  tract: works", "cann: not installed"]
    {
        assert!(all.stdout.contains(said), "{said} in {}", all.stdout);
    }
    let run = sandbox.pixart(&["engine", "doctor", "--device", "cpu", "--model", "model"]);
    assert_eq!(run.code, OK, "{run:?}");
    assert_eq!(run.stdout.matches("100.0 % of the time on cpu").count(), 3, "{}", run.stdout);
    let flags = ["engine", "doctor", "--device", "cann", "--device_option", "device_id=1"];
    says(&sandbox.pixart(&flags), FAILED, &["cann", "install cann"]);
    let flags = ["engine", "doctor", "--device", "webgpu", "--device_plugin", "none.so"];
    says(&sandbox.pixart(&flags), FAILED, &["no such file"]);
}

#[test]
fn the_selftest_compares_with_tract() {
    let sandbox = Sandbox::with_tiny_model();
    let flags =
        ["engine", "selftest", "cpu", "--model", "model", "--dtype", "fp32", "--threads", "2"];
    let run = sandbox.pixart(&flags);
    assert_eq!(run.code, OK, "{run:?}");
    for said in ["fp32      transformer", "fp32      vae_decoder", "1e-4", "dB from tract's"] {
        assert!(run.stdout.contains(said), "{said} in {}", run.stdout);
    }
    says(&sandbox.pixart(&["engine", "selftest", "qnn"]), FAILED, &["qnn"]);
    let flags = ["engine", "selftest", "cpu", "--model", "model", "--dtype", "fp7"];
    says(&sandbox.pixart(&flags), REQUEST, &["dtype", "fp7"]);
}
