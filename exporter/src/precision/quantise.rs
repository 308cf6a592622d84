//! Products with quantised matrices in place of products with matrices of floats.

use std::collections::{HashMap, HashSet};

use super::rules::{Quantisation, Rules};
use crate::graph::MICROSOFT;
use crate::graph::ir::{
    Attribute, DType, Graph, Initializer, Node, OpsetImport, Transform, WeightData,
};
use crate::write::convert::{QUANTISED_BLOCK as BLOCK, block_bytes};

/// Computes on activations that are quantised to 8 bits, block by block: several times faster on
/// processors than unpacking the weights to floats.
const ACCURACY_LEVEL: i64 = 4;

/// Replaces every product that the rules name.
pub(super) fn quantise(graph: Graph, rules: &Rules) -> Graph {
    let matrices: HashMap<&str, Matrix> = graph
        .initializers
        .iter()
        .filter_map(|initializer| {
            Some((initializer.name.as_str(), Matrix::of(initializer, rules)?))
        })
        .collect();
    // A matrix that anything but one product reads stays as it is. (No graph has one today.)
    let mut products = HashMap::new();
    let mut other_uses = HashSet::new();
    for node in &graph.nodes {
        for (position, input) in node.inputs.iter().enumerate() {
            if matrices.contains_key(input.as_str()) {
                let product = node.op_type == "MatMul" && position == 1;
                if !product || products.insert(input.as_str(), ()).is_some() {
                    other_uses.insert(input.as_str());
                }
            }
        }
    }
    let chosen = |name: &str| {
        let product = products.contains_key(name) && !other_uses.contains(name);
        product.then(|| matrices.get(name)).flatten()
    };

    let mut lowered = Lowered::default();
    for node in &graph.nodes {
        match node.inputs.get(1).and_then(|name| chosen(name)) {
            Some(matrix) => lowered.product(node, matrix),
            None => lowered.nodes.push(node.clone()),
        }
    }
    let mut initializers = Vec::new();
    for initializer in &graph.initializers {
        match chosen(&initializer.name) {
            Some(matrix) => initializers.extend(matrix.initializers(initializer)),
            None => initializers.push(initializer.clone()),
        }
    }
    let mut opset_imports = graph.opset_imports.clone();
    if lowered.nodes.iter().any(|node| node.domain == MICROSOFT)
        && opset_imports.iter().all(|set| set.domain != MICROSOFT)
    {
        opset_imports.push(OpsetImport { domain: MICROSOFT.to_owned(), version: 1 });
    }
    Graph { nodes: lowered.nodes, initializers, opset_imports, ..graph }
}

/// A matrix of the checkpoint, `[outputs, inputs]`, that is to be quantised.
struct Matrix {
    name: String,
    outputs: usize,
    inputs: usize,
    quantisation: Quantisation,
}

impl Matrix {
    fn of(initializer: &Initializer, rules: &Rules) -> Option<Self> {
        let WeightData::Checkpoint(weight) = &initializer.data else { return None };
        let (Transform::Transpose2d, &[outputs, inputs]) = (weight.transform, &weight.shape[..])
        else {
            return None;
        };
        let quantisation = rules.quantisation(&weight.tensor)?;
        Some(Self { name: initializer.name.clone(), outputs, inputs, quantisation })
    }

    fn blocks(&self) -> usize {
        self.inputs.div_ceil(BLOCK)
    }

    fn codes(&self) -> String {
        format!("{}.codes", self.name)
    }

    fn scales(&self) -> String {
        format!("{}.scales", self.name)
    }

    /// Codes and scales, in place of the matrix.
    fn initializers(&self, matrix: &Initializer) -> [Initializer; 2] {
        let make = |name, dtype, shape, transform| {
            let mut data = matrix.data.clone();
            if let WeightData::Checkpoint(weight) = &mut data {
                weight.transform = transform;
            }
            Initializer { name, dtype, shape, data }
        };
        let (codes, scales) = (self.codes(), self.scales());
        match self.quantisation {
            Quantisation::Blocks { bits } => {
                let (outputs, blocks) = (self.outputs, self.blocks());
                // Older versions of the operator take scales in one row only.
                let shape = vec![outputs * blocks];
                let code_shape = vec![outputs, blocks, block_bytes(bits)];
                [
                    make(codes, DType::U8, code_shape, Transform::QuantisedBlocks { bits }),
                    make(scales, DType::F32, shape, Transform::BlockScales { bits }),
                ]
            }
            Quantisation::Columns | Quantisation::DynamicColumns => {
                let code_shape = vec![self.inputs, self.outputs];
                [
                    make(codes, DType::I8, code_shape, Transform::QuantisedColumns),
                    make(scales, DType::F32, vec![self.outputs], Transform::ColumnScales),
                ]
            }
        }
    }
}

