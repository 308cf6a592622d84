//! Muon's step of a matrix.

use pixart_exporter::graph::{GraphError, Value, ir::Graph};

use super::{super::Muon, Builder};

/// Factors of x, xxᵀx and (xxᵀ)²x in the published iteration. It brings the singular values near 1 in few
/// steps, rather than exactly to 1 in many.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// How often it is done.
const ITERATIONS: usize = 5;

/// Smaller norms are taken for this one.
const LEAST_NORM: f64 = 1e-7;

/// The step of matrices of at most as many rows as columns, and that of the others. `keep` is
/// 1 − learning rate · decay, `rate` the learning rate with the factor of the matrix' shape.
pub(in super::super) fn muon(settings: &Muon) -> Result<[Graph; 2], GraphError> {
    Ok([step(settings, "muon_wide", false)?, step(settings, "muon_tall", true)?])
}

fn step(settings: &Muon, name: &str, tall: bool) -> Result<Graph, GraphError> {
    let mut g = Builder::new(name, &["rows", "columns"]);
    let weight = g.tensor("weight")?;
    let gradient = g.tensor("gradient")?;
    let momentum = g.tensor("momentum")?;
    let scale = g.number("gradient_scale")?;
    let keep = g.number("keep")?;
    let rate = g.number("rate")?;

    let gradient = g.b.mul(&gradient, &scale)?;
    let momentum = g.moving(&momentum, &gradient, settings.momentum)?;
    // Nesterov's: one step ahead.
    let ahead = g.moving(&gradient, &momentum, 1.0 - settings.momentum)?;
    let step = orthogonal(&mut g, &ahead, tall)?;
    g.moved(&weight, &keep, &step, &rate)?;
    g.output("momentum_out", &momentum)?;
    Ok(g.b.finish())
}

/// A matrix of the same singular vectors, whose singular values are all near 1.
fn orthogonal(g: &mut Builder, x: &Value, tall: bool) -> Result<Value, GraphError> {
    let squares = g.b.mul(x, x)?;
    let mut sum = squares;
    for axis in [1, 0] {
        sum = g.b.reduce_sum(&sum, &[axis])?;
    }
    let norm = g.b.sqrt(&sum)?;
    let least = g.constant(LEAST_NORM);
    let norm = g.b.max(&norm, &least)?;
    let mut x = g.b.div(x, &norm)?;
    let [a, b, c] = COEFFICIENTS;
    for _ in 0..ITERATIONS {
        let turned = g.b.transpose(&x, &[1, 0])?;
        // The smaller of the two products of the matrix with itself.
        let gram = match tall {
            true => g.b.matmul(&turned, &x)?,
            false => g.b.matmul(&x, &turned)?,
        };
        let square = g.b.matmul(&gram, &gram)?;
        let square = g.scaled(&square, c)?;
        let gram = g.scaled(&gram, b)?;
        let gram = g.b.add(&gram, &square)?;
        let moved = match tall {
            true => g.b.matmul(&x, &gram)?,
            false => g.b.matmul(&gram, &x)?,
        };
        let kept = g.scaled(&x, a)?;
        x = g.b.add(&kept, &moved)?;
    }
    Ok(x)
}
