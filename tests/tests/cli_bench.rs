//! `pixart bench` through the binary, on the demo model and on small random weights.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pixart_tests::binary::{Run, Sandbox, copy_folder, says};
use pixart_tests::fixtures;
use serde_json::Value;

const OK: i32 = 0;
const FAILED: i32 = 1;
const REQUEST: i32 = 2;

fn demo() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    path.to_str().expect("a path").to_owned()
}

fn bench(sandbox: &Sandbox, more: &[&str]) -> Run {
    sandbox
        .pixart(&[&["bench", "--threads", "2", "--repeats", "2", "--warmup", "1"], more].concat())
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

#[test]
fn the_demo_model_is_measured_stage_by_stage() {
    let sandbox = Sandbox::new();
    let flags = ["--model", &demo(), "--sizes", "64", "128", "--engine", "ort"];
    let output = ["--json", "bench.json", "--chart", "bench.png", "--operators"];
    let run = bench(&sandbox, &[&flags[..], &output].concat());
    says(&run, OK, &[]);
    for part in ["| text |", "| 64 px step |", "| 128 px decode |", "| 64 × 64 |", "| MatMul |"] {
        assert!(run.stdout.contains(part), "`{part}` is not in {}", run.stdout);
    }
    assert!(run.stdout.contains("extrapolated"), "{}", run.stdout);

    let report = json(&fs::read_to_string(sandbox.path().join("bench.json")).expect("the JSON"));
    let rows = report["rows"].as_array().expect("rows");
    let stages: Vec<_> = rows.iter().map(|row| row["stage"].as_str().expect("a stage")).collect();
    assert_eq!(stages, ["text", "denoise", "denoise", "decode", "decode"]);
    for row in rows {
        let number = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name}: {row}"));
        assert_eq!(row["runs"].as_array().expect("runs").len(), 2);
        // The median of two is their mean.
        let runs: f64 =
            row["runs"].as_array().into_iter().flatten().filter_map(Value::as_f64).sum();
        assert!((number("seconds") - runs / 2.0).abs() < 1e-9, "{row}");
        assert!((number("gflops") - number("gflop") / number("seconds")).abs() < 1e-6, "{row}");
        let peak = report["matmul_peaks"][0]["gflops"].as_f64().expect("a peak");
        assert!((number("share_of_peak") - number("gflops") / peak).abs() < 1e-9, "{row}");
        if cfg!(target_os = "linux") {
            assert!(number("peak_memory_bytes") > 1e6, "{row}");
        }
        assert!(row["skipped"].is_null());
    }
    // Four times the tokens are four times the work, and more in the attention.
    let work = |row: usize| rows[row]["gflop"].as_f64().expect("GFLOP");
    assert!(work(2) / work(1) > 3.5 && (work(4) / work(3) - 4.0).abs() < 0.1, "{report}");
    for (row, operator) in [(0, "MatMul"), (1, "MatMul"), (3, "Conv")] {
        let operators = rows[row]["operators"].as_array().expect("operators");
        let named = operators.iter().any(|entry| entry[0] == operator);
        assert!(operators.len() > 5 && named, "{operators:?}");
    }
    let whole = &report["extrapolated"][0];
    let step = rows[1]["seconds"].as_f64().expect("seconds");
    assert!((whole["steps_seconds"].as_f64().expect("steps") - 20.0 * step).abs() < 1e-9);
    assert!(whole["picture_seconds"].as_f64() > whole["steps_seconds"].as_f64());

    let chart = fs::read(sandbox.path().join("bench.png")).expect("the chart");
    assert!(chart.starts_with(b"\x89PNG"));
    let picture = image::load_from_memory(&chart).expect("a picture").into_rgb8();
    let colors: std::collections::BTreeSet<_> = picture.pixels().map(|pixel| pixel.0).collect();
    // Paper, grid, ink, and one for each stage.
    assert_eq!(colors.len(), 6, "{colors:?}");
}

#[test]
fn stages_steps_and_batches_are_as_asked_for() {
    let sandbox = Sandbox::with_tiny_model();
    let flags = ["--model", "model", "--engine", "tract", "--sizes", "64", "--stages", "denoise"];
    let gflop = |more: &[&str]| {
        let run = bench(&sandbox, &[&flags[..], more, &["--json", "-"]].concat());
        says(&run, OK, &[]);
        let report = json(&run.stdout);
        assert_eq!(report["rows"].as_array().expect("rows").len(), 1, "{report}");
        report["rows"][0]["gflop"].as_f64().expect("GFLOP")
    };
    let one = gflop(&["--steps", "4"]);
    assert!((gflop(&["--batch_size", "3"]) / one - 3.0).abs() < 1e-9);
    assert!((gflop(&["--guidance_scale", "1"]) / one - 0.5).abs() < 1e-9);
    assert!(gflop(&["--tokens", "200"]) > 1.2 * one);
    let run = bench(&sandbox, &[&flags[..], &["--operators"]].concat());
    says(&run, OK, &[]);
    // In tract's names; the attention is a loop, of which it has none of its own.
    for operator in ["| OptMatMul |", "| Softmax |"] {
        assert!(run.stdout.contains(operator), "`{operator}` is not in {}", run.stdout);
    }
}

