//! Options of providers: which there are, and what they may hold.

use std::fmt;

use super::super::EngineError;

/// One option of a provider, under the provider's own name for it.
#[derive(Debug, PartialEq, Eq)]
pub struct OptionSpec {
    /// The name, as ONNX Runtime knows it.
    pub name: &'static str,
    /// What it may hold.
    pub kind: OptionKind,
    /// What it does, in a few words.
    pub summary: &'static str,
    /// What is passed where the user gives nothing; `None` leaves it to the provider.
    pub default: Option<&'static str>,
}

/// What an option may hold.
#[derive(Debug, PartialEq, Eq)]
pub enum OptionKind {
    /// true or false, which the provider spells in its own way.
    Switch {
        /// Its word for false.
        off: &'static str,
        /// Its word for true.
        on: &'static str,
    },
    /// A whole number, bounds included.
    Number {
        /// The least.
        least: i64,
        /// The most.
        most: i64,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Any text that is not empty.
    Text,
}

/// A switch spelled 0 and 1.
pub(super) const SWITCH: OptionKind = OptionKind::Switch { off: "0", on: "1" };

/// A number of bytes.
pub(super) const BYTES: OptionKind = OptionKind::Number { least: 0, most: i64::MAX };

/// The number of a device.
pub(super) const INDEX: OptionKind = OptionKind::Number { least: 0, most: 255 };

impl fmt::Display for OptionKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch { .. } => formatter.write_str("true or false"),
            Self::Number { least, most: i64::MAX } => {
                write!(formatter, "a whole number from {least}")
            }
            Self::Number { least, most } => {
                write!(formatter, "a whole number from {least} to {most}")
            }
            Self::Choice(words) => formatter.write_str(&words.join(", ")),
            Self::Text => formatter.write_str("a text"),
        }
    }
}

impl OptionSpec {
    /// `value` as the provider wants it.
    ///
    /// # Errors
    /// [`EngineError::OptionValue`] with what is expected.
    pub(super) fn value(&self, device: &str, value: &str) -> Result<String, EngineError> {
        let wrong = || EngineError::OptionValue {
            device: device.to_owned(),
            option: self.name,
            found: value.to_owned(),
            expected: self.kind.to_string(),
        };
        match &self.kind {
            OptionKind::Switch { off, on } => match value.to_ascii_lowercase().as_str() {
                "true" | "1" => Ok((*on).to_owned()),
                "false" | "0" => Ok((*off).to_owned()),
                _ => Err(wrong()),
            },
            OptionKind::Number { least, most } => match value.parse::<i64>() {
                Ok(number) if (*least..=*most).contains(&number) => Ok(number.to_string()),
                _ => Err(wrong()),
            },
            OptionKind::Choice(words) => words
                .iter()
                .find(|word| word.eq_ignore_ascii_case(value))
                .map(|word| (*word).to_owned())
                .ok_or_else(wrong),
            // What is passed on ends at a zero byte.
            OptionKind::Text if value.is_empty() || value.contains('\0') => Err(wrong()),
            OptionKind::Text => Ok(value.to_owned()),
        }
    }
}
