//! Normalisations that engines run in different ways.

use super::Profile;
use crate::graph::dim::Dim;
use crate::graph::{GraphBuilder, GraphError, GraphErrorKind, Value};

impl GraphBuilder {
    /// `layer_norm(x) · (1 + scale) + shift` over the last axis of `x[batch, tokens, width]`, scale
    /// and shift `[batch, 1, width]`.
    pub fn modulated_layer_norm(
        &mut self,
        x: &Value,
        scale: &Value,
        shift: &Value,
        epsilon: f64,
    ) -> Result<Value, GraphError> {
        let one = self.scalar_f32(1.0);
        let scale = self.add(scale, &one)?;
        match self.profile() {
            // The norm applies a scale and a shift of its own; one pass instead of three.
            Profile::Ort => self.layer_norm(x, &scale, Some(shift), epsilon),
            Profile::Portable => {
                let width = x.shape().last().and_then(Dim::as_const).unwrap_or(1) as usize;
                let ones = self.constant_f32(&vec![1.0; width], &[width]);
                let normal = self.layer_norm(x, &ones, None, epsilon)?;
                let scaled = self.mul(&normal, &scale)?;
                self.add(&scaled, shift)
            }
        }
    }

    /// The group norm `name` of the checkpoint over `x[batch, channels, height, width]`.
    pub fn group_norm(
        &mut self,
        name: &str,
        x: &Value,
        groups: usize,
        epsilon: f64,
    ) -> Result<Value, GraphError> {
        self.scoped(name, |b| {
            b.expect_rank("GroupNorm", x, 4)?;
            let Some(channels) = x.shape()[1].as_const().map(|n| n as usize) else {
                let expected = "a constant number of channels";
                return b.fail(GraphErrorKind::Size, "GroupNorm", &[x], expected);
            };
            let Some(per_group) =
                (groups > 0 && channels % groups == 0).then(|| Dim::from(channels / groups.max(1)))
            else {
                let expected = format!("channels that {groups} groups share evenly");
                return b.fail(GraphErrorKind::Divisibility, "GroupNorm", &[x], expected);
            };
            let weight = b.weight("weight", &[channels])?;
            let bias = b.weight("bias", &[channels])?;
            // A group is a channel of the instance norm, which every engine runs natively;
            // `GroupNormalization` is taken apart by ONNX Runtime and half as fast.
            let pixels = &x.shape()[2] * &x.shape()[3];
            let shape = [x.shape()[0].clone(), Dim::from(groups), &per_group * &pixels];
            let grouped = b.reshape(x, &shape)?;
            let ones = b.constant_f32(&vec![1.0; groups], &[groups]);
            let zeros = b.constant_f32(&vec![0.0; groups], &[groups]);
            let normal = b.instance_norm(&grouped, &ones, &zeros, epsilon)?;
            let normal = b.reshape(&normal, x.shape())?;
            let weight = b.unsqueeze(&weight, &[1, 2])?;
            let bias = b.unsqueeze(&bias, &[1, 2])?;
            let scaled = b.mul(&normal, &weight)?;
            b.add(&scaled, &bias)
        })
    }
}