#[test]
fn a_part_alone_is_enough() {
    let sandbox = Sandbox::with_tiny_model();
    for (flag, part, row) in [
        ("--checkpoint", "model/transformer", "| 64 px step |"),
        ("--text_encoder_root", "model/text_encoder", "| text |"),
        ("--vae_root", "model", "| 64 px decode |"),
    ] {
        let run = bench(&sandbox, &[flag, part, "--sizes", "64", "--device", "tract"]);
        says(&run, OK, &[]);
        assert!(run.stdout.contains(row), "{run:?}");
        let stage = if flag == "--vae_root" { "text" } else { "decode" };
        let run = bench(&sandbox, &[flag, part, "--sizes", "64", "--stages", stage]);
        says(&run, REQUEST, &["stages", "--model"]);
    }
}

#[test]
fn operators_of_a_model_with_size_conditions_are_told() {
    let sandbox = Sandbox::new();
    copy_folder(&fixtures::root().join("variants/alpha"), &sandbox.path().join("alpha"));
    let flags = ["--checkpoint", "alpha/transformer", "--sizes", "64", "--engine", "ort"];
    let run = bench(&sandbox, &[&flags[..], &["--operators"]].concat());
    says(&run, OK, &[]);
    assert!(run.stdout.contains("| MatMul |"), "{run:?}");
}

#[test]
fn a_late_failure_keeps_what_was_measured() {
    let sandbox = Sandbox::with_tiny_model();
    let weights = "model/vae/diffusion_pytorch_model.safetensors";
    fs::write(sandbox.path().join(weights), "damaged").expect("written");
    let flags = ["--model", "model", "--sizes", "64", "--engine", "tract"];
    let run = bench(&sandbox, &[&flags[..], &["--json", "bench.json"]].concat());
    says(&run, FAILED, &["vae", "safetensors"]);
    assert!(run.stdout.contains("| text |") && run.stdout.contains("| 64 px step |"), "{run:?}");
    let report = json(&fs::read_to_string(sandbox.path().join("bench.json")).expect("the JSON"));
    assert_eq!(report["rows"].as_array().expect("rows").len(), 2);
    // Where nothing was measured there is nothing to tell.
    let run = bench(&sandbox, &[&flags[..], &["--stages", "decode"]].concat());
    says(&run, FAILED, &["vae", "safetensors"]);
    assert_eq!(run.stdout, "");
}

#[test]
fn random_weights_are_made_and_removed() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path().join("scratch")).expect("a folder");
    let demo = demo();
    let config = format!("{demo}/transformer/config.json");
    for (random, more) in [
        (&demo, &["--engine", "ort", "--precision", "int8", "--int8_mode", "dynamic"][..]),
        (&config, &["--engine", "tract"]),
    ] {
        let flags = ["--random", random, "--sizes", "64", "--scratch", "scratch", "--json", "-"];
        let run = bench(&sandbox, &[&flags[..], more].concat());
        says(&run, OK, &[]);
        let report = json(&run.stdout);
        let expected = if more.len() > 2 { "int8 dynamic" } else { "fp32" };
        assert_eq!(report["precision"]["denoise"], expected);
        assert_eq!(report["precision"]["decode"], "fp32");
        assert_eq!(report["rows"].as_array().expect("rows").len(), 3);
    }
    assert_eq!(sandbox.files(), Vec::<PathBuf>::new(), "all of it is gone");
}

#[test]
fn what_the_machine_has_no_memory_for_is_told_and_left_out() {
    if !cfg!(target_os = "linux") {
        return;
    }
    let sandbox = Sandbox::with_tiny_model();
    let flags =
        ["--model", "model", "--engine", "tract", "--sizes", "16384", "--batch_size", "400"];
    let run = bench(&sandbox, &[&flags[..], &["--stages", "text", "denoise"]].concat());
    says(&run, OK, &[]);
    assert!(run.stdout.contains("16384 px step | not measured: it would take about"), "{run:?}");
    let run = bench(&sandbox, &[&flags[..], &["--stages", "denoise"]].concat());
    says(&run, FAILED, &["nothing was measured", "too little memory"]);
}

