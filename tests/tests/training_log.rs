//! The logs of a training run: what is in them, and what becomes of them when a run goes on.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use image::{Rgb, RgbImage};
use pixart_tests::fixtures;
use pixart_trainer::log::{LogError, StepRecord, TrainingLog};
use serde::Deserialize;
use serde_json::Value;

fn record(step: u64) -> StepRecord {
    StepRecord {
        step,
        epoch: 1 + step / 10,
        loss: 1.0 / step as f64,
        learning_rate: 2e-5,
        loss_scale: 65536.0,
        gradient_norm: 0.5,
        seconds: 2.0,
        images: 4,
    }
}

fn lines(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("logs/training.jsonl")).expect("a log");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn steps(folder: &Path) -> Vec<u64> {
    lines(folder).iter().map(|line| line["step"].as_u64().expect("a number")).collect()
}

fn log(folder: &Path, resume: Option<u64>, range: std::ops::RangeInclusive<u64>) -> TrainingLog {
    let mut log = TrainingLog::open(folder, "seed: 42\n", resume).expect("a log");
    for step in range {
        log.step(&record(step)).expect("logged");
    }
    log
}

#[test]
fn every_step_is_a_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut log = log(folder.path(), None, 1..=3);
    let bad = StepRecord { loss: f64::NAN, gradient_norm: f64::NAN, ..record(4) };
    log.step(&bad).expect("logged");
    let lines = lines(folder.path());
    assert_eq!(lines.len(), 4);
    let second = &lines[1];
    for (key, expected) in [
        ("step", 2.0),
        ("epoch", 1.0),
        ("loss", 0.5),
        ("learning_rate", 2e-5),
        ("loss_scale", 65536.0),
        ("gradient_norm", 0.5),
        ("seconds", 2.0),
        ("images_per_second", 2.0),
    ] {
        assert_eq!(second[key].as_f64(), Some(expected), "{key}");
    }
    assert!(second["time"].as_f64() > Some(1e9));
    assert!(lines[3]["loss"].is_null() && lines[3]["gradient_norm"].is_null());
    let settings = fs::read_to_string(folder.path().join("args.yaml")).expect("settings");
    assert_eq!(settings, "seed: 42\n");

    let curve = log.finish().expect("drawn").expect("a curve");
    assert_eq!(curve, folder.path().join("logs/loss.png"));
    let curve = image::open(curve).expect("a picture").into_rgb8();
    assert!(curve.pixels().any(|pixel| *pixel != Rgb([255; 3])));
}

#[test]
fn a_run_that_goes_on_drops_what_it_does_again() {
    let folder = tempfile::tempdir().expect("a folder");
    drop(log(folder.path(), None, 1..=9));
    // Killed in the middle of a line.
    let path = folder.path().join("logs/training.jsonl");
    let text = fs::read_to_string(&path).expect("a log");
    fs::write(&path, format!("{text}{{\"step\":10,\"ep")).expect("written");
    let mut again = log(folder.path(), Some(6), 7..=8);
    assert_eq!(steps(folder.path()), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(again.finish().expect("drawn").is_some());
    assert!(!folder.path().join("logs/run_1").exists());

    fs::write(&path, format!("{text}nonsense\n")).expect("written");
    let error = TrainingLog::open(folder.path(), "", Some(6)).err().expect("refused");
    assert!(matches!(error, LogError::Record { line: 10, .. }), "{error}");
    // Without a log, there is nothing to drop.
    let empty = tempfile::tempdir().expect("a folder");
    drop(log(empty.path(), Some(6), 7..=8));
    assert_eq!(steps(empty.path()), [7, 8]);
}

#[test]
fn a_new_run_puts_the_old_logs_aside() {
    let folder = tempfile::tempdir().expect("a folder");
    log(folder.path(), None, 1..=5).finish().expect("drawn");
    drop(log(folder.path(), None, 1..=2));
    drop(log(folder.path(), None, 1..=1));
    assert_eq!(steps(folder.path()), [1]);
    let logs = folder.path().join("logs");
    let count = |run: &str| {
        let text = fs::read_to_string(logs.join(run).join("training.jsonl")).expect("the old log");
        text.lines().count()
    };
    assert_eq!((count("run_1"), count("run_2")), (5, 2));
    assert!(logs.join("run_1/loss.png").is_file() && !logs.join("loss.png").exists());
    let nothing = TrainingLog::open(tempfile::tempdir().expect("a folder").path(), "", None);
    assert!(nothing.expect("a log").finish().expect("no step").is_none());
}

#[test]
fn a_log_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("logs"), "").expect("a file in the way");
    let error = TrainingLog::open(folder.path(), "", None).err().expect("refused").to_string();
    assert!(error.contains("logs: cannot create this folder"), "{error}");
}

