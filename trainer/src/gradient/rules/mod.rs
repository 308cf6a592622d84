//! The rules, one file a family of operators.
//!
//! A rule gets a node with the gradients of its results, and gives the gradients of its operands.

mod activation;
mod arithmetic;
mod attention;
mod conv;
mod gather;
mod matmul;
mod norm;
mod reduce;
mod select;
mod shape;

use pixart_exporter::graph::{
    GraphBuilder, MICROSOFT, Value,
    dim::Dim,
    ir::{Attribute, Node},
};

use super::GradientError;

/// A node that is to be differentiated.
pub(super) struct Step<'a> {
    pub node: &'a Node,
    /// Its operands; `None` for an absent one.
    pub inputs: Vec<Option<Value>>,
    /// Its results.
    pub outputs: Vec<Option<Value>>,
    /// The gradients of its results; `None` where nothing depends on one. At least one is there.
    pub cotangents: Vec<Option<Value>>,
    /// For each operand, whether its gradient is wanted. At least one is, or it is read by a graph
    /// inside the node.
    pub wanted: Vec<bool>,
}

/// Gradients of the operands, in their order; those that are not wanted may be left out, at the end
/// without a place.
type Gradients = Result<Vec<Option<Value>>, GradientError>;

/// Gives the gradients of a node's operands.
type Rule = fn(&mut GraphBuilder, &Step) -> Gradients;

/// Applies the rule of the node.
pub(super) fn apply(b: &mut GraphBuilder, step: &Step) -> Gradients {
    rule(step.node)?(b, step)
}

/// The rule of a node.
pub(super) fn rule(node: &Node) -> Result<Rule, GradientError> {
    Ok(match (node.domain.as_str(), node.op_type.as_str()) {
        (MICROSOFT, "MultiHeadAttention") => attention::multi_head_attention,
        ("", "Add") => arithmetic::add,
        ("", "Sub") => arithmetic::sub,
        ("", "Mul") => arithmetic::mul,
        ("", "Div") => arithmetic::div,
        ("", "Neg") => arithmetic::neg,
        ("", "Pow") => arithmetic::pow,
        ("", "Sqrt") => arithmetic::sqrt,
        ("", "Exp") => arithmetic::exp,
        ("", "Log") => arithmetic::log,
        ("", "Sin") => arithmetic::sin,
        ("", "Cos") => arithmetic::cos,
        ("", "Sigmoid") => activation::sigmoid,
        ("", "Tanh") => activation::tanh,
        ("", "Erf") => activation::erf,
        ("", "Gelu") => activation::gelu,
        ("", "Softmax") => activation::softmax,
        ("", "MatMul") => matmul::matmul,
        ("", "LayerNormalization") => norm::layer_normalization,
        ("", "ReduceSum") => reduce::reduce_sum,
        ("", "ReduceSumSquare") => reduce::reduce_sum_square,
        ("", "ReduceMean") => reduce::reduce_mean,
        ("", "Reshape" | "Unsqueeze" | "Squeeze") => shape::reshape,
        ("", "Identity") => shape::identity,
        ("", "Transpose") => shape::transpose,
        ("", "Expand") => shape::expand,
        ("", "Concat") => shape::concat,
        ("", "Split") => shape::split,
        ("", "Slice") => shape::slice,
        ("", "Gather") => gather::gather,
        ("", "Where") => select::select,
        ("", "Cast") => select::cast,
        ("", "Conv") => conv::conv,
        _ => return Err(GradientError::no_rule(node)),
    })
}

impl Step<'_> {
    /// An operand that the operator always has.
    fn input(&self, index: usize) -> Result<&Value, GradientError> {
        self.inputs.get(index).and_then(Option::as_ref).ok_or_else(|| {
            let expected = "a value of the graph that is differentiated";
            GradientError::unsupported(self.node, format!("its operand {index}"), expected)
        })
    }

    /// Whether the gradient of an operand is wanted.
    fn wants(&self, index: usize) -> bool {
        self.wanted.get(index).copied().unwrap_or(false)
    }

    /// The only result.
    fn output(&self) -> Result<&Value, GradientError> {
        self.outputs.first().and_then(Option::as_ref).ok_or_else(|| {
            GradientError::unsupported(self.node, "its result", "a value that has a name")
        })
    }

    /// The gradient of the first result.
    fn cotangent(&self) -> Result<&Value, GradientError> {
        self.cotangents.first().and_then(Option::as_ref).ok_or_else(|| {
            GradientError::unsupported(self.node, "a second result", "the use of the first one")
        })
    }

    fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.node.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    fn int(&self, name: &str) -> Option<i64> {
        match self.attribute(name) {
            Some(Attribute::Int(value)) => Some(*value),
            _ => None,
        }
    }

    fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attribute(name) {
            Some(Attribute::Ints(values)) => Some(values),
            _ => None,
        }
    }

    fn float(&self, name: &str) -> Option<f32> {
        match self.attribute(name) {
            Some(Attribute::Float(value)) => Some(*value),
            _ => None,
        }
    }

    /// The attribute `axis` as an index of `x`.
    fn axis(&self, x: &Value, default: i64) -> Result<usize, GradientError> {
        let axis = self.int("axis").unwrap_or(default);
        index(axis, x.rank()).ok_or_else(|| {
            GradientError::unsupported(self.node, format!("axis {axis}"), "an axis of the operand")
        })
    }

    fn unsupported<T>(&self, found: impl Into<String>, expected: &str) -> Result<T, GradientError> {
        Err(GradientError::unsupported(self.node, found, expected))
    }
}

/// An axis, counted from the end if negative.
fn index(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis + rank } else { axis };
    usize::try_from(axis).ok().filter(|_| axis < rank)
}

/// The gradient of an operand of `shape` that was broadcast: `gradient` summed over the axes along
/// which the operand was repeated.
fn reduce_to(
    b: &mut GraphBuilder,
    gradient: &Value,
    shape: &[Dim],
) -> Result<Value, GradientError> {
    if gradient.shape() == shape {
        return Ok(gradient.clone());
    }
    let missing = gradient.rank().saturating_sub(shape.len());
    let repeated = |axis: &usize| {
        let size = &gradient.shape()[*axis];
        *axis < missing || (shape[*axis - missing].is(1) && !size.is(1))
    };
    let axes: Vec<usize> = (0..gradient.rank()).filter(repeated).collect();
    let sum = b.reduce_sum(gradient, &axes)?;
    if sum.shape() == shape {
        return Ok(sum);
    }
    Ok(b.reshape(&sum, shape)?)
}

/// `x` times a number.
fn scaled(b: &mut GraphBuilder, x: &Value, factor: f64) -> Result<Value, GradientError> {
    let factor = b.scalar_f32(factor as f32);
    Ok(b.mul(x, &factor)?)
}

/// The one gradient of an operator with one operand.
fn only(gradient: Value) -> Gradients {
    Ok(vec![Some(gradient)])
}
