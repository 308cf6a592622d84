//! The tokenizer on small vocabularies and broken files.

use tempfile::TempDir;

use super::*;

/// Pieces "▁", "a", "b", "ab" and "▁ab" behind the three special ones.
fn spiece(model_type: i32) -> Vec<u8> {
    let piece = |(text, score, kind): (&str, f32, i32)| sentencepiece::Piece {
        piece: Some(text.to_owned()),
        score: Some(score),
        kind: Some(kind),
    };
    let pieces = [
        ("<pad>", 0.0, 3),
        ("</s>", 0.0, 3),
        ("<unk>", 0.0, 2),
        ("▁", -2.0, 1),
        ("a", -3.0, 1),
        ("b", -3.0, 1),
        ("ab", -4.0, 1),
        ("▁ab", -4.5, 1),
    ];
    let trainer = Some(sentencepiece::TrainerSpec { model_type: Some(model_type) });
    let pieces = pieces.map(piece).to_vec();
    sentencepiece::Model { pieces, trainer, normalizer: None }.encode_to_vec()
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).expect("written");
    }
    folder
}

fn tokenizer(files: &[(&str, &[u8])]) -> Tokenizer {
    Tokenizer::from_folder(folder(files).path()).expect("a tokenizer")
}

fn failure(files: &[(&str, &[u8])]) -> String {
    match Tokenizer::from_folder(folder(files).path()) {
        Ok(_) => panic!("the damage was not noticed"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn words_are_split_at_white_space_and_end_with_eos() {
    let tokenizer = tokenizer(&[("spiece.model", &spiece(1))]);
    let ids = |text| tokenizer.encode(text, 300).expect("ids");
    assert_eq!(ids(""), [1]);
    assert_eq!(ids(" \t\n"), [1]);
    assert_eq!(ids("ab"), [7, 1]);
    assert_eq!(ids("  ab \n ab\u{3000}b "), [7, 7, 3, 5, 1]);
    assert_eq!(ids("xyz"), [3, 2, 1]);
    assert_eq!(tokenizer.vocab_size(), 108);
}

#[test]
fn special_tokens_are_found_in_the_text() {
    let tokenizer = tokenizer(&[("spiece.model", &spiece(1))]);
    let ids = |text| tokenizer.encode(text, 300).expect("ids");
    assert_eq!(ids("ab</s><pad>a"), [7, 1, 0, 3, 4, 1]);
    // The sentinels count down: 0 is on top.
    assert_eq!(ids("<extra_id_0><extra_id_99>"), [107, 8, 1]);
    // Not a sentinel: two unknown pieces around the "a" of "extra".
    assert_eq!(ids("<extra_id_100>"), [3, 2, 4, 2, 1]);
}

#[test]
fn a_long_text_loses_its_end() {
    let tokenizer = tokenizer(&[("spiece.model", &spiece(1))]);
    let ids = |length| tokenizer.encode("ab ab ab ab", length).expect("ids");
    assert_eq!(ids(5), [7, 7, 7, 7, 1]);
    assert_eq!(ids(4), [7, 7, 7, 1]);
    assert_eq!(ids(1), [1]);
}

#[test]
fn the_config_names_tokens_and_counts_sentinels() {
    let config = br#"{"extra_ids": 1, "eos_token": {"content": "b"},
        "added_tokens_decoder": {"8": {"content": "<extra_id_0>", "lstrip": true}}}"#;
    let files: [(&str, &[u8]); 2] =
        [("spiece.model", &spiece(1)), ("tokenizer_config.json", config)];
    let tokenizer = tokenizer(&files);
    assert_eq!((tokenizer.eos_id(), tokenizer.pad_id(), tokenizer.vocab_size()), (5, 0, 9));
    assert_eq!(tokenizer.encode("a <extra_id_0>", 300).expect("ids"), [3, 4, 8, 5]);
}

#[test]
fn tokenizer_json_serves_as_well() {
    let json = br#"{"model": {"type": "Unigram", "unk_id": 2, "vocab": [["<pad>", 0.0],
        ["</s>", 0.0], ["<unk>", 0.0], ["\u2581", -2.0], ["a", -3.0], ["<extra_id_0>", 0.0]]},
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
        "added_tokens": [{"id": 5, "content": "<extra_id_0>", "special": true}]}"#;
    let tokenizer = tokenizer(&[("tokenizer.json", json)]);
    assert_eq!(tokenizer.encode("a b<extra_id_0>", 300).expect("ids"), [3, 4, 3, 2, 5, 1]);
}

#[test]
fn broken_files_are_errors_that_say_what_is_wrong() {
    assert!(failure(&[]).contains("neither spiece.model nor tokenizer.json"));
    assert!(failure(&[("spiece.model", b"\xff\xff\xff")]).contains("no SentencePiece model"));
    assert!(failure(&[("spiece.model", b"")]).contains("has no pieces"));
    assert!(failure(&[("spiece.model", &spiece(2))]).contains("found a bpe model"));
    let bad_config = [("spiece.model", &spiece(1)[..]), ("tokenizer_config.json", b"{")];
    assert!(failure(&bad_config).contains("tokenizer_config.json"));
    let bpe = br#"{"model": {"type": "BPE", "vocab": {}}}"#;
    assert!(failure(&[("tokenizer.json", bpe)]).contains("found a BPE model"));
    let no_eos = br#"{"model": {"vocab": [["<pad>", 0.0]], "unk_id": 0}}"#;
    assert!(failure(&[("tokenizer.json", no_eos)]).contains("has no \"</s>\""));
    let map = br#"{"model": {"vocab": [["<pad>", 0.0]], "unk_id": 0},
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}"#;
    assert!(failure(&[("tokenizer.json", map)]).contains("character map is broken"));
    let unk = br#"{"model": {"vocab": [["<pad>", 0.0], ["</s>", 0.0]], "unk_id": 7}}"#;
    assert!(failure(&[("tokenizer.json", unk)]).contains("cannot be used"));
}