/// A record of an event file, checked by its lengths.
fn records(path: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(path).expect("events");
    let mut rest = bytes.as_slice();
    let mut records = Vec::new();
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().expect("eight")) as usize;
        records.push(rest[12..12 + length].to_vec());
        rest = &rest[12 + length + 4..];
    }
    records
}

fn event_files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder.join("logs")).expect("logs");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<_> =
        paths.filter(|path| path.to_string_lossy().contains("tfevents")).collect();
    paths.sort();
    paths
}

#[test]
fn events_are_whole_after_every_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut log = log(folder.path(), None, 1..=3);
    let picture = RgbImage::from_pixel(4, 2, Rgb([9, 8, 7]));
    log.pictures(3, &[("a red cube".to_owned(), picture)]).expect("logged");
    // The log is still open, as when the program is killed.
    let [path] = &event_files(folder.path())[..] else { panic!("one file") };
    let records = records(path);
    assert_eq!(records.len(), 1 + 3 + 1);
    let holds =
        |record: &[u8], text: &str| record.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(holds(&records[0], "brain.Event:2"));
    for tag in ["loss", "learning_rate", "gradient_norm", "loss_scale", "images_per_second"] {
        assert!(holds(&records[1], tag), "{tag}");
    }
    assert!(holds(&records[4], "samples/00") && holds(&records[4], "a red cube"));
}

/// Step, width, height and the first pixel of a picture.
type Shown = (u64, u32, u32, [u8; 3]);

#[derive(Deserialize)]
struct Read {
    scalars: BTreeMap<String, Vec<(u64, f64)>>,
    images: BTreeMap<String, Vec<Shown>>,
}

/// TensorBoard itself reads numbers and pictures, and of a run that went on each step once. Needs its
/// Python package.
#[test]
fn tensorboard_reads_the_events() {
    let python = std::env::var_os("PIXART_TENSORBOARD_PYTHON")
        .expect("a Python with TensorBoard, from scripts/test");
    let folder = tempfile::tempdir().expect("a folder");
    let mut first = log(folder.path(), None, 1..=9);
    let picture = |red| RgbImage::from_pixel(6, 4, Rgb([red, 8, 7]));
    for (step, red) in [(5, 50), (9, 90)] {
        first.pictures(step, &[("a cube".to_owned(), picture(red))]).expect("logged");
    }
    drop(first);
    let mut second = log(folder.path(), Some(6), 7..=8);
    second.pictures(8, &[("a cube".to_owned(), picture(80))]).expect("logged");

    let script = fixtures::root().join("make/read_events.py");
    let logs = folder.path().join("logs");
    let output = Command::new(python).arg(script).arg(logs).output().expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: Read = serde_json::from_slice(&output.stdout).expect("JSON");
    let loss: Vec<u64> = read.scalars["loss"].iter().map(|(step, _)| *step).collect();
    assert_eq!(loss, [1, 2, 3, 4, 5, 6, 7, 8]);
    for (step, value) in &read.scalars["loss"] {
        assert!((value * *step as f64 - 1.0).abs() < 1e-6);
    }
    assert!(read.scalars["learning_rate"].iter().all(|(_, rate)| (rate / 2e-5 - 1.0).abs() < 1e-6));
    assert_eq!(read.scalars.len(), 7);
    assert_eq!(read.images["samples/00"], [(5, 6, 4, [50, 8, 7]), (8, 6, 4, [80, 8, 7])]);
}
