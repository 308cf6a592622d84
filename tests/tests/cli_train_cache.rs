//! `pixart train cache` through the binary: what it keeps, what training needs after it, and everything that can be
//! wrong.

use image::RgbImage;
#[cfg(unix)]
use pixart_tests::binary::limited;
use pixart_tests::binary::{Run, Sandbox, copy_folder};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
#[cfg(unix)]
use std::process::Command;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

const DONE: i32 = 0;
const FAILED: i32 = 1;
const WRONG_REQUEST: i32 = 2;

/// The tiny model, and `count` pictures, every third one wide, with two captions each.
fn sandbox(count: u32) -> Sandbox {
    let sandbox = Sandbox::with_tiny_model();
    let images = sandbox.path().join("images");
    fs::create_dir(&images).unwrap();
    let mut labels = Vec::new();
    for k in 0..count {
        let (width, height) = if k % 3 == 0 { (140, 70) } else { (66, 64) };
        let picture = RgbImage::from_fn(width, height, |x, y| {
            let value = (x + y * width + k * 7919).wrapping_mul(2_654_435_761);
            image::Rgb([(value >> 24) as u8, (value >> 16) as u8, (value >> 8) as u8])
        });
        picture.save(images.join(format!("{k}.png"))).unwrap();
        let long = format!("a longer caption of the picture with the number {k}");
        labels.push(json!({"path": format!("{k}.png"), "prompt": format!("number {k}"),
                           "sharegpt4v": long}));
    }
    fs::write(sandbox.path().join("labels.json"), Value::Array(labels).to_string()).unwrap();
    sandbox
}

const DATA: [&str; 8] = [
    "--json_path",
    "labels.json",
    "--image_dir",
    "images",
    "--sample_size",
    "8",
    "--multi_scale",
    "true",
];
const ENCODERS: [&str; 6] = [
    "--text_encoder_root",
    "model/text_encoder",
    "--tokenizer_root",
    "model/tokenizer",
    "--vae_root",
    "model/vae",
];
const TRACT: [&str; 4] = ["--engine", "tract", "--threads", "2"];

fn arguments<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let own = ["train", "cache", "--cache_dir", "kept"];
    // The last one of a flag would have to win; clap refuses two.
    let all = own.into_iter().chain(DATA).chain(ENCODERS).chain(TRACT);
    let mut all: Vec<&str> = all.collect();
    for pair in more.chunks(2) {
        match all.iter().position(|known| *known == pair[0]) {
            Some(at) => all[at + 1] = pair[1],
            None => all.extend(pair),
        }
    }
    all
}

fn cache(sandbox: &Sandbox, more: &[&str]) -> Run {
    sandbox.pixart(&arguments(more))
}

fn train(sandbox: &Sandbox, more: &[&str]) -> Run {
    let own = ["train", "--cache_dir", "kept", "--checkpoint", "model/transformer"];
    let run = ["--change_sample_size", "--batch_size", "2", "--max_train_steps", "2"];
    let mut all = [&own[..], &DATA, &run, &TRACT].concat();
    for pair in more.chunks(2) {
        match all.iter().position(|known| *known == pair[0]) {
            Some(at) => all[at + 1] = pair[1],
            None => all.extend(pair),
        }
    }
    sandbox.pixart(&all)
}

/// The run refused the request or failed, with `said` and nothing on stdout.
fn assert_refused(run: &Run, code: i32, said: &[&str]) {
    assert_eq!(run.code, code, "{run:?}");
    assert_eq!(run.stdout, "", "{run:?}");
    let errors: Vec<&str> = run.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    let [error] = errors[..] else { panic!("one error: {run:?}") };
    for text in said {
        assert!(error.contains(text), "no `{text}` in: {error}");
    }
    assert!(!run.stderr.contains("panicked"), "{run:?}");
}

fn assert_done(run: &Run, said: &[&str]) {
    assert_eq!(run.code, DONE, "{run:?}");
    for text in said {
        assert!(run.stderr.contains(text), "no `{text}` in: {}", run.stderr);
    }
}

