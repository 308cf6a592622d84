//! How fast an engine multiplies matrices at its best.

use std::{fs, time::Instant};

use ndarray::ArrayD;
use prost::Message as _;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataType, tensor_shape_proto,
    type_proto,
};

use crate::{
    engine::{Engine, EngineError, Value, model_file::small_model},
    tensor::Tensor,
};

/// The fastest product of matrices that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// Billions of floating-point operations a second; a multiplication and an addition are two.
    pub gflops: f64,
    /// Side of the square matrices.
    pub side: usize,
}

/// Sides that are tried, the smallest first. The larger ones are for accelerators.
const SIDES: [usize; 6] = [512, 1024, 1536, 2048, 4096, 8192];
/// Products in a row, so that what surrounds them counts little.
const CHAIN: usize = 4;
/// Runs of each size after the first, at least; the fastest counts.
const RUNS: usize = 3;
/// Seconds that are spent on each size, at least: other work on the machine comes and goes.
const SPENT: f64 = 0.5;
/// A size that took longer than this, in seconds, is the last one, but for the smallest.
const LONG_ENOUGH: f64 = 0.3;

/// Measures products of square matrices on an engine, with constant weights as networks have them, and gives
/// the fastest of several sizes. With `half`, in 16-bit floats; else in 32-bit ones. It takes some seconds.
///
/// # Errors
/// When the engine fails, or the graphs cannot be written to a temporary folder.
pub fn matmul_peak(engine: &dyn Engine, half: bool) -> Result<Peak, EngineError> {
    let folder = tempfile::tempdir().map_err(|source| EngineError::ModelFile {
        model: std::env::temp_dir().join("model.onnx"),
        source,
    })?;
    let model = folder.path().join("model.onnx");
    let mut best = Peak { gflops: 0.0, side: 0 };
    for side in SIDES {
        let written = fs::write(&model, graph(side, half).encode_to_vec());
        written.map_err(|source| EngineError::ModelFile { model: model.clone(), source })?;
        let mut session = engine.load(&model)?;
        let input = ArrayD::from_elem(vec![side, side], 0.5f32);
        let input: Value = engine.to_device(Tensor::F32(input))?;
        let mut fastest = f64::INFINITY;
        let (begin, mut run) = (Instant::now(), 0);
        while run <= RUNS || begin.elapsed().as_secs_f64() < SPENT {
            let start = Instant::now();
            let outputs = session.run_values(&[("x", &input)])?;
            // An accelerator may still be at work; a copy of one number waits for it.
            for (_, output) in outputs {
                output.into_tensor()?;
            }
            if run > 0 {
                fastest = fastest.min(start.elapsed().as_secs_f64());
            }
            run += 1;
        }
        let operations = (CHAIN * 2 * side.pow(3)) as f64;
        let gflops = operations / fastest / 1e9;
        if gflops > best.gflops {
            best = Peak { gflops, side };
        }
        if fastest > LONG_ENOUGH && side > SIDES[0] {
            break;
        }
    }
    Ok(best)
}

