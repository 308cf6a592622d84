//! Saves checkpoints of training until it is done, fails or is killed: `checkpoint_writer ROOT FIRST COUNT
//! KEEP`. Every weight of a checkpoint is the number of its step. Each is told on standard output when
//! it is saved.

use std::{
    collections::BTreeMap, env, error::Error, io::Write as _, path::Path, process::ExitCode,
};

use ndarray::{ArrayD, IxDyn};
use pixart_tests::engines;
use pixart_trainer::{
    Values,
    checkpoint::{Contents, Model, prune, save},
    optimizer::{AdamW, Algorithm, Optimizer},
};
use serde_json::json;

fn main() -> ExitCode {
    match write() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [root, first, count, keep] = &arguments[..] else { return Err("four arguments".into()) };
    let (first, count): (u64, u64) = (first.parse()?, count.parse()?);
    let weights = |step: u64| -> Values {
        let tensor = |name: &str, shape: &[usize]| {
            (name.to_owned(), ArrayD::from_elem(IxDyn(shape), step as f32).into())
        };
        Values::from([tensor("a.weight", &[512, 2048]), tensor("a.bias", &[2048])])
    };
    let algorithm = Algorithm::AdamW(AdamW::default());
    let optimizer = Optimizer::new(&*engines::tract(), algorithm, Vec::new(), &weights(0))?;
    for step in first..first + count {
        let (weights, config) = (weights(step), json!({"step": step}));
        let contents = Contents {
            step,
            epoch: 0,
            model: Model::Whole { config: &config, weights: &weights },
            average: None,
            optimizer: Some(&optimizer),
            shares: &[],
            state: &BTreeMap::from([("step".to_owned(), json!(step))]),
        };
        save(Path::new(root), &contents)?;
        println!("{step}");
        std::io::stdout().flush()?;
        prune(Path::new(root), keep.parse()?)?;
    }
    Ok(())
}
