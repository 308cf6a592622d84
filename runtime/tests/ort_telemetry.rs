//! ONNX Runtime must not report to its makers. Needs ONNX Runtime; see `common::onnx_runtime`.
#![cfg(target_os = "linux")]

mod common;

use std::process::Command;

use pixart_runtime::engine::{self, EngineChoice, EngineOptions};

/// The child process: opens and runs the engine as a program does.
#[test]
fn open_and_run() {
    let options = EngineOptions {
        library: Some(common::onnx_runtime()),
        threads: Some(1),
        ..EngineOptions::default()
    };
    let engine = engine::open(EngineChoice::Ort, &options).expect("opens").engine;
    let folder = tempfile::tempdir().expect("folder");
    let model = common::graph::write(folder.path(), common::graph::graph());
    let mut session = engine.load(&model).expect("loads");
    let x = ndarray::Array2::<f32>::zeros((1, 3)).into();
    session.run(&[("x", &x)]).expect("runs");
}

/// With reporting on, ONNX Runtime keeps its device number and queue in the user's cache folder.
#[test]
fn nothing_is_left_in_the_users_folders() {
    let home = tempfile::tempdir().expect("folder");
    let library = std::path::absolute(common::onnx_runtime()).expect("absolute path");
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program)
        .args(["--exact", "open_and_run"])
        .env("HOME", home.path())
        .env_remove("XDG_CACHE_HOME")
        .env_remove("XDG_DATA_HOME")
        .env_remove("ORT_DISABLE_TELEMETRY")
        .env("PIXART_TEST_ORT_LIBRARY", library)
        .output()
        .expect("runs");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
    let left: Vec<_> = std::fs::read_dir(home.path()).expect("folder").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}
