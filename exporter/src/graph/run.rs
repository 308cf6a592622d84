//! For tests: runs a graph with tract, written as it is for a file but with all weights inline.

use prost::Message;
use tract_onnx::prelude::*;

use super::ir::{Graph, Initializer, WeightData, WeightRef};
use crate::checkpoint::{Dtype, TensorView};
use crate::write::convert::convert;
use crate::write::layout::Place;
use crate::write::onnx;

/// Runs the graph on inputs given in order; the result is the first output. Weights of the
/// checkpoint are asked for by name, in the checkpoint's own layout.
pub(crate) fn run(
    graph: &Graph,
    weights: &dyn Fn(&str) -> Vec<f32>,
    inputs: &[Tensor],
) -> (Vec<usize>, Vec<f32>) {
    let places = vec![Place::Inline; graph.initializers.len()];
    let inline = graph.initializers.iter().map(|initializer| match &initializer.data {
        WeightData::Inline(_) => None,
        WeightData::Checkpoint(weight) => {
            Some(elements(initializer, weight, &weights(&weight.tensor)))
        }
    });
    let mut inline = inline.collect::<Vec<_>>();
    let bytes = onnx::model(graph, &places, &mut inline).unwrap().encode_to_vec();
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

/// The elements as they stand in the graph.
fn elements(initializer: &Initializer, weight: &WeightRef, data: &[f32]) -> Vec<u8> {
    let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
    let shape = weight.shape.as_slice().into();
    let view = TensorView { dtype: Dtype::F32, shape, bytes: bytes.into() };
    let mut all = Vec::new();
    convert(&view, weight.transform, initializer.dtype, &mut all).expect("fit for the graph");
    all
}
