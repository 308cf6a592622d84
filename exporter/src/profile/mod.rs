//! How high-level operators are lowered for the engine that will run them.

mod attention;
mod cann;
mod chunked;
mod norm;

use std::fmt;
use std::str::FromStr;

use crate::graph::GraphError;
use crate::graph::ir::Graph;

pub use attention::Attention;
pub(crate) use chunked::Portions;

/// The family of engines a graph is written for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Profile {
    /// ONNX Runtime: fused attention from `com.microsoft` where it is faster.
    #[default]
    Ort,
    /// Any ONNX engine: operators of the standard set only.
    Portable,
    /// The graph engine of Ascend accelerators, behind ONNX Runtime's CANN provider: primitive
    /// operators of an old set, no control flow.
    Cann,
}

impl Profile {
    /// Every profile, in the order of their documentation.
    pub const ALL: [Self; 3] = [Self::Ort, Self::Portable, Self::Cann];

    /// The name on the command line and in the manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ort => "ort",
            Self::Portable => "portable",
            Self::Cann => "cann",
        }
    }

    /// Version of the standard operator set that the graphs are written in.
    pub fn opset(self) -> i64 {
        match self {
            // The newest that the oldest supported ONNX Runtime runs without fallbacks; it has
            // `LayerNormalization` and `Gelu`.
            Self::Ort | Self::Portable => 21,
            Self::Cann => cann::OPSET,
        }
    }

    /// Version of the file format, no newer than the oldest engine of the profile reads.
    pub fn ir_version(self) -> i64 {
        match self {
            Self::Ort | Self::Portable => 10,
            Self::Cann => cann::IR_VERSION,
        }
    }

    /// Whether the engines of the profile run everything in `graph`.
    ///
    /// # Errors
    /// Names the first node that they do not run.
    pub fn check(self, graph: &Graph) -> Result<(), GraphError> {
        match self {
            Self::Ort | Self::Portable => Ok(()),
            Self::Cann => cann::check(graph),
        }
    }

    /// What whoever runs `graph` on the profile's engines should know, a sentence or two each;
    /// mostly nothing.
    pub fn notes(self, graph: &Graph) -> Vec<String> {
        match self {
            Self::Ort | Self::Portable => Vec::new(),
            Self::Cann => cann::too_large(graph).into_iter().collect(),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A profile name that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("unknown profile `{0}`: expected `ort`, `portable` or `cann`")]
pub struct UnknownProfile(String);

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|profile| profile.as_str() == name)
            .ok_or_else(|| UnknownProfile(name.to_owned()))
    }
}
