//! Lowering for Ascend accelerators, which ONNX Runtime's CANN provider drives.
//!
//! The provider hands a graph to CANN's graph engine node by node: it claims the plain operators of
//! [`OPERATORS`] and leaves every other node to the processor, which cuts the graph in pieces. So
//! this profile has nothing but those operators, and no control flow.
//!
//! None of it has run on an Ascend accelerator yet. What is tested: every node is in the list, also
//! after ONNX Runtime's basic optimisations, and the results are those of the other profiles.

use crate::graph::dim::Dim;
use crate::graph::ir::{Graph, Initializer};
use crate::graph::{GraphBuilder, GraphError, GraphErrorKind, Value};

/// Version of the standard operator set.
///
/// Every release of the provider and of CANN takes 13: CANN 5 documents versions 9 to 13, CANN 7
/// and later 9 to 18, `ReduceMean` never beyond 16; the provider took 8 to 15 at first and has no
/// upper bound any more. From 17 and 20 on, ONNX Runtime itself would merge the primitives into
/// `LayerNormalization` and `Gelu` before the provider sees them, and it claims neither.
pub(super) const OPSET: i64 = 13;

/// Version of the file format that came with [`OPSET`].
pub(super) const IR_VERSION: i64 = 7;

/// The operators of the standard set that the provider claims: the list in ONNX Runtime's
/// `onnxruntime/core/providers/cann/cann_graph.cc`, equal in the oldest and the newest state of that
/// file that were read. Some are newer than [`OPSET`].
#[rustfmt::skip]
const OPERATORS: [&str; 134] = [
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh",
    "AveragePool", "BatchNormalization", "BitShift", "Cast", "Ceil", "Celu", "Clip", "Compress",
    "Concat", "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "Cosh", "CumSum",
    "DepthToSpace", "Det", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike",
    "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gemm", "GlobalAveragePool",
    "GlobalLpPool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "Hardmax", "HardSigmoid",
    "HardSwish", "Identity", "InstanceNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log",
    "LogSoftmax", "LpNormalization", "LpPool", "LRN", "LSTM", "MatMul", "Max", "MaxPool",
    "MaxRoiPool", "MaxUnpool", "Mean", "MeanVarianceNormalization", "Min", "Mod", "Mul",
    "Multinomial", "Neg", "NonMaxSuppression", "NonZero", "Not", "OneHot", "Or", "Pad", "Pow",
    "PRelu", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range", "Reciprocal",
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize",
    "ReverseSequence", "RoiAlign", "Round", "Scatter", "ScatterElements", "ScatterND", "Selu",
    "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice", "Softmax",
    "SoftmaxCrossEntropyLoss", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt",
    "Squeeze", "Sub", "Sum", "Tanh", "TfIdfVectorizer", "ThresholdedRelu", "Tile", "TopK",
    "Transpose", "Unsqueeze", "Where", "Xor",
];

/// An error unless every operator is one that the provider claims.
pub(super) fn check(graph: &Graph) -> Result<(), GraphError> {
    let claimed = |domain: &str, op: &str| domain.is_empty() && OPERATORS.contains(&op);
    let Some(node) = graph.nodes.iter().find(|node| !claimed(&node.domain, &node.op_type)) else {
        return Ok(());
    };
    let expected = "an operator that ONNX Runtime's CANN provider runs; choose another precision, \
                    or another profile";
    Err(GraphError::new(GraphErrorKind::Operator, &node.name, &node.op_type, &[], expected))
}

/// The provider serialises what it claims, weights included, into one protobuf message, which
/// cannot be larger than this.
const MOST_BYTES: u64 = (1 << 31) - 1;

/// What to say of a graph that does not fit into one message.
pub(super) fn too_large(graph: &Graph) -> Option<String> {
    let bytes = |initializer: &Initializer| {
        initializer.shape.iter().map(|&n| n as u64).product::<u64>()
            * initializer.dtype.size() as u64
    };
    let bytes: u64 = graph.initializers.iter().map(bytes).sum();
    (bytes > MOST_BYTES).then(|| {
        format!(
            "the weights take {bytes} bytes, but ONNX Runtime's CANN provider compiles at most \
             {MOST_BYTES} at a time: run this part on the processor, or export it in a smaller \
             precision if that fits"
        )
    })
}

impl GraphBuilder {
    /// `(x − mean) / sqrt(variance + epsilon) · scale + bias` over the last axis.
    pub(crate) fn layer_norm_of_primitives(
        &mut self,
        x: &Value,
        scale: &Value,
        bias: Option<&Value>,
        epsilon: f64,
    ) -> Result<Value, GraphError> {
        let mean = self.reduce_mean(x, -1)?;
        let centered = self.sub(x, &mean)?;
        let square = self.mul(&centered, &centered)?;
        let variance = self.reduce_mean(&square, -1)?;
        let epsilon = self.scalar_f32(epsilon as f32);
        let variance = self.add(&variance, &epsilon)?;
        let deviation = self.sqrt(&variance)?;
        let normal = self.div(&centered, &deviation)?;
        let scaled = self.mul(&normal, scale)?;
        match bias {
            Some(bias) => self.add(&scaled, bias),
            None => Ok(scaled),
        }
    }

