//! How high-level operators are lowered for the engine that will run them.

mod attention;
mod chunked;
mod norm;

use std::fmt;
use std::str::FromStr;

pub use attention::Attention;

/// The family of engines a graph is written for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Profile {
    /// ONNX Runtime: fused attention from `com.microsoft` where it is faster.
    #[default]
    Ort,
    /// Any ONNX engine: operators of the standard set only.
    Portable,
}

impl Profile {
    /// Every profile, in the order of their documentation.
    pub const ALL: [Self; 2] = [Self::Ort, Self::Portable];

    /// The name on the command line and in the manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ort => "ort",
            Self::Portable => "portable",
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
#[error("unknown profile `{0}`: expected `ort` or `portable`")]
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
