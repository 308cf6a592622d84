//! Several processes under `mpirun` that share out pictures to draw, or to encode for training: they leave what one
//! process leaves. `scripts/test-mpi` runs these.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
};

use pixart_tests::{
    binary::{Run, Sandbox, binary},
    mpi::{Part, interrupt, kill_second, mpirun, run, start, wait, wait_for},
    training,
};
use safetensors::SafeTensors;

const PARALLEL: [&str; 2] = ["--use_parallel", "True"];

/// The tiny pipeline, a config for short runs, and prompts of several sizes.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::with_tiny_model();
    // With another number of threads, pictures would tell another engine.
    let config = "model: model\nsampling_steps: 2\nengine: tract\nthreads: 1\n";
    fs::write(sandbox.path().join("short.yaml"), config).expect("written");
    let prompts =
        "a cat\na dog and a longer text\na cow\na cat --ar 1:2\na pig --ar 1:2\na hen\nan ox\n";
    fs::write(sandbox.path().join("prompts.txt"), prompts).expect("written");
    sandbox
}

const SAMPLE: [&str; 3] = ["sample", "-c", "short.yaml"];

/// Draws in so many processes, or in one without MPI.
fn draw(sandbox: &Sandbox, count: usize, more: &[&str]) -> Run {
    let told = [&SAMPLE[..], more].concat();
    let run = match count {
        1 => sandbox.pixart(&told),
        _ => run(sandbox, count, &[&told[..], &PARALLEL].concat()),
    };
    assert_eq!(run.code, 0, "{count} {more:?}: {run:?}");
    run
}

/// The files of a folder, but for locks and what is not finished.
fn names(sandbox: &Sandbox, folder: &str) -> Vec<PathBuf> {
    let mut names = sandbox.files();
    names.retain(|file| {
        !file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
    });
    names.into_iter().filter_map(|file| Some(file.strip_prefix(folder).ok()?.to_owned())).collect()
}

/// What is in them; of tensors, their notes in order, which files have in any.
fn content(sandbox: &Sandbox, folder: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let read = |name: &PathBuf| {
        let bytes = fs::read(sandbox.path().join(folder).join(name)).expect("read");
        if name.extension().is_none_or(|extension| extension != "safetensors") {
            return bytes;
        }
        let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("tensors");
        let notes: BTreeMap<_, _> =
            metadata.metadata().clone().unwrap_or_default().into_iter().collect();
        let tensors = SafeTensors::deserialize(&bytes).expect("tensors");
        let mut tensors: Vec<_> = tensors.tensors();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        format!("{notes:?} {tensors:?}").into_bytes()
    };
    names(sandbox, folder).into_iter().map(|name| (name.clone(), read(&name))).collect()
}

fn assert_same(sandbox: &Sandbox, found: &str, expected: &str) {
    let [a, b] = [content(sandbox, found), content(sandbox, expected)];
    assert!(a.keys().eq(b.keys()), "{:?}, expected {:?}", a.keys(), b.keys());
    for (name, bytes) in a {
        assert!(bytes == b[&name], "{} in {found} is another than in {expected}", name.display());
    }
}

#[test]
fn processes_draw_what_one_does() {
    let sandbox = sandbox();
    for (name, counts, more) in [
        ("plain", &[3][..], &[][..]),
        // Neighbours of one size are computed at once, so they stay together.
        (
            "batches",
            &[2, 3, 4],
            &["--batch_size", "2", "--num_trials", "2", "--imagegrid", "--no_text_cache"],
        ),
        // Names that come again are told apart by the order of the pictures.
        (
            "named",
            &[2],
            &["--output_name", "{prompt}", "--num_trials", "3", "--sampling_method", "sa-solver"],
        ),
        (
            "varied",
            &[4],
            &["--variation_seed", "7", "--variation_strength", "0.3", "--output_format", "jpeg"],
        ),
    ] {
        let draw = |count: usize, folder: &str| {
            let folder = ["--prompt_path", "prompts.txt", "--output_path", folder];
            // The second run goes on where the first one has ended.
            let first = draw(&sandbox, count, &[&folder[..], more].concat());
            draw(&sandbox, count, &[&folder[..], &["--seed", "5"], more].concat());
            first
        };
        let expected = draw(1, &format!("{name}-1"));
        let lines = |run: &Run| {
            let paths = run.stdout.lines().map(|line| line.rsplit('/').next().unwrap_or(line));
            let mut paths: Vec<String> = paths.map(str::to_owned).collect();
            paths.sort();
            paths
        };
        for &count in counts {
            let folder = format!("{name}-{count}");
            let run = draw(count, &folder);
            assert_same(&sandbox, &folder, &format!("{name}-1"));
            assert_eq!(lines(&run), lines(&expected), "{name}, {count}");
            // One tells how it went.
            let summary = format!("pictures in {folder}, seed 42");
            assert_eq!(run.stderr.matches(&summary).count(), 1, "{}", run.stderr);
            assert!(run.stderr.contains(&format!(", {count} processes")), "{}", run.stderr);
        }
    }
}

