//! Damaged and hostile graphs through both engines: an error that names the file, nothing worse.
//! Needs ONNX Runtime; see `common::onnx_runtime`.

mod common;

use std::{path::Path, sync::Arc};

use common::{
    graph::{graph, node, write},
    onnx_runtime,
};
use ndarray::Array2;
use pixart_runtime::{
    engine::{self, Engine, EngineChoice, EngineError, EngineOptions, check_model},
    tensor::Tensor,
};
use prost::Message as _;
use tract_onnx::pb::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    TensorProto, attribute_proto::AttributeType, tensor_proto::DataType,
    tensor_shape_proto::dimension::Value, type_proto,
};

fn engines() -> [Arc<dyn Engine>; 2] {
    [EngineChoice::Ort, EngineChoice::Tract].map(|choice| {
        let library = (choice == EngineChoice::Ort).then(onnx_runtime);
        let options = EngineOptions { library, threads: Some(2), ..EngineOptions::default() };
        engine::open(choice, &options).expect("the engine opens").engine
    })
}

/// Loads the model and, if that works, runs it; the error has the file's name.
fn refused(engine: &dyn Engine, model: &Path) -> EngineError {
    let input = Tensor::from(Array2::<f32>::zeros((1, 3)));
    let error = match engine.load(model) {
        Err(error) => error,
        Ok(mut session) => session.run(&[("x", &input)]).map(drop).expect_err(&format!(
            "{} accepts {}",
            engine.name(),
            model.display()
        )),
    };
    assert!(error.to_string().contains("model.onnx"), "{error}");
    error
}

fn refused_by_both(what: &str, graph: GraphProto) {
    let folder = tempfile::tempdir().expect("folder");
    let model = write(folder.path(), graph);
    for engine in engines() {
        let error = refused(&*engine, &model);
        println!("{what}: {error}");
    }
}

#[test]
fn a_graph_cut_short_at_any_byte_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let model = write(folder.path(), graph());
    let bytes = std::fs::read(&model).expect("model");
    check_model(&model, &bytes).expect("the whole is accepted");
    for length in 0..bytes.len() {
        check_model(&model, &bytes[..length]).expect_err("cut short");
    }
    for length in [0, 1, 2, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&model, &bytes[..length]).expect("written");
        for engine in engines() {
            refused(&*engine, &model);
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_is_no_more_than_an_error() {
    let folder = tempfile::tempdir().expect("folder");
    let model = write(folder.path(), graph());
    let bytes = std::fs::read(&model).expect("model");
    let mut refused = 0;
    for at in 0..8 * bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at / 8] ^= 1 << (at % 8);
        refused += usize::from(check_model(&model, &damaged).is_err());
    }
    assert!(refused > bytes.len(), "{refused} of {} were refused", 8 * bytes.len());
}

#[test]
fn what_is_no_file_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().expect("folder");
    let model = folder.path().join("model.onnx");
    std::fs::create_dir(&model).expect("folder");
    for engine in engines() {
        refused(&*engine, &model);
    }
    #[cfg(unix)]
    for target in ["/dev/zero", "model.onnx"] {
        let _ = std::fs::remove_dir(&model);
        let _ = std::fs::remove_file(&model);
        std::os::unix::fs::symlink(target, &model).expect("link");
        for engine in engines() {
            refused(&*engine, &model);
        }
    }
}

#[test]
fn values_that_nothing_makes_or_that_make_themselves_are_refused() {
    let mut missing = graph();
    missing.node[0].input[0] = "nothing".to_owned();
    refused_by_both("an input that nothing makes", missing);

    let mut circle = graph();
    circle.node[0].input[0] = "y".to_owned();
    refused_by_both("a circle of nodes", circle);

    let mut twice = graph();
    let again = twice.node[2].clone();
    twice.node.push(again);
    refused_by_both("a value that is made twice", twice);

    let mut output = graph();
    output.output[0].name = "z".to_owned();
    refused_by_both("an output that nothing makes", output);
}

#[test]
fn shapes_that_nothing_fills_are_refused_without_reserving_memory() {
    let tensor = |dims: &[i64]| TensorProto {
        name: "b".to_owned(),
        data_type: DataType::Float as i32,
        dims: dims.to_vec(),
        raw_data: vec![0; 8],
        ..Default::default()
    };
    for dims in [&[1i64 << 40][..], &[i64::MAX, 2], &[-2], &[1 << 31, 1 << 31, 1 << 31], &[3]] {
        let mut huge = graph();
        huge.initializer[1] = tensor(dims);
        refused_by_both("an initializer", huge);

        let mut constant = graph();
        constant.initializer.remove(1);
        let mut node = node("Constant", &[], "b");
        node.attribute.push(AttributeProto {
            name: "value".to_owned(),
            r#type: AttributeType::Tensor as i32,
            t: Some(tensor(dims)),
            ..Default::default()
        });
        constant.node.insert(0, node);
        refused_by_both("a constant", constant);

        let mut external = graph();
        external.initializer[0].dims = dims.to_vec();
        refused_by_both("external data", external);
    }
}

