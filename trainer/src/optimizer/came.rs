//! CAME, in the form that PixArt-Σ is trained with.

use pixart_exporter::graph::{GraphBuilder, GraphError, Value, dim::Dim, ir::DType, ir::Graph};
use pixart_exporter::profile::Profile;

use super::adamw::average;
use super::{Layout, OptimizerError, fraction, positive};

/// Luo et al., "CAME: Confidence-guided Adaptive Memory Efficient Optimization", 2023:
///
/// - v ← β₂ v + (1 − β₂)(g² + ε₁) and u = g / √v, divided by max(1, rms(u)/d)
/// - m ← β₁ m + (1 − β₁) u
/// - s ← β₃ s + (1 − β₃)((u − m)² + ε₂)
/// - w ← w (1 − lr·decay) − lr · m / √s
///
/// Of v and s, only the means over rows and columns are kept: √v of an element is approximated by
/// √(row · column / mean of rows). A weight without rows and columns (fewer than two axes) keeps the whole
/// of v, has no s, and takes the step m. Kernels of convolutions have the rows and columns of their last
/// two axes. There is no correction for the beginning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Came {
    /// β₁, β₂ and β₃, each from 0 on and below 1.
    pub betas: [f64; 3],
    /// ε₁ and ε₂, positive.
    pub epsilons: [f64; 2],
    /// d, the largest root mean square of u.
    pub clip_threshold: f64,
    /// Decay of the weights in units of the learning rate.
    pub weight_decay: f64,
}

impl Default for Came {
    /// What PixArt-Σ's configurations say.
    fn default() -> Self {
        Self {
            betas: [0.9, 0.999, 0.9999],
            epsilons: [1e-30, 1e-16],
            clip_threshold: 1.0,
            weight_decay: 0.0,
        }
    }
}

impl Came {
    pub(super) fn layout(shape: &[usize]) -> Layout {
        let [lead @ .., rows, columns] = shape else {
            let flat = vec![shape.iter().product()];
            let slots = vec![("exp_avg", flat.clone()), ("exp_avg_sq", flat.clone())];
            return Layout { shape: flat, slots, matrix: false };
        };
        let count = lead.iter().product();
        let (whole, by_row) = (vec![count, *rows, *columns], vec![count, *rows, 1]);
        let by_column = vec![count, 1, *columns];
        let slots = vec![
            ("exp_avg", whole.clone()),
            ("exp_avg_sq_row", by_row.clone()),
            ("exp_avg_sq_col", by_column.clone()),
            ("exp_avg_res_row", by_row),
            ("exp_avg_res_col", by_column),
        ];
        Layout { shape: whole, slots, matrix: true }
    }

    /// The numbers that change from step to step.
    pub(super) fn scalars(&self, learning_rate: f64) -> Vec<(&'static str, f64)> {
        vec![("keep", 1.0 - learning_rate * self.weight_decay), ("learning_rate", learning_rate)]
    }

    fn check(&self) -> Result<(), OptimizerError> {
        for (name, beta) in ["β₁ of CAME", "β₂ of CAME", "β₃ of CAME"].into_iter().zip(self.betas)
        {
            fraction(name, beta)?;
        }
        for (name, epsilon) in ["ε₁ of CAME", "ε₂ of CAME"].into_iter().zip(self.epsilons) {
            positive(name, epsilon, false)?;
        }
        positive("clip threshold of CAME", self.clip_threshold, false)?;
        positive("weight decay", self.weight_decay, true)
    }

    /// `weight`, `gradient`, `exp_avg`, `exp_avg_sq[count]` and the scalars → `out_weight`,
    /// `out_exp_avg`, `out_exp_avg_sq`.
    pub(super) fn vector_graph(&self) -> Result<Graph, OptimizerError> {
        self.check()?;
        Ok(self.build_vector()?)
    }

    /// `weight`, `gradient`, `exp_avg[count, rows, columns]`, the means over rows and columns and the
    /// scalars → `out_…` of the weight and each state.
    pub(super) fn matrix_graph(&self) -> Result<Graph, OptimizerError> {
        self.check()?;
        Ok(self.build_matrix()?)
    }

    fn build_vector(&self) -> Result<Graph, GraphError> {
        let mut graph = GraphBuilder::new("CAME of vectors", Profile::Ort);
        let b = &mut graph;
        let shape = [Dim::symbol("count")];
        let [weight, gradient, mean, square] = ["weight", "gradient", "exp_avg", "exp_avg_sq"]
            .map(|name| b.input(name, DType::F32, shape.to_vec()));
        let scalars = Scalars::declare(b)?;
        let gradient = b.mul(&gradient?, &scalars.scale)?;
        let squares = squares(b, &gradient, self.epsilons[0])?;
        let square = average(b, &square?, &squares, self.betas[1])?;
        let root = b.sqrt(&square)?;
        let update = b.div(&gradient, &root)?;
        let update = self.clipped(b, &update)?;
        let mean = average(b, &mean?, &update, self.betas[0])?;
        let weight = scalars.stepped(b, &weight?, &mean)?;
        for (name, value) in
            [("out_weight", weight), ("out_exp_avg", mean), ("out_exp_avg_sq", square)]
        {
            b.output(name, &value, DType::F32, &shape)?;
        }
        Ok(graph.finish())
    }

