//! ONNX Runtime behind the engine traits. Needs ONNX Runtime; see `common::onnx_runtime`.

mod common;

#[cfg(unix)]
use std::path::Path;

use common::{
    graph::{graph, write},
    onnx_runtime,
};
use ndarray::{Array2, array};
use pixart_runtime::{
    engine::{self, Engine, EngineChoice, EngineError, EngineOptions, Session},
    tensor::Tensor,
};

fn open(choice: EngineChoice) -> std::sync::Arc<dyn Engine> {
    let library = (choice == EngineChoice::Ort).then(onnx_runtime);
    let options = EngineOptions { library, threads: Some(2), ..EngineOptions::default() };
    engine::open(choice, &options).expect("the engine opens").engine
}

fn run(session: &mut dyn Session, x: Array2<f32>) -> Result<Tensor, EngineError> {
    let mut outputs = session.run(&[("x", &x.into())])?;
    assert_eq!(outputs.len(), 1);
    let (name, y) = outputs.remove(0);
    assert_eq!(name, "y");
    Ok(y)
}

#[test]
fn it_says_what_it_is() {
    let engine = open(EngineChoice::Ort);
    assert_eq!(engine.name(), "ort");
    let told = engine.describe();
    assert!(told.starts_with("ONNX Runtime 1.") && told.ends_with("(cpu)"), "{told}");
}

#[test]
fn a_symbolic_batch_runs_in_several_sizes_and_agrees_with_tract() {
    let folder = tempfile::tempdir().expect("folder");
    let model = write(folder.path(), graph());
    let mut ort = open(EngineChoice::Ort).load(&model).expect("loads");
    let mut tract = open(EngineChoice::Tract).load(&model).expect("loads");
    for batch in [1, 3, 2, 8, 3] {
        let x = Array2::from_shape_fn((batch, 3), |(row, column)| (row * 3 + column) as f32 * 0.3);
        let found = run(&mut *ort, x.clone()).expect("runs").into_f32("y").expect("floats");
        let other = run(&mut *tract, x).expect("runs").into_f32("y").expect("floats");
        assert_eq!(found.shape(), [batch, 2]);
        for (found, other) in found.iter().zip(&other) {
            assert!((found - other).abs() < 1e-5, "{found} {other}");
        }
    }
    // x · w = (1, 0), and the bias is (10, 20).
    let y = run(&mut *ort, array![[1.0, 0.0, 7.0]]).expect("runs").into_f32("y").expect("floats");
    let e = 1f32.exp();
    assert!((y[[0, 0]] - (10.0 + e / (e + 1.0))).abs() < 1e-5, "{y}");
    assert!((y[[0, 1]] - (20.0 + 1.0 / (e + 1.0))).abs() < 1e-5, "{y}");
}

#[test]
fn values_that_do_not_lie_in_order_are_read_in_order() {
    let folder = tempfile::tempdir().expect("folder");
    let model = write(folder.path(), graph());
    let mut session = open(EngineChoice::Ort).load(&model).expect("loads");
    let columns_first = array![[1.0f32, 0.0], [2.0, 5.0], [3.0, 1.0]].reversed_axes();
    let rows_first = columns_first.as_standard_layout().into_owned();
    let found = run(&mut *session, columns_first).expect("runs");
    assert_eq!(found, run(&mut *session, rows_first).expect("runs"));
}

#[test]
fn a_wrong_input_is_an_error_with_file_name_and_shapes() {
    let folder = tempfile::tempdir().expect("folder");
    let model = write(folder.path(), graph());
    let mut session = open(EngineChoice::Ort).load(&model).expect("loads");
    let error = run(&mut *session, Array2::zeros((1, 4))).expect_err("refused").to_string();
    for part in ["model.onnx", "\"x\"", "f32[1, 4]", "f32[batch_size, 3]"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    run(&mut *session, Array2::zeros((1, 3))).expect("the session is still of use");
}

#[test]
fn a_graph_that_it_refuses_is_an_error_that_names_file_and_node() {
    let folder = tempfile::tempdir().expect("folder");
    let mut unknown = graph();
    unknown.node[0].op_type = "Unheard".to_owned();
    let model = write(folder.path(), unknown);
    let error = open(EngineChoice::Ort).load(&model).err().expect("refused").to_string();
    for part in ["ort", "model.onnx", "Unheard"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn weights_outside_the_folder_are_refused_before_it_sees_them() {
    let folder = tempfile::tempdir().expect("folder");
    let inner = folder.path().join("model");
    std::fs::create_dir(&inner).expect("folder");
    std::fs::write(folder.path().join("secret"), [0; 64]).expect("secret");
    for location in ["../secret", "*/_ORT_MEM_ADDR_/*"] {
        let mut hostile = graph();
        hostile.initializer[0].external_data[0].value = location.to_owned();
        let model = write(&inner, hostile);
        for choice in [EngineChoice::Ort, EngineChoice::Tract] {
            let error = open(choice).load(&model).err().expect("refused");
            assert!(matches!(error, EngineError::ExternalData { .. }), "{error:?}");
        }
    }
}

#[cfg(unix)]
#[test]
fn weights_behind_the_links_of_a_download_cache_are_read() {
    let folder = tempfile::tempdir().expect("folder");
    let elsewhere = tempfile::tempdir().expect("folder");
    let model = write(folder.path(), graph());
    for name in ["model.onnx", "model.onnx_data"] {
        let (link, blob) = (folder.path().join(name), elsewhere.path().join(format!("0a1{name}")));
        std::fs::rename(&link, &blob).expect("moved");
        std::os::unix::fs::symlink(&blob, &link).expect("link");
    }
    for choice in [EngineChoice::Ort, EngineChoice::Tract] {
        let mut session = open(choice).load(&model).expect("loads");
        run(&mut *session, Array2::zeros((1, 3))).expect("runs");
    }
}

#[cfg(unix)]
#[test]
fn a_second_library_in_the_same_process_is_refused() {
    open(EngineChoice::Ort);
    let folder = tempfile::tempdir().expect("folder");
    let other = folder.path().join("libonnxruntime.so");
    std::os::unix::fs::symlink(absolute(&onnx_runtime()), &other).expect("link");
    let options =
        EngineOptions { library: Some(other.clone()), threads: None, ..EngineOptions::default() };
    let error = engine::open(EngineChoice::Auto, &options).err().expect("refused");
    assert!(matches!(error, EngineError::OtherLibraryInUse { .. }), "{error:?}");
    assert!(error.to_string().contains(&other.display().to_string()), "{error}");
}

#[cfg(unix)]
fn absolute(path: &Path) -> std::path::PathBuf {
    std::path::absolute(path).expect("absolute path")
}