    /// GELU in its tanh form, `x · ½(1 + tanh u)` with `u = √(2/π)·(x + 0.044715·x³)`, written as
    /// the equal `x · sigmoid(2u)`, which loses no digits where the sum would cancel.
    pub(crate) fn gelu_tanh_of_primitives(&mut self, x: &Value) -> Result<Value, GraphError> {
        let linear = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
        let (linear, cubic) = (linear as f32, (linear * 0.044715) as f32);
        let (linear, cubic) = (self.scalar_f32(linear), self.scalar_f32(cubic));
        let square = self.mul(x, x)?;
        let square = self.mul(&square, &cubic)?;
        let factor = self.add(&square, &linear)?;
        let exponent = self.mul(x, &factor)?;
        let gate = self.sigmoid(&exponent)?;
        self.mul(x, &gate)
    }

    /// Every pixel of `x[batch, channels, height, width]` repeated `factor` times along height and
    /// width. CANN's `Resize` rounds the nearest pixel in one way only and is not documented for
    /// operator set 13.
    pub(crate) fn repeat_pixels(&mut self, x: &Value, factor: usize) -> Result<Value, GraphError> {
        let [batch, channels, height, width] = [0, 1, 2, 3].map(|axis| x.shape()[axis].clone());
        let (by, one) = (Dim::from(factor), Dim::from(1));
        let wide = &width * &by;
        let rows = &channels * &height;
        let x = self.reshape(x, &[batch.clone(), rows.clone(), width, one.clone()])?;
        let x = self.concat(&vec![&x; factor], 3)?;
        let x = self.reshape(&x, &[batch.clone(), rows, one, wide.clone()])?;
        let x = self.concat(&vec![&x; factor], 2)?;
        self.reshape(&x, &[batch, channels, &height * &by, wide])
    }
}

#[cfg(test)]
mod tests {
    use super::super::Profile;
    use super::*;
    use crate::graph::ir::DType;
    use crate::graph::run::{floats, noise, run};

    /// What `build` makes of `x[rows, columns]` or of any other rank, sizes symbolic.
    fn apply(
        shape: &[usize],
        x: &[f32],
        build: impl FnOnce(&mut GraphBuilder, &Value) -> Result<Value, GraphError>,
    ) -> (Vec<usize>, Vec<f32>) {
        let mut b = GraphBuilder::new("test", Profile::Cann);
        let last = shape.len() - 1;
        let dim = |axis: usize| match axis == last {
            true => Dim::from(shape[axis]),
            false => Dim::symbol(&format!("d{axis}")),
        };
        let input = b.input("x", DType::F32, (0..shape.len()).map(dim).collect()).unwrap();
        let y = build(&mut b, &input).unwrap();
        let dims = y.shape().to_vec();
        b.output("y", &y, DType::F32, &dims).unwrap();
        let graph = b.finish();
        check(&graph).unwrap();
        run(&graph, &|_| Vec::new(), &[floats(shape, x)])
    }

    #[test]
    fn the_list_is_sorted_and_has_no_operator_twice() {
        let lower = OPERATORS.map(str::to_lowercase);
        assert!(lower.is_sorted_by(|a, b| a < b), "{lower:?}");
    }

    #[test]
    fn gelu_of_primitives_is_gelu() {
        let x: Vec<f32> = (-120..=120).map(|i| i as f32 / 10.0).chain([-1e4, 1e4]).collect();
        let (_, y) = apply(&[1, x.len()], &x, |b, x| b.gelu_tanh(x));
        for (x, y) in x.iter().zip(y) {
            let wide = f64::from(*x);
            let u = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
            let expected = 0.5 * wide * (1.0 + u.tanh());
            // Engines stop the sigmoid's tail at about 4e-7, so the bound is in parts of x.
            let error = (f64::from(y) - expected).abs();
            assert!(error <= 1e-6 * wide.abs().max(1.0), "{x}: {y}, expected {expected}");
        }
    }

    #[test]
    fn layer_norm_of_primitives_is_a_layer_norm() {
        const WIDTH: usize = 48;
        // Far from zero, where a variance computed from squares would have no digits left.
        let x: Vec<f32> = noise(1, 2 * WIDTH).iter().map(|x| 300.0 + x).collect();
        let scale = noise(2, WIDTH);
        let (_, y) = apply(&[2, WIDTH], &x, |b, x| {
            let scale = b.constant_f32(&scale, &[WIDTH]);
            b.layer_norm(x, &scale, Some(&scale.clone()), 1e-6)
        });
        for (x, y) in x.chunks(WIDTH).zip(y.chunks(WIDTH)) {
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / WIDTH as f64;
            let square = |x: &f32| (f64::from(*x) - mean).powi(2);
            let deviation = (x.iter().map(square).sum::<f64>() / WIDTH as f64 + 1e-6).sqrt();
            for ((x, y), scale) in x.iter().zip(y).zip(&scale) {
                let scale = f64::from(*scale);
                let expected = (f64::from(*x) - mean) / deviation * scale + scale;
                assert!((f64::from(*y) - expected).abs() < 2e-4, "{y}, expected {expected}");
            }
        }
    }

    #[test]
    fn pixels_are_repeated_in_their_place() {
        let x: Vec<f32> = (0..2 * 2 * 3 * 2).map(|i| i as f32).collect();
        let (shape, y) = apply(&[2, 2, 3, 2], &x, |b, x| b.upsample_nearest(x, 2));
        assert_eq!(shape, [2, 2, 6, 4]);
        for (index, y) in y.iter().enumerate() {
            let (plane, row, column) = (index / 24, index / 4 % 6, index % 4);
            assert_eq!(*y, x[plane * 6 + row / 2 * 2 + column / 2], "{index}");
        }
    }
}