/// The graph after the change, as far as it has been built.
#[derive(Default)]
struct Lowered {
    nodes: Vec<Node>,
    /// Activations that have been quantised: several products share one.
    quantised: HashSet<String>,
}

impl Lowered {
    /// What computes the same as the product `node`, into the same value.
    fn product(&mut self, node: &Node, matrix: &Matrix) {
        match matrix.quantisation {
            Quantisation::Blocks { bits } => self.fused(node, matrix, bits),
            Quantisation::Columns => self.widened(node, matrix),
            Quantisation::DynamicColumns => self.dynamic(node, matrix),
        }
    }

    /// ONNX Runtime's own operator.
    fn fused(&mut self, node: &Node, matrix: &Matrix, bits: u8) {
        let int = |value: usize| Attribute::Int(value as i64);
        let attributes = [
            ("K", int(matrix.inputs)),
            ("N", int(matrix.outputs)),
            ("bits", int(bits.into())),
            ("block_size", int(BLOCK)),
            ("accuracy_level", Attribute::Int(ACCURACY_LEVEL)),
        ];
        self.nodes.push(Node {
            name: node.name.replace("/MatMul", "/MatMulNBits"),
            op_type: "MatMulNBits".to_owned(),
            domain: MICROSOFT.to_owned(),
            inputs: vec![node.inputs[0].clone(), matrix.codes(), matrix.scales()],
            outputs: node.outputs.clone(),
            attributes: attributes.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        });
    }

    /// The codes as floats, which engines make while they load, and the scales put back behind the
    /// product.
    fn widened(&mut self, node: &Node, matrix: &Matrix) {
        let base = &matrix.name;
        let codes = self.op(base, "Cast", &[&matrix.codes()], cast_to(DType::F32));
        let sums = self.op(base, "MatMul", &[&node.inputs[0], &codes], vec![]);
        self.scaled(node, sums, matrix.scales());
    }

    /// Activations quantised with the range that they have, integers multiplied, and both scales
    /// put back.
    fn dynamic(&mut self, node: &Node, matrix: &Matrix) {
        let x = &node.inputs[0];
        let [codes, scale, zero] = ["codes", "scale", "zero"].map(|part| format!("{x}.{part}"));
        if self.quantised.insert(x.clone()) {
            self.nodes.push(Node {
                name: format!("{x}.codes/DynamicQuantizeLinear"),
                op_type: "DynamicQuantizeLinear".to_owned(),
                domain: String::new(),
                inputs: vec![x.clone()],
                outputs: vec![codes.clone(), scale.clone(), zero.clone()],
                attributes: vec![],
            });
        }
        // ONNX Runtime runs these four as one operator.
        let base = &matrix.name;
        let sums = self.op(base, "MatMulInteger", &[&codes, &matrix.codes(), &zero], vec![]);
        let sums = self.op(base, "Cast", &[&sums], cast_to(DType::F32));
        let scales = self.op(base, "Mul", &[&scale, &matrix.scales()], vec![]);
        self.scaled(node, sums, scales);
    }

    /// The product of integers times its scales, into the value that `node` makes.
    fn scaled(&mut self, node: &Node, sums: String, scales: String) {
        self.nodes.push(Node {
            name: node.name.replace("/MatMul", "/Mul"),
            op_type: "Mul".to_owned(),
            domain: String::new(),
            inputs: vec![sums, scales],
            outputs: node.outputs.clone(),
            attributes: vec![],
        });
    }

    /// A node of the standard set that works on a weight; the result's name is the node's. A weight
    /// has one of each.
    fn op(
        &mut self,
        weight: &str,
        op: &str,
        inputs: &[&str],
        attributes: Vec<(String, Attribute)>,
    ) -> String {
        let name = format!("{weight}/{op}");
        self.nodes.push(Node {
            name: name.clone(),
            op_type: op.to_owned(),
            domain: String::new(),
            inputs: inputs.iter().map(|&input| input.to_owned()).collect(),
            outputs: vec![name.clone()],
            attributes,
        });
        name
    }
}

fn cast_to(dtype: DType) -> Vec<(String, Attribute)> {
    vec![("to".to_owned(), Attribute::Int(dtype.onnx().into()))]
}
