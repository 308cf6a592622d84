//! `pixart sample` while it runs: batches, previews, early pictures, Ctrl-C.

use std::fs;

use pixart_tests::binary::{Run, Sandbox, copy_folder};
use pixart_tests::errors::psnr;
use pixart_tests::fixtures;

const FAILED: i32 = 1;
const WRONG_REQUEST: i32 = 2;

/// A sandbox with the demo model in `model`, whose pictures look like something, and a short config.
fn demo() -> Sandbox {
    let sandbox = Sandbox::new();
    let demo = fixtures::root().parent().unwrap().with_file_name("models").join("demo");
    copy_folder(&demo, &sandbox.path().join("model"));
    fs::write(sandbox.path().join("short.yaml"), "model: model\nsampling_steps: 6\n").unwrap();
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

fn latents(sandbox: &Sandbox, name: &str) -> Vec<f32> {
    let bytes = fs::read(sandbox.path().join(name)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor("latents").unwrap().data().to_vec();
    data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Prompts whose captions have several lengths, also once they are rounded up.
const PROMPTS: [&str; 5] = [
    "a red circle on a blue background",
    "a star",
    "a small green square above a large yellow triangle on a black background, and more words to follow",
    "",
    "a blue circle on a red background",
];

#[test]
fn a_picture_does_not_depend_on_the_batch_it_is_computed_in() {
    let sandbox = demo();
    for engine in ["tract", "ort"] {
        for method in ["dpm", "sa-solver", "iddpm"] {
            let draw = |size: &str| {
                let file = format!("{size}.safetensors");
                let common =
                    ["--engine", engine, "--sampling_method", method, "--batch_size", size];
                let negative =
                    ["--negative_prompt", "a white circle, and quite a few words more than that"];
                let more = ["--save_latents", &file, "--prompt"];
                sample(&sandbox, &[&common[..], &negative, &more, &PROMPTS].concat());
                latents(&sandbox, &file)
            };
            let alone = draw("1");
            let largest = alone.iter().fold(0f32, |m, x| m.max(x.abs()));
            for size in ["2", "5"] {
                let apart = alone.iter().zip(draw(size)).map(|(a, b)| (a - b).abs());
                let error = apart.fold(0f32, f32::max) / largest;
                println!("{method} on {engine}, batches of {size}: {error:.1e}");
                assert!(error < 2e-5, "{method} on {engine}, batches of {size}: {error:e}");
            }
        }
    }
}

#[test]
fn sizes_and_trials_go_into_batches_and_come_out_in_order() {
    let sandbox = demo();
    let prompts = [
        "a star --hw 128:128",
        "a circle --hw 128:128",
        "a square --hw 64:192",
        "a circle --hw 64:192",
    ];
    let common = [&["--num_trials", "2", "--prompt"][..], &prompts].concat();
    sample(&sandbox, &[&["--output_path", "one"][..], &common].concat());
    sample(&sandbox, &[&["--batch_size", "3", "--output_path", "three"][..], &common].concat());
    for k in 0..8 {
        let [one, three] =
            ["one", "three"].map(|folder| sandbox.pixels(&format!("{folder}/{k}.png")));
        // Rounding may move a value to the next level.
        let ratio = psnr(&k.to_string(), &three, &one);
        assert!(ratio > 60.0, "{k}: {ratio} dB");
    }
}

#[test]
fn the_preview_looks_like_the_picture() {
    let sandbox = demo();
    let prompt = ["--prompt", "a red circle on a blue background"];
    let steps = ["--sampling_steps", "12", "--preview", "seen.png"];
    sample(&sandbox, &[&prompt[..], &steps].concat());
    let (preview, picture) = (sandbox.pixels("seen.png"), sandbox.pixels("samples/0.png"));
    assert_eq!(preview.dimensions(), (128, 128), "16 × 16 latents, enlarged");
    let ratio = psnr("the preview", &preview, &picture);
    println!("{ratio:.1} dB");
    assert!(ratio > 14.0, "{ratio:.1} dB");
    // A batch is shown side by side; the map comes from the cache.
    let cached = sandbox.path().join(".cache/preview");
    let before: Vec<_> = fs::read_dir(&cached).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(before.len(), 1);
    let more = ["--batch_size", "2", "--preview-interval", "5", "--preview", "./two.PNG"];
    sample(&sandbox, &[&["--prompt", "a star", "a circle"][..], &more].concat());
    assert_eq!(sandbox.pixels("two.PNG").dimensions(), (256, 128));
    let latest: Vec<_> = fs::read_dir(&cached).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(latest, before);
}

#[test]
fn previews_that_cannot_be() {
    let sandbox = demo();
    let before = sandbox.files();
    let prompt = ["--prompt", "a star"];
    for (more, code, said) in [
        (&["--preview", "terminal"][..], WRONG_REQUEST, "stderr is none"),
        (
            &["--preview", "seen.jpg"],
            WRONG_REQUEST,
            "expected `terminal` or a file whose name ends in .png",
        ),
        (&["--preview", "nowhere/seen.png"], FAILED, "preview: cannot write into nowhere"),
        (
            &["--preview", "a.png", "--preview_interval", "0"],
            WRONG_REQUEST,
            "found 0, expected 1 or more",
        ),
        (&["--preview_interval", "2"], WRONG_REQUEST, "preview_interval: found it without preview"),
        (&["--decode_interval", "-1"], WRONG_REQUEST, "decode_interval: found -1"),
        (&["--batch_size", "0"], WRONG_REQUEST, "batch_size: found 0"),
    ] {
        let run = run(&sandbox, &[&prompt[..], more].concat());
        assert_eq!(run.code, code, "{run:?}");
        assert!(run.stderr.contains(said), "no `{said}` in {}", run.stderr);
        assert_eq!(sandbox.files(), before, "files were left behind");
    }
}

#[cfg(unix)]
mod ended_early {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::path::Path;
    use std::process::{Child, Command, Stdio};
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    const INTERRUPTED: i32 = 130;

    /// A run that takes long enough to be interrupted, on one thread.
    fn start(sandbox: &Sandbox, command: &str, more: &[&str]) -> Child {
        let common = [command, "-c", "short.yaml", "--engine", "tract", "--threads", "1"];
        sandbox
            .command(&[&common[..], more].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts")
    }

    fn wait_for(child: &mut Child, file: &Path) {
        let start = Instant::now();
        while !file.exists() {
            assert_eq!(child.try_wait().expect("a child"), None, "ended before {}", file.display());
            assert!(start.elapsed() < Duration::from_secs(120), "no {}", file.display());
            sleep(Duration::from_millis(2));
        }
    }

    fn signal(child: &Child, name: &str) {
        let id = child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().expect("kill").success());
    }

    fn names(sandbox: &Sandbox) -> Vec<String> {
        let files = sandbox.files().into_iter().filter(|file| !file.starts_with("model"));
        files.map(|file| file.display().to_string()).collect()
    }

    #[test]
    fn ctrl_c_ends_after_the_step_and_keeps_finished_pictures() {
        let sandbox = demo();
        let prompts = ["--prompt", "a star", "a circle", "a square", "--sampling_steps", "300"];
        let more =
            [&prompts[..], &["--keep_resident", "--imagegrid", "--save_latents", "l.safetensors"]]
                .concat();
        let mut child = start(&sandbox, "sample", &more);
        wait_for(&mut child, &sandbox.path().join("samples/0.png"));
        signal(&child, "-INT");
        let run = Run::new(&child.wait_with_output().expect("a child"));
        assert_eq!(run.code, INTERRUPTED, "{run:?}");
        assert_eq!(run.stdout, "samples/0.png\nsamples/grid-0.png\n");
        for said in ["ending after this step", "interrupted: samples/0.png, 1 of 3, seed 42"] {
            assert!(run.stderr.contains(said), "no `{said}` in {}", run.stderr);
        }
        let expected = [
            "l.safetensors",
            "samples/0.png",
            "samples/grid-0.png",
            "samples/prompts.json",
            "short.yaml",
        ];
        assert_eq!(names(&sandbox), expected);
        // The picture is the one that a whole run makes.
        let whole = [
            "--prompt",
            "a star",
            "--sampling_steps",
            "300",
            "--engine",
            "tract",
            "--output_path",
            "whole",
        ];
        super::sample(&sandbox, &whole);
        assert!(
            psnr("kept", &sandbox.pixels("samples/0.png"), &sandbox.pixels("whole/0.png")) > 60.0
        );
    }

    #[test]
    fn ctrl_c_before_any_picture_is_finished_leaves_nothing() {
        let sandbox = demo();
        let mut child = start(
            &sandbox,
            "sample",
            &["--prompt", "a star", "--sampling_steps", "1000", "--preview", "p.png"],
        );
        wait_for(&mut child, &sandbox.path().join("p.png"));
        signal(&child, "-INT");
        let run = Run::new(&child.wait_with_output().expect("a child"));
        assert_eq!((run.code, run.stdout.as_str()), (INTERRUPTED, ""), "{run:?}");
        assert!(run.stderr.contains("interrupted: no picture, 0 of 1"), "{}", run.stderr);
        assert_eq!(names(&sandbox), ["p.png", "short.yaml"]);
    }

    #[test]
    fn a_second_ctrl_c_ends_at_once() {
        let sandbox = demo();
        // A step of some seconds.
        let large = [
            "--image_width",
            "1024",
            "--image_height",
            "1024",
            "--use_resolution_binning",
            "false",
        ];
        super::sample(&sandbox, &["--prompt", "a star", "--engine", "tract", "--preview", "p.png"]);
        let mut child = start(
            &sandbox,
            "sample",
            &[&["--prompt", "a star", "--preview", "q.png"][..], &large].concat(),
        );
        // The preview's map is known and the files are found, so all that is left is to draw.
        wait_for(&mut child, &sandbox.path().join("samples"));
        sleep(Duration::from_millis(500));
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        signal(&child, "-INT");
        let mut said = String::new();
        while !said.contains("ending after this step") {
            assert!(stderr.read_line(&mut said).expect("text") > 0, "{said}");
        }
        let asked = Instant::now();
        signal(&child, "-INT");
        assert_eq!(child.wait().expect("a child").code(), Some(INTERRUPTED));
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        let mut rest = String::new();
        while stderr.read_line(&mut rest).expect("text") > 0 {}
        assert!(!rest.contains("interrupted:"), "{rest}");
    }

    #[test]
    fn what_is_written_early_survives_a_kill() {
        let sandbox = demo();
        let prompts = ["--prompt", "a star", "a circle", "a square", "--sampling_steps", "300"];
        let mut child =
            start(&sandbox, "sample", &[&prompts[..], &["--decode_interval", "0"]].concat());
        wait_for(&mut child, &sandbox.path().join("samples/0.png"));
        child.kill().expect("a child of ours");
        child.wait().expect("a child");
        sandbox.pixels("samples/0.png");
        assert!(!sandbox.path().join("samples/2.png").exists());
        // Without it, pictures of a short run are decoded together, at its end.
        let mut child = start(
            &sandbox,
            "sample",
            &[&["--preview", "p.png", "--output_path", "late"], &prompts[..]].concat(),
        );
        wait_for(&mut child, &sandbox.path().join("p.png"));
        sleep(Duration::from_millis(100));
        assert!(!sandbox.path().join("late/0.png").exists());
        signal(&child, "-INT");
        assert_eq!(child.wait().expect("a child").code(), Some(INTERRUPTED));
    }

    #[test]
    fn encoding_ended_early_keeps_what_is_in_the_cache() {
        let sandbox = demo();
        let lines: Vec<String> = (0..4000).map(|k| format!("a star and {k} circles")).collect();
        fs::write(sandbox.path().join("p.txt"), lines.join("\n")).unwrap();
        let more = ["--prompt_path", "p.txt", "--text_cache_dir", "captions"];
        let mut child = start(&sandbox, "encode", &more);
        wait_for(&mut child, &sandbox.path().join("captions"));
        signal(&child, "-INT");
        let run = Run::new(&child.wait_with_output().expect("a child"));
        assert_eq!(run.code, INTERRUPTED, "{run:?}");
        let kept = names(&sandbox).iter().filter(|name| name.starts_with("captions/")).count();
        let said = format!("interrupted: {kept} of 4000 prompts are in the cache");
        assert!(kept > 0 && kept < 4000 && run.stderr.contains(&said), "{kept}: {}", run.stderr);
    }

    #[test]
    fn long_runs_tell_where_they_are() {
        let sandbox = demo();
        let large =
            ["--image_width", "512", "--image_height", "512", "--use_resolution_binning", "false"];
        let mut child = start(
            &sandbox,
            "sample",
            &[&["--prompt", "a star", "--sampling_steps", "1000"][..], &large].concat(),
        );
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        while !line.starts_with("denoise: ") {
            line.clear();
            assert!(stderr.read_line(&mut line).expect("text") > 0, "no line of progress");
        }
        signal(&child, "-INT");
        assert_eq!(child.wait().expect("a child").code(), Some(INTERRUPTED));
        for part in ["denoise: step ", "/1000, ", " s/step, ", " left"] {
            assert!(line.contains(part), "no `{part}` in {line}");
        }
    }
}
