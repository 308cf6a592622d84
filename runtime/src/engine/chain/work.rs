//! What the nodes of a chain make, and what that costs.

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
