//! Cleaned prompts against diffusers' caption cleaner.

use pixart_runtime::text::PromptCleaning;
use pixart_tests::fixtures;
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    /// A prompt and what the cleaner makes of it.
    cases: Vec<(String, String)>,
    /// Prompts on which diffusers fails.
    refused: Vec<String>,
}

#[test]
fn prompts_are_cleaned_as_diffusers_cleans_them() {
    let Expected { cases, refused } = fixtures::json("cleaner.json");
    assert!(cases.len() >= 500, "{} cases", cases.len());
    let mut failures = Vec::new();
    for (prompt, expected) in &cases {
        match PromptCleaning::Diffusers.apply(prompt) {
            Ok(actual) if actual == *expected => {}
            actual => failures.push(format!("{prompt:?}\n  {actual:?}\n  {expected:?}")),
        }
    }
    for prompt in &refused {
        if let Ok(actual) = PromptCleaning::Diffusers.apply(prompt) {
            failures.push(format!("{prompt:?}\n  {actual:?}\n  diffusers fails"));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {} differ (prompt, found, expected):\n{}",
        failures.len(),
        cases.len() + refused.len(),
        failures.join("\n")
    );
}