#[test]
fn an_input_of_impossible_size_is_refused_when_it_is_given() {
    for size in [i64::MAX, 1 << 40, -5] {
        let mut huge = graph();
        let Some(type_proto::Value::TensorType(kind)) =
            huge.input[0].r#type.as_mut().and_then(|kind| kind.value.as_mut())
        else {
            panic!("the input is a tensor");
        };
        let dims = &mut kind.shape.as_mut().expect("a shape").dim;
        dims[0].value = Some(Value::DimValue(size));
        let folder = tempfile::tempdir().expect("folder");
        let model = write(folder.path(), huge);
        for engine in engines() {
            let input = Tensor::from(Array2::<f32>::zeros((1, 3)));
            // A negative size is as good as none; nothing is reserved for the others.
            match engine.load(&model).and_then(|mut session| session.run(&[("x", &input)])) {
                Err(error) => assert!(error.to_string().contains("model.onnx"), "{error}"),
                Ok(outputs) => assert!(size < 0 && outputs.len() == 1),
            }
        }
    }
}

/// `depth` graphs inside one another, the innermost with `inner` as its only initializer.
fn nested(depth: usize, inner: TensorProto) -> GraphProto {
    let mut body = GraphProto { initializer: vec![inner], ..Default::default() };
    for _ in 0..depth {
        let mut node = node("If", &["x"], "inner");
        node.attribute.push(AttributeProto {
            name: "then_branch".to_owned(),
            r#type: AttributeType::Graph as i32,
            g: Some(body),
            ..Default::default()
        });
        body = GraphProto { node: vec![node], ..Default::default() };
    }
    let mut outer = graph();
    outer.node.splice(0..0, body.node);
    outer
}

#[test]
fn graphs_nested_deeply_are_refused_and_what_they_hide_is_found() {
    let inner = graph().initializer.remove(0);
    for depth in [5, 25, 40, 500] {
        refused_by_both("nested graphs", nested(depth, inner.clone()));
    }
    let mut hidden = inner;
    hidden.external_data[0].value = "../secret".to_owned();
    let folder = tempfile::tempdir().expect("folder");
    let model = write(folder.path(), nested(25, hidden));
    for engine in engines() {
        let error = engine.load(&model).err().expect("refused");
        assert!(matches!(error, EngineError::ExternalData { .. }), "{error}");
    }
}

#[test]
fn a_function_that_calls_itself_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let path = write(folder.path(), graph());
    let mut model =
        ModelProto::decode(std::fs::read(&path).expect("model").as_slice()).expect("ok");
    let call = |name: &str, input: &str, output: &str| NodeProto {
        domain: "own".to_owned(),
        ..node(name, &[input], output)
    };
    let function = |name: &str, calls: &str| FunctionProto {
        name: Some(name.to_owned()),
        domain: Some("own".to_owned()),
        input: vec!["a".to_owned()],
        output: vec!["b".to_owned()],
        node: vec![call(calls, "a", "b")],
        opset_import: vec![
            OperatorSetIdProto { domain: String::new(), version: 21 },
            OperatorSetIdProto { domain: "own".to_owned(), version: 1 },
        ],
        ..Default::default()
    };
    model.functions = vec![function("F", "G"), function("G", "F")];
    model.opset_import.push(OperatorSetIdProto { domain: "own".to_owned(), version: 1 });
    let graph = model.graph.as_mut().expect("a graph");
    graph.node[0].input[0] = "called".to_owned();
    graph.node.insert(0, call("F", "x", "called"));
    std::fs::write(&path, model.encode_to_vec()).expect("written");
    for engine in engines() {
        refused(&*engine, &path);
    }
}

#[test]
fn versions_from_the_future_are_refused() {
    for (ir, opset) in [(10, i64::MAX), (10, 0), (i64::MAX, 21)] {
        let folder = tempfile::tempdir().expect("folder");
        let path = write(folder.path(), graph());
        let bytes = std::fs::read(&path).expect("model");
        let mut model = ModelProto::decode(bytes.as_slice()).expect("decodes");
        model.ir_version = ir;
        model.opset_import[0].version = opset;
        std::fs::write(&path, model.encode_to_vec()).expect("written");
        let [ort, tract] = engines();
        refused(&*ort, &path);
        // tract reads operators of any version as it knows them.
        let input = Tensor::from(Array2::<f32>::zeros((1, 3)));
        let _ = tract.load(&path).and_then(|mut session| session.run(&[("x", &input)]));
    }
}

#[test]
fn names_in_a_file_cannot_control_the_terminal() {
    const NAME: &str = "\u{1b}[2Jx\n";
    let mut tensor = graph();
    tensor.initializer[0].name = NAME.to_owned();
    tensor.initializer[0].external_data[0].value = "../secret".to_owned();
    tensor.node[0].input[1] = NAME.to_owned();
    let mut location = graph();
    location.initializer[0].external_data[0].value = NAME.to_owned();
    let mut input = graph();
    input.input[0].r#type = None;
    input.input[0].name = NAME.to_owned();
    input.node[0].input[0] = NAME.to_owned();
    for hostile in [tensor, location, input] {
        let folder = tempfile::tempdir().expect("folder");
        let path = write(folder.path(), hostile);
        let bytes = std::fs::read(&path).expect("model");
        let message = check_model(&path, &bytes).expect_err("refused").to_string();
        assert!(!message.contains(char::is_control) && message.contains("[2Jx"), "{message:?}");
    }
}
