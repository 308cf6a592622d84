//! The graph as an ONNX protobuf message.

use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataLocation;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

use super::layout::Place;
use super::{DATA_FILE, WriteError};
use crate::graph::ir::{Attribute, Graph, Initializer, Node, ValueInfo, WeightData};

/// A complete model. `places` and `inline` are by position in the graph's initializers; `inline`
/// holds the elements of those that come from the checkpoint and stay in the graph.
pub(crate) fn model(
    graph: &Graph,
    places: &[Place],
    inline: &mut [Option<Vec<u8>>],
) -> Result<ModelProto, WriteError> {
    let mut proto = body(graph)?;
    for (index, initializer) in graph.initializers.iter().enumerate() {
        let mut tensor = tensor_header(initializer);
        match (places[index], &initializer.data) {
            (Place::External { offset, length }, _) => {
                tensor.data_location = Some(DataLocation::External as i32);
                tensor.external_data = vec![
                    entry("location", DATA_FILE.to_owned()),
                    entry("offset", offset.to_string()),
                    entry("length", length.to_string()),
                ];
            }
            (Place::Inline, WeightData::Inline(data)) => tensor.raw_data = data.clone(),
            (Place::Inline, WeightData::Checkpoint(_)) => {
                tensor.raw_data = inline[index].take().ok_or_else(|| WriteError::Inconsistent {
                    initializer: initializer.name.clone(),
                    reason: "its elements were not read".to_owned(),
                })?;
            }
        }
        proto.initializer.push(tensor);
    }
    Ok(ModelProto {
        ir_version: graph.ir_version,
        producer_name: env!("CARGO_PKG_NAME").to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        opset_import: graph
            .opset_imports
            .iter()
            .map(|set| OperatorSetIdProto { domain: set.domain.clone(), version: set.version })
            .collect(),
        graph: Some(proto),
        ..Default::default()
    })
}

/// A graph without its initializers.
fn body(graph: &Graph) -> Result<GraphProto, WriteError> {
    Ok(GraphProto {
        name: graph.name.clone(),
        node: graph.nodes.iter().map(node).collect::<Result<_, _>>()?,
        input: graph.inputs.iter().map(value_info).collect(),
        output: graph.outputs.iter().map(value_info).collect(),
        ..Default::default()
    })
}

/// The body of a control-flow node, with its constants. Those are always small and inline.
fn nested(graph: &Graph) -> Result<GraphProto, WriteError> {
    let mut proto = body(graph)?;
    proto.input.iter_mut().chain(&mut proto.output).for_each(forget_symbols);
    for initializer in &graph.initializers {
        let WeightData::Inline(data) = &initializer.data else {
            return Err(WriteError::Inconsistent {
                initializer: initializer.name.clone(),
                reason: "a weight inside the body of a control-flow node".to_owned(),
            });
        };
        proto
            .initializer
            .push(TensorProto { raw_data: data.clone(), ..tensor_header(initializer) });
    }
    Ok(proto)
}

/// Leaves the sizes of a body's inputs and outputs open, except those that are constant: an engine
/// that is told the sizes of a run puts them in place of the symbols in the outer graph only.
fn forget_symbols(value: &mut ValueInfoProto) {
    if let Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), .. }) =
        &mut value.r#type
        && let Some(shape) = &mut tensor.shape
    {
        for dim in &mut shape.dim {
            dim.value.take_if(|value| matches!(value, dimension::Value::DimParam(_)));
        }
    }
}

fn tensor_header(initializer: &Initializer) -> TensorProto {
    TensorProto {
        name: initializer.name.clone(),
        dims: initializer.shape.iter().map(|&dim| dim as i64).collect(),
        data_type: initializer.dtype.onnx(),
        ..Default::default()
    }
}

fn node(node: &Node) -> Result<NodeProto, WriteError> {
    Ok(NodeProto {
        name: node.name.clone(),
        op_type: node.op_type.clone(),
        domain: node.domain.clone(),
        input: node.inputs.clone(),
        output: node.outputs.clone(),
        attribute: node.attributes.iter().map(attribute).collect::<Result<_, _>>()?,
        ..Default::default()
    })
}

fn attribute((name, value): &(String, Attribute)) -> Result<AttributeProto, WriteError> {
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
        Attribute::Ints(values) => {
            proto.ints = values.clone();
            AttributeType::Ints
        }
        Attribute::Floats(values) => {
            proto.floats = values.clone();
            AttributeType::Floats
        }
        Attribute::Graph(graph) => {
            proto.g = Some(nested(graph)?);
            AttributeType::Graph
        }
    };
    proto.set_type(kind);
    Ok(proto)
}

fn value_info(value: &ValueInfo) -> ValueInfoProto {
    let dim = |dim: &crate::graph::dim::Dim| Dimension {
        value: Some(match dim.as_const() {
            Some(size) => dimension::Value::DimValue(size),
            None => dimension::Value::DimParam(dim.to_string()),
        }),
        ..Default::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: value.dtype.onnx(),
        shape: Some(TensorShapeProto { dim: value.shape.iter().map(dim).collect() }),
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

fn entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto { key: key.to_owned(), value }
}
