//! tract on small graphs made here.

use std::path::Path;

use ndarray::{Array2, array};
use tract_linalg::multithread::Executor;

use self::graph::{graph, write};
use super::*;

#[path = "../../../tests/common/graph.rs"]
mod graph;

fn run(session: &mut dyn Session, x: Array2<f32>) -> Result<Tensor, EngineError> {
    let outputs = session.run(&[("x", &x.into())])?;
    let (name, y) = outputs.into_iter().next().expect("one output");
    assert_eq!(name, "y");
    Ok(y)
}

#[test]
fn a_symbolic_batch_runs_in_several_sizes_with_weights_beside_the_graph() {
    let folder = tempfile::tempdir().expect("folder");
    let model = write(folder.path(), graph());
    let mut session = TractEngine::new(2).load(&model).expect("loads");
    for batch in [1, 3, 2, 5, 4, 6, 1] {
        let x = Array2::from_elem((batch, 3), 2.0);
        let y = run(&mut *session, x).expect("runs").into_f32("y").expect("floats");
        assert_eq!(y.shape(), [batch, 2]);
        // Both columns of x · w are equal, so each probability is one half.
        for (found, expected) in y.iter().zip([10.5, 20.5].iter().cycle()) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }
    let y = run(&mut *session, array![[1.0, 0.0, 7.0]]).expect("runs");
    let e = 1f32.exp();
    let expected = [10.0 + e / (e + 1.0), 20.0 + 1.0 / (e + 1.0)];
    for (found, expected) in y.as_f32().expect("floats").iter().zip(expected) {
        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
    }
}

#[test]
fn a_graph_too_large_to_be_kept_is_read_again_for_another_shape() {
    let folder = tempfile::tempdir().expect("folder");
    let model = write(folder.path(), graph());
    let mut file = ModelFile::open(&model).expect("opens");
    let graph = weights::build(&mut file, &Replaced::default()).expect("builds");
    assert_eq!(graph.weight_bytes, 24);
    let source = Source { path: model.clone(), part: None, replaced: Replaced::default() };
    let mut plans = Plans::new(source, graph, Executor::SingleThread);
    plans.most_bytes_twice = 0;
    let inputs = &file.signature.inputs;
    for batch in [1, 2] {
        let plan = plans.get(inputs, vec![vec![batch, 3]]).expect("plans");
        let x = Tensor::from(Array2::<f32>::zeros((batch, 3)));
        let y = plan.run([copy_in(&x)].into_iter().collect()).expect("runs").remove(0);
        assert_eq!(y.shape(), [batch, 2]);
    }
    std::fs::remove_file(&model).expect("removed");
    plans.get(inputs, vec![vec![2, 3]]).expect("kept plans need no file");
    let error = plans.get(inputs, vec![vec![3, 3]]).expect_err("nothing to read");
    assert!(error.to_string().contains("model.onnx"), "{error}");
}

#[test]
fn a_wrong_input_is_an_error_with_file_name_and_shapes() {
    let folder = tempfile::tempdir().expect("folder");
    let model = write(folder.path(), graph());
    let mut session = TractEngine::new(1).load(&model).expect("loads");
    let error = run(&mut *session, Array2::zeros((1, 4))).expect_err("refused").to_string();
    for part in ["model.onnx", "\"x\"", "f32[1, 4]", "f32[batch_size, 3]"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_graph_that_cannot_work_is_an_error_that_names_the_node() {
    let folder = tempfile::tempdir().expect("folder");
    let mut wrong = graph();
    wrong.initializer[1].dims = vec![3];
    wrong.initializer[1].float_data.push(30.0);
    let model = write(folder.path(), wrong);
    let mut session = TractEngine::new(1).load(&model).expect("loads");
    let error = run(&mut *session, Array2::zeros((1, 3))).expect_err("refused").to_string();
    assert!(error.contains("node_y") && error.contains("x f32[1, 3]"), "{error}");
    // The session is still of use afterwards, if only to say the same again.
    run(&mut *session, Array2::zeros((1, 3))).expect_err("refused");

    let mut unknown = graph();
    unknown.node[0].op_type = "Unheard".to_owned();
    let model = write(folder.path(), unknown);
    let loaded = TractEngine::new(1).load(&model);
    let error = match loaded {
        Err(error) => error.to_string(),
        Ok(mut session) => {
            run(&mut *session, Array2::zeros((1, 3))).expect_err("refused").to_string()
        }
    };
    assert!(error.contains("node_product") && error.contains("Unheard"), "{error}");
}

#[test]
fn broken_files_are_errors_that_name_them() {
    let folder = tempfile::tempdir().expect("folder");
    let engine = TractEngine::new(1);
    let load = |path: &Path| engine.load(path).err().expect("refused").to_string();
    let path = folder.path().join("model.onnx");
    assert!(load(&path).contains("cannot read the model"), "{}", load(&path));
    std::fs::write(&path, "this is no graph").expect("file");
    assert!(load(&path).contains("not a usable ONNX model"), "{}", load(&path));
    let model = write(folder.path(), graph());
    std::fs::write(folder.path().join("model.onnx_data"), [0; 27]).expect("cut short");
    assert!(load(&model).contains("\"w\""), "{}", load(&model));
    assert!(load(&model).contains("cut short"), "{}", load(&model));
    std::fs::remove_file(folder.path().join("model.onnx_data")).expect("removed");
    assert!(load(&model).contains("model.onnx_data"), "{}", load(&model));
}

#[cfg(unix)]
#[test]
fn weights_behind_the_links_of_a_download_cache_are_read() {
    let folder = tempfile::tempdir().expect("folder");
    let model = write(folder.path(), graph());
    let data = folder.path().join("model.onnx_data");
    let elsewhere = tempfile::tempdir().expect("folder");
    let blob = elsewhere.path().join("0a1b2c");
    std::fs::rename(&data, &blob).expect("moved");
    std::os::unix::fs::symlink(&blob, &data).expect("link");
    let mut session = TractEngine::new(1).load(&model).expect("loads");
    run(&mut *session, Array2::zeros((1, 3))).expect("runs");
}

#[test]
fn the_version_is_the_one_that_is_built_in() {
    let lock = include_str!("../../../../Cargo.lock");
    let entry = format!("name = \"tract-onnx\"\nversion = \"{VERSION}\"");
    assert!(lock.contains(&entry), "the lock file has another version of tract-onnx");
}

#[test]
fn the_time_of_a_run_is_told_by_operator() {
    let folder = tempfile::tempdir().expect("folder");
    let model = write(folder.path(), graph());
    let x = Tensor::from(Array2::<f32>::ones((4, 3)));
    let engine = TractEngine::new(2);
    let shares = engine.time_shares(&model, &[("x", &x)]).expect("runs").expect("told");
    assert!((shares.of("tract") - 1.0).abs() < 1e-9, "{shares:?}");
    let softmax = shares.times.get(&("tract".to_owned(), "Softmax".to_owned()));
    assert!(softmax.is_some_and(|seconds| *seconds > 0.0), "{shares:?}");
    let error = engine.time_shares(&model, &[]).expect_err("no input").to_string();
    assert!(error.contains("\"x\""), "{error}");
}
