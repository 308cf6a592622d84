//! CAME, in the form that PixArt-Σ is trained with.

use pixart_exporter::graph::{
    GraphBuilder, GraphError, Value,
    dim::{Dim, product},
    ir::{DType, Graph},
};
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
        let mut scalars = vec![("learning_rate", learning_rate)];
        if self.decays() {
            scalars.push(("keep", 1.0 - learning_rate * self.weight_decay));
        }
        scalars
    }

    fn decays(&self) -> bool {
        self.weight_decay != 0.0
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
        let scalars = Scalars::declare(b, self)?;
        let gradient = b.mul(&gradient?, &scalars.scale)?;
        let squares = b.mul(&gradient, &gradient)?;
        let epsilon = b.scalar_f32(self.epsilons[0] as f32);
        let squares = b.add(&squares, &epsilon)?;
        let square = average(b, &square?, &squares, self.betas[1])?;
        let root = b.sqrt(&square)?;
        let update = b.div(&gradient, &root)?;
        let clip = self.clip(b, &update)?;
        let update = b.mul(&update, &clip)?;
        let mean = average(b, &mean?, &update, self.betas[0])?;
        let step = b.mul(&mean, &scalars.learning_rate)?;
        let weight = scalars.stepped(b, &weight?, &step)?;
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
        let scalars = Scalars::declare(b, self)?;

        // Factors go to the means over rows and columns, which are small, instead of to whole matrices.
        let square_of_scale = b.mul(&scalars.scale, &scalars.scale)?;
        let terms = Terms { factor: &square_of_scale, epsilon: self.epsilons[0] };
        let square = means(b, &square, &gradient, &terms, self.betas[1])?;
        let update = over_root(b, &gradient, &square, &scalars.scale)?;
        let clip = self.clip(b, &update)?;
        let update = b.mul(&update, &clip)?;
        // m + (1 − β₁)(u − m) is the new m, and β₁(u − m) is u less the new m.
        let difference = b.sub(&update, &mean)?;
        let take = b.scalar_f32((1.0 - self.betas[0]) as f32);
        let change = b.mul(&difference, &take)?;
        let mean = b.add(&mean, &change)?;
        let square_of_keep = b.scalar_f32((self.betas[0] * self.betas[0]) as f32);
        let terms = Terms { factor: &square_of_keep, epsilon: self.epsilons[1] };
        let residual = means(b, &residual, &difference, &terms, self.betas[2])?;
        let step = over_root(b, &mean, &residual, &scalars.learning_rate)?;
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

    /// `1 / max(1, rms(u)/d)`, with axes of size 1.
    fn clip(&self, b: &mut GraphBuilder, update: &Value) -> Result<Value, GraphError> {
        let axes: Vec<usize> = (0..update.rank()).collect();
        let sum = b.reduce_sum_square(update, &axes)?;
        let count = b.size(&product(update.shape()))?;
        let count = b.cast(&count, DType::F32)?;
        let mean = b.div(&sum, &count)?;
        let root = b.sqrt(&mean)?;
        let threshold = b.scalar_f32(self.clip_threshold as f32);
        let excess = b.div(&root, &threshold)?;
        let one = b.scalar_f32(1.0);
        let divisor = b.max(&excess, &one)?;
        b.div(&one, &divisor)
    }
}

/// The numbers that change from step to step.
struct Scalars {
    /// What decay leaves of a weight; without decay, there is no such input.
    keep: Option<Value>,
    learning_rate: Value,
    scale: Value,
}

impl Scalars {
    fn declare(b: &mut GraphBuilder, came: &Came) -> Result<Self, GraphError> {
        let mut scalar = |name| b.input(name, DType::F32, vec![]);
        Ok(Self {
            keep: if came.decays() { Some(scalar("keep")?) } else { None },
            learning_rate: scalar("learning_rate")?,
            scale: scalar("scale")?,
        })
    }

    /// `weight · keep − step`
    fn stepped(
        &self,
        b: &mut GraphBuilder,
        weight: &Value,
        step: &Value,
    ) -> Result<Value, GraphError> {
        match &self.keep {
            Some(keep) => {
                let kept = b.mul(weight, keep)?;
                b.sub(&kept, step)
            }
            None => b.sub(weight, step),
        }
    }
}

/// What a matrix x contributes to the means: factor · mean of x² + epsilon.
struct Terms<'a> {
    factor: &'a Value,
    epsilon: f64,
}

/// The means over rows and over columns, moved on.
fn means(
    b: &mut GraphBuilder,
    [row, column]: &[Value; 2],
    x: &Value,
    terms: &Terms,
    beta: f64,
) -> Result<[Value; 2], GraphError> {
    let mut moved = |old: &Value, axis: usize| {
        let sum = b.reduce_sum_square(x, &[axis])?;
        let count = b.size(&x.shape()[axis])?;
        let count = b.cast(&count, DType::F32)?;
        let factor = b.div(terms.factor, &count)?;
        let mean = b.mul(&sum, &factor)?;
        let epsilon = b.scalar_f32(terms.epsilon as f32);
        let mean = b.add(&mean, &epsilon)?;
        average(b, old, &mean, beta)
    };
    Ok([moved(row, 2)?, moved(column, 1)?])
}

/// `x · factor / √v` for `v = row · column / mean of rows`.
fn over_root(
    b: &mut GraphBuilder,
    x: &Value,
    [row, column]: &[Value; 2],
    factor: &Value,
) -> Result<Value, GraphError> {
    let mean = b.reduce_mean(row, 1)?;
    let row = b.div(row, &mean)?;
    let (row, column) = (b.sqrt(&row)?, b.sqrt(column)?);
    let (row, one) = (b.div(factor, &row)?, b.scalar_f32(1.0));
    let column = b.div(&one, &column)?;
    // One after the other: their product could be too large for a float.
    let x = b.mul(x, &row)?;
    b.mul(&x, &column)
}
