//! `--from PICTURE`: the settings a picture carries, under the flags.

use super::facts::differences;
use super::paths::expanded;
use super::record::{FORMAT, SOURCES, TOOL, recorded};
use super::settings::{self, Settings};
use crate::config::{given, lay_over};
use crate::exit::Failure;
use pixart_runtime::image::{RECORD, read_texts};
use serde_json::{Map, Value};
use serde_yaml::Mapping;
use std::path::{Path, PathBuf};

/// A flag, and the settings of a picture that it sets aside because they would contradict it or belong to what
/// it replaces.
const SET_ASIDE: [(&str, &[&str]); 19] = [
    ("prompt", &["prompt_directives"]),
    ("prompt_path", &["prompt", "prompt_directives"]),
    ("aspect_ratio", &["image_width", "image_height"]),
    ("image_width", &["aspect_ratio"]),
    ("image_height", &["aspect_ratio"]),
    ("guidance_end", &["guidance_last_step"]),
    ("guidance_last_step", &["guidance_end"]),
    ("clean_caption", &["prompt_cleaning"]),
    ("interpolate_to", &["variation_seed", "variation_strength"]),
    ("reference", &["prompt_cleaning", "uncond_mask"]),
    ("sampling_method", &["sampling_steps", "guidance_scale", "guidance_last_step"]),
    ("sampling_steps", &["guidance_last_step"]),
    ("init_image", &["mask", "mask_blur", "paste_back"]),
    ("vae_root", &["sd_scale_factor"]),
    ("vae_tiling", &["vae_tile_size", "vae_tile_overlap"]),
    ("low_memory", &["vae_tile_size", "vae_tile_overlap"]),
    ("vae_tile_size", &["vae_tile_overlap"]),
    ("model", &["checkpoint", "text_encoder_root", "vae_root", "tokenizer_root"]),
    // Checks against mixed-up files, and what a checkpoint that is exported on first use is.
    ("checkpoint", OF_THE_CHECKPOINT),
];

const OF_THE_CHECKPOINT: &[&str] = &[
    "sample_size",
    "kv_compress",
    "kv_compress_sampling",
    "kv_compress_scale_factor",
    "kv_compress_layer",
];

/// The picture that a run begins with.
pub struct Origin {
    path: PathBuf,
    facts: Value,
    /// Whether other LoRAs are asked for.
    other_loras: bool,
}

/// Reads the settings of a picture and lays `flags` over them.
pub fn read(path: &Path, flags: &Settings) -> Result<(Settings, Origin), Failure> {
    let shown = path.display();
    let texts = read_texts(path).map_err(|error| Failure::request(format!("from: {error}")))?;
    let Some(text) = texts.get(RECORD) else {
        let found = match texts.parameters() {
            Some(_) => {
                "the settings of another program, which it cannot be drawn from again exactly; see them \
                 with `pixart inspect` and type them as flags"
            }
            None => "no settings; expected a picture of pixart made without --no_metadata",
        };
        return Err(Failure::request(format!("from: {shown} has {found}")));
    };
    let wrong = |problem: String| Failure::request(format!("from: {shown}: {problem}"));
    let record: Value = serde_json::from_str(text)
        .map_err(|error| wrong(format!("its text `{RECORD}` is no JSON: {error}")))?;
    let tool = record["tool"].as_str().unwrap_or("an unknown program").escape_debug();
    if record["format"] != FORMAT {
        return Err(wrong(format!(
            "{tool} wrote its settings in the format {}, expected {FORMAT}; update {TOOL}",
            record["format"]
        )));
    }
    let Value::Object(settings) = &record["settings"] else {
        return Err(wrong("its text `pixart` has no `settings`".to_owned()));
    };
    let known = settings::names();
    if let Some(name) = settings.keys().find(|name| !known.contains(name)) {
        return Err(wrong(format!(
            "{tool} made it with the setting `{}`, which this version ({TOOL}) does not have; take that version",
            name.escape_debug()
        )));
    }
    let unusable =
        |error: serde_yaml::Error| wrong(format!("its settings cannot be used: {error}"));
    let flagged = given(flags)?;
    let kept = kept(settings, &flagged).map_err(unusable)?;
    let settings = lay_over(kept, flags).map_err(unusable)?;
    let origin = Origin {
        path: path.to_owned(),
        facts: record["facts"].clone(),
        other_loras: flagged.contains_key("lora"),
    };
    Ok((settings, origin))
}

/// The settings of a picture that count beside these flags.
fn kept(settings: &Map<String, Value>, flags: &Mapping) -> Result<Mapping, serde_yaml::Error> {
    let recorded = recorded();
    let mut set_aside: Vec<_> = SET_ASIDE
        .iter()
        .filter(|(flag, _)| flags.contains_key(*flag))
        .flat_map(|(_, names)| names.iter().copied())
        .collect();
    if flags.contains_key("model") {
        set_aside.extend(OF_THE_CHECKPOINT);
        set_aside.push("sd_scale_factor");
    }
    let mut kept = Mapping::new();
    for (name, value) in settings {
        // What does not belong into pictures is not taken from one: it could say where to write.
        if !recorded.contains(name) || set_aside.contains(&name.as_str()) {
            continue;
        }
        kept.insert(name.as_str().into(), serde_yaml::to_value(value)?);
    }
    for (name, value) in &mut kept {
        if !name.as_str().is_some_and(|name| SOURCES.contains(&name)) {
            continue;
        }
        match value {
            serde_yaml::Value::Sequence(list) => list.iter_mut().for_each(expand),
            value => expand(value),
        }
    }
    Ok(kept)
}

/// A path at home, which begins with `~`, as it is on this machine.
fn expand(value: &mut serde_yaml::Value) {
    if let Some(text) = value.as_str().filter(|text| text.starts_with('~')) {
        *value = expanded(text).display().to_string().into();
    }
}

impl Origin {
    /// What is to be told when this run has another model or engine than the picture.
    pub fn warnings(&self, now: &Value) -> Vec<String> {
        let shown = self.path.display();
        let mut warnings = Vec::new();
        let mut different = differences(&self.facts, now);
        different.retain(|part| part != "LoRA" || !self.other_loras);
        if !different.is_empty() {
            warnings.push(format!(
                "{shown} was made with another {}: expect another picture",
                different.join(", ")
            ));
        }
        let (then, now) = (&self.facts["engine"], &now["engine"]);
        // After the comma stands the number of threads.
        let version = |engine: &Value| {
            engine["version"].as_str().map(|text| text.split(',').next().map(str::to_owned))
        };
        if then["name"] != now["name"] || version(then) != version(now) {
            let name = |engine: &Value| {
                engine["version"].as_str().unwrap_or("an unknown engine").escape_debug().to_string()
            };
            warnings.push(format!(
                "{shown} was made with {}, this is {}: expect small differences",
                name(then),
                name(now)
            ));
        }
        warnings
    }
}
