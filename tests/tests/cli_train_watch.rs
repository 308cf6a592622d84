//! What `pixart train` leaves to be looked at: the log, and pictures of what the model can draw so far.

use std::{
    fs,
    path::{Path, PathBuf},
};

use pixart_tests::{
    binary::{Run, Sandbox, copy_folder},
    fixtures,
    training::sandbox,
};
use serde_json::Value;

const DONE: i32 = 0;
const WRONG_REQUEST: i32 = 2;

/// Two pictures, after every epoch.
const PICTURES: [&str; 14] = [
    "--visualize",
    "True",
    "--visualize_interval",
    "1",
    "--validation_prompts",
    "picture 1",
    "picture 2",
    "--validation_negative_prompts=a",
    "--validation_negative_prompts=b",
    "--sampling_method=dpm",
    "--sampling_steps=2",
    "--guidance_scale=3",
    "--seed",
    "7",
];

/// The same as settings of a config, `pictures.yaml`, so that flags can change them.
fn write_config(sandbox: &Sandbox) {
    let short = fs::read_to_string(sandbox.path().join("short.yaml")).expect("a config");
    let config = "visualize: True\nvisualize_interval: 1\nvalidation_prompts: [picture 1, picture 2]\n\
                  validation_negative_prompts: [a, b]\nsampling_method: dpm\nsampling_steps: 2\n\
                  guidance_scale: 3\nseed: 7\n";
    fs::write(sandbox.path().join("pictures.yaml"), short + config).expect("written");
}

fn train(sandbox: &Sandbox, more: &[&str]) -> Run {
    let config = match sandbox.path().join("pictures.yaml").exists() {
        true => "pictures.yaml",
        false => "short.yaml",
    };
    sandbox.pixart(&[&["train", "-c", config][..], more].concat())
}

fn trained(sandbox: &Sandbox, more: &[&str]) -> Run {
    let run = train(sandbox, more);
    assert_eq!(run.code, DONE, "{run:?}");
    run
}

/// The weights of a checkpoint.
fn weights(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("diffusion_pytorch_model.safetensors")).expect("weights")
}

fn log(output: &Path) -> Vec<Value> {
    let text = fs::read_to_string(output.join("logs/training.jsonl")).expect("a log");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut names: Vec<_> = entries.map(|entry| name(entry.expect("an entry"))).collect();
    names.sort();
    names
}

