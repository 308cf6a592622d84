//! Matrix products and linear layers.

use crate::graph::dim::Dim;
use crate::graph::error::{GraphError, GraphErrorKind};
use crate::graph::ir::DType;
use crate::graph::{GraphBuilder, Value};

/// The input that is the factor of all adapters, a number without axes.
pub const LORA_SCALE: &str = "lora_scale";

impl GraphBuilder {
    /// `a[…, m, k] × b[…, k, n] → […, m, n]`; the leading axes broadcast.
    pub fn matmul(&mut self, a: &Value, b: &Value) -> Result<Value, GraphError> {
        let op = "MatMul";
        self.expect_dtype(op, a, DType::F32)?;
        self.expect_dtype(op, b, DType::F32)?;
        let (rank_a, rank_b) = (a.rank(), b.rank());
        if rank_a < 2 || rank_b < 2 {
            let expected = "two operands of at least two axes";
            return self.fail(GraphErrorKind::Rank, op, &[a, b], expected);
        }
        let (inner_a, inner_b) = (&a.shape()[rank_a - 1], &b.shape()[rank_b - 2]);
        if inner_a != inner_b {
            let expected = format!("equal inner sizes, not {inner_a} and {inner_b}");
            return self.fail(GraphErrorKind::Size, op, &[a, b], expected);
        }
        let lead_a = &a.shape()[..rank_a - 2];
        let lead_b = &b.shape()[..rank_b - 2];
        let mut shape = self.broadcast(op, &[a, b], lead_a, lead_b)?;
        shape.push(a.shape()[rank_a - 2].clone());
        shape.push(b.shape()[rank_b - 1].clone());
        Ok(self.push(op, &[a, b], vec![], DType::F32, shape))
    }

    /// The linear layer `name` of the checkpoint: `x · weightᵀ + bias`, weight `[out, in]`.
    ///
    /// The input width is `x`'s last size, so that a checkpoint of another width is found out.
    ///
    /// If the layer is one of those with a low-rank adapter (arXiv 2106.09685, see
    /// [`GraphBuilder::adapters`]), the result is `x · weightᵀ + bias + scale · x · Aᵀ · Bᵀ` with
    /// `<name>.lora_A.weight[rank, in]`, `<name>.lora_B.weight[out, rank]` and the number `lora_scale`.
    pub fn linear(
        &mut self,
        name: &str,
        x: &Value,
        out_features: usize,
        bias: bool,
    ) -> Result<Value, GraphError> {
        self.scoped(name, |b| {
            let width = x.shape().last().and_then(|dim| dim.as_const());
            let Some(in_features) = width.and_then(|n| usize::try_from(n).ok()) else {
                let expected = "a last axis of constant size";
                return b.fail(GraphErrorKind::Size, "MatMul", &[x], expected);
            };
            let weight = b.weight_transposed("weight", out_features, in_features)?;
            let mut y = b.matmul(x, &weight)?;
            if bias {
                let bias = b.weight("bias", &[out_features])?;
                y = b.add(&y, &bias)?;
            }
            if b.is_adapted() {
                let change = b.adapter(x, in_features, out_features)?;
                y = b.add(&y, &change)?;
            }
            Ok(y)
        })
    }

    /// `scale · x · Aᵀ · Bᵀ` for the layer of the current scope.
    fn adapter(
        &mut self,
        x: &Value,
        in_features: usize,
        out_features: usize,
    ) -> Result<Value, GraphError> {
        let rank = Dim::symbol("rank");
        let down = self.open_weight("lora_A.weight", vec![rank.clone(), in_features.into()])?;
        let up = self.open_weight("lora_B.weight", vec![out_features.into(), rank])?;
        let scale = match self.value(LORA_SCALE) {
            Some(scale) => scale,
            None => self.input(LORA_SCALE, DType::F32, vec![])?,
        };
        let down = self.transpose(&down, &[1, 0])?;
        let narrow = self.matmul(x, &down)?;
        // The narrow result has the fewest numbers to scale.
        let narrow = self.mul(&narrow, &scale)?;
        let up = self.transpose(&up, &[1, 0])?;
        self.matmul(&narrow, &up)
    }
}
