//! Token ids against transformers' T5 tokenizer.

use std::{collections::BTreeMap, path::Path};

use pixart_runtime::text::Tokenizer;
use pixart_tests::fixtures;
use serde::Deserialize;

const MAX_LENGTH: usize = 300;

#[derive(Deserialize)]
struct Expected {
    /// Ids of the whole prompt.
    ids: Vec<i64>,
    /// Ids where a limit of 300 cuts the prompt.
    truncated: Option<Vec<i64>>,
}

fn assert_ids(folder: &Path, file: &str) {
    let tokenizer = Tokenizer::from_folder(folder).expect("the tokenizer is read");
    let prompts: BTreeMap<String, String> = fixtures::json("tokenizer/prompts.json");
    let expected: BTreeMap<String, Expected> = fixtures::json(file);
    assert!(prompts.len() >= 60 && prompts.len() == expected.len(), "one answer for each prompt");
    let mut failures = Vec::new();
    for (name, prompt) in &prompts {
        let Expected { ids, truncated } = &expected[name];
        for (limit, expected) in
            [(usize::MAX, ids), (MAX_LENGTH, truncated.as_ref().unwrap_or(ids))]
        {
            let actual = tokenizer.encode(prompt, limit).unwrap_or_else(|e| panic!("{name}: {e}"));
            if actual != *expected {
                let at = actual.iter().zip(expected).position(|(a, b)| a != b);
                failures.push(format!(
                    "{name} (at most {limit}): {} ids, expected {}, the first difference at {at:?}\n  \
                     {:?}\n  {:?}",
                    actual.len(),
                    expected.len(),
                    &actual[..actual.len().min(40)],
                    &expected[..expected.len().min(40)],
                ));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_small_vocabulary_gives_the_ids_of_transformers() {
    assert_ids(&fixtures::tiny().join("tokenizer"), "tokenizer/tiny.json");
}

#[test]
fn the_real_vocabulary_gives_the_ids_of_transformers() {
    match fixtures::real_tokenizer() {
        Some(folder) => assert_ids(&folder, "tokenizer/real.json"),
        None => eprintln!("skipped: no ../shared/data/t5-tokenizer beside the repository"),
    }
}
