//! Mixed precision: products of matrices in 16 bits, everything else in 32.
//!
//! Which operators is the question that torch's autocast and MindSpore's mixed precision answer alike:
//! what multiplies matrices (linear layers, convolutions, attention's two products) gets operands of 16
//! bits, in the pass backward as well. Norms, softmax, activations, the modulation, the
//! stream that the blocks add to, and all weights between passes have 32.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

use pixart_exporter::graph::ir::{Attribute, DType, Graph, Initializer, Node, WeightData};
use pixart_runtime::engine::WeightType;

/// The float type in which matrices are multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits, as everything else.
    #[default]
    Fp32,
    /// 16 bits with 11 digits. Nothing above 65504 can be held, and little below 6e-8: the loss has to
    /// be scaled ([`crate::scaler`]).
    Fp16,
    /// 16 bits with 8 digits and the range of 32 bits.
    Bf16,
}

impl Precision {
    /// The name in settings: `fp32`, `fp16` or `bf16`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
        }
    }

    /// Half of the distance from 1 to the next number: the largest relative error of rounding.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            Self::Fp32 => 2f64.powi(-24),
            Self::Fp16 => 2f64.powi(-11),
            Self::Bf16 => 2f64.powi(-8),
        }
    }

    /// The type as engines name it.
    pub(super) fn weight_type(self) -> WeightType {
        match self {
            Self::Fp32 => WeightType::F32,
            Self::Fp16 => WeightType::F16,
            Self::Bf16 => WeightType::Bf16,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A precision of another name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("dtype: found {found:?}, expected fp32, fp16 or bf16")]
pub struct PrecisionError {
    /// The name.
    pub found: String,
}

impl FromStr for Precision {
    type Err = PrecisionError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let all = [Self::Fp32, Self::Fp16, Self::Bf16];
        let found = all.into_iter().find(|precision| precision.as_str() == name);
        found.ok_or_else(|| PrecisionError { found: name.to_owned() })
    }
}

/// How products of 16 bits come about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// By operators of 16 bits, for engines that have kernels for them. Results have 16 bits too.
    #[default]
    Kernels,
    /// By operators of 32 bits whose operands are rounded to 16, for engines without such kernels. It saves
    /// neither time nor memory. A result is rounded if a product reads it, for whatever else reads it as
    /// well: attention's gradient is a small difference of large sums, which must be of the same numbers.
    /// Other results keep 32 bits, such as attention's scores.
    Rounded,
}

/// The operators that compute in 16 bits.
const PRODUCTS: [&str; 3] = ["MatMul", "Conv", "MultiHeadAttention"];

/// Operators that only move what they read first.
const MOVES: [&str; 8] =
    ["Reshape", "Transpose", "Unsqueeze", "Squeeze", "Slice", "Split", "Expand", "Identity"];

fn is_product(node: &Node) -> bool {
    PRODUCTS.contains(&node.op_type.as_str())
}

fn moves(node: &Node) -> bool {
    MOVES.contains(&node.op_type.as_str())
}

/// The values that products read, as they are or moved.
fn operands(nodes: &[Node]) -> HashSet<String> {
    let mut found: HashSet<String> = HashSet::new();
    for node in nodes.iter().rev() {
        if is_product(node) {
            found.extend(node.inputs.iter().cloned());
        } else if moves(node) && node.outputs.iter().any(|output| found.contains(output)) {
            found.insert(node.inputs[0].clone());
        }
    }
    found
}

/// The graph with its products in `precision`. Inputs and outputs keep their 32 bits. The graph must be
/// one of 32-bit floats, without nodes that have graphs inside.
pub fn in_precision(graph: Graph, precision: Precision, arithmetic: Arithmetic) -> Graph {
    if precision == Precision::Fp32 {
        return graph;
    }
    let (nodes, initializers) = (Vec::with_capacity(2 * graph.nodes.len()), graph.initializers);
    let mut narrow = Narrow {
        precision,
        arithmetic,
        nodes,
        initializers,
        short: HashMap::new(),
        operands: operands(&graph.nodes),
        rounded: HashSet::new(),
    };
    for node in graph.nodes {
        narrow.add(node);
    }
    Graph { nodes: narrow.nodes, initializers: narrow.initializers, ..graph }
}

