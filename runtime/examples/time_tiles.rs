//! Runs half of an auto-encoder in exact tiles: `time_tiles ENGINE MODEL.onnx THREADS 1,4,128,128
//! TILE-PIXELS [FREE-BYTES]`.
//!
//! The input is a fixed wave between −1 and 1. Prints the seconds and the peak memory of the process
//! where the system tells it. Without FREE-BYTES, the memory that is free decides what is kept.

use std::{path::Path, time::Instant};

use ndarray::{ArrayD, IxDyn};
use pixart_runtime::{
    engine::{self, EngineOptions},
    vae::tiles::{TilingMode, TilingOptions, exact},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, model, threads, shape, tile_size, free @ ..] = arguments.as_slice() else {
        return Err("expected ENGINE MODEL THREADS SHAPE TILE-PIXELS [FREE-BYTES]".into());
    };
    let options = EngineOptions { threads: Some(threads.parse()?), ..EngineOptions::default() };
    let shape = shape.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    let wave = (0..shape.iter().product()).map(|index: usize| (index as f32 * 0.37).sin());
    let input = ArrayD::from_shape_vec(IxDyn(&shape), wave.collect())?;
    let tiling = TilingOptions {
        mode: TilingMode::Exact,
        tile_size: Some(tile_size.parse()?),
        free_memory: free.first().map(|bytes| bytes.parse()).transpose()?,
        ..TilingOptions::default()
    };
    tiling.check()?;
    let engine = engine::open(name.parse()?, &options)?.engine;
    println!("{}", engine.describe());
    let start = Instant::now();
    let result = exact::run(engine.as_ref(), Path::new(model), &input, &tiling)?;
    let result = result.ok_or("the graph cannot be cut")?;
    println!("tiles      {:8.3} s", start.elapsed().as_secs_f64());
    let sum: f64 = result.iter().map(|x| f64::from(*x).abs()).sum();
    println!("           {:?}, sum of sizes {sum:?}", result.shape());
    if let Ok(status) = std::fs::read_to_string("/proc/self/status")
        && let Some(line) = status.lines().find(|line| line.starts_with("VmHWM"))
    {
        println!("{line}");
    }
    Ok(())
}
