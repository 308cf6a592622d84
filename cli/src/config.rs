//! Settings from a YAML file and from flags, under the same names: flag > YAML > default.

use crate::exit::Failure;
use anyhow::{Context, anyhow};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_yaml::{Mapping, Value};
use std::path::Path;

mod engine;

/// Lays `flags` over the settings of the YAML file at `path`, if there is one.
///
/// `known` are the keys that the file may have, and what is suggested beside an unknown one. `T` may have some of
/// them only.
pub fn merge<T>(path: Option<&Path>, flags: &T, known: &[String]) -> Result<T, Failure>
where
    T: Serialize + DeserializeOwned + Default,
{
    let settings = match path {
        Some(path) => given(&read::<T>(path, known).map_err(Failure::Request)?)?,
        None => Mapping::new(),
    };
    Ok(lay_over(settings, flags)?)
}

/// Lays `flags` over `settings`.
pub fn lay_over<T>(mut settings: Mapping, flags: &T) -> Result<T, serde_yaml::Error>
where
    T: Serialize + DeserializeOwned,
{
    settings.extend(given(flags)?);
    serde_yaml::from_value(Value::Mapping(settings))
}

/// The fields that hold something: neither null nor an empty list.
pub fn given(settings: &impl Serialize) -> Result<Mapping, serde_yaml::Error> {
    let Value::Mapping(mut map) = serde_yaml::to_value(settings)? else {
        return Ok(Mapping::new());
    };
    map.retain(|_, value| !value.is_null() && value.as_sequence().is_none_or(|s| !s.is_empty()));
    Ok(map)
}

fn read<T: DeserializeOwned + Default>(path: &Path, known: &[String]) -> anyhow::Result<T> {
    let file = path.display();
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{file}: cannot read this config file"))?;
    let value: Value =
        serde_yaml::from_str(&text).with_context(|| format!("{file}: not valid YAML"))?;
    let mut mapping = match value {
        // An empty file, or one with comments only, sets nothing.
        Value::Null => return Ok(T::default()),
        Value::Mapping(mapping) => mapping,
        _ => return Err(anyhow!("{file}: expected `key: value` lines at the top level")),
    };
    let spread = engine::spread(&mut mapping).with_context(|| file.to_string())?;
    for key in mapping.keys() {
        let Some(key) = key.as_str() else {
            return Err(anyhow!("{file}: found the key {key:?}, expected a name"));
        };
        if !known.iter().any(|name| name == key) {
            let hint = match nearest(key, known) {
                Some(name) => format!("did you mean `{name}`?"),
                None => format!("known keys: {}", known.join(", ")),
            };
            return Err(anyhow!("{file}: unknown key `{key}`; {hint}"));
        }
    }
    let read = match spread {
        true => serde_yaml::from_value(Value::Mapping(mapping)),
        // This way, an error tells the line.
        false => serde_yaml::from_str(&text),
    };
    read.with_context(|| format!("{file}: wrong value"))
}

/// A text, or a list of texts.
pub fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text or a list of texts")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(text) => vec![text],
        OneOrMany::Many(texts) => texts,
    })
}

/// Reads a boolean: the words true and false in any case, as upstream.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// The known name that looks most like `key`, if one does.
pub fn nearest<'a>(key: &str, known: &'a [String]) -> Option<&'a str> {
    let scored = known.iter().map(|name| (strsim::jaro_winkler(key, name), name.as_str()));
    let (score, name) = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (score > 0.8).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Serialize, Deserialize, Default, Debug, PartialEq)]
    #[serde(default)]
    struct Settings {
        sampling_steps: Option<usize>,
        seed: Option<u64>,
        prompt: Vec<String>,
    }

    fn merged(yaml: &str, flags: Settings) -> Result<Settings, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.yaml");
        std::fs::write(&path, yaml).unwrap();
        let known = ["prompt", "sampling_steps", "seed"].map(String::from);
        merge(Some(&path), &flags, &known).map_err(|failure| match failure {
            Failure::Request(error) => format!("{error:#}"),
            other => format!("not a request error: {other:?}"),
        })
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_nothing() {
        let flags = Settings { seed: Some(7), ..Settings::default() };
        let settings = merged("seed: 1\nsampling_steps: 4\nprompt: [a, b]\n", flags).unwrap();
        let prompt = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(settings, Settings { sampling_steps: Some(4), seed: Some(7), prompt });
        assert_eq!(merged("# nothing\n", Settings::default()).unwrap(), Settings::default());
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named() {
        for (yaml, expected) in [
            ("sampling_step: 4", "unknown key `sampling_step`; did you mean `sampling_steps`?"),
            ("zzz: 4", "unknown key `zzz`; known keys: prompt, sampling_steps, seed"),
            ("sampling_steps: many", "sampling_steps: invalid type"),
            ("- a", "expected `key: value` lines"),
            ("a: [", "not valid YAML"),
        ] {
            let error = merged(yaml, Settings::default()).unwrap_err();
            assert!(error.contains(expected), "{yaml}: {error}");
            assert!(error.contains("test.yaml"), "{yaml}: {error}");
        }
    }
}
