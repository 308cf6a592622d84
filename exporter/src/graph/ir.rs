//! The graph as plain data: what the builder produces and the writer serialises.
//!
//! This mirrors the ONNX model structure closely, with two additions: sizes are symbolic
//! expressions, and a weight is a *reference* to a tensor of the checkpoint, so that a graph of any
//! size fits in a few megabytes of memory and the weights are streamed when it is written.

use super::dim::Dim;

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// The upper half of a 32-bit IEEE float.
    BF16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 8-bit signed integer.
    I8,
    /// 8-bit unsigned integer.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

impl DType {
    /// Bytes an element takes in a file.
    pub fn size(self) -> usize {
        match self {
            Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Whether the elements are floats of any width.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// The number of the type in ONNX's `TensorProto.DataType`.
    pub fn onnx(self) -> i32 {
        match self {
            Self::F32 => 1,
            Self::U8 => 2,
            Self::I8 => 3,
            Self::I32 => 6,
            Self::I64 => 7,
            Self::Bool => 9,
            Self::F16 => 10,
            Self::BF16 => 16,
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::Bool => "bool",
        })
    }
}

/// Name, element type and shape of a graph input or output.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueInfo {
    /// The name of the value.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its shape; `Dim`'s `Display` is the `dim_param` of a size that is not constant.
    pub shape: Vec<Dim>,
}

/// An attribute of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// `INT`
    Int(i64),
    /// `FLOAT`
    Float(f32),
    /// `STRING`
    String(String),
    /// `INTS`
    Ints(Vec<i64>),
    /// `FLOATS`
    Floats(Vec<f32>),
    /// `GRAPH`: the body of `Scan`, `Loop` or `If`. Its opset imports are the outer graph's.
    Graph(Box<Graph>),
}

/// One operator of the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Hierarchical and unique: `transformer_blocks.3.attn1.to_q/MatMul`.
    pub name: String,
    /// Operator name, for example `MatMul`.
    pub op_type: String,
    /// Operator set; empty for the standard one.
    pub domain: String,
    /// Value names; an empty string is an absent optional input.
    pub inputs: Vec<String>,
    /// Value names.
    pub outputs: Vec<String>,
    /// Attributes by name, each at most once.
    pub attributes: Vec<(String, Attribute)>,
}

/// What is done to a checkpoint tensor while it is copied into the ONNX file. Floats are rounded to
/// the initializer's element type besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transform {
    /// The elements in their order.
    None,
    /// A matrix `[out, in]` is written as `[in, out]`.
    Transpose2d,
    /// The same elements under the initializer's shape.
    Reshape,
    /// A kernel `[out, in, 3, 3]` that goes over a picture of doubled pixels, as the kernel
    /// `[out, in, 2, 2]` over the small picture that gives the pixels of one [`Phase`]: taps that
    /// fall on the same small pixel are summed, in 64 bits.
    Phase(Phase),
    /// A matrix `[out, in]` as codes of 8 or 4 bits in blocks of 32 numbers along `in`, each with a
    /// scale: `[out, blocks, bytes of a block]`, unsigned.
    QuantisedBlocks {
        /// Bits of a code.
        bits: u8,
    },
    /// The scales of [`Self::QuantisedBlocks`]: `[out, blocks]`.
    BlockScales {
        /// Bits of a code.
        bits: u8,
    },
    /// A matrix `[out, in]` as signed bytes `[in, out]`, a scale for each column.
    QuantisedColumns,
    /// The scales of [`Self::QuantisedColumns`]: `[out]`.
    ColumnScales,
}

/// Which of the four pixels that one becomes when both sides of a picture double.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Phase {
    /// In the lower row.
    pub lower: bool,
    /// In the right column.
    pub right: bool,
}

impl Phase {
    /// All four, row by row.
    pub const ALL: [Self; 4] = [
        Self { lower: false, right: false },
        Self { lower: false, right: true },
        Self { lower: true, right: false },
        Self { lower: true, right: true },
    ];
}

/// A tensor of the checkpoint, under its diffusers or transformers name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WeightRef {
    /// Name in the checkpoint, for example `transformer_blocks.0.attn1.to_q.weight`.
    pub tensor: String,
    /// The shape it must have there.
    pub shape: Vec<usize>,
    /// What to do with it on the way.
    pub transform: Transform,
}

/// Where the elements of an initializer come from.
#[derive(Clone, Debug, PartialEq)]
pub enum WeightData {
    /// Little-endian elements, kept in the graph itself.
    Inline(Vec<u8>),
    /// A tensor of the checkpoint, streamed when the graph is written.
    Checkpoint(WeightRef),
}

/// A constant of the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Initializer {
    /// Value name.
    pub name: String,
    /// Element type in the ONNX file.
    pub dtype: DType,
    /// Shape in the ONNX file (after the transform).
    pub shape: Vec<usize>,
    /// The elements.
    pub data: WeightData,
}

/// Version of an operator set the graph uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpsetImport {
    /// Empty for the standard set, else for example `com.microsoft`.
    pub domain: String,
    /// Its version.
    pub version: i64,
}

/// A complete graph, nodes in topological order.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// Name written into the file.
    pub name: String,
    /// Inputs, in order.
    pub inputs: Vec<ValueInfo>,
    /// Outputs, in order.
    pub outputs: Vec<ValueInfo>,
    /// Operators, each after the producers of its inputs.
    pub nodes: Vec<Node>,
    /// Constants and weights, names unique.
    pub initializers: Vec<Initializer>,
    /// Operator sets used; empty in the body of a control-flow node.
    pub opset_imports: Vec<OpsetImport>,
    /// Version of the file format it is written in.
    pub ir_version: i64,
}

impl Graph {
    /// The checkpoint tensors the graph reads, in the order of first use. A tensor that two
    /// initializers read appears twice.
    pub fn weights(&self) -> impl Iterator<Item = &WeightRef> {
        self.initializers.iter().filter_map(|initializer| match &initializer.data {
            WeightData::Checkpoint(weight) => Some(weight),
            WeightData::Inline(_) => None,
        })
    }
}
