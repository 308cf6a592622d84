//! The element types of the values in a graph.
//!
//! Exports say them of inputs, outputs and weights only; those in between follow from the operators. Known
//! are the operators of exports. What is unknown is taken for an operator that keeps the type of its first
//! input, as nearly all do; where that is wrong, no engine takes a stretch cut there.

use std::collections::HashMap;

use tract_onnx::pb::{GraphProto, NodeProto, ValueInfoProto, tensor_proto::DataType, type_proto};

use super::weights::WeightType;

/// Types by the names of values.
pub(super) type ValueTypes<'a> = HashMap<&'a str, DataType>;

/// The types of all values of `graph`, as far as its inputs and weights have known ones.
pub(super) fn of(graph: &GraphProto) -> ValueTypes<'_> {
    let mut types: ValueTypes<'_> =
        graph.input.iter().filter_map(|info| Some((info.name.as_str(), declared(info)?))).collect();
    types.extend(graph.initializer.iter().filter_map(|tensor| {
        Some((tensor.name.as_str(), DataType::try_from(tensor.data_type).ok()?))
    }));
    for node in &graph.node {
        for (place, output) in node.output.iter().enumerate() {
            if let Some(dtype) = result(node, place, &types) {
                types.insert(output, dtype);
            }
        }
    }
    types
}

fn declared(info: &ValueInfoProto) -> Option<DataType> {
    let type_proto::Value::TensorType(tensor) = info.r#type.as_ref()?.value.as_ref()?;
    DataType::try_from(tensor.elem_type).ok()
}

/// The type of a node's result at this place.
fn result(node: &NodeProto, place: usize, types: &ValueTypes<'_>) -> Option<DataType> {
    let input = |place: usize| types.get(node.input.get(place)?.as_str()).copied();
    match node.op_type.as_str() {
        "Cast" => {
            let to = node.attribute.iter().find(|attribute| attribute.name == "to")?;
            DataType::try_from(i32::try_from(to.i).ok()?).ok()
        }
        "Shape" | "Size" | "NonZero" | "ArgMax" | "ArgMin" => Some(DataType::Int64),
        "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "Not" | "And" | "Or"
        | "Xor" | "IsNaN" | "IsInf" => Some(DataType::Bool),
        "Where" => input(1),
        "MatMulInteger" | "ConvInteger" => Some(DataType::Int32),
        "DequantizeLinear" => input(1),
        "QuantizeLinear" => input(2).or(Some(DataType::Uint8)),
        "DynamicQuantizeLinear" if place == 1 => Some(DataType::Float),
        "DynamicQuantizeLinear" => Some(DataType::Uint8),
        "Scan" | "Loop" | "If" => {
            let body = node.attribute.iter().find_map(|attribute| attribute.g.as_ref())?;
            // A loop's own condition comes first.
            let own = usize::from(node.op_type == "Loop");
            declared(body.output.get(place + own)?)
        }
        _ => input(0),
    }
}

/// The same in the words of the weights.
pub(super) fn weight_type(dtype: DataType) -> WeightType {
    WeightType::of(dtype as i32)
}

#[cfg(test)]
mod tests {
    use tract_onnx::pb::{AttributeProto, TensorProto, TypeProto};

    use super::*;

    fn value(name: &str, dtype: DataType) -> ValueInfoProto {
        let kind = type_proto::Tensor { elem_type: dtype as i32, shape: None };
        let value = Some(type_proto::Value::TensorType(kind));
        ValueInfoProto {
            name: name.to_owned(),
            r#type: Some(TypeProto { value, ..Default::default() }),
            ..Default::default()
        }
    }

    fn node(operator: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        NodeProto {
            op_type: operator.to_owned(),
            input: owned(inputs),
            output: owned(outputs),
            ..Default::default()
        }
    }

    #[test]
    fn types_follow_from_operators() {
        let mut to_half = node("Cast", &["x"], &["half"]);
        to_half.attribute = vec![AttributeProto {
            name: "to".to_owned(),
            i: DataType::Float16 as i64,
            ..Default::default()
        }];
        let body =
            GraphProto { output: vec![value("inner", DataType::Double)], ..Default::default() };
        let mut scan = node("Scan", &["ids"], &["scanned"]);
        scan.attribute = vec![AttributeProto { g: Some(body), ..Default::default() }];
        let weight = |name: &str, dtype: DataType| TensorProto {
            name: name.to_owned(),
            data_type: dtype as i32,
            ..Default::default()
        };
        let graph = GraphProto {
            input: vec![value("ids", DataType::Int64), value("x", DataType::Float)],
            initializer: vec![weight("w", DataType::Float16), weight("codes", DataType::Int8)],
            node: vec![
                node("Gather", &["w", "ids"], &["rows"]),
                to_half,
                node("Add", &["rows", "half"], &["sum"]),
                node("Shape", &["sum"], &["sizes"]),
                node("Equal", &["ids", "ids"], &["same"]),
                node("Where", &["same", "x", "x"], &["chosen"]),
                node("DynamicQuantizeLinear", &["x"], &["quantised", "scale", "zero"]),
                node("MatMulInteger", &["quantised", "codes"], &["product"]),
                node("DequantizeLinear", &["codes", "w"], &["floats"]),
                node("Split", &["sum"], &["a", "b"]),
                scan,
            ],
            ..Default::default()
        };
        let types = of(&graph);
        for (name, expected) in [
            ("rows", DataType::Float16),
            ("half", DataType::Float16),
            ("sum", DataType::Float16),
            ("b", DataType::Float16),
            ("sizes", DataType::Int64),
            ("same", DataType::Bool),
            ("chosen", DataType::Float),
            ("quantised", DataType::Uint8),
            ("scale", DataType::Float),
            ("product", DataType::Int32),
            ("floats", DataType::Float16),
            ("scanned", DataType::Double),
        ] {
            assert_eq!(types.get(name), Some(&expected), "{name}");
        }
    }
}
