//! PEFT's `adapter_config.json`, and the same settings as diffusers puts them into a file's metadata.

use std::{collections::BTreeMap, fmt, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Map, Value};

use super::{LoraError, key::Network};

/// Name of the file, beside `adapter_model.safetensors`.
pub(super) const FILE: &str = "adapter_config.json";

/// Under this key of its metadata, diffusers stores the settings of all networks as one JSON object.
pub(super) const METADATA_KEY: &str = "lora_adapter_metadata";

/// The settings that change what the tensors mean.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AdapterConfig {
    peft_type: Option<String>,
    r: Option<f32>,
    lora_alpha: Option<f32>,
    use_rslora: Option<bool>,
    pub use_dora: Option<bool>,
    rank_pattern: Option<Patterns>,
    alpha_pattern: Option<Patterns>,
    init_lora_weights: Option<Value>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// Settings under which the factors mean something else than a product that is added; they are off
/// when they are absent, null or false.
const REFUSED: [&str; 9] = [
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

/// Initialisations that change the weights of the model that is trained, so that the factors are no
/// differences to the released one.
const REFUSED_STARTS: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Patterns of layer names in the order of the file, of which the first one that fits counts.
#[derive(Clone, Debug, Default)]
struct Patterns(Vec<(String, f32)>);

impl<'de> Deserialize<'de> for Patterns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Patterns;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("names of layers with a number each")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Patterns, A::Error> {
                let mut patterns = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    patterns.push(entry);
                }
                Ok(Patterns(patterns))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

impl AdapterConfig {
    /// Reads `adapter_config.json`.
    pub fn read(path: &Path) -> Result<Self, LoraError> {
        let text = std::fs::read(path)
            .map_err(|source| LoraError::Read { path: path.to_owned(), source })?;
        let config = serde_json::from_slice(&text).map_err(|error| bad(path, error.to_string()))?;
        Self::checked(config, path)
    }

    /// Takes the settings of each network out of the metadata value of the file at `path`.
    pub fn from_metadata(text: &str, path: &Path) -> Result<BTreeMap<Network, Self>, LoraError> {
        let refused = |error: serde_json::Error| bad(path, format!("{METADATA_KEY}: {error}"));
        let all: Map<String, Value> = serde_json::from_str(text).map_err(refused)?;
        let mut found = BTreeMap::new();
        for (prefix, network) in
            [("transformer.", Network::Transformer), ("text_encoder.", Network::TextEncoder)]
        {
            let settings: Map<String, Value> = all
                .iter()
                .filter_map(|(key, value)| {
                    Some((key.strip_prefix(prefix)?.to_owned(), value.clone()))
                })
                .collect();
            if !settings.is_empty() {
                let config = serde_json::from_value(Value::Object(settings)).map_err(refused)?;
                found.insert(network, Self::checked(config, path)?);
            }
        }
        Ok(found)
    }

    fn checked(self, path: &Path) -> Result<Self, LoraError> {
        let unsupported = |method: String, key: &str| {
            Err(LoraError::Unsupported { path: path.to_owned(), method, key: key.to_owned() })
        };
        match self.peft_type.as_deref() {
            None | Some("LORA") => {}
            Some(other) => return unsupported(other.to_owned(), "peft_type"),
        }
        for key in REFUSED {
            let off = matches!(self.others.get(key), None | Some(Value::Null | Value::Bool(false)));
            if !off {
                return unsupported(format!("PEFT's {key}"), key);
            }
        }
        if let Some(Value::String(name)) = &self.init_lora_weights
            && let lower = name.to_lowercase()
            && REFUSED_STARTS.iter().any(|known| lower.starts_with(known))
        {
            return unsupported(name.clone(), "init_lora_weights");
        }
        Ok(self)
    }

    /// The factor on `B·A` of a layer whose `A` has `rank` rows.
    pub fn scale(&self, module: &str, rank: usize, path: &Path) -> Result<f32, LoraError> {
        let expected = pattern(self.rank_pattern.as_ref(), module, path)?.or(self.r);
        if let Some(expected) = expected.filter(|expected| *expected != rank as f32) {
            return Err(bad(
                path,
                format!(
                    "found r = {expected} for {module}, expected {rank} as in the tensors; take the \
                     configuration that belongs to the file"
                ),
            ));
        }
        let alpha = pattern(self.alpha_pattern.as_ref(), module, path)?.or(self.lora_alpha);
        let Some(alpha) = alpha else {
            return Err(bad(path, "lora_alpha is missing, expected a number".to_owned()));
        };
        let rank = rank as f32;
        Ok(alpha / if self.use_rslora == Some(true) { rank.sqrt() } else { rank })
    }
}

fn bad(path: &Path, reason: String) -> LoraError {
    LoraError::Config { path: path.to_owned(), reason }
}

/// The value of the first pattern that fits: a layer's whole name, or the end of it after a dot. PEFT
/// takes regular expressions; those that are plain names, possibly anchored, are understood.
fn pattern(
    patterns: Option<&Patterns>,
    module: &str,
    path: &Path,
) -> Result<Option<f32>, LoraError> {
    for (pattern, value) in patterns.iter().flat_map(|patterns| &patterns.0) {
        let (anchored, name) = match pattern.strip_prefix('^') {
            Some(rest) => (true, rest),
            None => (false, pattern.as_str()),
        };
        let name = name.strip_suffix('$').unwrap_or(name).replace("\\.", ".");
        if name.is_empty()
            || name.contains(|c: char| !c.is_ascii_alphanumeric() && !"._-".contains(c))
        {
            return Err(bad(
                path,
                format!(
                    "found the pattern \"{pattern}\" in rank_pattern or alpha_pattern, expected plain \
                     names of layers; write them out"
                ),
            ));
        }
        let fits = module == name
            || !anchored && module.strip_suffix(&name).is_some_and(|before| before.ends_with('.'));
        if fits {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<AdapterConfig, LoraError> {
        AdapterConfig::checked(serde_json::from_str(text).expect("JSON"), Path::new("c.json"))
    }

    fn scale(text: &str, module: &str, rank: usize) -> Result<f32, LoraError> {
        config(text)?.scale(module, rank, Path::new("c.json"))
    }

    #[test]
    fn alpha_is_divided_by_the_rank_or_its_root() {
        let plain = r#"{"peft_type": "LORA", "r": 16, "lora_alpha": 8}"#;
        assert_eq!(scale(plain, "a.to_q", 16).expect("a scale"), 0.5);
        let stable = r#"{"r": 16, "lora_alpha": 8, "use_rslora": true}"#;
        assert_eq!(scale(stable, "a.to_q", 16).expect("a scale"), 2.0);
    }

    #[test]
    fn patterns_fit_whole_names_and_ends_of_names() {
        let text = r#"{"r": 4, "lora_alpha": 4, "rank_pattern": {"to_k": 8},
            "alpha_pattern": {"^a\\.to_k": 16, "to_q": 2}}"#;
        assert_eq!(scale(text, "a.to_k", 8).expect("a scale"), 2.0);
        assert_eq!(scale(text, "b.a.to_k", 8).expect("a scale"), 0.5);
        assert_eq!(scale(text, "b.to_q", 4).expect("a scale"), 0.5);
        assert_eq!(scale(text, "b.auto_q", 4).expect("a scale"), 1.0);
        let error = scale(text, "a.to_v", 8).expect_err("another rank").to_string();
        assert!(error.contains("found r = 4") && error.contains("expected 8"), "{error}");
        let regex = r#"{"r": 4, "lora_alpha": 4, "alpha_pattern": {"to_[qk]": 16}}"#;
        assert!(scale(regex, "a.to_q", 4).expect_err("a regex").to_string().contains("to_[qk]"));
        let none = scale(r#"{"r": 4}"#, "a", 4).expect_err("no alpha").to_string();
        assert!(none.contains("lora_alpha"), "{none}");
    }

    #[test]
    fn what_is_not_plain_lora_is_refused_by_name() {
        for (text, name) in [
            (r#"{"peft_type": "LOHA"}"#, "LOHA"),
            (r#"{"fan_in_fan_out": true}"#, "fan_in_fan_out"),
            (r#"{"init_lora_weights": "pissa_niter_4"}"#, "pissa"),
            (r#"{"use_qalora": true}"#, "use_qalora"),
            (r#"{"alora_invocation_tokens": [1]}"#, "alora_invocation_tokens"),
            (r#"{"layer_replication": [[0, 1]]}"#, "layer_replication"),
        ] {
            let error = config(text).expect_err(name).to_string();
            assert!(error.contains(name) && error.contains("not supported"), "{error}");
        }
        config(r#"{"init_lora_weights": "gaussian", "layer_replication": null}"#).expect("fine");
    }

    #[test]
    fn metadata_has_a_prefix_for_each_network() {
        let text = r#"{"transformer.r": 4, "transformer.lora_alpha": 8, "text_encoder.r": 2}"#;
        let found = AdapterConfig::from_metadata(text, Path::new("a")).expect("settings");
        assert_eq!(found.len(), 2);
        let transformer = &found[&Network::Transformer];
        assert_eq!(transformer.scale("x", 4, Path::new("a")).expect("a scale"), 2.0);
        AdapterConfig::from_metadata("{", Path::new("a")).expect_err("broken");
    }
}