/// The files in a folder of the cache, in order.
fn entries(sandbox: &Sandbox, folder: &str) -> Vec<PathBuf> {
    let folder = Path::new("kept").join(folder);
    sandbox.files().into_iter().filter(|file| file.starts_with(&folder)).collect()
}

/// Changes a byte at the end of a file.
fn damage(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[test]
fn training_needs_neither_text_encoder_nor_vae_afterwards() {
    let sandbox = sandbox(5);
    let run = cache(&sandbox, &[]);
    assert_done(&run, &["captions: 11 encoded, 0 were there", "pictures: 5 encoded, 0 were there"]);
    assert_eq!(run.stdout, "kept\n");
    // Two captions a picture, and the empty one.
    assert_eq!((entries(&sandbox, "captions").len(), entries(&sandbox, "moments").len()), (11, 5));
    for part in ["model/text_encoder", "model/vae", "model/tokenizer", ".cache"] {
        fs::remove_dir_all(sandbox.path().join(part)).unwrap();
    }
    let run = train(&sandbox, &["--output_path", "trained"]);
    assert_eq!(run.code, DONE, "{run:?}");
    assert!(run.stderr.contains("2 steps"), "{run:?}");
    assert!(sandbox.files().iter().any(|file| file.ends_with("training.json")));

    // The folder may be moved, and copied pictures have other times.
    copy_folder(&sandbox.path().join("kept"), &sandbox.path().join("moved"));
    let file = File::options().write(true).open(sandbox.path().join("images/1.png")).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let run = train(&sandbox, &["--cache_dir", "moved", "--output_path", "again"]);
    assert_eq!(run.code, DONE, "{run:?}");
}

#[test]
fn a_config_and_captions_in_fp32() {
    let sandbox = sandbox(2);
    let config = "sample_size: 8\nmulti_scale: True\nbatch_size: 32\ndtype: fp16\noptim: came\n\
                  text_encoder_root: model/text_encoder\ntokenizer_root: model/tokenizer\n\
                  vae_root: model/vae\ncache_dir: kept\n";
    fs::write(sandbox.path().join("train.yaml"), config).unwrap();
    let data =
        ["--json_path", "labels.json", "--image_dir", "images", "--num_parallel_workers", "1"];
    let own = ["train", "cache", "-c", "train.yaml"];
    assert_done(&sandbox.pixart(&[&own[..], &data].concat()), &["captions: 5 encoded"]);
    let bytes = |sandbox: &Sandbox| -> u64 {
        let files = entries(sandbox, "captions");
        files.iter().map(|file| fs::metadata(sandbox.path().join(file)).unwrap().len()).sum()
    };
    let halves = bytes(&sandbox);
    let whole = ["--caption_dtype", "fp32"];
    let run = sandbox.pixart(&[&own[..], &data, &whole].concat());
    assert_done(&run, &["captions: 5 encoded, 0 were there", "pictures: 0 encoded, 2 were there"]);
    assert!(bytes(&sandbox) > halves * 3 / 2);
}

#[test]
fn the_size_of_a_batch_is_none_of_its_settings() {
    let sandbox = sandbox(1);
    let help = sandbox.pixart(&["train", "cache", "--help"]);
    assert!(help.code == DONE && help.stdout.contains("--sample_size"), "{help:?}");
    assert!(!help.stdout.contains("batch_size"), "{help:?}");
    // The flags of a training are taken along.
    assert_done(&cache(&sandbox, &["--batch_size", "64"]), &["pictures: 1 encoded"]);
}

#[test]
fn what_is_damaged_or_missing_is_found_and_made_anew() {
    let sandbox = sandbox(4);
    assert_done(&cache(&sandbox, &[]), &[]);
    let check = |sandbox: &Sandbox| {
        let arguments = [&arguments(&[])[..], &["--check"]].concat();
        sandbox.pixart(&arguments)
    };
    assert_done(&check(&sandbox), &["13 captions and pictures looked at, 0 are not to be had"]);
    let full = |file: &PathBuf| sandbox.path().join(file);
    let captions = entries(&sandbox, "captions");
    damage(&full(&captions[3]));
    fs::remove_file(full(&captions[4])).unwrap();
    fs::write(full(&entries(&sandbox, "moments")[0]), "").unwrap();
    RgbImage::new(140, 70).save(sandbox.path().join("images/3.png")).unwrap();
    let before = sandbox.files();
    let run = check(&sandbox);
    assert_eq!(run.code, FAILED, "{run:?}");
    let lines: Vec<&str> = run.stdout.lines().collect();
    let changed = lines.iter().any(|line| line.contains("3.png: the picture has changed since"));
    let damaged = lines.iter().filter(|line| line.contains("is damaged")).count();
    // The picture that changed may be the one whose entry was emptied.
    assert!(lines.len() == if changed { 4 } else { 3 }, "{run:?}");
    assert_eq!(damaged, 2, "{run:?}");
    assert!(lines.iter().any(|line| line.ends_with("\": it is not there")), "{run:?}");
    assert!(run.stderr.contains("of 13 captions and pictures are missing"), "{run:?}");
    assert_eq!(sandbox.files(), before, "nothing is written");

    let run = cache(&sandbox, &[]);
    let pictures = format!("pictures: {} encoded", lines.len() - 2);
    assert_done(&run, &["captions: 2 encoded, 7 were there", &pictures]);
    assert_done(&check(&sandbox), &["0 are not to be had"]);
    assert_done(&cache(&sandbox, &[]), &["captions: 0 encoded", "pictures: 0 encoded"]);
}

#[test]
fn pictures_that_cannot_be_read_are_named_and_passed_over() {
    let sandbox = sandbox(5);
    let file = sandbox.path().join("images/2.png");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let run = cache(&sandbox, &[]);
    let said = ["skipped images/2.png: ", "pictures: 4 encoded, 0 were there, 1 cannot be read"];
    assert_done(&run, &said);
    let run = train(&sandbox, &["--epochs", "1"]);
    assert_eq!(run.code, DONE, "{run:?}");
    // It is whole again.
    fs::write(&file, bytes).unwrap();
    assert_done(&cache(&sandbox, &[]), &["pictures: 1 encoded, 4 were there\n"]);
}

/// Kills it as soon as so many files are in a folder of the cache.
fn kill_at(sandbox: &Sandbox, folder: &str, count: usize) {
    let mut command = sandbox.command(&arguments(&[]));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    let files = || match sandbox.path().join("kept").join(folder).is_dir() {
        true => entries(sandbox, folder).len(),
        false => 0,
    };
    while files() < count {
        assert!(child.try_wait().unwrap().is_none(), "it ended before {count} of {folder}");
        assert!(start.elapsed() < Duration::from_secs(120), "{count} of {folder}");
        sleep(Duration::from_micros(200));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn killed_at_any_moment_it_goes_on() {
    let sandbox = sandbox(90);
    let mut unfinished = 0;
    for (folder, count) in [("captions", 1), ("captions", 60), ("moments", 1), ("moments", 20)] {
        kill_at(&sandbox, folder, count);
        let names = entries(&sandbox, "captions").into_iter().chain(entries(&sandbox, "moments"));
        let whole = names.filter(|file| file.extension().is_some_and(|e| e == "safetensors"));
        unfinished += usize::from(whole.count() < 271);
    }
    assert!(unfinished >= 2, "killed before the end");
    let run = cache(&sandbox, &[]);
    assert_done(&run, &["captions: 0 encoded, 181 were there", "pictures: "]);
    let run = sandbox.pixart(&[&arguments(&[])[..], &["--check"]].concat());
    assert_done(&run, &["271 captions and pictures looked at, 0 are not to be had"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_it_and_keeps_what_is_done() {
    let sandbox = sandbox(90);
    let mut command = sandbox.command(&arguments(&[]));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while !sandbox.path().join("kept/captions").is_dir() {
        assert!(start.elapsed() < Duration::from_secs(120), "no caption");
        sleep(Duration::from_micros(200));
    }
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let run = Run::new(&child.wait_with_output().unwrap());
    assert_eq!((run.code, run.stdout.as_str()), (130, ""), "{run:?}");
    assert!(run.stderr.contains("are missing; the same command goes on there"), "{run:?}");
    assert_done(&cache(&sandbox, &[]), &["pictures: "]);
}

#[test]
fn of_two_processes_the_second_is_refused() {
    let sandbox = sandbox(1);
    assert_done(&cache(&sandbox, &[]), &[]);
    let lock = File::open(sandbox.path().join("kept/.lock")).unwrap();
    lock.lock().unwrap();
    let run = cache(&sandbox, &[]);
    assert_refused(&run, FAILED, &["another `pixart train cache` is filling kept", "wait"]);
    lock.unlock().unwrap();
    assert_done(&cache(&sandbox, &[]), &[]);
}

#[test]
fn what_another_encoder_gave_is_refused() {
    let sandbox = sandbox(1);
    assert_done(&cache(&sandbox, &[]), &[]);
    let copy = |part: &str| {
        let to = sandbox.path().join("other").join(part);
        copy_folder(&sandbox.path().join("model").join(part), &to);
        to
    };
    damage(&copy("vae").join("diffusion_pytorch_model.safetensors"));
    damage(&copy("text_encoder").join("model-00002-of-00003.safetensors"));
    let tokenizer = copy("tokenizer").join("tokenizer_config.json");
    let text = fs::read_to_string(&tokenizer).unwrap();
    fs::write(tokenizer, text + "\n").unwrap();
    for (flag, part, what) in [
        ("--vae_root", "other/vae", "VAE"),
        ("--text_encoder_root", "other/text_encoder", "text encoder"),
        ("--tokenizer_root", "other/tokenizer", "tokenizer"),
    ] {
        let run = cache(&sandbox, &[flag, part]);
        let what = format!("cache_dir: kept has what another {what} gave: found ");
        assert_refused(&run, WRONG_REQUEST, &[&what, "expected", "another folder"]);
        assert_done(&cache(&sandbox, &[flag, part, "--cache_dir", part]), &["1 encoded"]);
    }
}

#[test]
fn a_cache_for_other_settings_is_refused_in_training() {
    let sandbox = sandbox(3);
    let run = train(&sandbox, &[]);
    assert_refused(&run, WRONG_REQUEST, &["there is no cache in kept", "`pixart train cache"]);
    assert_done(&cache(&sandbox, &[]), &[]);
    let said = "lacks 3 of 3 pictures at sample_size 16 multi_scale";
    let filled = "so far it was filled for sample_size 8 multi_scale";
    assert_refused(&train(&sandbox, &["--sample_size", "16"]), FAILED, &[said, filled]);
    for (flag, value, said) in [
        ("--t5_max_length", "120", "of 7 captions (120 tokens at most, cleaning raw)"),
        (
            "--prompt_cleaning",
            "diffusers",
            "of 7 captions (300 tokens at most, cleaning diffusers)",
        ),
    ] {
        assert_refused(&train(&sandbox, &[flag, value]), FAILED, &["lacks 7", said]);
    }
    let run = train(&sandbox, &["--sd_scale_factor", "0.18215"]);
    let said = "sd_scale_factor: found 0.18215, expected 0.13025, which is the VAE's";
    assert_refused(&run, WRONG_REQUEST, &[said]);
    // One size more, and the captions are there.
    let run = cache(&sandbox, &["--sample_size", "16"]);
    assert_done(&run, &["captions: 0 encoded", "pictures: 3 encoded"]);
    assert_eq!(train(&sandbox, &["--sample_size", "16"]).code, DONE);
}

#[test]
fn requests_that_cannot_be_are_refused() {
    let sandbox = sandbox(1);
    let without = |flag: &str| {
        let mut arguments = arguments(&[]);
        let at = arguments.iter().position(|known| *known == flag).unwrap();
        arguments.drain(at..at + 2);
        sandbox.pixart(&arguments)
    };
    for flag in ["cache_dir", "text_encoder_root", "tokenizer_root", "vae_root", "image_dir"] {
        let run = without(&format!("--{flag}"));
        assert_refused(&run, WRONG_REQUEST, &[&format!("{flag}: nothing given")]);
    }
    for (flag, value, said) in [
        ("--caption_dtype", "bf16", "caption_dtype: found bf16, expected fp16 or fp32"),
        ("--vae_root", "gone", "vae_root: found nothing at gone"),
        ("--text_encoder_root", "labels.json", "text_encoder_root: found a file at labels.json"),
        ("--threads", "0", "threads: found 0"),
        ("--num_parallel_workers", "0", "num_parallel_workers: found 0"),
        ("--t5_max_length", "0", "t5_max_length: found 0"),
        ("--json_path", "gone.json", "gone.json"),
    ] {
        let run = cache(&sandbox, &[flag, value]);
        assert!(run.code == WRONG_REQUEST || flag == "--json_path", "{run:?}");
        assert_refused(&run, run.code, &[said]);
    }
    fs::write(sandbox.path().join("bad.json"), "[{\"path\": \"0.png\" \"prompt\": \"a\"}]")
        .unwrap();
    let run = cache(&sandbox, &["--json_path", "bad.json"]);
    assert_refused(&run, FAILED, &["bad.json, line 1, column 19", "not valid JSON"]);
    fs::write(sandbox.path().join("none.json"), "[{\"path\": \"gone.png\", \"prompt\": \"a\"}]")
        .unwrap();
    let run = cache(&sandbox, &["--json_path", "none.json"]);
    assert_refused(&run, FAILED, &["no picture can be trained on"]);
    assert!(entries(&sandbox, "").is_empty(), "nothing is written");
}

#[test]
fn folders_that_cannot_be_written_and_broken_ones_are_named() {
    let sandbox = sandbox(2);
    let run = cache(&sandbox, &["--cache_dir", "labels.json"]);
    assert_refused(&run, FAILED, &["labels.json: cannot keep what was encoded"]);
    if cfg!(target_os = "linux") {
        let run = cache(&sandbox, &["--cache_dir", "/proc/kept"]);
        assert_refused(&run, FAILED, &["/proc/kept: cannot keep what was encoded"]);
    }
    assert_done(&cache(&sandbox, &[]), &[]);
    for (text, said) in [
        ("{", "cache.json: EOF"),
        ("{\"format\": 2}", "cache.json: found format 2, expected 1"),
        ("{\"format\": 1}", "cache.json: missing field"),
    ] {
        fs::write(sandbox.path().join("kept/cache.json"), text).unwrap();
        let advice = "remove this file and run `pixart train cache` again";
        assert_refused(&cache(&sandbox, &[]), FAILED, &[said, advice]);
        assert_refused(&train(&sandbox, &[]), FAILED, &[said, advice]);
    }
    fs::remove_file(sandbox.path().join("kept/cache.json")).unwrap();
    assert_done(&cache(&sandbox, &[]), &["captions: 0 encoded", "pictures: 0 encoded"]);

    // What another encoder gave is not taken for this one's, whatever became of the file.
    fs::remove_file(sandbox.path().join("kept/cache.json")).unwrap();
    let vae = sandbox.path().join("other/vae");
    copy_folder(&sandbox.path().join("model/vae"), &vae);
    damage(&vae.join("diffusion_pytorch_model.safetensors"));
    let run = cache(&sandbox, &["--vae_root", "other/vae"]);
    assert_done(&run, &["captions: 0 encoded", "pictures: 2 encoded"]);
}

#[cfg(unix)]
#[test]
fn a_full_disk_ends_it_and_leaves_what_is_whole() {
    let sandbox = sandbox(6);
    // Exports have room; then files of more than a block of 512 bytes have none.
    assert_done(&cache(&sandbox, &["--cache_dir", "first"]), &[]);
    let command = sandbox.command(&arguments(&[]));
    let full = |blocks| Run::new(&limited(&command, blocks, true).output().unwrap());
    let run = full(2);
    assert_refused(&run, FAILED, &["kept/", "cannot keep what was encoded", "too large"]);
    let names = entries(&sandbox, "");
    assert!(names.iter().all(|file| !file.to_string_lossy().contains(".pixart-")), "{names:?}");
    assert_done(&cache(&sandbox, &[]), &["captions: ", "pictures: 6 encoded"]);
    let run = sandbox.pixart(&[&arguments(&[])[..], &["--check"]].concat());
    assert_done(&run, &["0 are not to be had"]);
}
