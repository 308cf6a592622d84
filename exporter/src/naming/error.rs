//! What can be wrong between a `config.json`, the tensors and what the exporter supports.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A model's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be opened or read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a JSON object.
    #[error("{}: expected a JSON object: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        reason: String,
    },
    /// A field is needed, and neither the file nor the tensors give its value.
    #[error("{}: {field} is missing; expected {expected}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What it should hold.
        expected: String,
    },
    /// A field has a value that cannot be used.
    #[error("{}: {field} is {found}; expected {expected}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it should hold.
        expected: String,
    },
    /// A field and the tensors contradict each other.
    #[error(
        "{}: {field} is {found}, but the weights say {expected} ({evidence}); the config and the \
         weights do not belong together",
        path.display()
    )]
    Conflict {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// The value that follows from the tensors.
        expected: String,
        /// The tensor that says so.
        evidence: String,
    },
    /// An option and the tensors contradict each other.
    #[error(
        "{}: {flag} is {found}, but the weights say {expected} ({evidence}); leave the option out, or \
         take the weights it belongs to",
        path.display()
    )]
    FlagConflict {
        /// The checkpoint.
        path: PathBuf,
        /// The option, as on the command line.
        flag: &'static str,
        /// Its value.
        found: String,
        /// The value that follows from the tensors.
        expected: String,
        /// The tensor that says so.
        evidence: String,
    },
    /// An option has a value that cannot be used.
    #[error("{flag} is {found}; expected {expected}")]
    FlagInvalid {
        /// The option, as on the command line.
        flag: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// The tensors are not those of a transformer.
    #[error(
        "{}: not a PixArt transformer: found the tensors {found}, expected names such as \
         transformer_blocks.0.attn1.to_q.weight (diffusers) or blocks.0.attn.qkv.weight (original)",
        path.display()
    )]
    NotATransformer {
        /// The checkpoint.
        path: PathBuf,
        /// Some of its tensors.
        found: String,
    },
    /// Two tensors of a checkpoint are the same one of the model.
    #[error(
        "{}: both {first} and {second} are the model's {name}; expected one of them, remove the other",
        path.display()
    )]
    TwoTensors {
        /// The checkpoint.
        path: PathBuf,
        /// Name in the model.
        name: String,
        /// A tensor.
        first: String,
        /// Another tensor.
        second: String,
    },
    /// The tensors belong to a variant of the architecture that is not exported.
    #[error("{}: {feature} not supported yet (found tensor {tensor}); expected {expected}", folder.display())]
    Unsupported {
        /// The model's folder.
        folder: PathBuf,
        /// The variant, for example "KV compression is".
        feature: &'static str,
        /// A tensor that only this variant has.
        tensor: String,
        /// What can be exported.
        expected: &'static str,
    },
}

/// How many problems an error message names before it only counts.
const LISTED: usize = 12;

/// One tensor that does not fit the architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightProblem {
    /// The graph needs it, the checkpoint does not have it.
    Missing {
        /// Name of the tensor.
        tensor: String,
        /// Shape it should have.
        expected: Vec<usize>,
    },
    /// The shapes differ.
    Shape {
        /// Name of the tensor.
        tensor: String,
        /// Shape in the checkpoint.
        found: Vec<usize>,
        /// Shape it should have.
        expected: Vec<usize>,
    },
    /// The elements are not floats of a supported width.
    Dtype {
        /// Name of the tensor.
        tensor: String,
        /// Element type in the checkpoint, as safetensors spells it.
        found: String,
    },
    /// Matrices that are one in the other naming have different element types.
    MixedDtypes {
        /// Name of the one matrix.
        tensor: String,
        /// Two of the element types, as safetensors spells them.
        found: Vec<String>,
    },
    /// Nothing in the graph reads it, so the architecture cannot be the one that was trained.
    Unexpected {
        /// Name of the tensor.
        tensor: String,
        /// Shape in the checkpoint.
        found: Vec<usize>,
    },
}

impl WeightProblem {
    /// The tensor it is about.
    pub fn tensor(&self) -> &str {
        match self {
            Self::Missing { tensor, .. }
            | Self::Shape { tensor, .. }
            | Self::Dtype { tensor, .. }
            | Self::MixedDtypes { tensor, .. }
            | Self::Unexpected { tensor, .. } => tensor,
        }
    }
}

impl fmt::Display for WeightProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { tensor, expected } => {
                write!(f, "missing tensor {tensor}, expected shape {expected:?}")
            }
            Self::Shape { tensor, found, expected } => {
                write!(f, "tensor {tensor} has shape {found:?}, expected {expected:?}")
            }
            Self::Dtype { tensor, found } => {
                write!(f, "tensor {tensor} has dtype {found}, expected F32, F16 or BF16")
            }
            Self::MixedDtypes { tensor, found } => {
                let found = found.join(" and ");
                write!(f, "the parts of {tensor} have dtypes {found}, expected one for all")
            }
            Self::Unexpected { tensor, found } => {
                write!(f, "unexpected tensor {tensor} of shape {found:?}")
            }
        }
    }
}

/// The tensors of a checkpoint are not those of the architecture.
#[derive(Debug)]
pub struct WeightsError {
    /// The model's folder.
    pub folder: PathBuf,
    /// Everything that was found, at least one.
    pub problems: Vec<WeightProblem>,
}

impl fmt::Display for WeightsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        write!(
            f,
            "{}: the weights do not fit the architecture, {count} {noun}:",
            self.folder.display()
        )?;
        for problem in self.problems.iter().take(LISTED) {
            write!(f, "\n  {problem}")?;
        }
        if count > LISTED {
            write!(f, "\n  and {} more", count - LISTED)?;
        }
        Ok(())
    }
}

impl std::error::Error for WeightsError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut() {
        let problems = (0..15)
            .map(|i| WeightProblem::Missing { tensor: format!("t{i}."), expected: vec![2, 3] })
            .collect();
        let message = WeightsError { folder: PathBuf::from("model"), problems }.to_string();
        assert!(message.contains("15 problems"));
        assert!(message.contains("missing tensor t11., expected shape [2, 3]"));
        assert!(!message.contains("t12."));
        assert!(message.ends_with("and 3 more"));
    }
}
