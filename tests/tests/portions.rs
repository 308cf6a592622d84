//! Products in portions of their rows, as the processor computes those of large pictures, against the graph as it
//! is written.

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use ndarray::{ArrayD, IxDyn};
use pixart_exporter::{
    Component, ExportOptions, export_component,
    random::{self, RandomWeights},
};
use pixart_runtime::{
    engine::{self, Engine, GraphWeights, Override, Session},
    tensor::Tensor,
};
use pixart_tests::{
    engines,
    errors::{assert_close, max_relative_error},
};

/// Heads of 64 numbers; with fewer than eight, no product of the feed-forward layers is large enough.
const HEADS: usize = 8;

/// Of the other sums in portions.
const ROUNDING: f64 = 1e-5;

fn values(count: usize) -> impl Iterator<Item = f32> {
    (0..count).map(|k| (k as f32 * 0.37).sin())
}

fn wave(shape: &[usize]) -> Tensor {
    let values = values(shape.iter().product()).collect();
    ArrayD::from_shape_vec(IxDyn(shape), values).expect("as many").into()
}

/// What two blocks take in, `height` and `width` in latent pixels.
fn inputs([batch, height, width]: [usize; 3]) -> [(&'static str, Tensor); 4] {
    [
        ("hidden_states", wave(&[batch, 4, height, width])),
        ("encoder_hidden_states", wave(&[batch, 8, 64])),
        ("encoder_attention_mask", ArrayD::<i64>::ones(vec![batch, 8]).into()),
        ("timestep", ArrayD::from_elem(vec![batch], 321.0f32).into()),
    ]
}

fn run(session: &mut dyn Session, inputs: &[(&str, Tensor)]) -> ArrayD<f32> {
    let inputs: Vec<_> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let (name, output) = session.run(&inputs).expect("a run").remove(0);
    output.into_f32(&name).expect("floats")
}

/// Two blocks of random weights in `folder`.
fn model(folder: &Path) -> PathBuf {
    let (source, output) = (folder.join("source"), folder.join("model"));
    let mut config = random::released_config(Component::Transformer, 64);
    for (field, number) in [
        ("num_layers", 2),
        ("num_attention_heads", HEADS),
        ("attention_head_dim", 64),
        ("cross_attention_dim", 64 * HEADS),
        ("caption_channels", 64),
    ] {
        config[field] = number.into();
    }
    fs::create_dir(&source).expect("a folder");
    fs::write(source.join("config.json"), config.to_string()).expect("written");
    let weights = RandomWeights::of(&source, Component::Transformer).expect("a configuration");
    weights.write(7, &mut |_, _| ControlFlow::Continue(())).expect("written");
    let options = ExportOptions::default();
    export_component(&source, Component::Transformer, &output, &options, &mut |_| {})
        .expect("exported");
    output.join("transformer/model.onnx")
}

/// Computes graphs as they are written.
fn plain(engine: &Arc<dyn Engine>) -> Arc<dyn Engine> {
    engine.plain(true).expect("ONNX Runtime has it")
}

/// On the processor, rows are counted and portions computed; the time of the Scan is that of what is in it.
fn assert_portions(engine: &dyn Engine, model: &Path, inputs: &[(&str, Tensor)]) {
    let inputs: Vec<_> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let shares = engine.time_shares(model, &inputs).expect("a run").expect("a profile");
    let ran = |name: &str| shares.times.keys().any(|(_, operator)| operator == name);
    assert_eq!(ran("ReduceProd"), engine.is_on_processor());
    assert!(!ran("Scan"));
}

#[test]
fn portions_of_the_rows_give_the_same_results() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model(folder.path());
    let engine = engines::ort();
    let mut expected = plain(&engine).load(&model).expect("a session");
    let mut found = engine.load(&model).expect("a session");
    let mut streamed = engine::stream(&engine, &model, None).expect("a session");
    // On two threads 2048 and 1800 rows are cut in two, 4096 in four; 1155 are odd, 2310 even once.
    for sides in [[2, 64, 64], [2, 72, 50], [4, 64, 64], [1, 70, 66], [2, 70, 66]] {
        let (inputs, case) = (inputs(sides), format!("{sides:?}"));
        let expected = run(expected.as_mut(), &inputs);
        assert_close(&case, &run(found.as_mut(), &inputs), &expected, ROUNDING);
        assert_close(&case, &run(streamed.as_mut(), &inputs), &expected, ROUNDING);
        assert_portions(engine.as_ref(), &model, &inputs);
    }
}

#[test]
fn other_weights_get_into_portions() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model(folder.path());
    // The first product of the feed-forward layers and its bias, which is so small that it lies in the graph.
    let weights = GraphWeights::open(&model).expect("a graph");
    let width = 64 * HEADS;
    let changed: Vec<Override> = weights
        .iter()
        .filter(|(_, weight)| weight.shape == [width, 4 * width] || weight.shape == [4 * width])
        .map(|(name, weight)| {
            let numbers = values(weight.shape.iter().product()).map(|value| 0.1 * value);
            let (dtype, shape) = (weight.dtype.clone(), weight.shape.clone());
            let data = numbers.flat_map(f32::to_le_bytes).collect();
            Override { name: name.to_owned(), dtype, shape, data }
        })
        .collect();
    assert_eq!(changed.len(), 4, "two in each block");
    let (engine, inputs) = (engines::ort(), inputs([2, 64, 64]));
    let run = |session: &mut dyn Session| run(session, &inputs);
    let before = run(plain(&engine).load(&model).expect("a session").as_mut());
    let expected = plain(&engine).load_with(&model, changed.clone()).expect("a session");
    let expected = run({ expected }.as_mut());
    assert!(max_relative_error("weights that count", &before, &expected) > 0.01);

    let mut found = engine.load_with(&model, changed.clone()).expect("a session");
    assert_close("whole", &run(found.as_mut()), &expected, ROUNDING);
    let some = move |names: &std::collections::HashSet<String>| {
        Ok(changed.iter().filter(|change| names.contains(&change.name)).cloned().collect())
    };
    let mut streamed = engine::stream(&engine, &model, Some(Box::new(some))).expect("a session");
    assert_close("streamed", &run(streamed.as_mut()), &expected, ROUNDING);
}

#[cfg(unix)]
#[test]
fn files_that_are_links_are_computed_in_portions_too() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().expect("a folder");
    let model = model(folder.path());
    let (engine, inputs) = (engines::ort(), inputs([2, 64, 64]));
    let expected = run(engine.load(&model).expect("a session").as_mut(), &inputs);
    // As download caches keep files.
    let blobs = folder.path().join("blobs");
    fs::create_dir(&blobs).expect("a folder");
    for (name, blob) in [("model.onnx", "0f00"), ("model.onnx_data", "1f00")] {
        let file = model.with_file_name(name);
        fs::rename(&file, blobs.join(blob)).expect("moved");
        symlink(Path::new("../../blobs").join(blob), file).expect("a link");
    }
    assert_portions(engine.as_ref(), &model, &inputs);
    let found = run(engine.load(&model).expect("a session").as_mut(), &inputs);
    assert_eq!(found, expected);
    let mut streamed = engine::stream(&engine, &model, None).expect("a session");
    assert_close("streamed", &run(streamed.as_mut(), &inputs), &expected, ROUNDING);
}
