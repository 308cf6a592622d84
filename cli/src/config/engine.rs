//! `engine:` in a config file may hold several settings at once:
//!
//! ```yaml
//! engine: { device: cuda, options: { use_tf32: true } }
//! ```

use anyhow::bail;
use serde_yaml::{Mapping, Value};

/// What may stand under `engine:`, and the setting that it is.
const KEYS: [(&str, &str); 11] = [
    ("name", "engine"),
    ("device", "device"),
    ("devices", "devices"),
    ("options", "device_option"),
    ("plugin", "device_plugin"),
    ("allow_cpu_fallback", "allow_cpu_fallback"),
    ("text_encoder_device", "text_encoder_device"),
    ("vae_device", "vae_device"),
    ("static_shapes", "static_shapes"),
    ("compiled_cache_dir", "compiled_cache_dir"),
    ("no_compiled_cache", "no_compiled_cache"),
];

/// Brings the settings under `engine:` to the top, where flags have their names. Says whether there were
/// any.
pub(super) fn spread(settings: &mut Mapping) -> anyhow::Result<bool> {
    if !settings.get("engine").is_some_and(Value::is_mapping) {
        return Ok(false);
    }
    let Some(Value::Mapping(engine)) = settings.remove("engine") else { return Ok(false) };
    for (key, value) in engine {
        let name = key.as_str().unwrap_or_default();
        let Some((_, setting)) = KEYS.iter().find(|(known, _)| *known == name) else {
            let known: Vec<&str> = KEYS.iter().map(|(known, _)| *known).collect();
            bail!("engine: unknown key {key:?}; known keys: {}", known.join(", "));
        };
        let value = match name {
            "options" => Value::Sequence(options(value)?),
            _ => value,
        };
        if settings.insert((*setting).into(), value).is_some() {
            bail!("engine: `{name}` is also given as `{setting}:`; leave one of the two out");
        }
    }
    Ok(true)
}

/// Names and values as they are typed after `--device_option`.
fn options(value: Value) -> anyhow::Result<Vec<Value>> {
    let Value::Mapping(options) = value else {
        bail!("engine: options: expected names and values, as {{ use_tf32: true }}");
    };
    let typed = options.into_iter().map(|(name, value)| {
        let value = match &value {
            Value::Bool(value) => value.to_string(),
            Value::Number(value) => value.to_string(),
            Value::String(value) => value.clone(),
            _ => bail!("engine: options: {name:?}: expected a word, a number, true or false"),
        };
        match name.as_str() {
            Some(name) => Ok(Value::String(format!("{name}={value}"))),
            None => bail!("engine: options: found the name {name:?}, expected a word"),
        }
    });
    typed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread_text(yaml: &str) -> Result<String, String> {
        let mut mapping: Mapping = serde_yaml::from_str(yaml).expect("YAML");
        spread(&mut mapping).map_err(|error| format!("{error:#}"))?;
        Ok(serde_yaml::to_string(&mapping).expect("written"))
    }

    #[test]
    fn settings_of_the_engine_come_to_the_top() {
        let found = spread_text(
            "seed: 1\nengine: {name: ort, device: cuda, options: {use_tf32: true, gpu_mem_limit: 5}}\n",
        );
        let found = found.expect("spread");
        for line in
            ["seed: 1", "engine: ort", "device: cuda", "- use_tf32=true", "- gpu_mem_limit=5"]
        {
            assert!(found.contains(line), "{line} in {found}");
        }
        assert_eq!(spread_text("engine: tract\n").expect("a word stays"), "engine: tract\n");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (yaml, said) in [
            ("engine: {speed: 3}", "unknown key String(\"speed\"); known keys: name, device"),
            ("device: cpu\nengine: {device: cuda}", "`device` is also given"),
            ("engine: {options: fast}", "expected names and values"),
            ("engine: {options: {a: [1]}}", "expected a word, a number"),
        ] {
            let error = spread_text(yaml).expect_err(yaml);
            assert!(error.contains(said), "{error}");
        }
    }
}