/// `y = mean(x · w · w · w · w)`, one number, so that little goes back.
fn graph(side: usize, half: bool) -> ModelProto {
    let node = |op_type: &str, input: &[&str], output: &str, attribute: Vec<AttributeProto>| {
        let input = input.iter().map(|name| (*name).to_owned()).collect();
        let (name, output) = (output.to_owned(), vec![output.to_owned()]);
        NodeProto {
            op_type: op_type.to_owned(),
            name,
            input,
            output,
            attribute,
            ..Default::default()
        }
    };
    let number = |name: &str, i: i64| AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Int.into(),
        i,
        ..Default::default()
    };
    let cast = |to: DataType| vec![number("to", (to as i32).into())];
    let mut nodes = Vec::new();
    let mut last = "x".to_owned();
    if half {
        nodes.push(node("Cast", &["x"], "x16", cast(DataType::Float16)));
        last = "x16".to_owned();
    }
    for k in 0..CHAIN {
        let product = format!("product{k}");
        nodes.push(node("MatMul", &[&last, "w"], &product, Vec::new()));
        last = product;
    }
    nodes.push(node("ReduceMean", &[&last], "mean", vec![number("keepdims", 1)]));
    nodes.push(node("Cast", &["mean"], "y", cast(DataType::Float)));

    let value = |name: &str, sides: [usize; 2]| {
        let dimension = |side: usize| tensor_shape_proto::Dimension {
            value: Some(tensor_shape_proto::dimension::Value::DimValue(side as i64)),
            ..Default::default()
        };
        let shape = TensorShapeProto { dim: sides.map(dimension).to_vec() };
        let tensor = type_proto::Tensor { elem_type: DataType::Float as i32, shape: Some(shape) };
        let r#type =
            TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
        ValueInfoProto { name: name.to_owned(), r#type: Some(r#type), ..Default::default() }
    };
    // Of both signs and many values, and small enough that products neither grow nor vanish.
    let spread = (3.0 / side as f32).sqrt();
    let weights = (0..side * side).map(|k| {
        let bits = (k as u32).wrapping_mul(0x9e37_79b9) >> 8;
        (bits as f32 / (1 << 23) as f32 - 1.0) * spread
    });
    let (data_type, raw_data) = match half {
        true => {
            let bytes = weights.flat_map(|weight| half::f16::from_f32(weight).to_le_bytes());
            (DataType::Float16, bytes.collect())
        }
        false => (DataType::Float, weights.flat_map(f32::to_le_bytes).collect()),
    };
    let weights = TensorProto {
        name: "w".to_owned(),
        dims: vec![side as i64; 2],
        data_type: data_type as i32,
        raw_data,
        ..Default::default()
    };
    let graph = GraphProto {
        name: "peak".to_owned(),
        node: nodes,
        initializer: vec![weights],
        input: vec![value("x", [side, side])],
        output: vec![value("y", [1, 1])],
        ..Default::default()
    };
    small_model(graph)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{self, EngineChoice, EngineOptions};

    #[test]
    fn the_chain_is_a_chain_of_products() {
        let options = EngineOptions { threads: Some(1), ..EngineOptions::default() };
        let engine = engine::open(EngineChoice::Tract, &options).expect("tract").engine;
        let folder = tempfile::tempdir().expect("a folder");
        let model = folder.path().join("model.onnx");
        for half in [false, true] {
            let side = 6;
            let graph = graph(side, half);
            fs::write(&model, graph.encode_to_vec()).expect("written");
            let bytes = &graph.graph.as_ref().expect("a graph").initializer[0].raw_data;
            let weights: Vec<f64> = match half {
                true => {
                    let (numbers, _) = bytes.as_chunks();
                    numbers.iter().map(|&x| half::f16::from_le_bytes(x).to_f64()).collect()
                }
                false => {
                    let (numbers, _) = bytes.as_chunks();
                    numbers.iter().map(|&x| f64::from(f32::from_le_bytes(x))).collect()
                }
            };
            // A row of the input is as good as any other.
            let mut row = vec![0.5; side];
            for _ in 0..CHAIN {
                row = (0..side)
                    .map(|column| (0..side).map(|k| row[k] * weights[k * side + column]).sum())
                    .collect();
            }
            let expected = row.iter().sum::<f64>() / side as f64;
            let input = Tensor::F32(ArrayD::from_elem(vec![side, side], 0.5));
            let mut session = engine.load(&model).expect("loads");
            let outputs = session.run(&[("x", &input)]).expect("runs");
            let found = outputs[0].1.as_f32().expect("floats")[[0, 0]];
            let allowed = if half { 5e-3 } else { 1e-6 };
            assert!((f64::from(found) - expected).abs() < allowed, "{found} for {expected}");
        }
    }
}
