//! Runs one graph on one engine, on tensors from a file:
//! `run_engine ENGINE MODEL.onnx THREADS INPUTS.safetensors OUTPUTS.safetensors`
//!
//! Inputs are float32 or int64 tensors under the names of the graph's inputs; outputs are written
//! as float32. Prints the engine and the seconds for loading and for the run.

use std::{path::Path, time::Instant};

use ndarray::{ArrayD, IxDyn};
use pixart_runtime::{
    engine::{self, EngineOptions},
    tensor::Tensor,
};
use safetensors::{
    Dtype, SafeTensors,
    tensor::{TensorView, serialize_to_file},
};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, model, threads, inputs, outputs] = arguments.as_slice() else {
        return Err("expected ENGINE MODEL THREADS INPUTS OUTPUTS".into());
    };
    let bytes = std::fs::read(inputs)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let inputs = file
        .iter()
        .map(|(name, view)| Ok((name, tensor(name, &view)?)))
        .collect::<Result<Vec<_>, Failure>>()?;
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, value)| (*name, value)).collect();

    let options = EngineOptions { threads: Some(threads.parse()?), ..EngineOptions::default() };
    let engine = engine::open(name.parse()?, &options)?.engine;
    println!("{}", engine.describe());
    let start = Instant::now();
    let mut session = engine.load(Path::new(model))?;
    println!("load {:8.3} s", start.elapsed().as_secs_f64());
    let start = Instant::now();
    let results = session.run(&inputs)?;
    println!("run  {:8.3} s", start.elapsed().as_secs_f64());

    let results = results
        .into_iter()
        .map(|(name, value)| {
            let value = value.into_f32(&name)?;
            let bytes = value.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
            Ok((name, value.shape().to_vec(), bytes))
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    let views = results
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, Failure>>()?;
    serialize_to_file(views, None, Path::new(outputs))?;
    Ok(())
}

fn tensor(name: &str, view: &TensorView<'_>) -> Result<Tensor, Failure> {
    let shape = IxDyn(view.shape());
    match view.dtype() {
        Dtype::F32 => {
            let numbers = view.data().as_chunks().0.iter().map(|&x| f32::from_le_bytes(x));
            Ok(Tensor::F32(ArrayD::from_shape_vec(shape, numbers.collect())?))
        }
        Dtype::I64 => {
            let numbers = view.data().as_chunks().0.iter().map(|&x| i64::from_le_bytes(x));
            Ok(Tensor::I64(ArrayD::from_shape_vec(shape, numbers.collect())?))
        }
        other => Err(format!("{name} has dtype {other:?}, expected F32 or I64").into()),
    }
}