#[test]
fn steps_left_out_are_told_of_all_processes() {
    let sandbox = sandbox();
    let told = ["--sampling_steps", "6", "--easycache", "1e9", "--prompt_path", "prompts.txt"];
    for (count, folder) in [(1, "one"), (3, "three")] {
        let run = draw(&sandbox, count, &[&told[..], &["--output_path", folder]].concat());
        // The first two of the six steps of seven pictures and the last one.
        let line = "easycache: 21 of 42 steps computed";
        assert_eq!(run.stderr.matches(line).count(), 1, "{}", run.stderr);
    }
    assert_same(&sandbox, "three", "one");
}

#[test]
fn latents_of_all_processes_get_into_one_file() {
    let sandbox = sandbox();
    let prompts = ["--prompt", "a", "b", "c", "d", "e", "--output_path"];
    for count in [1, 3, 7] {
        let (folder, file) = (format!("of-{count}"), format!("of-{count}/all.safetensors"));
        fs::create_dir(sandbox.path().join(&folder)).expect("made");
        draw(&sandbox, count, &[&prompts[..], &[&folder, "--save_latents", &file]].concat());
    }
    assert_same(&sandbox, "of-3", "of-1");
    // More processes than pictures.
    assert_same(&sandbox, "of-7", "of-1");
}

#[test]
fn what_one_process_alone_has_goes_to_all() {
    let sandbox = sandbox();
    let prompts = fs::read(sandbox.path().join("prompts.txt")).expect("read");
    let told = ["--prompt_path", "-", "--seed=-1", "--output_name", "{seed}"];
    let told = [&SAMPLE[..], &told, &PARALLEL].concat();
    let part = Part { count: 3, folder: sandbox.path(), told: &told };
    let mut command = mpirun(&sandbox, &[part]);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("mpirun");
    child.stdin.take().expect("piped").write_all(&prompts).expect("taken");
    let run = Run::new(&child.wait_with_output().expect("its output"));
    assert_eq!(run.code, 0, "{run:?}");
    let names = run.stdout.lines().filter_map(|line| Path::new(line).file_stem()?.to_str());
    let mut seeds: Vec<u64> = names.map(|name| name.parse().expect("a seed")).collect();
    seeds.sort_unstable();
    assert_eq!(seeds.len(), 7, "{run:?}");
    assert!(seeds.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seeds:?}");
    assert!(run.stderr.contains(&format!("seed {}", seeds[0])), "{run:?}");
}

#[test]
fn pictures_that_are_done_outlive_a_killed_process() {
    let sandbox = sandbox();
    let many = "a picture\n".repeat(3000);
    fs::write(sandbox.path().join("many.txt"), many).expect("written");
    let told = [&SAMPLE[..], &["--prompt_path", "many.txt", "--keep_resident"], &PARALLEL].concat();
    let child = start(&sandbox, &[Part { count: 3, folder: sandbox.path(), told: &told }]);
    let samples = sandbox.path().join("samples");
    // Of the first process, and of the last.
    wait_for("picture", || samples.join("1.png").is_file() && samples.join("2000.png").is_file());
    let run = kill_second(child, 3);
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    let list = fs::read(samples.join("prompts.json")).expect("a list");
    let list: serde_json::Value = serde_json::from_slice(&list).expect("JSON");
    let ids = list.as_array().expect("a list").iter().filter_map(|entry| entry["id"].as_u64());
    let ids: Vec<u64> = ids.collect();
    assert!(ids.contains(&0), "{ids:?}");
    for id in ids {
        assert!(samples.join(format!("{id}.png")).is_file(), "{id} is listed and not there");
    }
}

