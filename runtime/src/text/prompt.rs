//! What is done to a prompt's text, and the ids of a prompt with its opposite.

use super::{Tokenizer, TokenizerError};
use crate::pipeline::Reference;

/// The token ids of a prompt and, with guidance, of the prompt it is guided away from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptIds {
    /// The prompt's ids, end of sequence included.
    pub positive: Vec<i64>,
    /// The negative prompt's; absent where guidance is off.
    pub negative: Option<Vec<i64>>,
}

impl PromptIds {
    /// Tokenizes both texts, each cut to `max_length` ids.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn new(
        tokenizer: &Tokenizer,
        reference: Reference,
        prompt: &str,
        negative_prompt: Option<&str>,
        max_length: usize,
    ) -> Result<Self, TokenizerError> {
        let ids = |text| tokenizer.encode(&prepared(text, reference), max_length);
        Ok(Self { positive: ids(prompt)?, negative: negative_prompt.map(ids).transpose()? })
    }
}

/// The text that is tokenized: mindone takes it as it is; diffusers, without its caption
/// cleaner, makes it lower-case and strips white space.
fn prepared(text: &str, reference: Reference) -> String {
    match reference {
        Reference::Mindone => text.to_owned(),
        Reference::Diffusers => {
            // Python also counts the four separators U+001C to U+001F as white space.
            let space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
            text.to_lowercase().trim_matches(space).to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diffusers_lower_cases_and_strips() {
        let text = " \u{1f}\u{a0}A Red\tCIRCLE, ÉTÉ ΟΔΟΣ \n";
        assert_eq!(prepared(text, Reference::Diffusers), "a red\tcircle, été οδος");
        assert_eq!(prepared(text, Reference::Mindone), text);
    }
}
