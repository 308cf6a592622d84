//! Self-attention over fewer keys and values (arXiv 2403.04692, section 3.2).
//!
//! Keys and values are pictures of the same grid; both are made smaller in the same way, and the
//! queries are left as they are.

use crate::graph::dim::Dim;
use crate::graph::{GraphBuilder, GraphError, Value};
use crate::naming::{KvCompression, KvSampling};

/// Added to the variance in the layer norms that have weights, torch's default.
const EPSILON: f64 = 1e-5;

/// Which keys and values are left, computed once for all blocks.
pub(super) struct KeyGrid<'a> {
    pub compression: &'a KvCompression,
    choice: Choice,
}

enum Choice {
    /// Squares of the grid become one token: the grid before and after.
    Squares { grid: [Dim; 2], left: [Dim; 2] },
    /// Positions in the sequence, `[fewer tokens]`.
    Tokens(Value),
}

impl<'a> KeyGrid<'a> {
    /// For a grid of so many rows and columns of tokens.
    pub fn new(
        b: &mut GraphBuilder,
        compression: &'a KvCompression,
        grid: &[Dim; 2],
    ) -> Result<Self, GraphError> {
        let factor = compression.scale_factor;
        let choice = match compression.sampling {
            KvSampling::Conv => {
                Choice::Squares { grid: grid.clone(), left: squares(b, grid, factor)? }
            }
            KvSampling::Ave | KvSampling::Uniform => {
                let left = squares(b, grid, factor)?;
                Choice::Tokens(b.at_root("keys", |b| first_of_squares(b, grid, &left, factor))?)
            }
            KvSampling::UniformEvery => {
                let count = b.floor_div("key_tokens", &(&grid[0] * &grid[1]), factor)?;
                Choice::Tokens(b.at_root("keys", |b| every(b, &count, factor))?)
            }
        };
        Ok(Self { compression, choice })
    }

    /// `[batch, tokens, width]` → `[batch, fewer tokens, width]` for keys and values alike.
    pub fn reduce(
        &self,
        b: &mut GraphBuilder,
        key: &Value,
        value: &Value,
        width: usize,
    ) -> Result<[Value; 2], GraphError> {
        match &self.choice {
            Choice::Squares { grid, left } => self.convolve(b, [key, value], width, grid, left),
            Choice::Tokens(kept) => {
                Ok([b.gather_along(key, 1, kept)?, b.gather_along(value, 1, kept)?])
            }
        }
    }

    /// The convolution and the norm, the same weights for keys and values.
    fn convolve(
        &self,
        b: &mut GraphBuilder,
        operands: [&Value; 2],
        width: usize,
        [rows, columns]: &[Dim; 2],
        left: &[Dim; 2],
    ) -> Result<[Value; 2], GraphError> {
        let side = self.compression.scale_factor;
        let (weight, bias) = b.scoped("sr", |b| {
            Ok((b.weight("weight", &[width, 1, side, side])?, b.weight("bias", &[width])?))
        })?;
        let (scale, shift) =
            b.scoped("norm", |b| Ok((b.weight("weight", &[width])?, b.weight("bias", &[width])?)))?;
        let mut reduce = |x: &Value| {
            let batch = x.shape()[0].clone();
            let x = b.transpose(x, &[0, 2, 1])?;
            let shape = [batch.clone(), width.into(), rows.clone(), columns.clone()];
            let x = b.reshape(&x, &shape)?;
            let x = b.scoped("sr", |b| b.depthwise_patches(&x, &weight, &bias, side, left))?;
            let x = b.reshape(&x, &[batch, width.into(), &left[0] * &left[1]])?;
            let x = b.transpose(&x, &[0, 2, 1])?;
            b.scoped("norm", |b| b.layer_norm(&x, &scale, Some(&shift), EPSILON))
        };
        Ok([reduce(operands[0])?, reduce(operands[1])?])
    }
}

/// Rows and columns of the whole squares in a grid.
fn squares(b: &mut GraphBuilder, grid: &[Dim; 2], side: usize) -> Result<[Dim; 2], GraphError> {
    Ok([b.floor_div("key_rows", &grid[0], side)?, b.floor_div("key_columns", &grid[1], side)?])
}

/// The positions in the sequence of the top left tokens of all squares.
fn first_of_squares(
    b: &mut GraphBuilder,
    [_, columns]: &[Dim; 2],
    left: &[Dim; 2],
    side: usize,
) -> Result<Value, GraphError> {
    let row = every(b, &left[0], side)?;
    let columns = b.size(columns)?;
    let row = b.mul(&row, &columns)?;
    let row = b.unsqueeze(&row, &[1])?;
    let column = every(b, &left[1], side)?;
    let position = b.add(&row, &column)?;
    b.reshape(&position, &[&left[0] * &left[1]])
}

/// `0, step, 2·step, …`, so many numbers.
fn every(b: &mut GraphBuilder, count: &Dim, step: usize) -> Result<Value, GraphError> {
    let index = b.range(count)?;
    let step = b.constant_i64(&[step as i64]);
    b.mul(&index, &step)
}

/// The layer norm `name` of the checkpoint over the last axis, which has `width` entries.
pub(super) fn affine_layer_norm(
    b: &mut GraphBuilder,
    name: &str,
    x: &Value,
    width: usize,
) -> Result<Value, GraphError> {
    b.scoped(name, |b| {
        let (scale, shift) = (b.weight("weight", &[width])?, b.weight("bias", &[width])?);
        b.layer_norm(x, &scale, Some(&shift), EPSILON)
    })
}
