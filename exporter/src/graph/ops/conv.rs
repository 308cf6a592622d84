//! Convolution and resizing of `[batch, channels, height, width]`.

use crate::graph::dim::Dim;
use crate::graph::error::{GraphError, GraphErrorKind};
use crate::graph::ir::{Attribute, DType, Phase};
use crate::graph::{GraphBuilder, Value};
use crate::profile::Profile;

/// Kernel, stride and padding of a square convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Side of the kernel.
    pub kernel: usize,
    /// Distance between two outputs.
    pub stride: usize,
    /// Zeros added before the first row and column, and after the last ones.
    pub padding: [usize; 2],
}

impl Window {
    /// A kernel of odd side that keeps the size.
    pub fn same(kernel: usize) -> Self {
        Self { kernel, stride: 1, padding: [kernel / 2; 2] }
    }

    /// Patches of this side that do not overlap.
    pub fn patches(side: usize) -> Self {
        Self { kernel: side, stride: side, padding: [0; 2] }
    }

    /// A 3×3 kernel that halves even sides, with zeros at the right and bottom edges only.
    pub fn halving() -> Self {
        Self { kernel: 3, stride: 2, padding: [0, 1] }
    }
}

impl GraphBuilder {
    /// The convolution `name` of the checkpoint: weight `[out, in, kernel, kernel]` and bias.
    pub fn conv2d(
        &mut self,
        name: &str,
        x: &Value,
        out_channels: usize,
        window: Window,
    ) -> Result<Value, GraphError> {
        self.scoped(name, |b| {
            let in_channels = b.conv_channels(x)?;
            let height = b.conv_size(x, &x.shape()[2], window)?;
            let width = b.conv_size(x, &x.shape()[3], window)?;
            let Window { kernel, stride, padding: [before, after] } = window;
            let weight = b.weight("weight", &[out_channels, in_channels, kernel, kernel])?;
            let bias = b.weight("bias", &[out_channels])?;
            let attributes = attributes(kernel, stride, [before, before, after, after]);
            let shape = vec![x.shape()[0].clone(), Dim::from(out_channels), height, width];
            Ok(b.push("Conv", &[x, &weight, &bias], attributes, DType::F32, shape))
        })
    }

    /// `x` with both sides doubled by repetition, and then the 3×3 convolution `name` of the
    /// checkpoint that keeps the size: weight `[out, in, 3, 3]` and bias.
    ///
    /// Each of the four pixels that one becomes depends on 2×2 pixels of `x` only. So the result is
    /// put together from four convolutions of `x`, with four ninths of the multiplications, but for
    /// profile `cann`: what its engine gains or loses by that is not known.
    pub fn upsampled_conv2d(
        &mut self,
        name: &str,
        x: &Value,
        out_channels: usize,
    ) -> Result<Value, GraphError> {
        if self.profile() == Profile::Cann {
            let x = self.upsample_nearest(x, 2)?;
            return self.conv2d(name, &x, out_channels, Window::same(3));
        }
        self.scoped(name, |b| {
            let in_channels = b.conv_channels(x)?;
            let weights = b.weight_phases("weight", out_channels, in_channels)?;
            let bias = b.weight("bias", &[out_channels])?;
            let mut shape = x.shape().to_vec();
            shape[1] = Dim::from(out_channels);
            let phases = Phase::ALL.iter().zip(&weights).map(|(phase, weight)| {
                let (lower, right) = (usize::from(phase.lower), usize::from(phase.right));
                let attributes = attributes(2, 1, [1 - lower, 1 - right, lower, right]);
                b.push("Conv", &[x, weight, &bias], attributes, DType::F32, shape.clone())
            });
            let phases: Vec<Value> = phases.collect();
            let phases = b.concat(&phases.iter().collect::<Vec<_>>(), 1)?;
            b.depth_to_space(&phases, 2)
        })
    }

    /// The constant number of channels of what a layer of the current scope convolves.
    fn conv_channels(&self, x: &Value) -> Result<usize, GraphError> {
        let op = "Conv";
        self.expect_dtype(op, x, DType::F32)?;
        self.expect_rank(op, x, 4)?;
        if self.is_adapted() {
            let expected = "adapters of linear layers only; leave this layer out of the targets";
            return self.fail(GraphErrorKind::Operator, op, &[x], expected);
        }
        match x.shape()[1].as_const().and_then(|n| usize::try_from(n).ok()) {
            Some(channels) => Ok(channels),
            None => self.fail(GraphErrorKind::Size, op, &[x], "a constant number of channels"),
        }
    }

