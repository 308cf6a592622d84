//! What is wrong with a graph, and where.

use std::fmt;

use super::dim::display_shape;
use super::value::Value;

/// The rule that a node breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GraphErrorKind {
    /// An operand has the wrong element type.
    DType,
    /// An operand has the wrong number of axes.
    Rank,
    /// An attribute names an axis that the operand does not have.
    Axis,
    /// Two shapes do not broadcast against each other.
    Broadcast,
    /// A size differs from the one that the operator needs, for example the inner sizes of a
    /// matrix product.
    Size,
    /// A reshape would change the number of elements.
    ElementCount,
    /// A size is not a multiple of what it is divided by.
    Divisibility,
    /// Two inputs, weights or outputs have the same name.
    DuplicateName,
    /// A symbolic size does not belong to any input, so that it cannot be computed.
    UnknownSize,
    /// The engines of the profile do not have the operator.
    Operator,
}

/// A node that breaks a rule of its operator: a wiring mistake or a configuration that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphError {
    /// The rule that is broken.
    pub kind: GraphErrorKind,
    /// The node, for example `transformer_blocks.3.attn1.to_q/MatMul`.
    pub node: String,
    /// The operator.
    pub op: String,
    /// The operands found, as `name: f32[batch_size, 4]`.
    pub operands: Vec<String>,
    /// What was expected instead.
    pub expected: String,
}

impl GraphError {
    /// Renders the operands.
    pub fn new(
        kind: GraphErrorKind,
        node: &str,
        op: &str,
        operands: &[&Value],
        expected: impl Into<String>,
    ) -> Self {
        let operands = operands
            .iter()
            .map(|v| format!("{}: {}{}", v.name(), v.dtype(), display_shape(v.shape())))
            .collect();
        Self { kind, node: node.to_owned(), op: op.to_owned(), operands, expected: expected.into() }
    }
}

impl fmt::Display for GraphError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} ({})", self.node, self.op)?;
        if !self.operands.is_empty() {
            write!(f, ": found {}", self.operands.join(", "))?;
        }
        write!(f, ": expected {}", self.expected)
    }
}

impl std::error::Error for GraphError {}