#[test]
fn ctrl_c_keeps_and_lists_what_all_have_drawn() {
    let sandbox = sandbox();
    let many = "a picture\n".repeat(3000);
    fs::write(sandbox.path().join("many.txt"), many).expect("written");
    let told = ["--prompt_path", "many.txt", "--keep_resident", "--imagegrid"];
    let told = [&SAMPLE[..], &told, &PARALLEL].concat();
    let child = start(&sandbox, &[Part { count: 2, folder: sandbox.path(), told: &told }]);
    let samples = sandbox.path().join("samples");
    wait_for("picture", || samples.join("1.png").is_file() && samples.join("1501.png").is_file());
    let run = interrupt(child, 2);
    assert_eq!(run.code, 130, "{run:?}");
    let mut drawn = names(&sandbox, "samples");
    drawn.retain(|name| name.extension().is_some_and(|extension| extension == "png"));
    let list = fs::read(samples.join("prompts.json")).expect("a list");
    let list: serde_json::Value = serde_json::from_slice(&list).expect("JSON");
    let list = list
        .as_array()
        .expect("a list")
        .iter()
        .map(|entry| entry["id"].as_u64().expect("a number"));
    let mut listed: Vec<PathBuf> = list.map(|id| format!("{id}.png").into()).collect();
    listed.sort();
    assert_eq!(listed, drawn);
    assert_eq!(run.stdout.lines().count(), drawn.len(), "{run:?}");
    for said in [
        format!("interrupted: {0} pictures in samples, {0} of 3000, seed 42", drawn.len()),
        "ended early, so no grids and no latents are written".to_owned(),
    ] {
        assert_eq!(run.stderr.matches(&said).count(), 1, "no `{said}` in {}", run.stderr);
    }
}

#[test]
fn processes_of_a_machine_share_its_processors() {
    let sandbox = sandbox();
    let told = [
        "sample",
        "--model",
        "model",
        "--engine",
        "tract",
        "--sampling_steps",
        "2",
        "--prompt",
        "a",
        "b",
    ];
    let cores = std::thread::available_parallelism().expect("some").get();
    for (count, more) in [(2, &[][..]), (3, &[]), (2, &["--threads", "3"])] {
        let run = run(&sandbox, count, &[&told[..], more, &PARALLEL].concat());
        assert_eq!(run.code, 0, "{run:?}");
        let threads = if more.is_empty() { (cores / count).max(1) } else { 3 };
        let said = format!("(cpu, {threads} thread{})", if threads == 1 { "" } else { "s" });
        assert!(run.stderr.contains(&said), "no `{said}` in {}", run.stderr);
    }
}

#[test]
fn a_process_that_cannot_draw_ends_all_with_its_message() {
    let (first, second) = (sandbox(), sandbox());
    damage(&second.path().join("model/vae/diffusion_pytorch_model.safetensors"));
    let told = [&SAMPLE[..], &["--prompt_path", "prompts.txt"], &PARALLEL].concat();
    let parts = [
        Part { count: 2, folder: first.path(), told: &told },
        Part { count: 1, folder: second.path(), told: &told },
    ];
    let run = wait(start(&first, &parts), "damaged");
    assert_ne!(run.code, 0, "{run:?}");
    assert!(run.stderr.contains("error: rank 2: "), "{}", run.stderr);
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
}

fn damage(file: &Path) {
    let bytes = fs::read(file).expect("read");
    fs::write(file, &bytes[..bytes.len() / 2]).expect("written");
}