    /// Each channel of `x` under a kernel of its own that moves by its own side: `weight`
    /// `[channels, 1, side, side]`, bias `[channels]`. What does not fill a kernel at the end is
    /// dropped: `size` is `[⌊height / side⌋, ⌊width / side⌋]`, as [`GraphBuilder::floor_div`] gives it.
    pub fn depthwise_patches(
        &mut self,
        x: &Value,
        weight: &Value,
        bias: &Value,
        side: usize,
        size: &[Dim; 2],
    ) -> Result<Value, GraphError> {
        let op = "Conv";
        let operands = [x, weight, bias];
        for operand in operands {
            self.expect_dtype(op, operand, DType::F32)?;
        }
        self.expect_rank(op, x, 4)?;
        let channels = &x.shape()[1];
        let (one, kernel) = (Dim::from(1), Dim::from(side));
        let fits = *weight.shape() == [channels.clone(), one, kernel.clone(), kernel]
            && *bias.shape() == [channels.clone()];
        let (Some(groups), true) = (channels.as_const(), fits) else {
            let expected = format!("weight [{channels}, 1, {side}, {side}] and bias [{channels}]");
            return self.fail(GraphErrorKind::Size, op, &operands, expected);
        };
        let mut attributes = attributes(side, side, [0; 4]);
        attributes.push(("group", Attribute::Int(groups)));
        let shape = vec![x.shape()[0].clone(), channels.clone(), size[0].clone(), size[1].clone()];
        Ok(self.push(op, &operands, attributes, DType::F32, shape))
    }

    /// `(size + padding − kernel) / stride + 1`, where that is exact.
    fn conv_size(&self, x: &Value, size: &Dim, window: Window) -> Result<Dim, GraphError> {
        let Window { kernel, stride, padding: [before, after] } = window;
        let grown = size + &Dim::from((before + after) as i64 - kernel as i64);
        match grown.exact_div(&Dim::from(stride)) {
            Some(steps) => Ok(&steps + &Dim::from(1)),
            None => {
                let expected = format!("sides that stride {stride} divides, not {size}");
                self.fail(GraphErrorKind::Divisibility, "Conv", &[x], expected)
            }
        }
    }

    /// The channels of `x[batch, factor² · channels, height, width]` as the pixels of
    /// `[batch, channels, factor · height, factor · width]`: of each channel, all that go to the upper
    /// left first, then those to their right.
    pub fn depth_to_space(&mut self, x: &Value, factor: usize) -> Result<Value, GraphError> {
        let op = "DepthToSpace";
        self.expect_rank(op, x, 4)?;
        let by = Dim::from(factor);
        let [batch, channels, height, width] = [0, 1, 2, 3].map(|axis| &x.shape()[axis]);
        let Some(channels) = channels.exact_div(&(&by * &by)) else {
            let expected = format!("a multiple of {} channels", factor * factor);
            return self.fail(GraphErrorKind::Divisibility, op, &[x], expected);
        };
        let shape = vec![batch.clone(), channels, height * &by, width * &by];
        let attributes = vec![
            ("blocksize", Attribute::Int(factor as i64)),
            ("mode", Attribute::String("DCR".to_owned())),
        ];
        Ok(self.push(op, &[x], attributes, x.dtype(), shape))
    }

    /// Every pixel repeated `factor` times along height and width.
    pub fn upsample_nearest(&mut self, x: &Value, factor: usize) -> Result<Value, GraphError> {
        let op = "Resize";
        self.expect_dtype(op, x, DType::F32)?;
        self.expect_rank(op, x, 4)?;
        if self.profile() == Profile::Cann {
            return self.repeat_pixels(x, factor);
        }
        let scales = self.constant_f32(&[1.0, 1.0, factor as f32, factor as f32], &[4]);
        let absent = Value { name: String::new(), dtype: DType::F32, shape: vec![] };
        let by = Dim::from(factor);
        let shape = vec![
            x.shape()[0].clone(),
            x.shape()[1].clone(),
            &x.shape()[2] * &by,
            &x.shape()[3] * &by,
        ];
        let string = |s: &str| Attribute::String(s.to_owned());
        let attributes = vec![
            ("mode", string("nearest")),
            ("coordinate_transformation_mode", string("asymmetric")),
            ("nearest_mode", string("floor")),
        ];
        Ok(self.push(op, &[x, &absent, &scales], attributes, DType::F32, shape))
    }
}

/// Of a convolution with a square kernel; `pads` in the order top, left, bottom, right.
fn attributes(kernel: usize, stride: usize, pads: [usize; 4]) -> Vec<(&'static str, Attribute)> {
    let ints = |values: &[usize]| Attribute::Ints(values.iter().map(|&n| n as i64).collect());
    vec![
        ("kernel_shape", ints(&[kernel; 2])),
        ("strides", ints(&[stride; 2])),
        ("pads", ints(&pads)),
    ]
}
