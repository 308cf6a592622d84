//! The text cache and `pixart encode`, through the binary.

use pixart_tests::binary::{Run, Sandbox, copy_folder};
use pixart_tests::fixtures;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const FAILED: i32 = 1;
const WRONG_REQUEST: i32 = 2;

/// A sandbox with the tiny pipeline in `model` and a config for a short run.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::with_tiny_model();
    let config = "model: model\nsampling_steps: 2\nengine: tract\ntext_cache_dir: cache\n";
    fs::write(sandbox.path().join("short.yaml"), config).unwrap();
    sandbox
}

fn run(sandbox: &Sandbox, command: &str, more: &[&str]) -> Run {
    sandbox.pixart(&[&[command, "-c", "short.yaml"][..], more].concat())
}

/// A run that works; the pixels of the last picture it made.
fn sample(sandbox: &Sandbox, more: &[&str]) -> (Run, Vec<u8>) {
    let run = run(sandbox, "sample", more);
    assert_eq!(run.code, 0, "{run:?}");
    let pixels = sandbox.pixels(run.stdout.lines().last().unwrap()).into_raw();
    (run, pixels)
}

/// The entries of the cache.
fn entries(sandbox: &Sandbox) -> Vec<PathBuf> {
    let files = sandbox.files().into_iter();
    files.filter(|f| f.starts_with("cache")).map(|f| sandbox.path().join(f)).collect()
}

#[test]
fn a_prompt_is_encoded_once_and_gives_the_same_picture() {
    let sandbox = sandbox();
    let (_, plain) = sample(&sandbox, &["--prompt", "a red circle", "--no_text_cache"]);
    assert_eq!(entries(&sandbox).len(), 0);
    let (_, first) = sample(&sandbox, &["--prompt", "a red circle"]);
    let kept = entries(&sandbox);
    assert_eq!(kept.len(), 1);
    let bytes = fs::read(&kept[0]).unwrap();
    let (_, second) = sample(&sandbox, &["--prompt", "a red circle"]);
    assert!(plain == first && first == second);
    assert_eq!(entries(&sandbox), kept);
    assert_eq!(fs::read(&kept[0]).unwrap(), bytes);
    // Another text, negative prompt or cleaning is another caption.
    sample(&sandbox, &["--prompt", "A red circle"]);
    sample(&sandbox, &["--prompt", "a red circle", "--negative_prompt", "blue"]);
    assert_eq!(entries(&sandbox).len(), 3);
    sample(&sandbox, &["--prompt", "A red circle", "--prompt_cleaning", "lower"]);
    assert_eq!(entries(&sandbox).len(), 3, "its tokens are those of the first caption");
}

#[test]
fn what_was_encoded_elsewhere_needs_no_text_encoder() {
    let sandbox = sandbox();
    let prompts = ["--prompt", "a red circle", "a blue star"];
    let (_, expected) = sample(&sandbox, &[&prompts[..], &["--no_text_cache", "true"]].concat());
    let run_encode = run(&sandbox, "encode", &prompts);
    assert_eq!((run_encode.code, run_encode.stdout.as_str()), (0, "cache\n"), "{run_encode:?}");
    assert_eq!(entries(&sandbox).len(), 2);
    fs::remove_dir_all(sandbox.path().join("model/text_encoder")).unwrap();
    // Nor is an earlier export of it used.
    fs::remove_dir_all(sandbox.path().join(".cache")).unwrap();
    let (_, actual) = sample(&sandbox, &prompts);
    assert!(actual == expected);
    let before = sandbox.files();
    let refused = run(&sandbox, "sample", &["--prompt", "a green tree"]);
    assert_eq!(refused.code, FAILED, "{refused:?}");
    for text in
        ["a green tree", "not in the text cache cache", "model/text_encoder", "pixart encode"]
    {
        assert!(refused.stderr.contains(text), "{}", refused.stderr);
    }
    assert_eq!(sandbox.files(), before);
    // Without the cache it is simply missing.
    let refused = run(&sandbox, "sample", &[&prompts[..], &["--no_text_cache"]].concat());
    assert_eq!(refused.code, FAILED);
    assert!(refused.stderr.contains("model/text_encoder does not exist"), "{}", refused.stderr);
    // Captions of two encoders cannot be told apart.
    let entry = &entries(&sandbox)[0];
    let other = sandbox.path().join("cache/other");
    fs::create_dir(&other).unwrap();
    for entry in entries(&sandbox) {
        fs::copy(&entry, other.join(entry.file_name().unwrap())).unwrap();
    }
    assert!(entry.is_file());
    let refused = run(&sandbox, "sample", &prompts);
    assert!(refused.stderr.contains("from 2 text encoders"), "{}", refused.stderr);
}

