//! Reverse-mode differentiation of the exporter's graphs: a gradient is an ONNX graph as well.
//!
//! [`differentiate`] goes through the nodes of a graph under construction from the last to the first
//! and adds, for each, the nodes that turn the gradient of its results into that of its operands.
//! Every family of operators has its rules in a file of `rules`, beside their tests. Shapes stay
//! symbolic; an operand that was broadcast gets the sum over the axes along which it was.
//!
//! ```
//! use pixart_exporter::graph::{GraphBuilder, dim::Dim, ir::DType};
//! use pixart_exporter::profile::Profile;
//! use pixart_trainer::gradient::differentiate;
//!
//! // y = x · weightᵀ + bias, and from dy the gradients of x, weight and bias.
//! let mut b = GraphBuilder::new("example", Profile::Ort).weights_as_inputs();
//! let x = b.input("x", DType::F32, vec![Dim::symbol("batch_size"), Dim::from(8)])?;
//! let y = b.linear("proj", &x, 16, true)?;
//! let dy = b.input("dy", DType::F32, y.shape().to_vec())?;
//! let weight = b.value("proj.weight").expect("declared by the layer");
//! let bias = b.value("proj.bias").expect("declared by the layer");
//! let gradients = differentiate(&mut b, &[(&y, &dy)], &[&x, &weight, &bias])?;
//! assert_eq!(gradients[1].shape(), [Dim::from(16), Dim::from(8)]);
//! # Ok::<(), pixart_trainer::gradient::GradientError>(())
//! ```

#[cfg(test)]
mod check;
mod error;
#[cfg(test)]
mod evaluate;
mod parts;
mod precision;
mod rules;
mod transformer;

use std::collections::{HashMap, HashSet};

use pixart_exporter::graph::{
    GraphBuilder, GraphError, Value,
    ir::{Attribute, Graph, Node},
};

pub use error::GradientError;
use error::describe;
use parts::sum_graph;
pub use parts::{GRADIENT, PartGraphs, PartKind, Training, part_graphs};
pub use precision::{Arithmetic, Precision, PrecisionError, in_precision};
use rules::Step;
pub use transformer::{Gradients, Inputs, Pass, TrainedTransformer, TransformerError, Weights};

/// The gradients of `variables`, one for each and of the same type and shape: Σ over `outputs` of
/// dyᵀ · ∂y/∂variable, where `outputs` are pairs of a value y of the graph and its gradient dy, of
/// the same type and shape as y.
///
/// The nodes of the gradients are added to the graph under the name `gradient`; what they need of the
/// values in between, they read from the nodes that are there. A variable may be an input, a weight
/// that is an input, or any value in between. Call this before [`GraphBuilder::output`], which
/// renames values.
///
/// # Errors
/// When an operator on the way from a variable to an output has no rule, or none for the way it is
/// used (both name the operator and the node); when a pair does not match; when a variable holds no
/// floats, or no output depends on it.
pub fn differentiate(
    b: &mut GraphBuilder,
    outputs: &[(&Value, &Value)],
    variables: &[&Value],
) -> Result<Vec<Value>, GradientError> {
    for variable in variables {
        if !variable.dtype().is_float() {
            let variable = format!("{}: {}", variable.name(), describe(variable));
            return Err(GradientError::NotFloat { variable });
        }
    }
    // The gradient's nodes are added behind these.
    let nodes = b.nodes().to_vec();
    let active = active(b, &nodes, variables);
    check_rules(&nodes, &active, outputs)?;
    let mut found = HashMap::new();
    b.scoped("gradient", |b| {
        for (output, cotangent) in outputs {
            if output.dtype() != cotangent.dtype() || output.shape() != cotangent.shape() {
                return Err(GradientError::Cotangent {
                    output: output.name().to_owned(),
                    found: format!("{}: {}", cotangent.name(), describe(cotangent)),
                    expected: describe(output),
                });
            }
            accumulate(b, &mut found, output.name(), (*cotangent).clone())?;
        }
        for node in nodes.iter().rev() {
            if let Some(step) = step(b, node, &active, &found) {
                let scope = node.name.rsplit_once('/').map_or("", |(scope, _)| scope);
                let gradients = match scope {
                    "" => rules::apply(b, &step)?,
                    scope => b.scoped(scope, |b| rules::apply(b, &step))?,
                };
                for (name, gradient) in node.inputs.iter().zip(gradients) {
                    if let Some(gradient) = gradient.filter(|_| active.contains(name)) {
                        accumulate(b, &mut found, name, gradient)?;
                    }
                }
            }
        }
        Ok(())
    })?;
    variables
        .iter()
        .map(|variable| {
            let variable = variable.name();
            let unrelated = || GradientError::Unrelated { variable: variable.to_owned() };
            found.get(variable).cloned().ok_or_else(unrelated)
        })
        .collect()
}

