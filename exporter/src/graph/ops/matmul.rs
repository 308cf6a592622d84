//! Matrix products and linear layers.

use crate::graph::error::{GraphError, GraphErrorKind};
use crate::graph::ir::DType;
use crate::graph::{GraphBuilder, Value};

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
            let y = b.matmul(x, &weight)?;
            if !bias {
                return Ok(y);
            }
            let bias = b.weight("bias", &[out_features])?;
            b.add(&y, &bias)
        })
    }
}