fn pixels(path: PathBuf) -> Vec<u8> {
    image::open(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .into_rgb8()
        .into_raw()
}

/// What `pixart sample` draws with a checkpoint as validation does.
fn sampled(sandbox: &Sandbox, checkpoint: &str, name: &str) -> Vec<u8> {
    let run = sandbox.pixart(&[
        "sample",
        "--model=model",
        "--checkpoint",
        checkpoint,
        "--prompt=picture 1",
        "--negative_prompt=a",
        "--image_width=64",
        "--image_height=64",
        "--use_resolution_binning=False",
        "--sampling_steps=2",
        "--guidance_scale=3",
        "--seed=7",
        "--engine=tract",
        "--output_path",
        name,
    ]);
    assert_eq!(run.code, DONE, "{run:?}");
    sandbox.pixels(run.stdout.trim()).into_raw()
}

#[test]
fn pictures_are_those_of_the_checkpoints_and_disturb_nothing() {
    let sandbox = sandbox();
    let at = |path: &str| sandbox.path().join(path);
    let run = trained(&sandbox, &PICTURES);
    assert!(run.stderr.contains("drew 2 validation pictures, output/samples"), "{run:?}");
    assert!(!run.stderr.contains("no pictures are drawn"), "{run:?}");
    let expected = ["step_00000002_00", "step_00000002_01", "step_00000004_00", "step_00000004_01"];
    assert_eq!(names(&at("output/samples")), expected.map(|name| format!("{name}.png")));
    for step in ["00000002", "00000004"] {
        let drawn = pixels(at(&format!("output/samples/step_{step}_00.png")));
        let expected = sampled(&sandbox, &format!("output/ckpt/step_{step}"), step);
        // Other graphs, so that rounding may move a value.
        let apart = drawn.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(drawn.len() == expected.len() && apart <= Some(1), "{step}: {apart:?}");
    }
    // The four pictures are four.
    let drawn = expected.map(|name| pixels(at(&format!("output/samples/{name}.png"))));
    assert!((0..4).all(|a| (0..a).all(|b| drawn[a] != drawn[b])));

    trained(&sandbox, &["--seed", "7", "--output_path", "plain"]);
    assert_eq!(weights(&at("output/ckpt/step_00000004")), weights(&at("plain/ckpt/step_00000004")));
    assert!(!at("plain/samples").exists());
}

#[test]
fn pictures_are_drawn_with_the_average_and_at_the_end_of_a_lora() {
    let sandbox = sandbox();
    let at = |path: &str| sandbox.path().join(path);
    write_config(&sandbox);
    trained(&sandbox, &["--visualize_interval=3", "--use_ema=True", "--ema_rate=0.5"]);
    let expected = ["step_00000004_00.png", "step_00000004_01.png"];
    assert_eq!(names(&at("output/samples")), expected);
    let drawn = pixels(at("output/samples/step_00000004_00.png"));
    let [average, last] =
        ["output/ckpt/step_00000004/ema", "output/ckpt/step_00000004"].map(|checkpoint| {
            let other = sampled(&sandbox, checkpoint, &checkpoint.replace('/', "_"));
            drawn.iter().zip(&other).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>()
        });
    assert!(average < last, "{average} from the average, {last} from the weights");

    let lora = ["--lora_rank=2", "--output_path=lora", "--max_train_steps=1", "--optim=muon"];
    trained(&sandbox, &lora);
    assert_eq!(names(&at("lora/samples")).len(), 2);
}

#[test]
fn pictures_of_a_model_with_size_conditions_are_those_of_its_checkpoint() {
    let sandbox = sandbox();
    let alpha = sandbox.path().join("alpha");
    copy_folder(&fixtures::root().join("variants/alpha"), &alpha);
    write_config(&sandbox);
    trained(&sandbox, &["--checkpoint=alpha/transformer", "--max_train_steps=1"]);
    let drawn = pixels(sandbox.path().join("output/samples/step_00000001_00.png"));
    let expected = sampled(&sandbox, "output/ckpt/step_00000001", "other");
    let apart = drawn.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(drawn.len() == expected.len() && apart <= Some(1), "{apart:?}");
}

#[cfg(unix)]
#[test]
fn pictures_that_ctrl_c_ended_are_not_told_as_drawn() {
    use std::{io::BufRead, process};
    let sandbox = sandbox();
    write_config(&sandbox);
    let long = ["train", "-c", "pictures.yaml", "--sampling_method=iddpm", "--sampling_steps=1000"];
    let mut command = sandbox.command(&long);
    command.stdout(process::Stdio::piped()).stderr(process::Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let mut lines = std::io::BufReader::new(child.stderr.take().expect("piped")).lines();
    let mut line = || lines.next().map(|line| line.expect("a line"));
    while !line().expect("it goes on").starts_with("epoch 1 took") {}
    // Two thousand passes are left to be drawn.
    let sent = process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill").success());
    let rest: Vec<String> = std::iter::from_fn(line).collect();
    assert_eq!(child.wait().expect("it ends").code(), Some(130), "{rest:?}");
    let told: Vec<_> = rest.iter().filter(|line| line.contains("validation pictures")).collect();
    let [told] = told[..] else { panic!("one line: {rest:?}") };
    assert!(told.starts_with("drew 0 of 2 validation pictures after step 2"), "{told}");
}

#[test]
fn every_step_is_logged_once_also_by_a_run_that_goes_on() {
    let sandbox = sandbox();
    let at = |path: &str| sandbox.path().join(path);
    trained(&sandbox, &[]);
    let steps = |log: &[Value]| -> Vec<u64> {
        log.iter().map(|line| line["step"].as_u64().expect("a number")).collect()
    };
    let whole = log(&at("output"));
    assert_eq!(steps(&whole), [1, 2, 3, 4]);
    assert_eq!(whole[3]["epoch"], 2);
    assert!(whole.iter().all(|line| line["loss"].as_f64() > Some(0.0)));
    assert!(whole[1]["gradient_norm"].as_f64() > Some(0.0));
    let curve = image::open(at("output/logs/loss.png")).expect("a curve");
    assert!(curve.width() > 500);
    assert!(names(&at("output/logs")).iter().any(|name| name.contains("tfevents")));

    trained(&sandbox, &["--resume", "output/ckpt/step_00000002"]);
    let again = log(&at("output"));
    assert_eq!(steps(&again), [1, 2, 3, 4]);
    for (whole, again) in whole.iter().zip(&again) {
        assert_eq!(whole["loss"], again["loss"]);
    }
    assert!(again[2]["time"].as_f64() > whole[3]["time"].as_f64(), "the third step was done again");
}

#[test]
fn the_settings_that_are_written_repeat_the_run() {
    let sandbox = sandbox();
    let at = |path: &str| sandbox.path().join(path);
    let muon = ["--optim=muon", "--muon_momentum=0.9", "--snr_gamma=5"];
    trained(&sandbox, &[&muon[..], &["--weight_decay=0.1"]].concat());
    let text = fs::read_to_string(at("output/args.yaml")).expect("settings");
    for line in
        ["optim: muon", "muon_momentum: 0.9", "snr_gamma: 5.0", "batch_size: 2", "epochs: 2"]
    {
        assert!(text.lines().any(|found| found == line), "no {line} in {text}");
    }
    let again = sandbox.pixart(&["train", "-c", "output/args.yaml", "--output_path", "again"]);
    assert_eq!(again.code, DONE, "{again:?}");
    let [first, second] = ["output", "again"].map(|o| weights(&at(o).join("ckpt/step_00000004")));
    assert!(first == second, "another run");
    // Each of the two settings counts.
    for (name, without) in [("adamw", &muon[2..]), ("unweighted", &muon[..2])] {
        trained(&sandbox, &[without, &["--weight_decay=0.1", "--output_path", name]].concat());
        assert!(weights(&at(name).join("ckpt/step_00000004")) != first, "{name}");
    }
}

#[test]
fn what_is_wrong_or_missing_is_told_before_training() {
    let sandbox = sandbox();
    let before = sandbox.files();
    let refused = |flags: &[&str], said: &str| {
        let run = train(&sandbox, flags);
        assert_eq!(run.code, WRONG_REQUEST, "{flags:?}: {run:?}");
        assert!(run.stderr.contains(said), "{flags:?}: no `{said}` in {}", run.stderr);
    };
    refused(&["--visualize=True"], "validation_prompts: found none");
    refused(&["--snr_gamma=0"], "snr_gamma: found 0, expected a positive number");
    let momentum = "muon_momentum: found 1, expected a number from 0 to below 1";
    refused(&["--optim=muon", "--muon_momentum=1"], momentum);
    assert_eq!(sandbox.files(), before, "files were left behind");
    write_config(&sandbox);
    fs::rename(sandbox.path().join("model/vae"), sandbox.path().join("away")).expect("moved");
    let before = sandbox.files();
    for (flag, said) in [
        ("--visualize_interval=0", "visualize_interval: found 0"),
        ("--sampling_method=euler", "sampling_method: "),
        ("--validation_negative_prompts=c", "validation: negative_prompts: found 1 for 2 prompts"),
        ("--sampling_steps=0", "sampling_steps"),
        ("--engine=tract", "vae_root: found nothing at model/vae"),
    ] {
        refused(&[flag], said);
        assert_eq!(sandbox.files(), before, "files were left behind");
    }
}
