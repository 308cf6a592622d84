//! Convolution and resizing of `[batch, channels, height, width]`.

use crate::graph::dim::Dim;
use crate::graph::error::{GraphError, GraphErrorKind};
use crate::graph::ir::{Attribute, DType};
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
        let op = "Conv";
        self.scoped(name, |b| {
            b.expect_dtype(op, x, DType::F32)?;
            b.expect_rank(op, x, 4)?;
            if b.is_adapted() {
                let expected =
                    "adapters of linear layers only; leave this layer out of the targets";
                return b.fail(GraphErrorKind::Operator, op, &[x], expected);
            }
            let Some(in_channels) = x.shape()[1].as_const().and_then(|n| usize::try_from(n).ok())
            else {
                return b.fail(GraphErrorKind::Size, op, &[x], "a constant number of channels");
            };
            let height = b.conv_size(x, &x.shape()[2], window)?;
            let width = b.conv_size(x, &x.shape()[3], window)?;
            let Window { kernel, stride, padding: [before, after] } = window;
            let weight = b.weight("weight", &[out_channels, in_channels, kernel, kernel])?;
            let bias = b.weight("bias", &[out_channels])?;
            let ints = |value: usize, count| Attribute::Ints(vec![value as i64; count]);
            let attributes = vec![
                ("kernel_shape", ints(kernel, 2)),
                ("strides", ints(stride, 2)),
                (
                    "pads",
                    Attribute::Ints([before, before, after, after].map(|n| n as i64).to_vec()),
                ),
            ];
            let shape = vec![x.shape()[0].clone(), Dim::from(out_channels), height, width];
            Ok(b.push(op, &[x, &weight, &bias], attributes, DType::F32, shape))
        })
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
        let side = side as i64;
        let attributes = vec![
            ("kernel_shape", Attribute::Ints(vec![side; 2])),
            ("strides", Attribute::Ints(vec![side; 2])),
            ("pads", Attribute::Ints(vec![0; 4])),
            ("group", Attribute::Int(groups)),
        ];
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
