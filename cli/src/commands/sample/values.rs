//! How configs may write what the command line takes as words.

use pixart_runtime::sampler::EasyCache;
use serde::{Deserialize, Deserializer};

/// YAML's true and false are words on the command line.
pub(super) fn word_or_boolean<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a word, true or false")]
    enum WordOrBoolean {
        Boolean(bool),
        Word(String),
    }
    Ok(Option::deserialize(deserializer)?.map(|value| match value {
        WordOrBoolean::Boolean(value) => value.to_string(),
        WordOrBoolean::Word(word) => word,
    }))
}

/// A flag whose number can be left out: YAML's true takes the usual one, false none.
pub(super) fn number_or_boolean<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<f64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a number, true or false")]
    enum NumberOrBoolean {
        Boolean(bool),
        Number(f64),
    }
    Ok(Option::deserialize(deserializer)?.map(|value| match value {
        NumberOrBoolean::Boolean(true) => EasyCache::default().threshold,
        NumberOrBoolean::Boolean(false) => 0.0,
        NumberOrBoolean::Number(number) => number,
    }))
}
