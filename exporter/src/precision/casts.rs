//! The float type of every weight and every operator, and the conversions between them.

use std::collections::{HashMap, HashSet};

use half::{bf16, f16};

use super::rules::{Arithmetic, Rules};
use crate::graph::ir::{Attribute, DType, Graph, Initializer, Node, Transform, WeightData};
use crate::graph::{GraphError, GraphErrorKind};

/// Operators that move elements without computing: they take whatever type their data has.
const MOVES: [&str; 13] = [
    "Reshape",
    "Transpose",
    "Unsqueeze",
    "Squeeze",
    "Slice",
    "Split",
    "Expand",
    "Pad",
    "Gather",
    "Resize",
    "DepthToSpace",
    "Identity",
    "Flatten",
];

/// Rewrites the graph so that every operator computes and every weight is stored as the rules say.
pub(super) fn place(graph: Graph, rules: &Rules) -> Result<Graph, GraphError> {
    let mut types = HashMap::new();
    let mut free = HashSet::new();
    for input in &graph.inputs {
        types.insert(input.name.clone(), Known { dtype: input.dtype, constant: false });
    }
    let mut initializers = graph.initializers;
    let mut positions = HashMap::new();
    for (position, initializer) in initializers.iter_mut().enumerate() {
        if let WeightData::Checkpoint(weight) = &initializer.data
            && initializer.dtype == DType::F32
            && !is_scale(weight.transform)
        {
            match rules.storage(&weight.tensor, weight.shape.len()) {
                Some(dtype) => initializer.dtype = dtype,
                None => drop(free.insert(position)),
            }
        }
        let known = Known { dtype: initializer.dtype, constant: true };
        types.insert(initializer.name.clone(), known);
        positions.insert(initializer.name.clone(), position);
    }
    let mut placer = Placer { rules, initializers, positions, free, types, casts: HashMap::new() };
    let mut nodes = placer.nodes(graph.nodes)?;
    for output in &graph.outputs {
        placer.finish(&output.name, output.dtype, &mut nodes);
    }
    let mut used = HashSet::new();
    nodes.iter().for_each(|node| add_inputs(node, &mut used));
    let mut initializers = placer.initializers;
    // Constants of which only a rounded copy is still read.
    initializers.retain(|initializer| used.contains(&initializer.name));
    Ok(Graph { nodes, initializers, ..graph })
}

fn is_scale(transform: Transform) -> bool {
    matches!(transform, Transform::BlockScales { .. } | Transform::ColumnScales)
}

/// Every value that the node reads, those that its body takes from around it included.
fn add_inputs(node: &Node, used: &mut HashSet<String>) {
    used.extend(node.inputs.iter().cloned());
    for (_, value) in &node.attributes {
        if let Attribute::Graph(body) = value {
            body.nodes.iter().for_each(|node| add_inputs(node, used));
            used.extend(body.outputs.iter().map(|output| output.name.clone()));
        }
    }
}

/// What is known of a value.
#[derive(Clone, Copy, Debug)]
struct Known {
    dtype: DType,
    /// It depends on constants and weights only.
    constant: bool,
}

struct Placer<'a> {
    rules: &'a Rules,
    initializers: Vec<Initializer>,
    positions: HashMap<String, usize>,
    /// Weights whose type is still open.
    free: HashSet<usize>,
    types: HashMap<String, Known>,
    /// Conversions that exist already and can be seen from here.
    casts: HashMap<(String, DType), String>,
}

