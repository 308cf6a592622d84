//! The sinusoidal position table of the transformer, computed from the size of the picture.

use crate::graph::dim::Dim;
use crate::graph::ir::DType;
use crate::graph::{GraphBuilder, GraphError, GraphErrorKind, Value};

/// The table `[rows·columns, width]` for a grid of tokens, row by row.
///
/// Row `i` has the coordinate `i / (rows / base) / interpolation_scale`, columns likewise. A token's
/// vector is `sin(x·ω), cos(x·ω), sin(y·ω), cos(y·ω)`, the column's coordinate x first, with
/// `ω_k = 10000^(−k / (width/4))`. `base` is the number of token rows at the training size.
pub(super) fn position_table(
    b: &mut GraphBuilder,
    rows: &Dim,
    columns: &Dim,
    width: usize,
    base: usize,
    interpolation_scale: f64,
) -> Result<Value, GraphError> {
    b.scoped("pos_embed", |b| {
        if !width.is_multiple_of(4) {
            let expected = format!("a width that is a multiple of 4, not {width}");
            return b.fail(GraphErrorKind::Divisibility, "position table", &[], expected);
        }
        let half = Dim::from(width / 2);
        let x = axis_table(b, columns, width, base, interpolation_scale)?;
        let y = axis_table(b, rows, width, base, interpolation_scale)?;
        let grid = [rows.clone(), columns.clone(), half];
        let x = b.expand(&x, &grid)?;
        let y = b.unsqueeze(&y, &[1])?;
        let y = b.expand(&y, &grid)?;
        let table = b.concat(&[&x, &y], -1)?;
        b.reshape(&table, &[rows * columns, Dim::from(width)])
    })
}

/// `sin` and `cos` of every coordinate of one axis: `[count, width/2]`.
fn axis_table(
    b: &mut GraphBuilder,
    count: &Dim,
    width: usize,
    base: usize,
    interpolation_scale: f64,
) -> Result<Value, GraphError> {
    // The same float32 divisions in the same order as the reference.
    let index = b.range(count)?;
    let index = b.cast(&index, DType::F32)?;
    let length = b.size(count)?;
    let length = b.cast(&length, DType::F32)?;
    let base = b.scalar_f32(base as f32);
    let per_base = b.div(&length, &base)?;
    let coordinate = b.div(&index, &per_base)?;
    let interpolation_scale = b.scalar_f32(interpolation_scale as f32);
    let coordinate = b.div(&coordinate, &interpolation_scale)?;

    let quarter = width / 4;
    let frequency = |k| 10000f64.powf(-(k as f64) / quarter as f64) as f32;
    let frequencies: Vec<f32> = (0..quarter).map(frequency).collect();
    let frequencies = b.constant_f32(&frequencies, &[1, quarter]);
    let coordinate = b.unsqueeze(&coordinate, &[1])?;
    let angle = b.mul(&coordinate, &frequencies)?;
    let (sin, cos) = (b.sin(&angle)?, b.cos(&angle)?);
    b.concat(&[&sin, &cos], -1)
}
