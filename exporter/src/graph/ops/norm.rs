//! Normalisations of the standard operator set.

use crate::graph::dim::Dim;
use crate::graph::error::{GraphError, GraphErrorKind};
use crate::graph::ir::{Attribute, DType};
use crate::graph::{GraphBuilder, Value};

impl GraphBuilder {
    /// Layer norm over the last axis: `(x − mean) / sqrt(variance + epsilon) · scale + bias`, with
    /// the biased variance. `scale` and `bias` broadcast to `x`.
    pub fn layer_norm(
        &mut self,
        x: &Value,
        scale: &Value,
        bias: Option<&Value>,
        epsilon: f64,
    ) -> Result<Value, GraphError> {
        let op = "LayerNormalization";
        let mut operands = vec![x, scale];
        operands.extend(bias);
        for operand in &operands {
            self.expect_dtype(op, operand, DType::F32)?;
            let shape = self.broadcast(op, &operands, x.shape(), operand.shape())?;
            if shape != x.shape() {
                let expected = "a scale and a bias that broadcast to the first operand";
                return self.fail(GraphErrorKind::Broadcast, op, &operands, expected);
            }
        }
        if self.profile().opset() < 17 {
            return self.layer_norm_of_primitives(x, scale, bias, epsilon);
        }
        let attributes =
            vec![("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(epsilon as f32))];
        Ok(self.push(op, &operands, attributes, DType::F32, x.shape().to_vec()))
    }

    /// T5's norm over the last axis: `x / sqrt(mean(x²) + epsilon) · weight`, `weight` being the
    /// checkpoint tensor `<name>.weight`.
    pub fn rms_norm(&mut self, name: &str, x: &Value, epsilon: f64) -> Result<Value, GraphError> {
        self.scoped(name, |b| {
            let width = x.shape().last().and_then(Dim::as_const);
            let Some(width) = width.and_then(|n| usize::try_from(n).ok()) else {
                let expected = "a last axis of constant size";
                return b.fail(GraphErrorKind::Size, "RMSNorm", &[x], expected);
            };
            // ONNX Runtime recognises this chain and runs it as one operator.
            let square = b.pow(x, 2.0)?;
            let mean = b.reduce_mean(&square, -1)?;
            let epsilon = b.scalar_f32(epsilon as f32);
            let mean = b.add(&mean, &epsilon)?;
            let root = b.sqrt(&mean)?;
            let normal = b.div(x, &root)?;
            let weight = b.weight("weight", &[width])?;
            b.mul(&normal, &weight)
        })
    }

    /// Instance norm: every channel of `x[batch, channels, …]` is normalised over the axes behind
    /// it, then scaled and shifted (both `[channels]`).
    pub fn instance_norm(
        &mut self,
        x: &Value,
        scale: &Value,
        bias: &Value,
        epsilon: f64,
    ) -> Result<Value, GraphError> {
        self.channel_norm("InstanceNormalization", x, scale, bias, epsilon, vec![])
    }

    /// Group norm of `x[batch, channels, …]`, scale and bias `[channels]`.
    pub fn group_normalization(
        &mut self,
        x: &Value,
        scale: &Value,
        bias: &Value,
        groups: usize,
        epsilon: f64,
    ) -> Result<Value, GraphError> {
        let op = "GroupNormalization";
        if x.rank() >= 2 && x.shape()[1].exact_div(&Dim::from(groups)).is_none() {
            let expected = format!("channels that {groups} groups share evenly");
            return self.fail(GraphErrorKind::Divisibility, op, &[x], expected);
        }
        let groups = vec![("num_groups", Attribute::Int(groups as i64))];
        self.channel_norm(op, x, scale, bias, epsilon, groups)
    }

    fn channel_norm(
        &mut self,
        op: &str,
        x: &Value,
        scale: &Value,
        bias: &Value,
        epsilon: f64,
        mut attributes: Vec<(&str, Attribute)>,
    ) -> Result<Value, GraphError> {
        let operands = [x, scale, bias];
        for operand in operands {
            self.expect_dtype(op, operand, DType::F32)?;
        }
        if x.rank() < 3 {
            return self.fail(GraphErrorKind::Rank, op, &operands, "at least 3 axes");
        }
        for parameter in [scale, bias] {
            if parameter.shape() != [x.shape()[1].clone()] {
                let expected = format!("scale and bias of shape [{}]", x.shape()[1]);
                return self.fail(GraphErrorKind::Size, op, &operands, expected);
            }
        }
        attributes.push(("epsilon", Attribute::Float(epsilon as f32)));
        Ok(self.push(op, &operands, attributes, DType::F32, x.shape().to_vec()))
    }
}