#[test]
fn a_process_without_memory_ends_all_with_its_message() {
    let sandbox = sandbox();
    draw(&sandbox, 1, &["--prompt", "exported"]);
    let size =
        ["--image_width", "1024", "--image_height", "1024", "--use_resolution_binning", "False"];
    let told =
        [&SAMPLE[..], &["--prompt", "a", "b", "c", "--vae_tiling", "false"], &size, &PARALLEL]
            .concat();
    let mut command = mpirun(&sandbox, &[Part { count: 2, folder: sandbox.path(), told: &told }]);
    // The third process may take 500 MB of addresses.
    let limited = "ulimit -v 500000; exec \"$0\" \"$@\"";
    command.args([":", "-n", "1", "sh", "-c", limited]).arg(binary()).args(&told);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mpirun");
    let run = wait(child, "without memory");
    assert_ne!(run.code, 0, "{run:?}");
    assert!(run.stderr.contains("error: rank 2: "), "{}", run.stderr);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let (sandbox, other) = (sandbox(), sandbox());
    fs::write(other.path().join("prompts.txt"), "another\n".repeat(7)).expect("written");
    let told = [&SAMPLE[..], &["--prompt_path", "prompts.txt"], &PARALLEL].concat();
    let unequal = [&told[..], &["--guidance_scale", "3"]].concat();
    for (folder, told_other, said) in [
        (sandbox.path(), &unequal, "rank 1: guidance_scale: found 3.0, but rank 0 has not given"),
        (other.path(), &told, "rank 1: prompts: found those of the hash "),
    ] {
        let parts = [
            Part { count: 1, folder: sandbox.path(), told: &told },
            Part { count: 1, folder, told: told_other },
        ];
        let run = wait(start(&sandbox, &parts), "unequal");
        assert_ne!(run.code, 0, "{run:?}");
        assert!(run.stderr.contains(said), "{}", run.stderr);
    }
    let before = sandbox.files();
    let sample = ["sample", "--model", "model", "--prompt", "a"];
    let with = |more: &[&'static str]| [&sample[..], more, &PARALLEL].concat();
    for (run, said) in [
        (run(&sandbox, 2, &sample), "use_parallel: found 2 processes without it"),
        (sandbox.pixart(&with(&[])), "use_parallel: found one process"),
        (
            run(&sandbox, 2, &with(&["--devices", "cpu,tract"])),
            "devices: found it in one of several",
        ),
        (run(&sandbox, 2, &with(&["--preview", "a.png"])), "preview: it is for one process"),
        (run(&sandbox, 2, &with(&["--sampling_steps", "0"])), "sampling_steps: found 0"),
        (
            sandbox.pixart(&[
                "encode",
                "--model",
                "model",
                "--prompt",
                "a",
                "--use_parallel",
                "True",
            ]),
            "use_parallel: found true, but one process encodes prompts",
        ),
        (run(&sandbox, 2, &CACHE), "use_parallel: found 2 processes without it"),
        (sandbox.pixart(&[&CACHE[..], &PARALLEL].concat()), "use_parallel: found one process"),
        (
            sandbox.pixart(&[&CACHE[..], &PARALLEL, &["--check"]].concat()),
            "check: found it with use_parallel",
        ),
    ] {
        assert_eq!(run.code, 2, "{run:?}");
        assert!(run.stderr.contains(said), "no `{said}` in {}", run.stderr);
    }
    // Several devices of one process need no MPI.
    let run = sandbox.pixart(&with(&["--devices", "tract,tract", "--sampling_steps", "2"]));
    assert_eq!(run.code, 0, "{run:?}");
    fs::remove_dir_all(sandbox.path().join("samples")).expect("removed");
    assert_eq!(sandbox.files(), before, "files were left behind");
}

const CACHE: [&str; 12] = [
    "train",
    "cache",
    "--json_path=labels.json",
    "--image_dir=images",
    "--sample_size=8",
    "--text_encoder_root=model/text_encoder",
    "--tokenizer_root=model/tokenizer",
    "--vae_root=model/vae",
    "--engine=tract",
    "--threads=1",
    "--cache_dir",
    "kept",
];

/// A sandbox for training with many pictures of 64 pixels, one of which cannot be read, and a caption for each.
fn pictures(count: usize) -> Sandbox {
    let sandbox = training::sandbox();
    let images = sandbox.path().join("images");
    let mut labels = Vec::new();
    for k in 0..count {
        fs::copy(images.join(format!("{}.png", k % 4)), images.join(format!("{k}-of.png")))
            .unwrap();
        let caption = format!("picture {k} {}", "and more ".repeat(k % 9));
        labels.push(serde_json::json!({"path": format!("{k}-of.png"), "prompt": caption}));
    }
    damage(&images.join("5-of.png"));
    let labels = serde_json::Value::Array(labels).to_string();
    fs::write(sandbox.path().join("labels.json"), labels).expect("written");
    sandbox
}

/// Fills the cache in a folder in so many processes.
fn fill(sandbox: &Sandbox, count: usize, folder: &str) -> Run {
    let told = [&CACHE[..11], &[folder]].concat();
    let run = match count {
        1 => sandbox.pixart(&told),
        _ => run(sandbox, count, &[&told[..], &PARALLEL].concat()),
    };
    assert_eq!((run.code, run.stdout.trim()), (0, folder), "{run:?}");
    run
}

#[test]
fn processes_cache_what_one_does() {
    let sandbox = pictures(150);
    fill(&sandbox, 1, "one");
    for count in [2, 4] {
        let folder = format!("by-{count}");
        let run = fill(&sandbox, count, &folder);
        assert_same(&sandbox, &folder, "one");
        for said in [
            "captions: 151 encoded, 0 were there\n",
            "pictures: 149 encoded, 0 were there, 1 cannot be read",
            "skipped images/5-of.png: ",
        ] {
            assert_eq!(run.stderr.matches(said).count(), 1, "no `{said}` in {}", run.stderr);
        }
    }
    // What is missing, or damaged, is made by another number of processes.
    for (k, name) in
        names(&sandbox, "by-4").iter().filter(|name| !name.ends_with("cache.json")).enumerate()
    {
        let file = sandbox.path().join("by-4").join(name);
        match k % 7 {
            0 => fs::remove_file(file).expect("removed"),
            3 => damage(&file),
            _ => {}
        }
    }
    fill(&sandbox, 3, "by-4");
    assert_eq!(names(&sandbox, "by-4"), names(&sandbox, "one"));
    let check = sandbox.pixart(&[&CACHE[..11], &["by-4", "--check"]].concat());
    // The one that cannot be read.
    assert!(
        check.stderr.contains("301 captions and pictures looked at, 1 are not to be had"),
        "{check:?}"
    );
    let run = fill(&sandbox, 2, "by-4");
    assert!(run.stderr.contains("captions: 0 encoded, 151 were there"), "{run:?}");
}

#[test]
fn a_killed_process_loses_nothing_of_the_cache() {
    let sandbox = pictures(600);
    let told = [&CACHE[..], &PARALLEL].concat();
    let child = start(&sandbox, &[Part { count: 3, folder: sandbox.path(), told: &told }]);
    wait_for("caption", || names(&sandbox, "kept/captions").len() > 20);
    kill_second(child, 3);
    let whole = names(&sandbox, "kept/captions").len();
    // Nor does Ctrl-C; in the middle of it, if it is not over before.
    let child = start(&sandbox, &[Part { count: 2, folder: sandbox.path(), told: &told }]);
    wait_for("caption", || names(&sandbox, "kept/captions").len() > whole);
    let run = interrupt(child, 2);
    assert_eq!((run.code, run.stdout.as_str()), (130, ""), "{run:?}");
    let said = "are missing; the same command goes on there";
    assert_eq!(run.stderr.matches(said).count(), 1, "{}", run.stderr);
    let whole = names(&sandbox, "kept/captions").len();
    let run = fill(&sandbox, 2, "kept");
    let there = format!("captions: {} encoded, {whole} were there", 601 - whole);
    assert!(run.stderr.contains(&there), "no `{there}` in {}", run.stderr);
    fill(&sandbox, 1, "one");
    assert_eq!(names(&sandbox, "kept"), names(&sandbox, "one"));
}

#[test]
fn a_process_that_cannot_cache_ends_all_with_its_message() {
    let (first, second) = (pictures(20), pictures(20));
    damage(&second.path().join("model/vae/diffusion_pytorch_model.safetensors"));
    let told = [&CACHE[..], &PARALLEL].concat();
    let parts = [
        Part { count: 1, folder: first.path(), told: &told },
        Part { count: 1, folder: second.path(), told: &told },
    ];
    let run = wait(start(&first, &parts), "damaged");
    assert_ne!(run.code, 0, "{run:?}");
    assert!(run.stderr.contains("error: rank 1: "), "{}", run.stderr);
    let unequal = [&told[..], &["--caption_dtype", "fp32"]].concat();
    let first = pictures(20);
    let parts = [
        Part { count: 1, folder: first.path(), told: &told },
        Part { count: 1, folder: first.path(), told: &unequal },
    ];
    let run = wait(start(&first, &parts), "unequal");
    assert!(run.stderr.contains("rank 1: caption_dtype: found fp32, but rank 0"), "{}", run.stderr);
    assert!(!first.path().join("kept").exists(), "nothing is written");
}
