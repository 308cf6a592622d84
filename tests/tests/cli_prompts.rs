//! Where prompts come from, through the binary: files, stdin, directives, styles, trials, cleaning.

use pixart_tests::binary::{Run, Sandbox};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

const WRONG_REQUEST: i32 = 2;

/// A sandbox with the tiny pipeline in `model` and a config for a short run.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::with_tiny_model();
    let config = "model: model\nsampling_steps: 2\nengine: tract\n";
    fs::write(sandbox.path().join("short.yaml"), config).unwrap();
    sandbox
}

fn run(sandbox: &Sandbox, more: &[&str]) -> Run {
    sandbox.pixart(&[&["sample", "-c", "short.yaml"][..], more].concat())
}

fn sample(sandbox: &Sandbox, more: &[&str]) -> Run {
    let run = run(sandbox, more);
    assert_eq!(run.code, 0, "{run:?}");
    run
}

/// The run is refused, says all of `said`, and writes nothing.
fn refuses(sandbox: &Sandbox, more: &[&str], said: &[&str]) {
    let before = sandbox.files();
    let run = run(sandbox, more);
    assert_eq!(run.code, WRONG_REQUEST, "{run:?}");
    for text in said {
        assert!(run.stderr.contains(text), "no `{text}` in: {}", run.stderr);
    }
    assert_eq!(sandbox.files(), before, "files were left behind");
}

