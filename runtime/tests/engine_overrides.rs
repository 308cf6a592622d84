//! Other weights in place of a graph's own, on both engines. Needs ONNX Runtime; see
//! `common::onnx_runtime`.

mod common;

use std::{path::Path, sync::Arc};

use common::{
    graph::{graph, write},
    onnx_runtime,
};
use half::{bf16, f16};
use ndarray::{Array2, array};
use pixart_runtime::engine::{
    self, Engine, EngineChoice, EngineError, EngineOptions, GraphWeights, Layout, Override,
    WeightType,
};
use tract_onnx::pb::{
    AttributeProto, GraphProto, NodeProto, attribute_proto::AttributeType, tensor_proto::DataType,
};

fn engines() -> [Arc<dyn Engine>; 2] {
    [EngineChoice::Ort, EngineChoice::Tract].map(|choice| {
        let library = (choice == EngineChoice::Ort).then(onnx_runtime);
        let options = EngineOptions { library, threads: Some(2), ..EngineOptions::default() };
        engine::open(choice, &options).expect("the engine opens").engine
    })
}

/// `softmax(x · w) + b` of the row (1, 0, 7).
fn run(
    engine: &dyn Engine,
    model: &Path,
    overrides: Vec<Override>,
) -> Result<Array2<f32>, EngineError> {
    let mut session = engine.load_with(model, overrides)?;
    let x = array![[1.0f32, 0.0, 7.0]].into();
    let mut outputs = session.run(&[("x", &x)])?;
    let y = outputs.remove(0).1.into_f32("y")?;
    Ok(y.into_dimensionality().expect("two axes"))
}

fn close(engine: &dyn Engine, found: &Array2<f32>, logits: [f32; 2], bias: [f32; 2]) {
    let [a, b] = logits.map(f32::exp);
    let expected = array![[bias[0] + a / (a + b), bias[1] + b / (a + b)]];
    let near = (found - &expected).iter().all(|error| error.abs() < 1e-5);
    assert!(near, "{}: {found} {expected}", engine.name());
}

fn new(name: &str, dtype: WeightType, shape: &[usize], data: Vec<u8>) -> Override {
    Override { name: name.to_owned(), dtype, shape: shape.to_vec(), data }
}

const W: [f32; 6] = [0.5, -0.25, 9.0, 9.0, 0.125, 0.25];
/// (1, 0, 7) · W.
const LOGITS: [f32; 2] = [1.375, 1.5];

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn weights_beside_the_graph_and_in_it_are_replaced() {
    let folder = tempfile::tempdir().expect("folder");
    let model = write(folder.path(), graph());
    let files = || {
        ["model.onnx", "model.onnx_data"]
            .map(|name| std::fs::read(folder.path().join(name)).expect("a file"))
    };
    let before = files();
    for engine in engines() {
        let w = || new("w", WeightType::F32, &[3, 2], bytes(&W));
        let b = || new("b", WeightType::F32, &[2], bytes(&[-1.0, -2.0]));
        let plain = run(&*engine, &model, Vec::new()).expect("runs");
        close(&*engine, &plain, [1.0, 0.0], [10.0, 20.0]);
        close(&*engine, &run(&*engine, &model, vec![w()]).expect("runs"), LOGITS, [10.0, 20.0]);
        close(&*engine, &run(&*engine, &model, vec![b()]).expect("runs"), [1.0, 0.0], [-1.0, -2.0]);
        close(
            &*engine,
            &run(&*engine, &model, vec![b(), w()]).expect("runs"),
            LOGITS,
            [-1.0, -2.0],
        );
    }
    assert!(before == files(), "the files were changed");
}

/// The graph with `w` in 16 bits, converted before it is used.
fn narrow(dtype: DataType) -> GraphProto {
    let mut graph = graph();
    let w = &mut graph.initializer[0];
    w.data_type = dtype as i32;
    w.external_data[2].value = "12".to_owned();
    let to = AttributeProto {
        name: "to".to_owned(),
        r#type: AttributeType::Int as i32,
        i: i64::from(DataType::Float as i32),
        ..Default::default()
    };
    let cast = NodeProto {
        op_type: "Cast".to_owned(),
        name: "widen".to_owned(),
        input: vec!["w".to_owned()],
        output: vec!["wide".to_owned()],
        attribute: vec![to],
        ..Default::default()
    };
    graph.node[0].input[1] = "wide".to_owned();
    graph.node.insert(0, cast);
    graph
}

#[test]
fn weights_in_16_bits_are_replaced() {
    let narrow_bytes = |dtype: &WeightType| -> Vec<u8> {
        W.iter()
            .flat_map(|&x| match dtype {
                WeightType::F16 => f16::from_f32(x).to_le_bytes(),
                _ => bf16::from_f32(x).to_le_bytes(),
            })
            .collect()
    };
    for (stored, dtype) in
        [(DataType::Float16, WeightType::F16), (DataType::Bfloat16, WeightType::Bf16)]
    {
        let folder = tempfile::tempdir().expect("folder");
        let model = write(folder.path(), narrow(stored));
        let weights = GraphWeights::open(&model).expect("opens");
        let w = weights.get("w").expect("there");
        assert_eq!((&w.dtype, &w.shape[..], w.layout), (&dtype, &[3, 2][..], Layout::InputsFirst));
        for engine in engines() {
            // tract has no bf16; how its graphs get read there is not the matter here.
            if dtype == WeightType::Bf16 && engine.name() == "tract" {
                continue;
            }
            let w = new("w", dtype.clone(), &[3, 2], narrow_bytes(&dtype));
            let found = run(&*engine, &model, vec![w]).expect("runs");
            close(&*engine, &found, LOGITS, [10.0, 20.0]);
        }
    }
}

#[test]
fn what_does_not_fit_the_graph_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let model = write(folder.path(), graph());
    for engine in engines() {
        for (new, said) in [
            (new("v", WeightType::F32, &[3, 2], bytes(&W)), "no initializer of this name"),
            (new("w", WeightType::F32, &[2, 3], bytes(&W)), "found fp32 [2, 3], expected"),
            (new("w", WeightType::F16, &[3, 2], vec![0; 12]), "found fp16 [3, 2], expected"),
            (new("w", WeightType::F32, &[3, 2], vec![0; 12]), "12 bytes"),
        ] {
            let error = run(&*engine, &model, vec![new]).expect_err(said).to_string();
            assert!(error.contains(said) && error.contains("model.onnx"), "{error}");
        }
    }
}

#[test]
fn weights_are_listed_and_read() {
    let folder = tempfile::tempdir().expect("folder");
    let model = write(folder.path(), graph());
    let weights = GraphWeights::open(&model).expect("opens");
    assert_eq!(weights.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["b", "w"]);
    assert_eq!(weights.get("b").expect("there").layout, Layout::Other);
    assert_eq!(weights.read("w").expect("read"), bytes(&[1.0, 0.0, 0.0, 1.0, 0.0, 0.0]));
    assert_eq!(weights.read("b").expect("read"), bytes(&[10.0, 20.0]));
    weights.read("v").expect_err("not there");
    std::fs::remove_file(folder.path().join("model.onnx_data")).expect("removed");
    let error = weights.read("w").expect_err("gone").to_string();
    assert!(error.contains("model.onnx_data"), "{error}");
}