struct Narrow {
    precision: Precision,
    arithmetic: Arithmetic,
    nodes: Vec<Node>,
    initializers: Vec<Initializer>,
    /// For a value of 32 bits, the one that goes into products in its place.
    short: HashMap<String, String>,
    /// Values that products read, as they are or moved.
    operands: HashSet<String>,
    /// Values of 32 bits that are results of rounding, moved or not.
    rounded: HashSet<String>,
}

/// The factor whose product with a number of 24 digits takes the lower 16 of them along.
const SPLITTER: &str = "constants.splitter";

impl Narrow {
    fn add(&mut self, mut node: Node) {
        if !is_product(&node) {
            if moves(&node) && self.rounded.contains(&node.inputs[0]) {
                self.rounded.extend(node.outputs.iter().cloned());
            }
            self.nodes.push(node);
            return;
        }
        for input in node.inputs.iter_mut().filter(|input| !input.is_empty()) {
            *input = self.shortened(input);
        }
        let kernels = self.arithmetic == Arithmetic::Kernels;
        let [output] = &mut node.outputs[..] else { unreachable!("a product has one result") };
        if !kernels && !self.operands.contains(output) {
            self.nodes.push(node);
            return;
        }
        let wide = std::mem::replace(output, format!("{output}.product"));
        let product = output.clone();
        self.nodes.push(node);
        if kernels {
            self.cast(&product, &wide, DType::F32);
            self.short.insert(wide, product);
        } else {
            self.round(&product, &wide);
            self.rounded.insert(wide);
        }
    }

    /// The name of the value as a product reads it.
    fn shortened(&mut self, name: &str) -> String {
        if self.rounded.contains(name) {
            return name.to_owned();
        }
        if let Some(short) = self.short.get(name) {
            return short.clone();
        }
        let short = format!("{name}.{}", self.precision);
        match self.arithmetic {
            Arithmetic::Kernels => self.cast(name, &short, self.dtype()),
            Arithmetic::Rounded => self.round(name, &short),
        }
        self.short.insert(name.to_owned(), short.clone());
        short
    }

    fn dtype(&self) -> DType {
        match self.precision {
            Precision::Fp32 => DType::F32,
            Precision::Fp16 => DType::F16,
            Precision::Bf16 => DType::BF16,
        }
    }

    /// `to` is `from` rounded, in 32 bits.
    fn round(&mut self, from: &str, to: &str) {
        if self.precision != Precision::Bf16 {
            let cast = format!("{to}.cast");
            self.cast(from, &cast, self.dtype());
            self.cast(&cast, to, DType::F32);
            return;
        }
        // Not every engine has the type. T. J. Dekker's way of splitting a number in two rounds to as many
        // digits: what 2¹⁶ + 1 times the number has too much, taken off again. What is within 2¹⁷ of the
        // end of the range becomes no number, which counts as an overflow.
        if !self.initializers.iter().any(|initializer| initializer.name == SPLITTER) {
            self.initializers.push(Initializer {
                name: SPLITTER.to_owned(),
                dtype: DType::F32,
                shape: vec![],
                data: WeightData::Inline(65537f32.to_le_bytes().to_vec()),
            });
        }
        let [scaled, rest] = ["scaled", "rest"].map(|part| format!("{to}.{part}"));
        self.push("Mul", &[from, SPLITTER], &scaled, Vec::new());
        self.push("Sub", &[&scaled, from], &rest, Vec::new());
        self.push("Sub", &[&scaled, &rest], to, Vec::new());
    }

    fn cast(&mut self, from: &str, to: &str, dtype: DType) {
        let target = Attribute::Int(dtype.onnx().into());
        self.push("Cast", &[from], to, vec![("to".to_owned(), target)]);
    }

    fn push(
        &mut self,
        op: &str,
        inputs: &[&str],
        output: &str,
        attributes: Vec<(String, Attribute)>,
    ) {
        self.nodes.push(Node {
            name: format!("{output}/{op}"),
            op_type: op.to_owned(),
            domain: String::new(),
            inputs: inputs.iter().map(|&input| input.to_owned()).collect(),
            outputs: vec![output.to_owned()],
            attributes,
        });
    }
}