impl Placer<'_> {
    fn nodes(&mut self, nodes: Vec<Node>) -> Result<Vec<Node>, GraphError> {
        let mut out = Vec::with_capacity(nodes.len());
        for node in nodes {
            self.node(node, &mut out)?;
        }
        Ok(out)
    }

    fn node(&mut self, mut node: Node, out: &mut Vec<Node>) -> Result<(), GraphError> {
        if node.attributes.iter().any(|(_, value)| matches!(value, Attribute::Graph(_))) {
            return self.control_flow(node, out);
        }
        let target = self.target(&node);
        if let Some(target) = target {
            for position in 0..node.inputs.len() {
                let input = &node.inputs[position];
                if self.types.get(input).is_some_and(|known| known.dtype.is_float()) {
                    node.inputs[position] = self.converted(&input.clone(), target, out)?;
                }
            }
        }
        let constant = self.all_constant(&node);
        for (position, output) in node.outputs.iter().enumerate() {
            let dtype = self.result(&node, position, target);
            self.types.insert(output.clone(), Known { dtype, constant });
        }
        out.push(node);
        Ok(())
    }

    fn of(&self, name: &str) -> Known {
        self.types.get(name).copied().unwrap_or(Known { dtype: DType::F32, constant: true })
    }

    fn all_constant(&self, node: &Node) -> bool {
        node.inputs.iter().all(|input| self.of(input).constant)
    }

    /// The type that the float operands of a node get; `None` leaves them alone.
    fn target(&self, node: &Node) -> Option<DType> {
        let op = node.op_type.as_str();
        if matches!(op, "Cast" | "Shape" | "Size") || MOVES.contains(&op) {
            return None;
        }
        if matches!(op, "Concat" | "Where") {
            return Some(self.widest(node));
        }
        Some(match self.rules.arithmetic(node) {
            Arithmetic::Full => DType::F32,
            Arithmetic::Half => DType::F16,
            Arithmetic::Widest => self.widest(node),
        })
    }

    /// The widest type among the float operands that are not constant.
    fn widest(&self, node: &Node) -> DType {
        let known = node.inputs.iter().filter_map(|input| self.types.get(input));
        let moving = known.filter(|known| !known.constant && known.dtype.is_float());
        moving.map(|known| known.dtype).max_by_key(|dtype| dtype.size()).unwrap_or(DType::F32)
    }

    /// The type of a result.
    fn result(&self, node: &Node, position: usize, target: Option<DType>) -> DType {
        let first = node.inputs.first().map_or(DType::F32, |input| self.of(input).dtype);
        match node.op_type.as_str() {
            "Cast" => cast_target(node).unwrap_or(first),
            "Shape" | "Size" => DType::I64,
            "MatMulInteger" => DType::I32,
            "DynamicQuantizeLinear" if position != 1 => DType::U8,
            "Where" => node.inputs.get(1).map_or(first, |input| self.of(input).dtype),
            "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "Not" | "And"
            | "Or" => DType::Bool,
            _ if !first.is_float() => first,
            _ => target.unwrap_or(first),
        }
    }

    /// The name of a value that holds `name` as `dtype`.
    fn converted(
        &mut self,
        name: &str,
        dtype: DType,
        out: &mut Vec<Node>,
    ) -> Result<String, GraphError> {
        let known = self.of(name);
        if let Some(&position) = self.positions.get(name) {
            if known.dtype != dtype
                && let WeightData::Inline(bytes) = &self.initializers[position].data
            {
                let bytes = rounded(bytes, dtype, name)?;
                return Ok(self.copied(position, dtype, bytes));
            }
            if self.free.remove(&position) {
                // The first use of a vector decides how it is stored.
                self.initializers[position].dtype = dtype;
                self.types.insert(name.to_owned(), Known { dtype, ..known });
                return Ok(name.to_owned());
            }
        }
        if known.dtype == dtype {
            return Ok(name.to_owned());
        }
        let key = (name.to_owned(), dtype);
        if let Some(cast) = self.casts.get(&key) {
            return Ok(cast.clone());
        }
        let cast = format!("{name}.{dtype}");
        out.push(cast_node(name, &cast, dtype));
        self.types.insert(cast.clone(), Known { dtype, ..known });
        self.casts.insert(key, cast.clone());
        Ok(cast)
    }

    /// A constant of the graph once more, rounded.
    fn copied(&mut self, position: usize, dtype: DType, bytes: Vec<u8>) -> String {
        let original = &self.initializers[position];
        let name = format!("{}.{dtype}", original.name);
        if !self.positions.contains_key(&name) {
            let data = WeightData::Inline(bytes);
            let copy =
                Initializer { name: name.clone(), dtype, shape: original.shape.clone(), data };
            self.positions.insert(name.clone(), self.initializers.len());
            self.types.insert(name.clone(), Known { dtype, constant: true });
            self.initializers.push(copy);
        }
        name
    }

    /// A node whose body is a graph. The body's inputs take the types of the node's operands.
    fn control_flow(&mut self, mut node: Node, out: &mut Vec<Node>) -> Result<(), GraphError> {
        // Where the operands stand among the body's inputs, and the results among its outputs.
        let (first_operand, first_input, first_output) = match node.op_type.as_str() {
            "Scan" => (0, 0, 0),
            "Loop" => (2, 2, 1),
            op => {
                let expected = "a `Scan` or a `Loop`: no other body can be given other types";
                let kind = GraphErrorKind::DType;
                return Err(GraphError::new(kind, &node.name, op, &[], expected));
            }
        };
        let operands: Vec<Known> = node.inputs.iter().map(|input| self.of(input)).collect();
        let int = |name: &str| {
            node.attributes.iter().find_map(|(key, value)| match value {
                Attribute::Int(value) if key == name => usize::try_from(*value).ok(),
                _ => None,
            })
        };
        // Values that one round hands to the next must keep their type.
        let scanned = int("num_scan_inputs").unwrap_or(0);
        let states = node.inputs.len().saturating_sub(first_operand + scanned);
        let mut results = Vec::new();
        for (_, value) in &mut node.attributes {
            let Attribute::Graph(body) = value else { continue };
            for (position, input) in body.inputs.iter_mut().enumerate() {
                if position >= first_input
                    && let Some(operand) = operands.get(position - first_input + first_operand)
                {
                    input.dtype = operand.dtype;
                }
                let known = Known { dtype: input.dtype, constant: false };
                self.types.insert(input.name.clone(), known);
            }
            let seen = self.casts.clone();
            let mut nodes = self.nodes(std::mem::take(&mut body.nodes))?;
            for (position, output) in body.outputs.iter_mut().enumerate() {
                let state = position.checked_sub(first_output).filter(|&state| state < states);
                if let Some(state) = state
                    && let Some(operand) = operands.get(first_operand + state)
                {
                    output.name =
                        self.converted(&output.name.clone(), operand.dtype, &mut nodes)?;
                }
                output.dtype = self.of(&output.name).dtype;
                if position >= first_output {
                    results.push(output.dtype);
                }
            }
            body.nodes = nodes;
            self.casts = seen;
        }
        for (output, dtype) in node.outputs.iter().zip(results) {
            self.types.insert(output.clone(), Known { dtype, constant: false });
        }
        out.push(node);
        Ok(())
    }

    /// Makes sure that the graph's output has the type it is declared with.
    fn finish(&mut self, name: &str, dtype: DType, nodes: &mut Vec<Node>) {
        if self.of(name).dtype == dtype {
            return;
        }
        let inner = format!("{name}.{}", self.of(name).dtype);
        for node in nodes.iter_mut() {
            rename(node, name, &inner);
        }
        nodes.push(cast_node(&inner, name, dtype));
    }
}

