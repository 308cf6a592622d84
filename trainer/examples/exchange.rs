//! How fast gradients are averaged between processes: `mpirun -n 4 target/release/examples/exchange [megabytes=2443]
//! [times=3]`; built with `cargo build --release --workspace --examples --features pixart-cli/mpi`.
//!
//! XL/2 has 2,443 megabytes of them. They are sent in pieces of 25 MB as in training, with nothing else to do
//! meanwhile. What is printed last is for the formula of docs/scaling.md.

use std::error::Error;
use std::time::Instant;

use pixart_trainer::ranks::mpi;

/// Numbers of a piece, as in training.
const PIECE: usize = 25 * 1024 * 1024 / 4;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, default: usize| {
        let mut pairs = arguments.iter().filter_map(|argument| argument.split_once('='));
        pairs.find(|(key, _)| *key == name).map_or(Ok(default), |(_, value)| value.parse())
    };
    let (megabytes, times) = (number("megabytes", 2443)?, number("times", 3)?);
    let ranks = mpi::start()?;
    let world = ranks.place().world;
    let numbers = megabytes * 1_000_000 / 4;
    let mut fastest = f64::INFINITY;
    for _ in 0..=times {
        let pieces = (0..numbers).step_by(PIECE).map(|at| vec![1f32; PIECE.min(numbers - at)]);
        let pieces: Vec<Vec<f32>> = pieces.collect();
        ranks.meet()?;
        let begin = Instant::now();
        let pending: Vec<_> = pieces.into_iter().map(|piece| ranks.sum(piece)).collect();
        for each in pending {
            let sums = each.wait()?;
            assert!(sums.iter().all(|&sum| sum == world as f32), "all ones of all processes");
        }
        ranks.meet()?;
        fastest = fastest.min(begin.elapsed().as_secs_f64());
    }
    if ranks.is_first() {
        let sent = 2.0 * (world - 1) as f64 / world as f64 * megabytes as f64 / 1000.0;
        let speed = sent / fastest;
        println!(
            "{world} processes, {megabytes} MB: {fastest:.3} s; with the {sent:.3} GB that a ring sends, {speed:.2} \
             GB/s each"
        );
    }
    Ok(())
}
