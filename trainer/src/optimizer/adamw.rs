//! AdamW, as torch has it.

use pixart_exporter::graph::{GraphBuilder, GraphError, Value, dim::Dim, ir::DType, ir::Graph};
use pixart_exporter::profile::Profile;

use super::{Layout, OptimizerError, fraction, positive};

/// Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019:
///
/// - m ← β₁ m + (1 − β₁) g and v ← β₂ v + (1 − β₂) g²
/// - w ← w (1 − lr·decay) − lr · m̂ / (√v̂ + ε), m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ)
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// β₁ and β₂, each from 0 on and below 1.
    pub betas: [f64; 2],
    /// ε, positive.
    pub epsilon: f64,
    /// Decay of the weights in units of the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamW {
    /// What PixArt's configurations for AdamW say.
    fn default() -> Self {
        Self { betas: [0.9, 0.999], epsilon: 1e-10, weight_decay: 0.03 }
    }
}

impl AdamW {
    pub(super) fn layout(shape: &[usize]) -> Layout {
        // Element by element, so one axis is enough.
        let flat = vec![shape.iter().product()];
        let slots = vec![("exp_avg", flat.clone()), ("exp_avg_sq", flat.clone())];
        Layout { shape: flat, slots, matrix: false }
    }

    /// The numbers that change from step to step; `step` counts from 1.
    pub(super) fn scalars(&self, learning_rate: f64, step: u64) -> Vec<(&'static str, f64)> {
        let steps = i32::try_from(step).unwrap_or(i32::MAX);
        let [first, second] = self.betas.map(|beta| 1.0 - beta.powi(steps));
        vec![
            ("keep", 1.0 - learning_rate * self.weight_decay),
            ("step_size", learning_rate / first),
            ("root_of_correction", second.sqrt()),
        ]
    }

    /// `weight`, `gradient`, `exp_avg`, `exp_avg_sq[count]` and the scalars → `out_weight`,
    /// `out_exp_avg`, `out_exp_avg_sq`.
    pub(super) fn graph(&self) -> Result<Graph, OptimizerError> {
        fraction("β₁ of AdamW", self.betas[0])?;
        fraction("β₂ of AdamW", self.betas[1])?;
        positive("ε of AdamW", self.epsilon, false)?;
        positive("weight decay", self.weight_decay, true)?;
        Ok(self.build()?)
    }

    fn build(&self) -> Result<Graph, GraphError> {
        let mut graph = GraphBuilder::new("AdamW", Profile::Ort);
        let b = &mut graph;
        let shape = vec![Dim::symbol("count")];
        let [weight, gradient, mean, square] = ["weight", "gradient", "exp_avg", "exp_avg_sq"]
            .map(|name| b.input(name, DType::F32, shape.clone()));
        let [keep, step_size, root, scale] = ["keep", "step_size", "root_of_correction", "scale"]
            .map(|name| b.input(name, DType::F32, vec![]));
        let gradient = b.mul(&gradient?, &scale?)?;
        let mean = average(b, &mean?, &gradient, self.betas[0])?;
        let gradient_square = b.mul(&gradient, &gradient)?;
        let square = average(b, &square?, &gradient_square, self.betas[1])?;
        let epsilon = b.scalar_f32(self.epsilon as f32);
        let deviation = b.sqrt(&square)?;
        let deviation = b.div(&deviation, &root?)?;
        let deviation = b.add(&deviation, &epsilon)?;
        let step = b.div(&mean, &deviation)?;
        let step = b.mul(&step, &step_size?)?;
        let kept = b.mul(&weight?, &keep?)?;
        let weight = b.sub(&kept, &step)?;
        for (name, value) in
            [("out_weight", weight), ("out_exp_avg", mean), ("out_exp_avg_sq", square)]
        {
            b.output(name, &value, DType::F32, &shape)?;
        }
        Ok(graph.finish())
    }
}

/// β·old + (1 − β)·new
pub(super) fn average(
    b: &mut GraphBuilder,
    old: &Value,
    new: &Value,
    beta: f64,
) -> Result<Value, GraphError> {
    let (keep, take) = (b.scalar_f32(beta as f32), b.scalar_f32((1.0 - beta) as f32));
    let old = b.mul(old, &keep)?;
    let new = b.mul(new, &take)?;
    b.add(&old, &new)
}
