//! The parts of a SentencePiece model file that a unigram tokenizer needs.
//!
//! The file is one protocol-buffer message. Only the fields used are declared; the field numbers
//! are those of SentencePiece's published schema.

use prost::Message;

/// `ModelProto`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Model {
    #[prost(message, repeated, tag = "1")]
    pub(super) pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    pub(super) trainer: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    pub(super) normalizer: Option<NormalizerSpec>,
}

/// `ModelProto.SentencePiece`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Piece {
    #[prost(string, optional, tag = "1")]
    pub(super) piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    pub(super) score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    pub(super) kind: Option<i32>,
}

/// `ModelProto.SentencePiece.Type`, as far as it matters here.
pub(super) mod kind {
    pub(in super::super) const UNKNOWN: i32 = 2;
    pub(in super::super) const CONTROL: i32 = 3;
    pub(in super::super) const USER_DEFINED: i32 = 4;
}

/// `TrainerSpec`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TrainerSpec {
    /// 1 unigram (also when absent), 2 BPE, 3 word, 4 char.
    #[prost(int32, optional, tag = "3")]
    pub(super) model_type: Option<i32>,
}

/// `NormalizerSpec`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NormalizerSpec {
    /// A double-array trie and the replacements it points to; empty for "identity".
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(super) precompiled_charsmap: Option<Vec<u8>>,
}

/// The name of a `model_type`, for messages.
pub(super) fn model_type_name(model_type: i32) -> String {
    match model_type {
        1 => "unigram".to_owned(),
        2 => "bpe".to_owned(),
        3 => "word".to_owned(),
        4 => "char".to_owned(),
        other => format!("type {other}"),
    }
}
