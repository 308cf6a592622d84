//! Products in portions of their rows, as the processor computes those of large pictures, against the graph as it
//! is written.

use std::{fs, ops::ControlFlow};

use ndarray::{ArrayD, IxDyn};
use pixart_exporter::{
    Component, ExportOptions, export_component,
    random::{self, RandomWeights},
};
use pixart_runtime::{
    engine::{self, Session},
    tensor::Tensor,
};
use pixart_tests::{engines, errors::assert_close};

/// Heads of 64 numbers; with fewer than eight, no product of the feed-forward layers is large enough.
const HEADS: usize = 8;

fn wave(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values = (0..count).map(|k| (k as f32 * 0.37).sin()).collect();
    ArrayD::from_shape_vec(IxDyn(shape), values).expect("as many").into()
}

fn run(session: &mut dyn Session, inputs: &[(&str, Tensor)]) -> ArrayD<f32> {
    let inputs: Vec<_> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let (name, output) = session.run(&inputs).expect("a run").remove(0);
    output.into_f32(&name).expect("floats")
}

#[test]
fn portions_of_the_rows_give_the_same_results() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, output) = (folder.path().join("source"), folder.path().join("model"));
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
    let model = output.join("transformer/model.onnx");

    let engine = engines::ort();
    let plain = engine.plain(true).expect("ONNX Runtime has it");
    let mut expected = plain.load(&model).expect("a session");
    let mut found = engine.load(&model).expect("a session");
    let mut streamed = engine::stream(&engine, &model, None).expect("a session");
    // 2048 and 1800 rows are cut in two, 4096 in four; 1155 and 2310 are odd or cut once only.
    for (batch, height, width) in [(2, 64, 64), (2, 72, 50), (4, 64, 64), (1, 70, 66), (2, 70, 66)]
    {
        let case = format!("{batch} x {height} x {width}");
        let inputs = [
            ("hidden_states", wave(&[batch, 4, height, width])),
            ("encoder_hidden_states", wave(&[batch, 8, 64])),
            ("encoder_attention_mask", ArrayD::<i64>::ones(vec![batch, 8]).into()),
            ("timestep", ArrayD::from_elem(vec![batch], 321.0f32).into()),
        ];
        let expected = run(expected.as_mut(), &inputs);
        assert_close(&case, &run(found.as_mut(), &inputs), &expected, 1e-5);
        assert_close(&case, &run(streamed.as_mut(), &inputs), &expected, 1e-5);
        let described: Vec<_> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let shares = engine.time_shares(&model, &described).expect("a run").expect("a profile");
        // The rows are counted on the processor only, and the Scan's own time is that of what is in it.
        let ran = |name: &str| shares.times.keys().any(|(_, operator)| operator == name);
        assert_eq!(ran("ReduceProd"), engine.is_on_processor(), "{case}");
        assert!(!ran("Scan"), "{case}");
    }
}