fn read(sandbox: &Sandbox, name: &str) -> Vec<u8> {
    fs::read(sandbox.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn write(sandbox: &Sandbox, name: &str, text: impl AsRef<[u8]>) {
    fs::write(sandbox.path().join(name), text).unwrap();
}

fn listing(sandbox: &Sandbox) -> Value {
    serde_json::from_slice(&read(sandbox, "samples/prompts.json")).unwrap()
}

/// Width and height as the PNG header says.
fn size(sandbox: &Sandbox, name: &str) -> (u32, u32) {
    let png = read(sandbox, name);
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

#[test]
fn a_file_of_prompts_wins_over_prompts() {
    let sandbox = sandbox();
    write(&sandbox, "p.txt", "\u{feff}  a red circle \r\n\na blue star\n");
    let run = sample(&sandbox, &["--prompt_path", "p.txt", "--prompt", "not this"]);
    assert_eq!(run.stdout.lines().count(), 3);
    assert!(run.stderr.contains("warning: prompt_path is given"), "{}", run.stderr);
    let entry =
        |id: usize, prompt: &str| json!({"id": id, "prompt": prompt, "negative_prompt": ""});
    let expected = json!([entry(0, "a red circle"), entry(1, ""), entry(2, "a blue star")]);
    assert_eq!(listing(&sandbox), expected);
    // The list of a folder goes on, as the numbers do.
    sample(&sandbox, &["--prompt", "more", "--negative_prompt", "less"]);
    let last = json!({"id": 3, "prompt": "more", "negative_prompt": "less"});
    assert_eq!(listing(&sandbox)[3], last);
}

#[test]
fn stdin_is_a_file_of_prompts() {
    let sandbox = sandbox();
    let binary = std::env::current_exe().unwrap().parent().unwrap().join("../pixart");
    let mut child = Command::new(binary)
        .args(["sample", "-c", "short.yaml", "--prompt-path", "-"])
        .current_dir(sandbox.path())
        .env("PIXART_CACHE_DIR", sandbox.path().join(".cache"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"one\ntwo").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"samples/0.png\nsamples/1.png\n");
    assert_eq!(listing(&sandbox)[1]["prompt"], "two");
}

#[test]
fn prompt_files_that_cannot_be_used() {
    let sandbox = sandbox();
    write(&sandbox, "empty.txt", "");
    write(&sandbox, "latin1.txt", b"a cat\ncaf\xe9\n");
    refuses(&sandbox, &["--prompt_path", "none.txt"], &["prompt_path", "none.txt", "cannot read"]);
    refuses(&sandbox, &["--prompt_path", "model"], &["prompt_path", "model", "cannot read"]);
    refuses(&sandbox, &["--prompt_path", "empty.txt"], &["empty.txt is empty"]);
    refuses(&sandbox, &["--prompt_path", "latin1.txt"], &["latin1.txt, line 2", "UTF-8"]);
}

#[test]
fn more_negative_prompts_than_prompts() {
    let sandbox = sandbox();
    write(&sandbox, "p.txt", "a\nb\nc\n");
    let more = ["--prompt_path", "p.txt", "--negative_prompt", "x", "y"];
    refuses(&sandbox, &more, &["negative_prompt: found 2 for 3 prompts", "one per prompt"]);
}

#[test]
fn directives_in_a_prompt_set_its_size() {
    let sandbox = sandbox();
    let prompts = ["a cat", "a cat --hw 48:80", "a cat --ar 1:2", "a cat --aspect_ratio 2:1"];
    sample(&sandbox, &[&["--prompt"][..], &prompts, &["--guidance_scale", "2"]].concat());
    let sizes: Vec<_> = (0..4).map(|k| size(&sandbox, &format!("samples/{k}.png"))).collect();
    // The 256-pixel model's sizes for the ratios 0.5 and 2.
    let (w, h) = (352, 176);
    let native = sizes[0];
    assert_eq!(
        sizes,
        [
            native,
            (80, 48),
            (w * native.0 / 256, h * native.0 / 256),
            (h * native.0 / 256, w * native.0 / 256)
        ]
    );
    assert_eq!(listing(&sandbox)[1]["prompt"], "a cat");
    // The flag is the same for all prompts.
    let flag =
        ["--aspect-ratio", "1:2", "--seed", "44", "--guidance_scale", "2", "--prompt", "a cat"];
    sample(&sandbox, &flag);
    assert_eq!(sandbox.pixels("samples/2.png"), sandbox.pixels("samples/4.png"));
    // Switched off, they are words.
    let off = ["--prompt_directives", "false", "--prompt", "a cat --hw 48:80"];
    sample(&sandbox, &off);
    assert_eq!(size(&sandbox, "samples/5.png"), native);
    assert_eq!(listing(&sandbox)[5]["prompt"], "a cat --hw 48:80");
}

#[test]
fn sizes_that_make_no_sense() {
    let sandbox = sandbox();
    refuses(&sandbox, &["--prompt", "a --ar 16x9"], &["a --ar 16x9", "`16x9`", "9:16"]);
    refuses(&sandbox, &["--prompt", "a --hw 0:64"], &["--hw", "`0:64`"]);
    refuses(&sandbox, &["--prompt", "a --ar 1:2 cat"], &["`cat`", "prompt_directives"]);
    refuses(
        &sandbox,
        &["--prompt", "a", "--aspect_ratio", "wide"],
        &["aspect_ratio: found `wide`"],
    );
    refuses(&sandbox, &["--prompt", "a --hw 64:99999"], &["image_width", "99999", "16384"]);
    let exact = ["--use_resolution_binning", "false"];
    refuses(&sandbox, &[&["--prompt", "a --ar 1:2"], &exact[..]].concat(), &["aspect_ratio"]);
}

#[test]
fn every_trial_has_its_own_seed_and_a_grid_shows_all() {
    let sandbox = sandbox();
    let more = ["--prompt", "a", "b", "c", "--num_trials", "2", "--imagegrid", "True"];
    let run = sample(&sandbox, &[&more[..], &["--batch_size", "2"]].concat());
    let names = "0 1 2 3 4 5 grid-0 grid-1".split(' ').map(|n| format!("samples/{n}.png\n"));
    assert_eq!(run.stdout, names.collect::<String>());
    let (width, height) = size(&sandbox, "samples/0.png");
    assert_eq!(size(&sandbox, "samples/grid-0.png"), (2 * width, 2 * height));
    assert_eq!(size(&sandbox, "samples/grid-1.png"), (width, 2 * height));
    let prompts: Vec<_> =
        listing(&sandbox).as_array().unwrap().iter().map(|e| e["prompt"].clone()).collect();
    assert_eq!(prompts, ["a", "a", "b", "b", "c", "c"]);
    // The second trial of the second prompt, alone; the batch size changes nothing.
    sample(&sandbox, &["--prompt", "b", "--seed", "45", "--batch_size", "7"]);
    assert_eq!(sandbox.pixels("samples/3.png"), sandbox.pixels("samples/6.png"));
    refuses(&sandbox, &["--prompt", "a", "--num_trials", "0"], &["num_trials: found 0"]);
    refuses(&sandbox, &["--prompt", "a", "--batch_size", "0"], &["batch_size: found 0"]);
}

#[test]
fn a_style_lays_its_words_around_the_prompt() {
    let sandbox = sandbox();
    let more = ["--prompt", "a fox", "--negative_prompt", "snow"];
    sample(&sandbox, &[&more[..], &["--style", "pixel-art"]].concat());
    let entry = &listing(&sandbox)[0];
    let text = |key: &str| entry[key].as_str().unwrap().to_owned();
    assert!(text("prompt").starts_with("pixel art of a fox,"), "{entry}");
    assert!(text("negative_prompt").ends_with(", snow"), "{entry}");
    sample(&sandbox, &[&more[..], &["--style", "(No style)"]].concat());
    assert_eq!(listing(&sandbox)[1]["prompt"], "a fox");
    refuses(&sandbox, &["--prompt", "a", "--style", "cinamatic"], &["did you mean `Cinematic`?"]);
    refuses(&sandbox, &["--prompt", "a", "--style", "xyz"], &["expected one of (No style), Cin"]);
}

#[test]
fn prompts_are_cleaned_when_asked_or_as_the_reference_does() {
    let sandbox = sandbox();
    let dirty = "A <b>Red</b> Circle @me";
    let latents = |k: usize, more: &[&str]| {
        let name = format!("{k}.safetensors");
        sample(&sandbox, &[more, &["--save_latents", &name]].concat());
        read(&sandbox, &name)
    };
    let raw = latents(0, &["--prompt", dirty]);
    let cleaned = latents(1, &["--prompt", dirty, "--prompt_cleaning", "diffusers"]);
    assert_ne!(raw, cleaned);
    assert_eq!(cleaned, latents(2, &["--prompt", dirty, "--clean_caption", "true"]));
    assert_eq!(cleaned, latents(3, &["--prompt", "a red circle"]));
    let reference = ["--reference", "diffusers"];
    let by_itself = latents(4, &[&["--prompt", dirty], &reference[..]].concat());
    assert_eq!(by_itself, latents(5, &[&["--prompt", "a red circle"], &reference[..]].concat()));
    let lower =
        latents(6, &[&["--prompt", dirty, "--clean_caption", "false"], &reference[..]].concat());
    let same = latents(
        7,
        &[&["--prompt", "a <b>red</b> circle @me", "--prompt_cleaning", "lower"], &reference[..]]
            .concat(),
    );
    assert_eq!(lower, same);
    assert_ne!(lower, by_itself);
    refuses(
        &sandbox,
        &["--prompt", "a", "--prompt_cleaning", "soap"],
        &["`soap`", "raw, lower or"],
    );
    let both = ["--prompt", "a", "--prompt_cleaning", "raw", "--clean_caption", "true"];
    refuses(&sandbox, &both, &["prompt_cleaning", "clean_caption", "one of the two"]);
}

#[test]
fn markup_that_cannot_be_cleaned_is_named() {
    let sandbox = sandbox();
    let run = run(&sandbox, &["--prompt", "a <![x y]> b", "--clean_caption"]);
    assert_ne!(run.code, 0);
    assert!(
        run.stderr.contains("<![x y]>") && run.stderr.contains("prompt_cleaning raw"),
        "{run:?}"
    );
}

#[test]
fn a_list_of_prompts_that_is_something_else_is_kept() {
    let sandbox = sandbox();
    fs::create_dir(sandbox.path().join("samples")).unwrap();
    write(&sandbox, "samples/prompts.json", "{\"mine\": 1}");
    refuses(&sandbox, &["--prompt", "a"], &["prompts.json", "move it away"]);
    assert_eq!(read(&sandbox, "samples/prompts.json"), b"{\"mine\": 1}");
}
