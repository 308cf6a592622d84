//! From a prompt to what the transformer attends to.

mod cache;
mod captions;
mod charsmap;
mod clean;
mod encode;
mod prompt;
mod sentencepiece;
mod tokenizer;

pub use cache::TextCache;
pub use captions::CaptionEncoder;
pub use clean::CleanError;
pub use encode::{Conditioning, LENGTH_MULTIPLE};
pub use prompt::{PromptCleaning, PromptIds};
pub use tokenizer::{Tokenizer, TokenizerError};
