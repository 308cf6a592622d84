//! From a prompt to what the transformer attends to.

mod charsmap;
mod encode;
mod prompt;
mod sentencepiece;
mod tokenizer;

pub use encode::Conditioning;
pub(crate) use encode::encode;
pub use prompt::PromptIds;
pub use tokenizer::{Tokenizer, TokenizerError};