#[test]
fn encoding_needs_neither_transformer_nor_vae() {
    let sandbox = sandbox();
    for part in ["transformer", "vae", "scheduler"] {
        fs::remove_dir_all(sandbox.path().join("model").join(part)).unwrap();
    }
    fs::write(sandbox.path().join("p.txt"), "one\ntwo\n").unwrap();
    let encoded = run(&sandbox, "encode", &["--prompt_path", "p.txt", "--style", "Anime"]);
    assert_eq!(encoded.code, 0, "{encoded:?}");
    assert_eq!(entries(&sandbox).len(), 2);
    let parts = [
        "encode",
        "--engine",
        "tract",
        "--text_encoder_root",
        "model",
        "--tokenizer_root",
        "model",
        "--prompt",
        "one",
        "--text_cache_dir",
        "cache",
    ];
    assert_eq!(sandbox.pixart(&parts).code, 0);
    assert_eq!(entries(&sandbox).len(), 3);
    let lone = ["encode", "--engine", "tract", "--tokenizer_root", "model", "--prompt", "one"];
    let refused = sandbox.pixart(&lone);
    assert_eq!(refused.code, WRONG_REQUEST);
    assert!(refused.stderr.contains("text_encoder_root and tokenizer_root"), "{refused:?}");
}

#[test]
fn a_damaged_entry_is_dropped_and_made_again() {
    let sandbox = sandbox();
    let prompt = ["--prompt", "a red circle"];
    let (_, expected) = sample(&sandbox, &prompt);
    let entry = entries(&sandbox).remove(0);
    let good = fs::read(&entry).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for damaged in [flipped, good[..good.len() / 2].to_vec(), b"nothing of ours".to_vec(), vec![]] {
        fs::write(&entry, damaged).unwrap();
        let (run, picture) = sample(&sandbox, &prompt);
        let told = run.stderr.matches("warning: dropped a damaged caption").count();
        assert_eq!(told, 1, "{}", run.stderr);
        assert!(picture == expected);
        assert_eq!(fs::read(&entry).unwrap(), good);
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_told_once_and_does_no_harm() {
    let sandbox = sandbox();
    fs::write(sandbox.path().join("cache"), "a file").unwrap();
    let (run_sample, _) = sample(&sandbox, &["--prompt", "a", "b", "c"]);
    assert_eq!(
        run_sample.stderr.matches("warning: cannot keep captions").count(),
        1,
        "{run_sample:?}"
    );
    // To fill it is all that encode is for.
    let refused = run(&sandbox, "encode", &["--prompt", "a"]);
    assert_eq!(refused.code, FAILED, "{refused:?}");
    assert!(refused.stderr.contains("cannot keep captions in cache"), "{}", refused.stderr);
    let refused = run(&sandbox, "encode", &["--prompt", "a", "--no_text_cache"]);
    assert_eq!(refused.code, WRONG_REQUEST, "{refused:?}");
}

#[test]
fn the_cache_stays_within_its_size() {
    let sandbox = sandbox();
    // Longer prompts than this have no room at all.
    let none = ["--text_cache_size", "0", "--prompt", "a"];
    sample(&sandbox, &none);
    assert_eq!(entries(&sandbox).len(), 0);
    let words = |k: usize| format!("{k} ") + &"red circle ".repeat(140);
    let prompts: Vec<String> = (0..8).map(words).collect();
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let one = run(&sandbox, "encode", &["--text_cache_size", "1", "--prompt", prompts[0]]);
    assert_eq!(one.code, 0, "{one:?}");
    let bytes = fs::metadata(&entries(&sandbox)[0]).unwrap().len();
    let fit = ((1 << 20) / bytes) as usize;
    let many: Vec<String> = (0..fit + 2).map(words).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let more =
        run(&sandbox, "encode", &[&["--text_cache_size", "1", "--prompt"], &many[..]].concat());
    assert_eq!(more.code, 0, "{more:?}");
    let total: u64 = entries(&sandbox).iter().map(|e| fs::metadata(e).unwrap().len()).sum();
    assert_eq!(entries(&sandbox).len(), fit);
    assert!(total <= 1 << 20, "{total} bytes");
}

#[test]
fn two_processes_share_a_cache() {
    let sandbox = sandbox();
    // The export of the first run is not what is tested here.
    sample(&sandbox, &["--prompt", "warm up"]);
    let binary = std::env::current_exe().unwrap().parent().unwrap().join("../pixart");
    let prompts: Vec<String> = (0..12).map(|k| format!("a red circle {k}")).collect();
    let start = || {
        Command::new(&binary)
            .args(["encode", "-c", "short.yaml", "--prompt"])
            .args(&prompts)
            .current_dir(sandbox.path())
            .env("PIXART_CACHE_DIR", sandbox.path().join(".cache"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    for child in [start(), start(), start()] {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && !said.contains("warning"), "{said}");
    }
    assert_eq!(entries(&sandbox).len(), 13, "no temporary file is left");
    let all: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let (run, _) = sample(&sandbox, &[&["--prompt"], &all[..]].concat());
    assert!(!run.stderr.contains("warning"), "{}", run.stderr);
}

#[test]
fn the_mask_of_the_unconditional_half_is_chosen_on_cached_captions_too() {
    let sandbox = sandbox();
    let common = ["--prompt", "a red circle above a small blue square", "--negative_prompt", "x"];
    let mut pictures = Vec::new();
    for mask in ["caption", "own"] {
        let more = [&common[..], &["--uncond_mask", mask]].concat();
        let (_, plain) = sample(&sandbox, &[&more[..], &["--no_text_cache"]].concat());
        let (_, cached) = sample(&sandbox, &more);
        assert!(cached == plain, "{mask}");
        assert_eq!(entries(&sandbox).len(), 1, "{mask}: embeddings do not depend on it");
        pictures.push(plain);
    }
    assert_ne!(pictures[0], pictures[1]);
}

/// Draws with LoRAs, first without the cache and then with it, and expects the same.
fn with_loras(sandbox: &Sandbox, loras: &[&str]) -> Vec<u8> {
    let mut more = vec!["--prompt", "a red circle"];
    if !loras.is_empty() {
        more.push("--lora");
        more.extend(loras);
    }
    let (_, plain) = sample(sandbox, &[&more[..], &["--no_text_cache"]].concat());
    let (_, cached) = sample(sandbox, &more);
    assert!(cached == plain, "{loras:?}: the cache had a caption of another encoder");
    plain
}

#[test]
fn captions_of_a_changed_text_encoder_are_kept_apart() {
    let sandbox = sandbox();
    copy_folder(&fixtures::root().join("lora"), &sandbox.path().join("lora"));
    let plain = with_loras(&sandbox, &[]);
    assert_eq!(entries(&sandbox).len(), 1);
    // This one changes nothing but T5, so the picture changes through the captions alone.
    let changed = with_loras(&sandbox, &["lora/peft_t5"]);
    assert_ne!(changed, plain);
    assert_eq!(entries(&sandbox).len(), 2);
    let half = with_loras(&sandbox, &["lora/peft_t5:0.5"]);
    assert!(half != changed && half != plain);
    assert_eq!(entries(&sandbox).len(), 3);
    with_loras(&sandbox, &["lora/peft_t5", "lora/kohya_t5.safetensors"]);
    assert_eq!(entries(&sandbox).len(), 4);
    // The scale of PEFT's files stands beside them.
    let config = sandbox.path().join("lora/peft_t5/adapter_config.json");
    let mut settings: serde_json::Value =
        serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    settings["lora_alpha"] = serde_json::json!(4 * settings["lora_alpha"].as_i64().unwrap());
    fs::write(&config, settings.to_string()).unwrap();
    assert_ne!(with_loras(&sandbox, &["lora/peft_t5"]), changed);
    assert_eq!(entries(&sandbox).len(), 5);
    // What leaves T5 as it is uses the captions of the plain encoder.
    with_loras(&sandbox, &["lora/peft"]);
    assert_eq!(with_loras(&sandbox, &["lora/peft_t5:0"]), plain);
    assert_eq!(with_loras(&sandbox, &[]), plain);
    assert_eq!(entries(&sandbox).len(), 5);
}

#[test]
fn captions_of_a_changed_text_encoder_can_be_encoded_elsewhere() {
    let sandbox = sandbox();
    copy_folder(&fixtures::root().join("lora"), &sandbox.path().join("lora"));
    let prompt = ["--prompt", "a red circle"];
    let lora = [&prompt[..], &["--lora", "lora/kohya_t5.safetensors:0.5"]].concat();
    let (_, plain) = sample(&sandbox, &[&prompt[..], &["--no_text_cache"]].concat());
    let (_, changed) = sample(&sandbox, &[&lora[..], &["--no_text_cache"]].concat());
    assert_ne!(plain, changed);
    for more in [&prompt[..], &lora] {
        let encoded = run(&sandbox, "encode", more);
        assert_eq!(encoded.code, 0, "{encoded:?}");
    }
    assert_eq!(entries(&sandbox).len(), 2);
    fs::remove_dir_all(sandbox.path().join("model/text_encoder")).unwrap();
    fs::remove_dir_all(sandbox.path().join(".cache")).unwrap();
    // Two entries of one prompt, and each run takes its own.
    assert!(sample(&sandbox, &prompt).1 == plain);
    assert!(sample(&sandbox, &lora).1 == changed);
    let other = [&prompt[..], &["--lora", "lora/kohya_t5.safetensors:0.6"]].concat();
    let refused = run(&sandbox, "sample", &other);
    assert_eq!(refused.code, FAILED, "{refused:?}");
    assert!(refused.stderr.contains("not in the text cache"), "{}", refused.stderr);
}
