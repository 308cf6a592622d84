//! Exports that are killed or run out of room: nothing under the target's name but a complete export,
//! and a second try works.
#![cfg(unix)]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use pixart_tests::{
    binary::{Sandbox, binary, limited},
    fixtures, random,
};

/// What `kill -9` and `ulimit -f` send.
const SIGKILL: i32 = 9;
const SIGXFSZ: i32 = 25;

const TARGET: &str = "out/text_encoder";

/// A text encoder of about 50 MB in `source`, which takes long enough to be interrupted.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    let bytes = random::text_encoder(&sandbox.path().join("source"), 8, 400);
    assert!(bytes > 40 << 20, "{bytes}");
    sandbox
}

fn export(sandbox: &Sandbox) -> Command {
    let mut command = Command::new(binary());
    command
        .args(["export", "text_encoder", "--source", "source", "--output", "out", "--force"])
        .current_dir(sandbox.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Every file of the target with its content.
fn content(sandbox: &Sandbox) -> Option<BTreeMap<PathBuf, Vec<u8>>> {
    let folder = sandbox.path().join(TARGET);
    let entries = fs::read_dir(&folder).ok()?;
    let file = |path: PathBuf| (path.clone(), fs::read(path).expect("a file"));
    Some(entries.map(|entry| file(entry.expect("an entry").path())).collect())
}

fn assert_complete(sandbox: &Sandbox) {
    let run = sandbox.pixart(&["export", "--verify", TARGET]);
    assert_eq!(run.code, 0, "{run:?}");
}

/// Removes what killed exports have left, so that the next one's folder is not mistaken for it.
fn clear(sandbox: &Sandbox) {
    while let Some(folder) = partial(sandbox) {
        fs::remove_dir_all(folder).expect("removed");
    }
}

/// The hidden folder that an export is being written into.
fn partial(sandbox: &Sandbox) -> Option<PathBuf> {
    let entries = fs::read_dir(sandbox.path().join("out")).ok()?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.find(|path| path.extension().is_some_and(|extension| extension == "partial"))
}

/// A moment during an export, by what is on the disk then.
type Moment = (&'static str, fn(&Path) -> bool);

const MOMENTS: [Moment; 4] = [
    ("the folder is there", |_| true),
    ("the weights have begun", |folder| folder.join("model.onnx_data").exists()),
    ("the graph is written", |folder| folder.join("model.onnx").exists()),
    ("the manifest is there", |folder| folder.join("manifest.json").exists()),
];

/// Waits until the export has come to `moment` and kills it; false if it was done before.
fn kill_at(sandbox: &Sandbox, child: &mut Child, moment: Moment) -> bool {
    let (name, reached) = moment;
    let start = Instant::now();
    while !partial(sandbox).is_some_and(|folder| reached(&folder)) {
        if child.try_wait().expect("a child").is_some() {
            return false;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{name}: not within a minute");
        sleep(Duration::from_micros(200));
    }
    child.kill().expect("a child of ours");
    child.wait().expect("a child").signal() == Some(SIGKILL)
}

#[test]
fn killed_at_any_moment_there_is_nothing_or_everything_and_a_second_try_works() {
    let sandbox = sandbox();
    for moment in MOMENTS.into_iter().rev() {
        clear(&sandbox);
        let mut child = export(&sandbox).spawn().expect("the binary starts");
        let killed = kill_at(&sandbox, &mut child, moment);
        if killed && partial(&sandbox).is_some() {
            assert_eq!(content(&sandbox), None, "{}", moment.0);
        } else {
            // Killed after the folder had got its name, or too late.
            assert_complete(&sandbox);
            fs::remove_dir_all(sandbox.path().join(TARGET)).expect("removed");
        }
    }
    assert!(partial(&sandbox).is_some(), "at least one export was killed half way");
    assert!(export(&sandbox).status().expect("the binary starts").success());
    assert_complete(&sandbox);
    assert_eq!(partial(&sandbox), None, "what the killed exports left is removed");
}

#[test]
fn killed_while_replacing_the_old_export_or_the_new_one_is_there() {
    let sandbox = sandbox();
    assert!(export(&sandbox).status().expect("the binary starts").success());
    let before = content(&sandbox).expect("an export");
    let mut half_way = 0;
    for moment in MOMENTS {
        clear(&sandbox);
        let mut child = export(&sandbox).spawn().expect("the binary starts");
        half_way += usize::from(kill_at(&sandbox, &mut child, moment));
        // The source is the same, so the new export is as the old one was.
        assert_complete(&sandbox);
        assert!(content(&sandbox).as_ref() == Some(&before), "{}", moment.0);
    }
    assert!(half_way > 0, "at least one export was killed half way");
    assert!(export(&sandbox).status().expect("the binary starts").success());
    assert_eq!(partial(&sandbox), None, "what the killed exports left is removed");
}

/// Runs the export under a limit on the size of a file.
fn limited_export(sandbox: &Sandbox, blocks: u64, handled: bool) -> Output {
    limited(&export(sandbox), blocks, handled).output().expect("a shell")
}

#[test]
fn without_room_the_error_says_so_and_what_was_there_stays() {
    let sandbox = sandbox();
    let run = limited_export(&sandbox, 20_000, true);
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    let message = String::from_utf8_lossy(&run.stderr);
    assert!(message.contains("model.onnx_data") && !message.contains("panicked"), "{message}");
    assert!(!sandbox.path().join("out").exists(), "nothing is left, not even the folder");

    assert!(export(&sandbox).status().expect("the binary starts").success());
    let before = content(&sandbox);
    // The weights, the graph (some 100 kB), and the first file of all do not fit.
    for blocks in [20_000, 8, 0] {
        let run = limited_export(&sandbox, blocks, true);
        assert_eq!(run.status.code(), Some(1), "{blocks}: {run:?}");
        assert!(content(&sandbox) == before, "{blocks}");
        assert_eq!(partial(&sandbox), None, "{blocks}");
    }
    let run = limited_export(&sandbox, 20_000, false);
    assert_eq!(run.status.signal(), Some(SIGXFSZ), "{run:?}");
    assert!(content(&sandbox) == before);
    assert!(export(&sandbox).status().expect("the binary starts").success());
    assert_eq!(partial(&sandbox), None);
    assert_complete(&sandbox);
}

#[test]
fn a_pipeline_without_room_for_one_part_is_not_begun() {
    let sandbox = Sandbox::new();
    let source = fixtures::tiny();
    let mut export = Command::new(binary());
    export.args(["export", "all", "--output", "out", "--source"]).arg(&source);
    export.current_dir(sandbox.path());
    let run = limited(&export, 800, true).output().expect("a shell");
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    assert!(String::from_utf8_lossy(&run.stderr).contains("model.onnx_data"), "{run:?}");
    assert!(!sandbox.path().join("out").exists());
    assert_eq!(fs::read_dir(sandbox.path()).expect("a folder").count(), 0);
}