/// Declares outputs, name and value each. Values that are inputs, constants or outputs already are
/// copied first.
pub(crate) fn name_outputs(
    b: &mut GraphBuilder,
    outputs: Vec<(String, Value)>,
) -> Result<(), GraphError> {
    let mut seen = HashSet::new();
    let mut named = Vec::with_capacity(outputs.len());
    for (name, value) in outputs {
        let computed = b.nodes().iter().any(|node| node.outputs.iter().any(|o| o == value.name()));
        let own = computed && seen.insert(value.name().to_owned());
        named.push((name, if own { value } else { b.identity(&value) }));
    }
    for (name, value) in named {
        b.output(&name, &value, value.dtype(), value.shape())?;
    }
    Ok(())
}

/// The names of the values that depend on a variable and can be differentiated.
fn active(b: &GraphBuilder, nodes: &[Node], variables: &[&Value]) -> HashSet<String> {
    let mut active: HashSet<String> = variables.iter().map(|v| v.name().to_owned()).collect();
    for node in nodes {
        if reads(node, &active) {
            let values = node.outputs.iter().filter_map(|name| b.value(name));
            // Integers and booleans are piecewise constant: their gradient is zero.
            let floats = values.filter(|value| value.dtype().is_float());
            active.extend(floats.map(|value| value.name().to_owned()));
        }
    }
    active
}

/// An error unless every node on the way from a variable to an output has a rule.
fn check_rules(
    nodes: &[Node],
    active: &HashSet<String>,
    outputs: &[(&Value, &Value)],
) -> Result<(), GradientError> {
    let mut wanted: HashSet<&str> = outputs.iter().map(|(output, _)| output.name()).collect();
    for node in nodes.iter().rev() {
        let leads = node.outputs.iter().any(|o| wanted.contains(o.as_str()) && active.contains(o));
        if leads {
            rules::rule(node)?;
            wanted.extend(node.inputs.iter().map(String::as_str));
        }
    }
    Ok(())
}

/// Whether a node, or a graph inside it, reads one of the values.
fn reads(node: &Node, names: &HashSet<String>) -> bool {
    let within = |graph: &Graph| {
        graph.nodes.iter().any(|node| reads(node, names))
            || graph.outputs.iter().any(|output| names.contains(&output.name))
    };
    node.inputs.iter().any(|input| names.contains(input))
        || node.attributes.iter().any(|(_, attribute)| match attribute {
            Attribute::Graph(graph) => within(graph),
            _ => false,
        })
}

/// What a rule needs to know; `None` if the node is on no way from a variable to an output.
fn step<'a>(
    b: &GraphBuilder,
    node: &'a Node,
    active: &HashSet<String>,
    found: &HashMap<String, Value>,
) -> Option<Step<'a>> {
    let cotangents: Vec<_> = node.outputs.iter().map(|name| found.get(name).cloned()).collect();
    if cotangents.iter().all(Option::is_none) || !reads(node, active) {
        return None;
    }
    Some(Step {
        node,
        inputs: node.inputs.iter().map(|name| b.value(name)).collect(),
        outputs: node.outputs.iter().map(|name| b.value(name)).collect(),
        cotangents,
        wanted: node.inputs.iter().map(|name| active.contains(name)).collect(),
    })
}

/// Adds `gradient` to what is known of the gradient of `name`.
fn accumulate(
    b: &mut GraphBuilder,
    found: &mut HashMap<String, Value>,
    name: &str,
    gradient: Value,
) -> Result<(), GradientError> {
    let sum = match found.get(name) {
        None => gradient,
        Some(known) => b.add(known, &gradient)?,
    };
    found.insert(name.to_owned(), sum);
    Ok(())
}

#[cfg(test)]
mod tests;
