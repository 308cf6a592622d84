//! Checkpoints of training whose writer is killed or runs out of room: the newest complete one is
//! always there, and nothing else looks like one.
#![cfg(unix)]

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use pixart_tests::binary::limited;
use pixart_trainer::checkpoint::{Saved, latest, list};

const KEEP: usize = 2;

fn writer(root: &Path, first: u64, count: u64) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_checkpoint_writer"));
    command
        .arg(root)
        .args([first.to_string(), count.to_string(), KEEP.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The hidden entries of the folder.
fn hidden(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_hidden = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
    };
    paths.filter(is_hidden).collect()
}

/// Checks that everything in the checkpoint is of its step.
fn assert_whole(saved: &Saved) {
    let step = saved.step();
    assert_eq!(saved.state()["step"], step);
    let weights = saved.weights().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(weights.len(), 2);
    assert!(weights.values().flatten().all(|&value| value == step as f32), "step {step}");
    let config = fs::read_to_string(saved.folder().join("config.json")).expect("a file");
    assert!(config.contains(&format!(": {step}")), "{config}");
}

/// Checks what a killed writer left, and returns the newest step.
fn assert_usable(root: &Path, told: Option<u64>) -> Option<u64> {
    let listing = list(root).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(listing.incomplete, [], "nothing half done has the name of a checkpoint");
    listing.complete.iter().for_each(assert_whole);
    let newest = latest(root).expect("listed").map(|saved| saved.step());
    assert!(newest >= told, "{told:?} was saved, {newest:?} is there");
    // While one is written and before the oldest is removed, there are most.
    assert!(listing.complete.len() <= KEEP + 1, "{:?}", listing.complete);
    newest
}

/// The last step that the killed writer has told of.
fn told(child: &mut Child) -> Option<u64> {
    let mut text = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut text).expect("text");
    text.lines().last().and_then(|line| line.parse().ok())
}

#[test]
fn killed_at_any_moment_the_newest_complete_checkpoint_is_usable() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("ckpt");
    /// A moment, by what is in a hidden folder then.
    type Moment = (&'static str, fn(&Path) -> bool);
    let moments: [Moment; 5] = [
        ("the folder is there", |_| true),
        ("the weights have begun", |f| f.join("diffusion_pytorch_model.safetensors").exists()),
        ("the optimizer has begun", |f| f.join("optimizer.safetensors").exists()),
        ("it is all there", |f| f.join("training.json").exists()),
        ("an old one is removed", |f| f.to_string_lossy().contains(".removed.")),
    ];
    let (mut next, mut half_done) = (0, 0);
    for (name, reached) in moments.into_iter().chain(moments) {
        let mut child = writer(&root, next, 1000).spawn().expect("the writer starts");
        let start = Instant::now();
        // Old folders of killed writers go when the new one begins to write.
        let before = hidden(&root);
        let seen = |path: &PathBuf| !before.contains(path) && reached(path);
        while !hidden(&root).iter().any(seen) {
            assert!(child.try_wait().expect("a child").is_none(), "{name}: it ended by itself");
            assert!(start.elapsed() < Duration::from_secs(60), "{name}: not within a minute");
            sleep(Duration::from_micros(100));
        }
        child.kill().expect("a child of ours");
        child.wait().expect("a child");
        half_done += usize::from(!hidden(&root).is_empty());
        let told = told(&mut child).or(next.checked_sub(1));
        next = assert_usable(&root, told).map_or(0, |newest| newest + 1);
    }
    assert!(half_done > 0, "at least one writer was killed half way");
    // One that is not killed removes what is left.
    let done = writer(&root, next, 3).output().expect("the writer starts");
    assert!(done.status.success(), "{done:?}");
    assert_eq!(hidden(&root), Vec::<PathBuf>::new());
    let steps: Vec<u64> = list(&root).expect("listed").complete.iter().map(Saved::step).collect();
    assert_eq!(steps, [next + 1, next + 2]);
}

#[test]
fn without_room_the_error_says_so_and_the_old_checkpoint_stays() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("ckpt");
    assert!(writer(&root, 0, 1).output().expect("the writer starts").status.success());
    // The weights (4 MB), the optimizer's state (8 MB), and the first file of all do not fit.
    for (blocks, file) in [
        (4000, "diffusion_pytorch_model.safetensors"),
        (12_000, "optimizer.safetensors"),
        (16, "diffusion"),
    ] {
        // Step 0 again: what would be replaced stays, too.
        for first in [0, 1] {
            let run = limited(&writer(&root, first, 1), blocks, true).output().expect("a shell");
            let message = String::from_utf8_lossy(&run.stderr);
            assert_eq!(run.status.code(), Some(1), "{blocks}: {message}");
            assert!(message.contains(file) && !message.contains("panicked"), "{message}");
            assert_eq!(assert_usable(&root, Some(0)), Some(0));
            assert_eq!(hidden(&root), Vec::<PathBuf>::new(), "{blocks}");
        }
    }
}
