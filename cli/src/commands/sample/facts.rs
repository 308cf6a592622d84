//! What a picture was made with, apart from the settings: names and hashes of the model's parts, the engine.
//!
//! Hashes come from the manifests of the exports, so that no weights are read for them.

use super::paths::model_name;
use crate::model::Sources;
use pixart_runtime::bundle::store;
use pixart_runtime::engine::Engine;
use pixart_runtime::files::hex;
use pixart_runtime::lora::Lora;
use pixart_runtime::pipeline::ModelPaths;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

/// The facts of a run as JSON, with the parts `engine`, `model` and `loras`. What cannot be read is left out:
/// the pipeline tells about it when it opens it.
pub fn gather(
    sources: &Sources,
    paths: &ModelPaths,
    engine: &dyn Engine,
    loras: &[Arc<Lora>],
) -> Value {
    let mut model = Map::new();
    let always = [
        ("transformer", sources.transformer(), &paths.transformer),
        ("text_encoder", sources.text_encoder(), &paths.text_encoder),
        ("vae_decoder", sources.vae(), &paths.vae_decoder),
    ];
    let encoder = paths.vae_encoder.iter().map(|export| ("vae_encoder", sources.vae(), export));
    for (part, source, export) in always.into_iter().chain(encoder) {
        // There may be no text encoder.
        if let Some(facts) = component(source, export) {
            model.insert(part.to_owned(), facts);
        }
    }
    let tokenizer = ["tokenizer.json", "spiece.model"].map(|name| paths.tokenizer.join(name));
    if let Some(file) = tokenizer.iter().find(|file| store::is_file(file)) {
        model.insert("tokenizer".to_owned(), json!({ "sha256": file_hash(file) }));
    }
    let scheduler = paths.scheduler.iter().map(|folder| folder.join("scheduler_config.json"));
    if let Some(file) = scheduler.into_iter().find(|file| store::is_file(file)) {
        model.insert("scheduler".to_owned(), json!({ "sha256": file_hash(&file) }));
    }
    let loras: Vec<_> = loras
        .iter()
        .map(|lora| {
            json!({ "name": model_name(lora.path()), "sha256": lora.sha256(), "strength": lora.strength() })
        })
        .collect();
    json!({
        "engine": { "name": engine.name(), "version": engine.describe() },
        "model": model,
        "loras": loras,
    })
}

/// A part of the model by the manifest of its export.
fn component(source: &Path, export: &Path) -> Option<Value> {
    let manifest: Value =
        serde_json::from_slice(&store::read(&export.join("manifest.json")).ok()?).ok()?;
    Some(json!({
        "name": model_name(source),
        "precision": manifest["precision"],
        "profile": manifest["profile"],
        "exported_by": manifest["tool"],
        "source_sha256": files_hash(&manifest["source"]["files"]),
        "export_sha256": files_hash(&manifest["files"]),
    }))
}

/// The hash of a single file, or the hash of the hashes of several.
fn files_hash(files: &Value) -> Option<String> {
    let hashes: Option<Vec<_>> = files.as_array()?.iter().map(|f| f["sha256"].as_str()).collect();
    match hashes?.as_slice() {
        [] => None,
        [one] => Some((*one).to_owned()),
        many => Some(hex(&Sha256::digest(many.join("\n")))),
    }
}

/// The SHA-256 of a small file.
pub fn file_hash(file: &Path) -> Option<String> {
    Some(hex(&Sha256::digest(store::read(file).ok()?)))
}

/// What differs between a picture's facts and those of this run, in words; empty if nothing.
///
/// Exports are compared only where the same program wrote them for the same engine: others differ though
/// they compute the same.
pub fn differences(then: &Value, now: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let empty = Map::new();
    let (old, new) = (&then["model"], &now["model"]);
    let parts = new.as_object().unwrap_or(&empty);
    for (part, new) in parts {
        let old = &old[part.as_str()];
        let differs =
            |keys: &[&str]| keys.iter().any(|key| !old[key].is_null() && old[key] != new[key]);
        let same_program =
            old["exported_by"] == new["exported_by"] && old["profile"] == new["profile"];
        if differs(&["sha256", "source_sha256", "precision"])
            || same_program && differs(&["export_sha256"])
        {
            found.push(part.replace('_', " "));
        }
    }
    let hashes = |facts: &Value| -> Vec<Value> {
        facts["loras"]
            .as_array()
            .iter()
            .flat_map(|l| l.iter())
            .map(|l| l["sha256"].clone())
            .collect()
    };
    if hashes(then) != hashes(now) {
        found.push("LoRA".to_owned());
    }
    let inputs = then["inputs"].as_object().unwrap_or(&empty);
    for (name, hash) in inputs {
        if *hash != now["inputs"][name.as_str()] {
            found.push(name.clone());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_a_picture_is_a_difference() {
        let facts = |source: &str, export: &str, tool: &str, lora: &[&str]| {
            let loras: Vec<_> = lora.iter().map(|hash| json!({ "sha256": hash })).collect();
            json!({
                "model": {
                    "vae_decoder": {
                        "name": "a", "precision": "fp32", "profile": "ort", "exported_by": tool,
                        "source_sha256": source, "export_sha256": export,
                    },
                    "tokenizer": { "sha256": "t" },
                },
                "loras": loras,
            })
        };
        let one = facts("s", "e", "1", &[]);
        let none: [&str; 0] = [];
        assert_eq!(differences(&one, &one), none);
        assert_eq!(differences(&one, &facts("s", "f", "2", &[])), none);
        assert_eq!(differences(&one, &facts("s", "f", "1", &[])), ["vae decoder"]);
        assert_eq!(differences(&one, &facts("x", "e", "1", &["l"])), ["vae decoder", "LoRA"]);
        // A picture of a version that told less.
        assert_eq!(differences(&json!({}), &one), none);
    }
}