    fn build_matrix(&self) -> Result<Graph, GraphError> {
        let mut graph = GraphBuilder::new("CAME of matrices", Profile::Ort);
        let b = &mut graph;
        let [count, rows, columns] = ["count", "rows", "columns"].map(Dim::symbol);
        let one = Dim::from(1);
        let shape = [count.clone(), rows.clone(), columns.clone()];
        let by_row = [count.clone(), rows, one.clone()];
        let by_column = [count, one, columns];
        let mut input = |name: &str, shape: &[Dim; 3]| b.input(name, DType::F32, shape.to_vec());
        let weight = input("weight", &shape)?;
        let gradient = input("gradient", &shape)?;
        let mean = input("exp_avg", &shape)?;
        let square = [input("exp_avg_sq_row", &by_row)?, input("exp_avg_sq_col", &by_column)?];
        let residual = [input("exp_avg_res_row", &by_row)?, input("exp_avg_res_col", &by_column)?];
        let scalars = Scalars::declare(b)?;

        let gradient = b.mul(&gradient, &scalars.scale)?;
        let squares_of_gradient = squares(b, &gradient, self.epsilons[0])?;
        let square = factors(b, &square, &squares_of_gradient, self.betas[1])?;
        let update = over_root(b, &gradient, &square)?;
        let update = self.clipped(b, &update)?;
        let mean = average(b, &mean, &update, self.betas[0])?;
        let difference = b.sub(&update, &mean)?;
        let squares_of_difference = squares(b, &difference, self.epsilons[1])?;
        let residual = factors(b, &residual, &squares_of_difference, self.betas[2])?;
        let step = over_root(b, &mean, &residual)?;
        let weight = scalars.stepped(b, &weight, &step)?;

        let ([square_row, square_column], [residual_row, residual_column]) = (square, residual);
        for (name, value) in [
            ("out_weight", weight),
            ("out_exp_avg", mean),
            ("out_exp_avg_sq_row", square_row),
            ("out_exp_avg_sq_col", square_column),
            ("out_exp_avg_res_row", residual_row),
            ("out_exp_avg_res_col", residual_column),
        ] {
            let shape = value.shape().to_vec();
            b.output(name, &value, DType::F32, &shape)?;
        }
        Ok(graph.finish())
    }

    /// `u / max(1, rms(u)/d)`
    fn clipped(&self, b: &mut GraphBuilder, update: &Value) -> Result<Value, GraphError> {
        let mut mean = b.mul(update, update)?;
        // Every row has as many elements, so the mean of the means is the mean.
        for axis in (0..update.rank()).rev() {
            mean = b.reduce_mean(&mean, axis as i64)?;
        }
        let root = b.sqrt(&mean)?;
        let threshold = b.scalar_f32(self.clip_threshold as f32);
        let excess = b.div(&root, &threshold)?;
        let one = b.scalar_f32(1.0);
        let divisor = b.max(&excess, &one)?;
        b.div(update, &divisor)
    }
}

/// The numbers that change from step to step.
struct Scalars {
    keep: Value,
    learning_rate: Value,
    scale: Value,
}

impl Scalars {
    fn declare(b: &mut GraphBuilder) -> Result<Self, GraphError> {
        let mut scalar = |name| b.input(name, DType::F32, vec![]);
        Ok(Self {
            keep: scalar("keep")?,
            learning_rate: scalar("learning_rate")?,
            scale: scalar("scale")?,
        })
    }

    /// `weight · keep − learning_rate · step`
    fn stepped(
        &self,
        b: &mut GraphBuilder,
        weight: &Value,
        step: &Value,
    ) -> Result<Value, GraphError> {
        let step = b.mul(step, &self.learning_rate)?;
        let kept = b.mul(weight, &self.keep)?;
        b.sub(&kept, &step)
    }
}

/// `x² + epsilon`
fn squares(b: &mut GraphBuilder, x: &Value, epsilon: f64) -> Result<Value, GraphError> {
    let square = b.mul(x, x)?;
    let epsilon = b.scalar_f32(epsilon as f32);
    b.add(&square, &epsilon)
}

/// The means over rows and over columns, moved on.
fn factors(
    b: &mut GraphBuilder,
    [row, column]: &[Value; 2],
    squares: &Value,
    beta: f64,
) -> Result<[Value; 2], GraphError> {
    let of_row = b.reduce_mean(squares, 2)?;
    let of_column = b.reduce_mean(squares, 1)?;
    Ok([average(b, row, &of_row, beta)?, average(b, column, &of_column, beta)?])
}

/// `x / √v` for `v = row · column / mean of rows`.
fn over_root(
    b: &mut GraphBuilder,
    x: &Value,
    [row, column]: &[Value; 2],
) -> Result<Value, GraphError> {
    let mean = b.reduce_mean(row, 1)?;
    let row = b.div(row, &mean)?;
    let (row, column) = (b.sqrt(&row)?, b.sqrt(column)?);
    // One after the other: their product could be too small for a float.
    let x = b.div(x, &row)?;
    b.div(&x, &column)
}
