//! Why a graph cannot be differentiated.

use pixart_exporter::graph::{GraphError, Value, dim::display_shape, ir::Node};

/// Why a graph cannot be differentiated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GradientError {
    /// A node on the way from a variable to an output has an operator without a rule.
    #[error(
        "node {node} ({op}): no rule for the gradient of this operator; expected a graph built for \
         the profile `ort` or `cann`, whose operators on the way from a variable to an output have \
         rules"
    )]
    NoRule {
        /// The node.
        node: String,
        /// Its operator, with the operator set in front if it is not the standard one.
        op: String,
    },
    /// The operator has a rule, but not for this use of it.
    #[error("node {node} ({op}): no gradient for {found}; expected {expected}")]
    Unsupported {
        /// The node.
        node: String,
        /// Its operator.
        op: String,
        /// What about the node has no gradient.
        found: String,
        /// What would have one.
        expected: String,
    },
    /// The gradient of an output has another type or shape than the output.
    #[error(
        "the gradient of output {output} is {found}; expected {expected}, the output's own type"
    )]
    Cotangent {
        /// The output.
        output: String,
        /// Name, type and shape of what was given.
        found: String,
        /// Type and shape of the output.
        expected: String,
    },
    /// A variable whose elements are no floats.
    #[error("variable {variable}: no gradient with respect to integers; expected floats")]
    NotFloat {
        /// Name, type and shape of the variable.
        variable: String,
    },
    /// No output depends on a variable.
    #[error(
        "variable {variable}: no output depends on it; leave it out, or name the right outputs"
    )]
    Unrelated {
        /// The variable.
        variable: String,
    },
    /// The gradient's own graph is not well-formed.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl GradientError {
    pub(super) fn no_rule(node: &Node) -> Self {
        Self::NoRule { node: node.name.clone(), op: operator(node) }
    }

    pub(super) fn unsupported(
        node: &Node,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            node: node.name.clone(),
            op: operator(node),
            found: found.into(),
            expected: expected.into(),
        }
    }
}

fn operator(node: &Node) -> String {
    match node.domain.as_str() {
        "" => node.op_type.clone(),
        domain => format!("{domain}::{}", node.op_type),
    }
}

/// Type and shape of a value.
pub(super) fn describe(value: &Value) -> String {
    format!("{}{}", value.dtype(), display_shape(value.shape()))
}