fn rename(node: &mut Node, from: &str, to: &str) {
    for value in node.inputs.iter_mut().chain(&mut node.outputs) {
        if value == from {
            to.clone_into(value);
        }
    }
    for (_, value) in &mut node.attributes {
        if let Attribute::Graph(body) = value {
            body.nodes.iter_mut().for_each(|node| rename(node, from, to));
        }
    }
}

fn cast_node(from: &str, to: &str, dtype: DType) -> Node {
    Node {
        name: format!("{to}/Cast"),
        op_type: "Cast".to_owned(),
        domain: String::new(),
        inputs: vec![from.to_owned()],
        outputs: vec![to.to_owned()],
        attributes: vec![("to".to_owned(), Attribute::Int(dtype.onnx().into()))],
    }
}

fn cast_target(node: &Node) -> Option<DType> {
    let all = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::I64,
        DType::I32,
        DType::I8,
        DType::U8,
        DType::Bool,
    ];
    node.attributes.iter().find_map(|(name, value)| match value {
        Attribute::Int(to) if name == "to" => {
            all.into_iter().find(|dtype| i64::from(dtype.onnx()) == *to)
        }
        _ => None,
    })
}

/// Constants of 32 bits, rounded.
fn rounded(bytes: &[u8], dtype: DType, name: &str) -> Result<Vec<u8>, GraphError> {
    let mut all = Vec::with_capacity(bytes.len() / 2);
    for bytes in bytes.as_chunks::<4>().0 {
        let value = f32::from_le_bytes(*bytes);
        let (bits, finite) = match dtype {
            DType::F16 => (f16::from_f32(value).to_bits(), f16::from_f32(value).is_finite()),
            _ => (bf16::from_f32(value).to_bits(), bf16::from_f32(value).is_finite()),
        };
        if value.is_finite() && !finite {
            let expected = format!("a constant that {dtype} can hold, not {value}");
            return Err(GraphError::new(GraphErrorKind::DType, name, "constant", &[], expected));
        }
        all.extend(bits.to_le_bytes());
    }
    Ok(all)
}
