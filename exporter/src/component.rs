//! The parts of a pipeline that are exported.

use std::fmt;
use std::str::FromStr;

/// A part of the pipeline with weights, exported into a folder of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// The denoiser.
    Transformer,
    /// The T5 encoder.
    TextEncoder,
    /// From latents to pictures.
    VaeDecoder,
    /// From pictures to the distribution of their latents.
    VaeEncoder,
}

impl Component {
    /// Every component, in the order in which they are exported.
    pub const ALL: [Self; 4] =
        [Self::Transformer, Self::TextEncoder, Self::VaeDecoder, Self::VaeEncoder];

    /// Name of the exported folder, and of the component on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transformer => "transformer",
            Self::TextEncoder => "text_encoder",
            Self::VaeDecoder => "vae_decoder",
            Self::VaeEncoder => "vae_encoder",
        }
    }

    /// Name of the folder in a diffusers pipeline.
    pub fn source_folder(self) -> &'static str {
        match self {
            Self::VaeDecoder | Self::VaeEncoder => "vae",
            other => other.as_str(),
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A component name that does not exist.
#[derive(Debug, thiserror::Error)]
#[error(
    "unknown component `{0}`: expected `transformer`, `text_encoder`, `vae_decoder` or `vae_encoder`"
)]
pub struct UnknownComponent(String);

impl FromStr for Component {
    type Err = UnknownComponent;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|component| component.as_str() == name)
            .ok_or_else(|| UnknownComponent(name.to_owned()))
    }
}
