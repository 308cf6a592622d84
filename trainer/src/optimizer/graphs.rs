//! The steps as ONNX graphs: one graph for weights of every size, learning rate and decay as inputs.
//!
//! Only the most common operators of the standard set are used, so that every engine has them, and
//! weights, gradients and state can stay on the device that computes them.

use pixart_exporter::{
    graph::{
        GraphBuilder, GraphError, Value,
        dim::Dim,
        ir::{DType, Graph},
    },
    profile::Profile,
};

use super::{AdamW, Came};

mod muon;

pub(super) use muon::muon;

/// A graph of plain operators under construction.
struct Builder {
    b: GraphBuilder,
    shape: Vec<Dim>,
}

impl Builder {
    /// A graph over vectors of any length.
    fn vectors(name: &str) -> Self {
        Self::new(name, &["size"])
    }

    /// A graph over stacks of matrices of any size.
    fn matrices(name: &str) -> Self {
        Self::new(name, &["matrices", "rows", "columns"])
    }

    fn new(name: &str, symbols: &[&str]) -> Self {
        let shape = symbols.iter().map(|symbol| Dim::symbol(symbol)).collect();
        Self { b: GraphBuilder::new(name, Profile::Portable), shape }
    }

    /// A tensor of the size of the weight.
    fn tensor(&mut self, name: &str) -> Result<Value, GraphError> {
        self.b.input(name, DType::F32, self.shape.clone())
    }

    /// The means of rows (axis 2) or columns (axis 1) of the weight.
    fn means(&mut self, name: &str, axis: usize) -> Result<Value, GraphError> {
        let mut shape = self.shape.clone();
        shape[axis] = Dim::from(1);
        self.b.input(name, DType::F32, shape)
    }

    /// One number.
    fn number(&mut self, name: &str) -> Result<Value, GraphError> {
        self.b.input(name, DType::F32, vec![Dim::from(1)])
    }

    fn constant(&mut self, value: f64) -> Value {
        self.b.constant_f32(&[value as f32], &[1])
    }

    fn scaled(&mut self, x: &Value, factor: f64) -> Result<Value, GraphError> {
        let factor = self.constant(factor);
        self.b.mul(x, &factor)
    }

    fn plus(&mut self, x: &Value, value: f64) -> Result<Value, GraphError> {
        let value = self.constant(value);
        self.b.add(x, &value)
    }

    /// `old · beta + new · (1 − beta)`
    fn moving(&mut self, old: &Value, new: &Value, beta: f64) -> Result<Value, GraphError> {
        let old = self.scaled(old, beta)?;
        let new = self.scaled(new, 1.0 - beta)?;
        self.b.add(&old, &new)
    }

    /// `1 / √x`
    fn inverse_root(&mut self, x: &Value) -> Result<Value, GraphError> {
        let root = self.b.sqrt(x)?;
        let one = self.constant(1.0);
        self.b.div(&one, &root)
    }

    /// The mean of all elements. One axis after the other also keeps the sums of large matrices exact
    /// enough on engines that add one element after the other.
    fn mean(&mut self, x: &Value) -> Result<Value, GraphError> {
        let mut mean = x.clone();
        for axis in (0..x.rank() as i64).rev() {
            mean = self.b.reduce_mean(&mean, axis)?;
        }
        Ok(mean)
    }

    /// `step / max(1, rms(step) / threshold)`
    fn clipped(&mut self, step: &Value, threshold: f64) -> Result<Value, GraphError> {
        let squares = self.b.mul(step, step)?;
        let mean = self.mean(&squares)?;
        let rms = self.b.sqrt(&mean)?;
        let ratio = self.scaled(&rms, 1.0 / threshold)?;
        let one = self.constant(1.0);
        let ratio = self.b.max(&ratio, &one)?;
        self.b.div(step, &ratio)
    }

    /// `x / √v` for a `v` that is known by the means of its rows and of its columns:
    /// `√(mean(rows) / rows) · 1 / √columns`.
    fn over_factored_root(
        &mut self,
        x: &Value,
        rows: &Value,
        columns: &Value,
    ) -> Result<Value, GraphError> {
        let mean = self.b.reduce_mean(rows, 1)?;
        let ratio = self.b.div(rows, &mean)?;
        let by_row = self.inverse_root(&ratio)?;
        let by_column = self.inverse_root(columns)?;
        let x = self.b.mul(x, &by_row)?;
        self.b.mul(&x, &by_column)
    }

