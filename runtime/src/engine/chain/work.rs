//! What the nodes of a chain cost, and the order that keeps the least between them.

use std::collections::HashMap;

use tract_onnx::pb::{NodeProto, TensorProto};

/// What a node makes and what that takes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Made {
    /// Channels of its result; none if that is no picture.
    pub channels: usize,
    /// Sides of its result against those of the graph's input, as a fraction.
    pub scale: (usize, usize),
    /// Multiplications for one pixel of the result.
    pub work: u64,
}

/// What a step that is no convolution takes of each channel, in multiplications of a convolution: memory is
/// what it waits for.
const PASSING: u64 = 20;

pub(super) fn made(
    node: &NodeProto,
    picture: Option<&(usize, (usize, usize))>,
    weights: &HashMap<&str, &TensorProto>,
) -> Made {
    let Some(&(channels, scale)) = picture else {
        return Made { scale: (1, 1), ..Made::default() };
    };
    let work = match node.op_type.as_str() {
        "Conv" => {
            node.input.get(1).and_then(|name| weights.get(name.as_str())).map_or(0, |weight| {
                weight.dims.iter().map(|side| u64::try_from(*side).unwrap_or(0)).product()
            })
        }
        "Reshape" => 0,
        _ => PASSING * channels as u64,
    };
    Made { channels, scale, work }
}

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
