//! fp32, fp16, bf16, int8 and int4: what becomes of each weight, and how the graph computes with it.
//!
//! The architectures in [`crate::models`] are written in 32-bit floats and stay so. When a graph is
//! complete, `apply` rewrites it: `quantise` replaces matrix products by products with
//! quantised matrices, then `casts` gives every other weight and every operator its float type
//! and puts conversions between them. What is converted and what is spared is written down in one
//! place, `rules`.
//!
//! Inputs and outputs of a graph keep their types (f32 and i64) in every precision, so a program
//! that runs one runs all.

mod casts;
mod choice;
mod kind;
mod quantise;
mod rules;
mod summary;
#[cfg(test)]
mod tests;

pub use choice::PrecisionError;
pub(crate) use choice::{Choice, choose};
pub use kind::{Int8Mode, Precision, UnknownInt8Mode, UnknownPrecision};
pub(crate) use summary::{WeightClass, summary};

use crate::Component;
use crate::graph::GraphError;
use crate::graph::ir::Graph;
use crate::profile::Profile;

/// How one component's numbers are stored and computed with: a [`Precision`] with its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scheme {
    /// Everything in 32-bit floats.
    Fp32,
    /// 16-bit weights and, but for the hazards that [`rules`] lists, 16-bit arithmetic.
    Fp16,
    /// 16-bit weights, widened where they are used. No processor provider computes in bf16, and
    /// this runs on all.
    Bf16,
    /// 8-bit codes, in blocks of 32 for ONNX Runtime and in columns for others; activations stay
    /// floats.
    Int8WeightOnly,
    /// 8-bit codes in columns; activations are quantised on the way.
    Int8Dynamic,
    /// 4-bit codes in blocks of 32; activations stay floats.
    Int4,
}

impl Scheme {
    /// The precision this is a form of.
    pub fn precision(self) -> Precision {
        match self {
            Self::Fp32 => Precision::Fp32,
            Self::Fp16 => Precision::Fp16,
            Self::Bf16 => Precision::Bf16,
            Self::Int8WeightOnly | Self::Int8Dynamic => Precision::Int8,
            Self::Int4 => Precision::Int4,
        }
    }

    /// The mode, for int8.
    pub fn int8_mode(self) -> Option<Int8Mode> {
        match self {
            Self::Int8WeightOnly => Some(Int8Mode::WeightOnly),
            Self::Int8Dynamic => Some(Int8Mode::Dynamic),
            _ => None,
        }
    }
}

/// The fp32 graph of a component, rewritten for a scheme.
pub(crate) fn apply(
    graph: Graph,
    component: Component,
    profile: Profile,
    scheme: Scheme,
) -> Result<Graph, GraphError> {
    if scheme == Scheme::Fp32 {
        return Ok(graph);
    }
    let rules = rules::Rules { component, scheme, profile };
    let graph = quantise::quantise(graph, &rules);
    casts::place(graph, &rules)
}