#[test]
fn bad_requests_are_refused_before_the_work() {
    let sandbox = Sandbox::with_tiny_model();
    for (flags, said) in [
        (&["--sizes", "250"][..], &["sizes", "250", "multiples of 16"][..]),
        (&["--steps", "0"], &["steps: found 0"]),
        (&["--batch_size", "0"], &["batch_size: found 0"]),
        (&["--tokens", "5000"], &["tokens: found 5000, expected 1 to 4096"]),
        (&["--guidance_scale", "nan"], &["guidance_scale", "finite"]),
        (&["--json", "no/such/folder.json"], &["json", "no/such/folder.json"]),
        (&["--chart", "chart.jpg"], &["chart", "chart.jpg", ".png"]),
        (&["--device", "gpu"], &["no device named \"gpu\""]),
        (&["--device", "cuda", "--device_option", "x=1"], &["\"x\""]),
        (&["--device", "cuda", "--low_memory"], &["low_memory: found cuda", "the processor"]),
        (&["--engine", "fast"], &["\"fast\""]),
        (&["--stages", "paint"], &["paint", "denoise"]),
        (&["--precision", "fp12"], &["fp12"]),
        (&["--int8_mode", "dynamic"], &["--random"]),
        (&["--scratch", "."], &["--random"]),
        (&["--random", "pixart-sigma-512"], &["cannot be used with"]),
    ] {
        let run = bench(&sandbox, &[&["--model", "model"], flags].concat());
        says(&run, REQUEST, said);
    }
    fs::write(sandbox.path().join("config.json"), "{").expect("written");
    for (random, said) in [
        ("pixart-sigma-3", &["pixart-sigma-3", "pixart-sigma-512", "config.json"][..]),
        ("config.json", &["config.json", "EOF"]),
        ("model/tokenizer", &["transformer/config.json"]),
    ] {
        says(&bench(&sandbox, &["--random", random]), REQUEST, said);
    }
    let missing = ["--model", "model", "--device_plugin", "no.so", "--device", "cuda"];
    says(&bench(&sandbox, &missing), FAILED, &["no.so", "no such file"]);
    says(&bench(&sandbox, &["--model", "nowhere", "--sizes", "64"]), REQUEST, &["nowhere"]);
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    if !cfg!(unix) {
        return;
    }
    let sandbox = Sandbox::new();
    // Weights are there once it measures, which takes minutes.
    let child = started(&sandbox, &demo());
    wait_for(&sandbox, "transformer/manifest.json", 1);
    let run = ended(child, "-INT");
    says(&run, 130, &["interrupted"]);
    assert_eq!(sandbox.files(), Vec::<PathBuf>::new());
}

#[test]
fn ctrl_c_ends_the_making_of_weights() {
    if !cfg!(unix) {
        return;
    }
    let sandbox = Sandbox::new();
    // 1.2 GB, of which little is written.
    let child = started(&sandbox, "pixart-sigma-256");
    wait_for(&sandbox, "source/diffusion_pytorch_model.safetensors", 1 << 20);
    let run = ended(child, "-INT");
    says(&run, 130, &["interrupted: no random weights are left"]);
    assert!(!run.stderr.contains("export transformer"), "{run:?}");
    assert_eq!(run.stdout, "");
    assert_eq!(sandbox.files(), Vec::<PathBuf>::new());
}

#[test]
fn what_a_killed_run_left_goes_with_the_next() {
    if !cfg!(unix) {
        return;
    }
    let sandbox = Sandbox::new();
    let child = started(&sandbox, &demo());
    wait_for(&sandbox, "transformer/manifest.json", 1);
    signalled(&child, "-KILL");
    child.wait_with_output().expect("it ends");
    assert_ne!(sandbox.files(), Vec::<PathBuf>::new());
    let demo = demo();
    let flags = ["--random", &demo, "--scratch", "scratch", "--sizes", "64", "--engine", "tract"];
    says(&bench(&sandbox, &[&flags[..], &["--stages", "text"]].concat()), OK, &[]);
    assert_eq!(sandbox.files(), Vec::<PathBuf>::new());
}

/// Measures random weights for minutes.
fn started(sandbox: &Sandbox, random: &str) -> Child {
    fs::create_dir(sandbox.path().join("scratch")).expect("a folder");
    let flags = ["bench", "--random", random, "--scratch", "scratch", "--engine", "tract"];
    let more = ["--sizes", "64", "--stages", "denoise", "--repeats", "900"];
    let mut command = sandbox.command(&[&flags[..], &more].concat());
    command.env("TMPDIR", sandbox.path().join("scratch"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

/// Until a file of so many bytes is in a folder that the run has made.
fn wait_for(sandbox: &Sandbox, name: &str, bytes: u64) {
    let begin = Instant::now();
    let is_there = || {
        let found = fs::read_dir(sandbox.path().join("scratch")).expect("the folder").flatten();
        let mut files = found.into_iter().map(|entry| fs::metadata(entry.path().join(name)));
        files.any(|file| file.is_ok_and(|file| file.len() >= bytes))
    };
    while !is_there() && begin.elapsed().as_secs() < 60 {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(is_there(), "no {name} within a minute");
}

/// What a run says that gets a signal.
fn ended(child: Child, signal: &str) -> Run {
    signalled(&child, signal);
    Run::new(&child.wait_with_output().expect("it ends"))
}

fn signalled(child: &Child, signal: &str) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args([signal, &id]).status().expect("kill").success());
}
