//! Times one graph on one engine:
//! `time_engine ENGINE MODEL.onnx THREADS RUNS NAME=f32:2,4,64,64 NAME=int64:2,300 …`
//!
//! Floats are a fixed wave between −1 and 1; integers are ones, which suit masks and token ids.
//! Prints the seconds for loading, for the first run and for the fastest later run, and the peak
//! memory of the process where the system tells it.

use std::{path::Path, time::Instant};

use ndarray::{ArrayD, IxDyn};
use pixart_runtime::{
    engine::{self, EngineOptions},
    tensor::Tensor,
};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, model, threads, runs, inputs @ ..] = arguments.as_slice() else {
        return Err("expected ENGINE MODEL THREADS RUNS INPUT…".into());
    };
    let options = EngineOptions { threads: Some(threads.parse()?), ..EngineOptions::default() };
    let inputs = inputs.iter().map(|text| input(text)).collect::<Result<Vec<_>, _>>()?;
    let inputs: Vec<(&str, &Tensor)> =
        inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();

    let engine = engine::open(name.parse()?, &options)?.engine;
    println!("{}", engine.describe());
    let start = Instant::now();
    let mut session = engine.load(Path::new(model))?;
    println!("load       {:8.3} s", start.elapsed().as_secs_f64());
    let mut fastest = f64::INFINITY;
    for run in 0..runs.parse::<usize>()? {
        let start = Instant::now();
        let outputs = session.run(&inputs)?;
        let seconds = start.elapsed().as_secs_f64();
        if run == 0 {
            println!("first run  {seconds:8.3} s");
            for (name, value) in &outputs {
                let sum: Option<f64> =
                    value.as_f32().map(|array| array.iter().map(|x| f64::from(*x).abs()).sum());
                println!("           {name} {:?}, sum of sizes {sum:?}", value.shape());
            }
        } else {
            fastest = fastest.min(seconds);
        }
    }
    println!("later runs {fastest:8.3} s");
    if let Ok(status) = std::fs::read_to_string("/proc/self/status")
        && let Some(line) = status.lines().find(|line| line.starts_with("VmHWM"))
    {
        println!("{line}");
    }
    Ok(())
}

fn input(text: &str) -> Result<(String, Tensor), Failure> {
    let (name, rest) = text.split_once('=').ok_or("expected NAME=TYPE:SHAPE")?;
    let (dtype, shape) = rest.split_once(':').ok_or("expected NAME=TYPE:SHAPE")?;
    let shape = shape.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    let tensor = match dtype {
        "f32" => {
            let count: usize = shape.iter().product();
            let wave = (0..count).map(|index| (index as f32 * 0.37).sin()).collect();
            Tensor::F32(ArrayD::from_shape_vec(IxDyn(&shape), wave)?)
        }
        "int64" => Tensor::I64(ArrayD::ones(IxDyn(&shape))),
        other => return Err(format!("no type {other}; f32 or int64").into()),
    };
    Ok((name.to_owned(), tensor))
}