    /// `weight · keep − step · rate`, as the output `weight_out`.
    fn moved(
        &mut self,
        weight: &Value,
        keep: &Value,
        step: &Value,
        rate: &Value,
    ) -> Result<(), GraphError> {
        let weight = self.b.mul(weight, keep)?;
        let step = self.b.mul(step, rate)?;
        let weight = self.b.sub(&weight, &step)?;
        self.output("weight_out", &weight)
    }

    fn output(&mut self, name: &str, value: &Value) -> Result<(), GraphError> {
        self.b.output(name, value, DType::F32, value.shape())
    }
}

/// AdamW on vectors. `keep` is 1 − learning rate · decay, `rate` the learning rate over the first
/// moment's correction, `correction` the root of the second's.
pub(super) fn adamw(settings: &AdamW) -> Result<Graph, GraphError> {
    let AdamW { betas: [beta1, beta2], epsilon } = *settings;
    let mut g = Builder::vectors("adamw");
    let weight = g.tensor("weight")?;
    let gradient = g.tensor("gradient")?;
    let first = g.tensor("first_moment")?;
    let second = g.tensor("second_moment")?;
    let scale = g.number("gradient_scale")?;
    let keep = g.number("keep")?;
    let rate = g.number("rate")?;
    let correction = g.number("correction")?;

    let gradient = g.b.mul(&gradient, &scale)?;
    let first = g.moving(&first, &gradient, beta1)?;
    let squares = g.b.mul(&gradient, &gradient)?;
    let second = g.moving(&second, &squares, beta2)?;
    let root = g.b.sqrt(&second)?;
    let root = g.b.div(&root, &correction)?;
    let root = g.plus(&root, epsilon)?;
    let step = g.b.div(&first, &root)?;
    g.moved(&weight, &keep, &step, &rate)?;
    g.output("first_moment_out", &first)?;
    g.output("second_moment_out", &second)?;
    Ok(g.b.finish())
}

/// CAME on vectors. `keep` is 1 − learning rate · decay, `rate` the learning rate.
pub(super) fn came_vector(settings: &Came) -> Result<Graph, GraphError> {
    let Came { betas: [beta1, beta2, _], epsilons: [epsilon, _], clip_threshold } = *settings;
    let mut g = Builder::vectors("came_vector");
    let weight = g.tensor("weight")?;
    let gradient = g.tensor("gradient")?;
    let first = g.tensor("first_moment")?;
    let second = g.tensor("second_moment")?;
    let scale = g.number("gradient_scale")?;
    let keep = g.number("keep")?;
    let rate = g.number("rate")?;

    let gradient = g.b.mul(&gradient, &scale)?;
    let squares = g.b.mul(&gradient, &gradient)?;
    let squares = g.plus(&squares, epsilon)?;
    let second = g.moving(&second, &squares, beta2)?;
    let inverse = g.inverse_root(&second)?;
    let step = g.b.mul(&gradient, &inverse)?;
    let step = g.clipped(&step, clip_threshold)?;
    let first = g.moving(&first, &step, beta1)?;
    g.moved(&weight, &keep, &first, &rate)?;
    g.output("first_moment_out", &first)?;
    g.output("second_moment_out", &second)?;
    Ok(g.b.finish())
}

