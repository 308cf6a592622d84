//! A small graph for tests of the engines: `y = softmax(x · w) + b` with `x` (batch × 3).

use std::path::{Path, PathBuf};

use prost::Message as _;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType,
    tensor_proto::{DataLocation, DataType},
    tensor_shape_proto::{Dimension, dimension::Value},
    type_proto,
};

fn value(name: &str, dims: &[&str]) -> ValueInfoProto {
    let dim = |text: &&str| Dimension {
        value: Some(match text.parse() {
            Ok(size) => Value::DimValue(size),
            Err(_) => Value::DimParam((*text).to_owned()),
        }),
        ..Default::default()
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let kind = type_proto::Tensor { elem_type: DataType::Float as i32, shape: Some(shape) };
    let kind = Some(type_proto::Value::TensorType(kind));
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto { value: kind, ..Default::default() }),
        ..Default::default()
    }
}

/// A node with one output, named after it.
pub fn node(op_type: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: op_type.to_owned(),
        name: format!("node_{output}"),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.to_owned()],
        ..Default::default()
    }
}

/// Any batch, with `w` (3 × 2) beside the graph and `b` inline.
pub fn graph() -> GraphProto {
    let mut softmax = node("Softmax", &["product"], "probability");
    softmax.attribute.push(AttributeProto {
        name: "axis".to_owned(),
        r#type: AttributeType::Int as i32,
        i: -1,
        ..Default::default()
    });
    let entry = |key: &str, value: &str| StringStringEntryProto {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let weight = TensorProto {
        name: "w".to_owned(),
        data_type: DataType::Float as i32,
        dims: vec![3, 2],
        data_location: Some(DataLocation::External as i32),
        external_data: vec![
            entry("location", "model.onnx_data"),
            entry("offset", "4"),
            entry("length", "24"),
        ],
        ..Default::default()
    };
    let bias = TensorProto {
        name: "b".to_owned(),
        data_type: DataType::Float as i32,
        dims: vec![2],
        float_data: vec![10.0, 20.0],
        ..Default::default()
    };
    GraphProto {
        node: vec![
            node("MatMul", &["x", "w"], "product"),
            softmax,
            node("Add", &["probability", "b"], "y"),
        ],
        initializer: vec![weight, bias],
        input: vec![value("x", &["batch_size", "3"])],
        output: vec![value("y", &["batch_size", "2"])],
        value_info: vec![value("product", &["batch_size", "2"])],
        ..Default::default()
    }
}

/// Writes `graph` as `model.onnx` into `folder`, with its weights beside it.
pub fn write(folder: &Path, graph: GraphProto) -> PathBuf {
    let model = ModelProto {
        ir_version: 10,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 21 }],
        graph: Some(graph),
        ..Default::default()
    };
    let path = folder.join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).expect("model");
    let weights = [99.0f32, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0];
    let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
    std::fs::write(folder.join("model.onnx_data"), bytes).expect("data");
    path
}
