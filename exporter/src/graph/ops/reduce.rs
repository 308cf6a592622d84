//! Operators over axes: mean, sum and softmax.

use crate::graph::dim::Dim;
use crate::graph::error::{GraphError, GraphErrorKind};
use crate::graph::ir::{Attribute, DType};
use crate::graph::{GraphBuilder, Value};

impl GraphBuilder {
    /// The mean over `axis` (negative: from the end), which stays as an axis of size 1.
    pub fn reduce_mean(&mut self, x: &Value, axis: i64) -> Result<Value, GraphError> {
        let op = "ReduceMean";
        self.expect_dtype(op, x, DType::F32)?;
        let index = self.axis(op, x, axis)?;
        let mut shape = x.shape().to_vec();
        shape[index] = Dim::from(1);
        let mut attributes = vec![("keepdims", Attribute::Int(1))];
        // The axes became an operand with version 18.
        if self.profile().opset() < 18 {
            attributes.push(("axes", Attribute::Ints(vec![axis])));
            return Ok(self.push(op, &[x], attributes, DType::F32, shape));
        }
        let axes = self.constant_i64(&[axis]);
        Ok(self.push(op, &[x, &axes], attributes, DType::F32, shape))
    }

    /// The sum over `axes`, which stay as axes of size 1. No axes: `x` itself.
    pub fn reduce_sum(&mut self, x: &Value, axes: &[usize]) -> Result<Value, GraphError> {
        let op = "ReduceSum";
        self.expect_dtype(op, x, DType::F32)?;
        if axes.is_empty() {
            return Ok(x.clone());
        }
        let mut shape = x.shape().to_vec();
        for &axis in axes {
            shape[self.axis(op, x, axis as i64)?] = Dim::from(1);
        }
        let axes: Vec<i64> = axes.iter().map(|&axis| axis as i64).collect();
        let axes = self.constant_i64(&axes);
        let attributes = vec![("keepdims", Attribute::Int(1))];
        Ok(self.push(op, &[x, &axes], attributes, DType::F32, shape))
    }

    /// The sum of the squares over `axes`, which stay as axes of size 1.
    pub fn reduce_sum_square(&mut self, x: &Value, axes: &[usize]) -> Result<Value, GraphError> {
        let op = "ReduceSumSquare";
        self.expect_dtype(op, x, DType::F32)?;
        let mut shape = x.shape().to_vec();
        for &axis in axes {
            shape[self.axis(op, x, axis as i64)?] = Dim::from(1);
        }
        let axes: Vec<i64> = axes.iter().map(|&axis| axis as i64).collect();
        let mut attributes = vec![("keepdims", Attribute::Int(1))];
        // The axes became an operand with version 18, for the sum alone with version 13.
        if self.profile().opset() < 18 {
            attributes.push(("axes", Attribute::Ints(axes)));
            return Ok(self.push(op, &[x], attributes, DType::F32, shape));
        }
        let axes = self.constant_i64(&axes);
        Ok(self.push(op, &[x, &axes], attributes, DType::F32, shape))
    }

    /// Softmax over the last axis.
    pub fn softmax(&mut self, x: &Value) -> Result<Value, GraphError> {
        let op = "Softmax";
        self.expect_dtype(op, x, DType::F32)?;
        self.axis(op, x, -1)?;
        let attributes = vec![("axis", Attribute::Int(-1))];
        Ok(self.push(op, &[x], attributes, DType::F32, x.shape().to_vec()))
    }

    /// The index of `axis` (negative: from the end) of `x`.
    pub(crate) fn axis(&self, op: &str, x: &Value, axis: i64) -> Result<usize, GraphError> {
        let rank = x.rank() as i64;
        if (-rank..rank).contains(&axis) {
            return Ok(axis.rem_euclid(rank) as usize);
        }
        self.fail(GraphErrorKind::Axis, op, &[x], format!("an operand that has axis {axis}"))
    }
}