/// CAME on stacks of matrices; `keep` and `rate` as in [`came_vector`].
pub(super) fn came_matrix(settings: &Came) -> Result<Graph, GraphError> {
    let Came { betas: [beta1, beta2, beta3], epsilons, clip_threshold } = *settings;
    let mut g = Builder::matrices("came_matrix");
    let weight = g.tensor("weight")?;
    let gradient = g.tensor("gradient")?;
    let first = g.tensor("first_moment")?;
    let rows = g.means("rows", 2)?;
    let columns = g.means("columns", 1)?;
    let unstable_rows = g.means("instability_rows", 2)?;
    let unstable_columns = g.means("instability_columns", 1)?;
    let scale = g.number("gradient_scale")?;
    let keep = g.number("keep")?;
    let rate = g.number("rate")?;

    let gradient = g.b.mul(&gradient, &scale)?;
    let squares = g.b.mul(&gradient, &gradient)?;
    let squares = g.plus(&squares, epsilons[0])?;
    let [rows, columns] = factored(&mut g, &squares, [&rows, &columns], beta2)?;
    let step = g.over_factored_root(&gradient, &rows, &columns)?;
    let step = g.clipped(&step, clip_threshold)?;
    let first = g.moving(&first, &step, beta1)?;
    let change = g.b.sub(&step, &first)?;
    let squares = g.b.mul(&change, &change)?;
    let squares = g.plus(&squares, epsilons[1])?;
    let [unstable_rows, unstable_columns] =
        factored(&mut g, &squares, [&unstable_rows, &unstable_columns], beta3)?;
    let step = g.over_factored_root(&first, &unstable_rows, &unstable_columns)?;
    g.moved(&weight, &keep, &step, &rate)?;
    g.output("first_moment_out", &first)?;
    g.output("rows_out", &rows)?;
    g.output("columns_out", &columns)?;
    g.output("instability_rows_out", &unstable_rows)?;
    g.output("instability_columns_out", &unstable_columns)?;
    Ok(g.b.finish())
}

/// The means of rows and columns, moved on.
fn factored(
    g: &mut Builder,
    squares: &Value,
    [rows, columns]: [&Value; 2],
    beta: f64,
) -> Result<[Value; 2], GraphError> {
    let new_rows = g.b.reduce_mean(squares, 2)?;
    let new_columns = g.b.reduce_mean(squares, 1)?;
    Ok([g.moving(rows, &new_rows, beta)?, g.moving(columns, &new_columns, beta)?])
}

/// `mean((gradient · scale)²)` of stacks of matrices, as one number.
pub(super) fn mean_square() -> Result<Graph, GraphError> {
    let mut g = Builder::matrices("mean_square");
    let gradient = g.tensor("gradient")?;
    let scale = g.number("scale")?;
    let gradient = g.b.mul(&gradient, &scale)?;
    let squares = g.b.mul(&gradient, &gradient)?;
    let mean = g.mean(&squares)?;
    g.output("mean_square", &mean)?;
    Ok(g.b.finish())
}

/// `sum + gradient · scale` of vectors.
pub(super) fn add_scaled() -> Result<Graph, GraphError> {
    let mut g = Builder::vectors("add_scaled");
    let sum = g.tensor("sum")?;
    let gradient = g.tensor("gradient")?;
    let scale = g.number("scale")?;
    let gradient = g.b.mul(&gradient, &scale)?;
    let sum = g.b.add(&sum, &gradient)?;
    g.output("sum_out", &sum)?;
    Ok(g.b.finish())
}

/// `gradient · scale` of vectors.
pub(super) fn scaled() -> Result<Graph, GraphError> {
    let mut g = Builder::vectors("scaled");
    let gradient = g.tensor("gradient")?;
    let scale = g.number("scale")?;
    let gradient = g.b.mul(&gradient, &scale)?;
    g.output("gradient_out", &gradient)?;
    Ok(g.b.finish())
}

/// `average − share · (average − weight)` of vectors.
pub(crate) fn moving_average() -> Result<Graph, GraphError> {
    let mut g = Builder::vectors("moving_average");
    let average = g.tensor("average")?;
    let weight = g.tensor("weight")?;
    let share = g.number("share")?;
    let distance = g.b.sub(&average, &weight)?;
    let distance = g.b.mul(&distance, &share)?;
    let average = g.b.sub(&average, &distance)?;
    g.output("average_out", &average)?;
    Ok(g.b.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_serves_weights_of_every_size_and_every_profile_runs_it() {
        let (adam, came) = (AdamW::default(), Came::default());
        let [wide, tall] = muon(&Default::default()).expect("wired");
        for graph in [
            Ok(wide),
            Ok(tall),
            adamw(&adam),
            came_vector(&came),
            came_matrix(&came),
            mean_square(),
            add_scaled(),
            scaled(),
            moving_average(),
        ] {
            let graph = graph.expect("wired");
            assert_eq!(graph.weights().count(), 0, "{}: weights are inputs", graph.name);
            let sizes = graph.inputs[0].shape.iter();
            assert!(sizes.clone().all(|dim| dim.as_const().is_none()), "{}", graph.name);
            for profile in Profile::ALL {
                profile.check(&graph).expect("common operators");
            }
        }
    }
}
