//! `pixart train` that is stopped by Ctrl-C, killed, or runs out of room.
#![cfg(unix)]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, ChildStderr, Command, Stdio},
};

use pixart_tests::{
    binary::{Run, Sandbox, limited},
    training::sandbox,
};
use pixart_trainer::checkpoint::{Saved, list};

/// What a run tells.
type Lines = BufReader<ChildStderr>;

/// Starts a long run.
fn started(sandbox: &Sandbox, more: &[&str]) -> (Child, Lines) {
    let common = ["train", "-c", "short.yaml", "--max_train_steps", "100000"];
    let mut command = sandbox.command(&[&common[..], more].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let lines = BufReader::new(child.stderr.take().expect("piped"));
    (child, lines)
}

/// Waits until the step of this number is done.
fn wait_for(lines: &mut Lines, step: u64) {
    let (wanted, mut told) = (format!("step {step}/"), String::new());
    loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).expect("a line") > 0, "it ended: {told}");
        told += &line;
        if line.contains(&wanted) {
            return;
        }
    }
}

fn checkpoints(sandbox: &Sandbox) -> PathBuf {
    sandbox.path().join("output/ckpt")
}

#[test]
fn ctrl_c_ends_the_step_and_saves() {
    let sandbox = sandbox();
    let (child, mut lines) = started(&sandbox, &[]);
    wait_for(&mut lines, 1);
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill").success());
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut lines, &mut rest).expect("text");
    let output = child.wait_with_output().expect("it ends");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(130), "{rest}");
    assert!(
        rest.contains("ending after this step") && rest.contains("go on with --resume"),
        "{rest}"
    );
    let saved = Saved::open(&sandbox.path().join(stdout.trim())).expect("a checkpoint");
    assert!((1..100).contains(&saved.step()), "{}", saved.step());
    // It goes on where it was.
    let steps = (saved.step() + 1).to_string();
    let run =
        sandbox.pixart(&["train", "-c", "short.yaml", "--resume", "--max_train_steps", &steps]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(
        run.stderr.contains(&format!("going on after step {}", saved.step())),
        "{}",
        run.stderr
    );
    assert!(run.stdout.trim().ends_with(&format!("step_{steps:0>8}")), "{run:?}");
}

#[test]
fn killed_at_any_moment_the_newest_complete_checkpoint_is_usable() {
    let sandbox = sandbox();
    let mut done = 0;
    for step in [1, 2, 3, 5] {
        let resume: &[&str] = if done > 0 { &["--resume"] } else { &[] };
        let (mut child, mut lines) =
            started(&sandbox, &[&["--ckpt_save_steps", "1"], resume].concat());
        wait_for(&mut lines, done + step);
        child.kill().expect("a child of ours");
        child.wait().expect("it ends");
        let newest = list(&checkpoints(&sandbox)).expect("listed").complete.pop();
        // The step that was told may be saved or not; the one before is.
        let found = newest.as_ref().map_or(0, Saved::step);
        assert!(found + 1 >= done + step, "{found}, killed in step {}", done + step);
        done = found;
    }
    let steps = (done + 1).to_string();
    let run =
        sandbox.pixart(&["train", "-c", "short.yaml", "--resume", "--max_train_steps", &steps]);
    assert_eq!(run.code, 0, "{run:?}");
}

#[test]
fn without_room_for_a_checkpoint_the_error_says_so_and_the_old_one_stays() {
    let sandbox = sandbox();
    let first = ["train", "-c", "short.yaml", "--max_train_steps", "1"];
    let run = sandbox.pixart(&first);
    assert_eq!(run.code, 0, "{run:?}");
    // The weights are 0.95 MB, the optimizer's state twice as much.
    for (blocks, file) in
        [(1000, "diffusion_pytorch_model.safetensors"), (2500, "optimizer.safetensors")]
    {
        let next = ["train", "-c", "short.yaml", "--resume", "--max_train_steps", "2"];
        let command = sandbox.command(&next);
        let run = Run::new(&limited(&command, blocks, true).output().expect("a shell"));
        assert_eq!(run.code, 1, "{run:?}");
        assert!(run.stderr.contains(file) && !run.stderr.contains("panicked"), "{}", run.stderr);
        let left = list(&checkpoints(&sandbox)).expect("listed");
        assert_eq!(left.complete.iter().map(Saved::step).collect::<Vec<_>>(), [1]);
        let names: Vec<_> = fs::read_dir(checkpoints(&sandbox)).expect("listed").collect();
        assert_eq!(names.len(), 1, "nothing half written is left: {names:?}");
    }
}
