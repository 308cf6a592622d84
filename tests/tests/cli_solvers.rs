//! Solvers and guidance through the binary: every one makes a picture of the demo model on both
//! engines, and what cannot be is refused.

use pixart_tests::binary::{Run, Sandbox};
use std::fs;
use std::path::Path;

const WRONG_REQUEST: i32 = 2;
const METHODS: [&str; 6] = ["dpm", "iddpm", "ddim", "sa-solver", "lcm", "dmd"];

/// A sandbox with a copy of the tiny pipeline in `model`.
fn sandbox() -> Sandbox {
    Sandbox::with_tiny_model()
}

fn run(sandbox: &Sandbox, more: &[&str]) -> Run {
    let mut args = vec!["sample"];
    let defaults = [["--model", "model"], ["--prompt", "a red circle"], ["--engine", "tract"]];
    for default in defaults {
        if !more.contains(&default[0]) {
            args.extend(default);
        }
    }
    args.extend(more);
    sandbox.pixart(&args)
}

fn sample(sandbox: &Sandbox, more: &[&str]) -> String {
    let run = run(sandbox, more);
    assert_eq!(run.code, 0, "{run:?}");
    run.stdout
}

fn latents(sandbox: &Sandbox, name: &str) -> Vec<f32> {
    let bytes = fs::read(sandbox.path().join(name)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor("latents").unwrap().data().to_vec();
    data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// max|a − b| / max|b|
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

#[test]
fn every_solver_draws_the_demo_model_alike_on_both_engines() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("models/demo");
    let sandbox = Sandbox::new();
    let demo = demo.to_str().unwrap();
    for (k, method) in METHODS.into_iter().enumerate() {
        for engine in ["ort", "tract"] {
            let file = format!("{engine}.safetensors");
            let printed = sample(
                &sandbox,
                &[
                    &["--model", demo, "--engine", engine, "--output_path", engine][..],
                    &["--sampling_method", method, "--save_latents", &file],
                    // The default of iddpm is 100 steps, which the demo need not take twice here.
                    if method == "iddpm" { &["--sampling_steps", "12"] } else { &[] },
                ]
                .concat(),
            );
            assert_eq!(printed, format!("{engine}/{k}.png\n"), "{method}");
        }
        let [ort, tract] =
            ["ort", "tract"].map(|engine| latents(&sandbox, &format!("{engine}.safetensors")));
        let error = apart(&tract, &ort);
        assert!(error < 1e-3, "{method}: the engines differ by {error:e}");
        let deviation = (ort.iter().map(|x| x * x).sum::<f32>() / ort.len() as f32).sqrt();
        // A distilled model's solver on this one gives a poor picture, not a wild one.
        assert!((0.1..30.0).contains(&deviation), "{method}: latents of {deviation}");
    }
}

#[test]
fn a_picture_of_any_solver_is_the_same_alone_or_in_a_row() {
    let sandbox = sandbox();
    for method in METHODS {
        let steps = if method == "dmd" { "1" } else { "3" };
        let common = ["--sampling_method", method, "--sampling_steps", steps];
        let row = ["--seed", "7", "--prompt", "a red circle", "a blue square", "--output_path"];
        let row_folder = format!("{method}-row");
        sample(&sandbox, &[&common[..], &row, &[&row_folder]].concat());
        let alone = ["--seed", "8", "--prompt", "a blue square", "--output_path"];
        let alone_folder = format!("{method}-alone");
        sample(&sandbox, &[&common[..], &alone, &[&alone_folder]].concat());
        let (second, alone) = (format!("{row_folder}/1.png"), format!("{alone_folder}/0.png"));
        assert_eq!(sandbox.pixels(&second), sandbox.pixels(&alone), "{method}");
    }
}

#[test]
fn steps_and_guidance_default_to_the_solvers_own() {
    let sandbox = sandbox();
    for (k, (method, steps, scale)) in [
        ("dpm", "20", "4.5"),
        ("ddim", "50", "4.5"),
        ("sa_solver", "25", "4.5"),
        ("lcm", "4", "1"),
        ("dmd", "1", "1"),
        ("iddpm", "100", "4.5"),
    ]
    .into_iter()
    .enumerate()
    {
        let (a, b) = (format!("a{k}.safetensors"), format!("b{k}.safetensors"));
        // As a key of a config, and as a flag.
        fs::write(sandbox.path().join("a.yaml"), format!("sampling_method: {method}\n")).unwrap();
        sample(&sandbox, &["-c", "a.yaml", "--save_latents", &a]);
        let told = ["--sampling_method", method, "--sampling_steps", steps];
        sample(&sandbox, &[&told[..], &["--guidance_scale", scale, "--save_latents", &b]].concat());
        assert_eq!(latents(&sandbox, &a), latents(&sandbox, &b), "{method}");
    }
}

#[test]
fn guidance_settings_change_the_picture() {
    let sandbox = sandbox();
    let of = |name: &str, more: &[&str]| {
        let file = format!("{name}.safetensors");
        let args = ["--sampling_steps", "4", "--save_latents", &file];
        sample(&sandbox, &[&args[..], more].concat());
        latents(&sandbox, &file)
    };
    let plain = of("plain", &[]);
    for (name, more) in [
        ("end", &["--guidance_end", "0.5"][..]),
        ("rescale", &["--guidance_rescale", "0.7"]),
        ("mask", &["--uncond_mask", "own"]),
    ] {
        assert_ne!(of(name, more), plain, "{name}");
    }
    // What says the same is the same.
    assert_eq!(of("whole", &["--guidance_end", "1", "--guidance_rescale", "0"]), plain);
    assert_eq!(of("caption", &["--uncond_mask", "caption"]), plain);
    let [half, two] = [["--guidance_end", "0.5"], ["--guidance_last_step", "2"]];
    assert_eq!(of("half", &half), of("two", &two));
    let [none, off] = [["--guidance_last_step", "0"], ["--guidance_scale", "1"]];
    assert_eq!(of("none", &none), of("off", &off));
}

fn refuses(more: &[&str], said: &[&str]) {
    let sandbox = sandbox();
    let before = sandbox.files();
    let run = run(&sandbox, more);
    assert_eq!(run.code, WRONG_REQUEST, "{more:?}: {run:?}");
    assert_eq!(run.stdout, "", "{run:?}");
    for text in said {
        assert!(run.stderr.contains(text), "no `{text}` in: {}", run.stderr);
    }
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    assert_eq!(sandbox.files(), before, "files were left behind");
}

#[test]
fn a_solver_that_does_not_exist() {
    let method = |name| ["--sampling_method", name];
    refuses(&method("sa-sover"), &["`sa-sover`", "did you mean `sa-solver`?"]);
    refuses(&method("idpm"), &["`idpm`", "did you mean `iddpm`?"]);
    refuses(&method("DDIM"), &["`DDIM`", "did you mean `ddim`?"]);
    refuses(&method("euler"), &["sampling_method: found `euler`", "dpm, iddpm, ddim, sa-solver"]);
}

#[test]
fn steps_that_a_solver_cannot_take() {
    for (method, steps, expected) in [
        ("dpm", "1", "2 to 1000"),
        ("iddpm", "1", "2 to 1000"),
        ("ddim", "1001", "2 to 1000"),
        ("sa-solver", "1", "2 to 1000"),
        ("lcm", "51", "1 to 50"),
        ("lcm", "0", "1 to 50"),
        ("dmd", "20", "expected 1 with the solver dmd"),
    ] {
        let more = ["--sampling_method", method, "--sampling_steps", steps];
        refuses(&more, &[&format!("sampling_steps: found {steps}, expected"), expected, method]);
    }
}

#[test]
fn guidance_where_there_is_none() {
    for method in ["lcm", "dmd"] {
        let more = ["--sampling_method", method, "--guidance_scale", "4.5"];
        refuses(&more, &["guidance_scale: found 4.5, expected 1", method]);
    }
}

#[test]
fn guidance_settings_out_of_range_or_contradicting() {
    refuses(&["--guidance_end", "1.5"], &["guidance_end: found 1.5, expected 0 to 1"]);
    refuses(&["--guidance_end", "-0.5"], &["guidance_end: found -0.5, expected 0 to 1"]);
    refuses(&["--guidance_last_step", "21"], &["guidance_last_step: found 21", "sampling_steps"]);
    refuses(&["--guidance_rescale", "2"], &["guidance_rescale: found 2, expected 0 to 1"]);
    refuses(&["--guidance_rescale", "nan"], &["guidance_rescale: found NaN"]);
    refuses(&["--uncond_mask", "both"], &["uncond_mask: found `both`, expected caption or own"]);
    let both = ["--guidance_end", "0.5", "--guidance_last_step", "3"];
    refuses(&both, &["guidance_end and guidance_last_step", "found both"]);
}

#[test]
fn a_scheduler_file_that_no_solver_follows() {
    let sandbox = sandbox();
    let file = sandbox.path().join("model/scheduler/scheduler_config.json");
    for (text, said) in [
        (r#"{"_class_name": "EulerDiscreteScheduler"}"#, "_class_name"),
        (r#"{"_class_name": "DDIMScheduler", "timestep_spacing": "leading"}"#, "timestep_spacing"),
        (r#"{"num_train_timesteps": 300}"#, "found 300, expected 401 or more"),
    ] {
        fs::write(&file, text).unwrap();
        let run = run(&sandbox, &["--sampling_method", "dmd"]);
        assert_ne!(run.code, 0);
        assert!(run.stderr.contains(said), "{}", run.stderr);
        assert_eq!(run.stdout, "");
    }
}
