//! For tests: runs a graph whose constants are all inline with tract.

use prost::Message;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use tract_onnx::prelude::*;

use super::ir::{Attribute, DType, Graph, ValueInfo, WeightData};

/// Runs the graph on inputs given in order; the result is the first output. Weights of the
/// checkpoint are asked for by name, in the checkpoint's own layout.
pub(crate) fn run(
    graph: &Graph,
    weights: &dyn Fn(&str) -> Vec<f32>,
    inputs: &[Tensor],
) -> (Vec<usize>, Vec<f32>) {
    let bytes = ModelProto {
        ir_version: 10,
        opset_import: graph
            .opset_imports
            .iter()
            .map(|set| OperatorSetIdProto { domain: set.domain.clone(), version: set.version })
            .collect(),
        graph: Some(graph_proto(graph, weights)),
        ..Default::default()
    }
    .encode_to_vec();
    // With the sizes of this run, as the runtime does it: tract cannot prove that symbolic element
    // counts agree, and folds all arithmetic on sizes when they are known.
    let mut model = onnx().model_for_read(&mut bytes.as_slice()).unwrap();
    for (index, input) in inputs.iter().enumerate() {
        let fact = InferenceFact::dt_shape(input.datum_type(), input.shape());
        model.set_input_fact(index, fact).unwrap();
    }
    for index in 0..graph.outputs.len() {
        model.set_output_fact(index, InferenceFact::default()).unwrap();
    }
    let model = model.into_optimized().unwrap();
    let inputs = inputs.iter().map(|input| input.clone().into_tvalue()).collect();
    let output = model.into_runnable().unwrap().run(inputs).unwrap().remove(0).into_tensor();
    let output = output.cast_to::<f32>().unwrap();
    (
        output.shape().to_vec(),
        output.to_plain_array_view::<f32>().unwrap().iter().copied().collect(),
    )
}

/// A float tensor.
pub(crate) fn floats(shape: &[usize], data: &[f32]) -> Tensor {
    Tensor::from_shape(shape, data).unwrap()
}

/// An integer tensor.
pub(crate) fn integers(shape: &[usize], data: &[i64]) -> Tensor {
    Tensor::from_shape(shape, data).unwrap()
}

/// `count` reproducible numbers in `-1..1`.
pub(crate) fn noise(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn graph_proto(graph: &Graph, weights: &dyn Fn(&str) -> Vec<f32>) -> GraphProto {
    let initializer = |initializer: &super::ir::Initializer| {
        let raw_data = match &initializer.data {
            WeightData::Inline(data) => data.clone(),
            WeightData::Checkpoint(weight) => {
                let data = weights(&weight.tensor);
                assert_eq!(data.len(), weight.shape.iter().product::<usize>(), "{weight:?}");
                let data = match weight.transform {
                    super::ir::Transform::Transpose2d => {
                        let (rows, columns) = (weight.shape[0], weight.shape[1]);
                        (0..data.len()).map(|i| data[i % rows * columns + i / rows]).collect()
                    }
                    _ => data,
                };
                data.iter().flat_map(|x| x.to_le_bytes()).collect()
            }
        };
        TensorProto {
            name: initializer.name.clone(),
            data_type: element_type(initializer.dtype),
            dims: initializer.shape.iter().map(|&n| n as i64).collect(),
            raw_data,
            ..Default::default()
        }
    };
    let node = |node: &super::ir::Node| NodeProto {
        name: node.name.clone(),
        op_type: node.op_type.clone(),
        domain: node.domain.clone(),
        input: node.inputs.clone(),
        output: node.outputs.clone(),
        attribute: node.attributes.iter().map(attribute).collect(),
        ..Default::default()
    };
    GraphProto {
        name: graph.name.clone(),
        node: graph.nodes.iter().map(node).collect(),
        input: graph.inputs.iter().map(value_info).collect(),
        output: graph.outputs.iter().map(value_info).collect(),
        initializer: graph.initializers.iter().map(initializer).collect(),
        ..Default::default()
    }
}

fn attribute((name, value): &(String, Attribute)) -> AttributeProto {
    let mut proto = AttributeProto { name: name.clone(), ..Default::default() };
    let kind = match value {
        Attribute::Int(value) => {
            proto.i = *value;
            AttributeType::Int
        }
        Attribute::Float(value) => {
            proto.f = *value;
            AttributeType::Float
        }
        Attribute::String(value) => {
            proto.s = value.clone().into_bytes();
            AttributeType::String
        }
        Attribute::Ints(value) => {
            proto.ints.clone_from(value);
            AttributeType::Ints
        }
        Attribute::Floats(value) => {
            proto.floats.clone_from(value);
            AttributeType::Floats
        }
        Attribute::Graph(value) => {
            // As the writer does it: sizes of a body that are not constant stay open.
            let mut body = graph_proto(value, &|_| Vec::new());
            for info in body.input.iter_mut().chain(&mut body.output) {
                if let Some(type_proto::Value::TensorType(tensor)) =
                    info.r#type.as_mut().and_then(|kind| kind.value.as_mut())
                {
                    tensor.shape = None;
                }
            }
            proto.g = Some(body);
            AttributeType::Graph
        }
    };
    proto.r#type = kind as i32;
    proto
}

fn value_info(value: &ValueInfo) -> ValueInfoProto {
    let dimension = |dim: &super::dim::Dim| Dimension {
        value: Some(match dim.as_const() {
            Some(size) => dimension::Value::DimValue(size),
            None => dimension::Value::DimParam(dim.to_string()),
        }),
        ..Default::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: element_type(value.dtype),
        shape: Some(TensorShapeProto { dim: value.shape.iter().map(dimension).collect() }),
    };
    ValueInfoProto {
        name: value.name.clone(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn element_type(dtype: DType) -> i32 {
    match dtype {
        DType::F32 => 1,
        DType::I64 => 7,
        DType::Bool => 9,
    }
}
