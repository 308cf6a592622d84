//! What is done to a prompt's text, and the ids of a prompt with its opposite.

use std::{fmt, str::FromStr};

use super::{Tokenizer, TokenizerError, clean};
use crate::{error::RequestError, pipeline::Reference};

/// What is done to a prompt before it is tokenized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PromptCleaning {
    /// Nothing, as mindone and the official code.
    Raw,
    /// Lower case, without outer white space: diffusers with `clean_caption=False`.
    Lower,
    /// diffusers' caption cleaner, applied twice as there: no addresses, markup, article numbers or
    /// ideographs; mojibake repaired; lower case.
    Diffusers,
}

impl PromptCleaning {
    /// What a reference does by itself.
    pub fn of(reference: Reference) -> Self {
        match reference {
            Reference::Mindone => Self::Raw,
            Reference::Diffusers => Self::Diffusers,
        }
    }

    /// The text that is tokenized.
    ///
    /// # Errors
    /// When diffusers' cleaner cannot take the prompt.
    pub fn apply(self, prompt: &str) -> Result<String, clean::CleanError> {
        match self {
            Self::Raw => Ok(prompt.to_owned()),
            Self::Lower => Ok(clean::strip(&prompt.to_lowercase()).to_owned()),
            Self::Diffusers => clean::clean(prompt),
        }
    }
}

impl FromStr for PromptCleaning {
    type Err = RequestError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "raw" => Ok(Self::Raw),
            "lower" => Ok(Self::Lower),
            "diffusers" => Ok(Self::Diffusers),
            _ => Err(RequestError::UnknownCleaning(name.to_owned())),
        }
    }
}

impl fmt::Display for PromptCleaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Lower => "lower",
            Self::Diffusers => "diffusers",
        })
    }
}

/// The token ids of a prompt and, with guidance, of the prompt it is guided away from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptIds {
    /// The prompt's ids, end of sequence included.
    pub positive: Vec<i64>,
    /// The negative prompt's; absent where guidance is off.
    pub negative: Option<Vec<i64>>,
}

impl PromptIds {
    /// The texts as they are encoded: the negative prompt first.
    pub(super) fn rows(&self) -> Vec<&[i64]> {
        self.negative.iter().chain([&self.positive]).map(Vec::as_slice).collect()
    }

    /// Cleans and tokenizes both texts, each cut to `max_length` ids.
    ///
    /// # Errors
    /// Those of [`PromptCleaning::apply`] and [`Tokenizer::encode`].
    pub fn new(
        tokenizer: &Tokenizer,
        cleaning: PromptCleaning,
        prompt: &str,
        negative_prompt: Option<&str>,
        max_length: usize,
    ) -> Result<Self, TokenizerError> {
        let ids = |text| tokenizer.encode(&cleaning.apply(text)?, max_length);
        Ok(Self { positive: ids(prompt)?, negative: negative_prompt.map(ids).transpose()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_case_and_strip_are_those_of_python() {
        let text = " \u{1f}\u{a0}A Red\tCIRCLE, ÉTÉ ΟΔΟΣ \n";
        let lower = PromptCleaning::Lower.apply(text).expect("a text");
        assert_eq!(lower, "a red\tcircle, été οδος");
        assert_eq!(PromptCleaning::Raw.apply(text).expect("a text"), text);
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in ["raw", "lower", "diffusers"] {
            assert_eq!(name.parse::<PromptCleaning>().expect("a name").to_string(), name);
        }
        let error = "clean".parse::<PromptCleaning>().expect_err("no name").to_string();
        assert!(error.contains("`clean`") && error.contains("raw, lower"), "{error}");
    }
}
