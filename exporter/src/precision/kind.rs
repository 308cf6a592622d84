//! The precisions as they are named on the command line and in the manifest.

use std::fmt;
use std::str::FromStr;

/// How weights are stored, and how the graph computes with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    Fp32,
    /// 16-bit IEEE floats, in storage and arithmetic. What would overflow or lose too much stays in
    /// 32 bits.
    Fp16,
    /// 16-bit brain floats in storage, 32-bit arithmetic.
    Bf16,
    /// The large matrices as 8-bit integers; see [`Int8Mode`].
    Int8,
    /// The large matrices as 4-bit integers with a scale for 32 of them.
    Int4,
}

impl Precision {
    /// Every precision, the widest first.
    pub const ALL: [Self; 5] = [Self::Fp32, Self::Fp16, Self::Bf16, Self::Int8, Self::Int4];

    /// The name on the command line and in the manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A precision that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("unknown precision `{0}`: expected `fp32`, `fp16`, `bf16`, `int8` or `int4`")]
pub struct UnknownPrecision(String);

impl FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|precision| precision.as_str() == name)
            .ok_or_else(|| UnknownPrecision(name.to_owned()))
    }
}

/// How [`Precision::Int8`] computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Int8Mode {
    /// Only weights are quantised, with a scale for 32 of them (for each output in graphs that are
    /// not for ONNX Runtime): the smaller error.
    #[default]
    WeightOnly,
    /// Activations are quantised too, each time with the range they have (W8A8): the faster one.
    Dynamic,
}

impl Int8Mode {
    /// Both modes.
    pub const ALL: [Self; 2] = [Self::WeightOnly, Self::Dynamic];

    /// The name on the command line and in the manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WeightOnly => "weight_only",
            Self::Dynamic => "dynamic",
        }
    }
}

impl fmt::Display for Int8Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A mode that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("unknown int8 mode `{0}`: expected `weight_only` or `dynamic`")]
pub struct UnknownInt8Mode(String);

impl FromStr for Int8Mode {
    type Err = UnknownInt8Mode;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.as_str() == name.replace('-', "_"))
            .ok_or_else(|| UnknownInt8Mode(name.to_owned()))
    }
}
