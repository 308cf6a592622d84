//! A graph so small that its result is known: does a provider compute at all?

use prost::Message as _;
use tract_onnx::pb::{
    GraphProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_proto::DataType,
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};

use crate::engine::model_file::small_model;

/// Rows and columns of its matrices.
const SIDE: usize = 8;

/// The largest relative error of a device that computes in 10 bits or more.
const ALLOWED: f32 = 1e-2;

/// `y = max(x · w + b, 0)` in fp32, with matrices of 8 × 8.
pub(super) fn graph() -> Vec<u8> {
    let shape = |dims: &[usize]| TensorShapeProto {
        dim: dims
            .iter()
            .map(|&size| Dimension {
                denotation: String::new(),
                value: Some(dimension::Value::DimValue(size as i64)),
            })
            .collect(),
    };
    let value = |name: &str| ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            denotation: String::new(),
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: DataType::Float as i32,
                shape: Some(shape(&[SIDE, SIDE])),
            })),
        }),
        ..ValueInfoProto::default()
    };
    let constant = |name: &str, dims: &[usize], numbers: Vec<f32>| TensorProto {
        name: name.to_owned(),
        data_type: DataType::Float as i32,
        dims: dims.iter().map(|&size| size as i64).collect(),
        raw_data: numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
        ..TensorProto::default()
    };
    let node = |operator: &str, inputs: &[&str], output: &str| NodeProto {
        name: output.to_owned(),
        op_type: operator.to_owned(),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: "probe".to_owned(),
        node: vec![
            node("MatMul", &["x", "w"], "product"),
            node("Add", &["product", "b"], "sum"),
            node("Relu", &["sum"], "y"),
        ],
        initializer: vec![
            constant("w", &[SIDE, SIDE], matrix(3)),
            constant("b", &[SIDE], matrix(5)[..SIDE].to_vec()),
        ],
        input: vec![value("x")],
        output: vec![value("y")],
        ..GraphProto::default()
    };
    small_model(graph).encode_to_vec()
}

/// A matrix of numbers from -1 to 1 that no two places of a small graph share.
fn matrix(step: usize) -> Vec<f32> {
    (0..SIDE * SIDE).map(|k| ((k * step * 7 + step) % 17) as f32 / 8.0 - 1.0).collect()
}

/// Runs the graph in a session made from it and compares the result with the right one.
pub(super) fn run(session: &mut ort::session::Session) -> Result<(), String> {
    let x = ort::value::Tensor::from_array(([SIDE, SIDE], matrix(11)));
    let x = x.map_err(|error| error.to_string())?;
    let outputs = session.run(ort::inputs!["x" => x]).map_err(|error| error.to_string())?;
    let (_, found) = outputs["y"].try_extract_tensor::<f32>().map_err(|error| error.to_string())?;
    let expected = expected();
    let largest = expected.iter().fold(0.0f32, |most, number| most.max(number.abs()));
    let apart = found.iter().zip(&expected).map(|(found, right)| (found - right).abs());
    let far = apart.filter(|apart| apart.is_nan() || *apart > ALLOWED * largest).count();
    match far {
        0 if found.len() == expected.len() => Ok(()),
        _ => Err(format!(
            "a small matrix product came out wrong: {far} of {} numbers",
            expected.len()
        )),
    }
}

fn expected() -> Vec<f32> {
    let (x, w, b) = (matrix(11), matrix(3), matrix(5));
    let at = |place: usize| {
        let (row, column) = (place / SIDE, place % SIDE);
        let products = (0..SIDE).map(|k| x[row * SIDE + k] * w[k * SIDE + column]);
        (products.sum::<f32>() + b[column]).max(0.0)
    };
    (0..SIDE * SIDE).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_result_has_numbers_and_zeros() {
        let expected = expected();
        let zeros = expected.iter().filter(|number| **number == 0.0).count();
        assert!((8..56).contains(&zeros), "{zeros} zeros in {expected:?}");
    }
}
