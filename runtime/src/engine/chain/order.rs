//! The order that keeps the least between the nodes of a chain.

use std::collections::HashMap;

use tract_onnx::pb::{NodeProto, TensorProto};

/// The nodes in an order in which they can be computed. What leaves fewer channels of every pixel comes as
/// soon as it can: then its result is kept, where one is, instead of its input.
pub(super) fn ordered<'a>(
    nodes: &'a [NodeProto],
    weights: &HashMap<&str, &TensorProto>,
) -> Vec<&'a NodeProto> {
    let narrows = |node: &NodeProto| {
        let weight = node.input.get(1).and_then(|name| weights.get(name.as_str()));
        let narrower = weight.is_some_and(
            |weight| matches!(weight.dims[..], [after, before, 1, 1] if after < before),
        );
        node.op_type == "Conv" && narrower
    };
    let mut order: Vec<&NodeProto> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let made = order.iter().position(|earlier| earlier.output.first() == node.input.first());
        match made {
            Some(place) if narrows(node) => order.insert(place + 1, node),
            _ => order.push(node),
        }
    }
    order
}
