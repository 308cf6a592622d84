//! What a picture tells about itself: the settings that make it again, and what it was made with.
//!
//! The JSON has `format` (1), `tool`, `settings` (flags by their names) and `facts` (hashes, engine). The
//! settings are those of the run, reduced to one picture: its prompt as it was drawn from, with the style's
//! words and without directives, its seed, its size; nothing about where files go.

use super::paths::shared;
use super::settings::Settings;
use crate::exit::Failure;
use clap::Args;
use pixart_runtime::image::{Metadata, Parameters};
use pixart_runtime::lora::LoraSpec;
use pixart_runtime::pipeline::{Picture, Request};
use pixart_runtime::sampler::{EasyCache, SamplingMethod, UncondMask};
use pixart_runtime::vae::tiles::{TilingMode, TilingOptions};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The version of the JSON.
pub const FORMAT: u64 = 1;

/// The program.
pub const TOOL: &str = concat!("pixart ", env!("CARGO_PKG_VERSION"));

/// Settings that name files which a picture is made from. Other paths are never put into a picture, nor taken
/// from one: it could come from a stranger.
pub const SOURCES: [&str; 8] = [
    "model",
    "checkpoint",
    "text_encoder_root",
    "vae_root",
    "tokenizer_root",
    "lora",
    "init_image",
    "mask",
];

/// Settings that do not say how a picture looks, but for rounding, or whose effect is in others already.
const LEFT_OUT: [&str; 10] = [
    "style",
    "num_trials",
    "batch_size",
    "clean_caption",
    "threads",
    "keep_resident",
    "low_memory",
    "text_cache_size",
    // A place in a row between two seeds is a variation.
    "interpolate_to",
    "interpolate_steps",
];

/// Groups of flags none of which says how a picture looks.
const LEFT_OUT_HEADINGS: [&str; 6] =
    ["Devices", "Output", "Picture files", "Text cache", "While it runs", "Known to upstream"];

/// The names of the settings that belong into a picture.
pub fn recorded() -> Vec<String> {
    let command = Settings::augment_args(clap::Command::new("sample"));
    command
        .get_arguments()
        .filter(|arg| {
            let name = arg.get_long().unwrap_or_default();
            let heading = arg.get_help_heading().unwrap_or_default();
            !LEFT_OUT.contains(&name)
                && !LEFT_OUT_HEADINGS.contains(&heading)
                && (!names_path(arg) || SOURCES.contains(&name))
        })
        .filter_map(|arg| Some(arg.get_long()?.to_owned()))
        .collect()
}

/// Whether a flag takes a path, which its help calls FILE, DIR or PATH.
fn names_path(arg: &clap::Arg) -> bool {
    let names = arg.get_value_names().unwrap_or_default();
    names.iter().any(|name| ["FILE", "DIR", "PATH"].iter().any(|path| name.starts_with(path)))
}

/// What the pictures of a run have in common.
pub struct Record {
    settings: Map<String, Value>,
    facts: Value,
    request: Request,
    tiling: TilingOptions,
}

impl Record {
    /// Takes what belongs into pictures from the settings of a run.
    pub fn new(settings: &Settings, request: &Request, mut facts: Value) -> Result<Self, Failure> {
        let tiling = settings.vae_tiling()?;
        // By way of text, because a number of 32 bits has more digits as a value of 64.
        let text = serde_json::to_string(settings)?;
        let mut settings: Map<String, Value> = serde_json::from_str(&text)?;
        let recorded = recorded();
        settings.retain(|name, value| {
            let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
            !empty && recorded.contains(name)
        });
        let mut inputs = Map::new();
        for (name, value) in &mut settings {
            if !SOURCES.contains(&name.as_str()) {
                continue;
            }
            if let ("init_image" | "mask", Some(path)) = (name.as_str(), value.as_str()) {
                inputs.insert(name.clone(), super::facts::file_hash(path.as_ref()).into());
            }
            match value {
                Value::Array(list) => list.iter_mut().for_each(share),
                value => share(value),
            }
        }
        facts["inputs"] = inputs.into();
        // What was left to the defaults of this version.
        let mask = request.uncond_mask.unwrap_or_else(|| UncondMask::of(request.reference));
        for (name, value) in [
            ("sampling_method", json!(request.sampling_method.name())),
            ("sampling_steps", json!(request.sampling_steps)),
            ("guidance_scale", decimal(request.guidance_scale)),
            ("uncond_mask", json!(mask.to_string())),
            ("reference", json!(request.reference.to_string())),
            ("prompt_cleaning", json!(request.prompt_cleaning().to_string())),
            ("t5_max_length", json!(request.max_length)),
            ("use_resolution_binning", json!(request.use_resolution_binning)),
            // The directives were read.
            ("prompt_directives", json!(false)),
        ] {
            settings.insert(name.to_owned(), value);
        }
        if let Some(EasyCache { threshold, start, end }) = request.easycache {
            settings.insert("easycache".to_owned(), json!(threshold));
            settings.insert("easycache_start".to_owned(), json!(start));
            settings.insert("easycache_end".to_owned(), json!(end));
        } else {
            settings.retain(|name, _| !name.starts_with("easycache"));
        }
        if let Some(init) = &request.init {
            settings.insert("strength".to_owned(), json!(init.strength));
            if let Some(mask) = &init.mask {
                settings.insert("mask_blur".to_owned(), decimal(mask.blur));
                settings.insert("paste_back".to_owned(), json!(mask.paste_back));
            }
        }
        Ok(Self { settings, facts, request: request.clone(), tiling })
    }

    /// The texts of picture `index` of the run.
    pub fn metadata(&self, picture: &Picture, index: usize) -> Metadata {
        let request = &self.request;
        let mut settings = self.settings.clone();
        let negative = request.negative_prompts.get(index).map_or("", String::as_str);
        let size = request.sizes.get(index);
        let (width, height) =
            size.map_or((request.width, request.height), |size| (size.width, size.height));
        let ratio = size.and_then(|size| size.aspect_ratio).map(|(h, w)| format!("{h}:{w}"));
        let variation = request.noise_seed(index).variation;
        for (name, value) in [
            ("prompt", json!([picture.prompt])),
            ("negative_prompt", if negative.is_empty() { Value::Null } else { json!([negative]) }),
            ("seed", json!(picture.seed)),
            ("image_width", json!(width)),
            ("image_height", json!(height)),
            ("aspect_ratio", json!(ratio)),
            ("variation_seed", json!(variation.map(|towards| towards.seed))),
            ("variation_strength", json!(variation.map(|towards| towards.strength))),
        ] {
            match value {
                Value::Null => settings.remove(name),
                value => settings.insert(name.to_owned(), value),
            };
        }
        // Tiles are another way to add up; a picture that was decoded as a whole does not ask for that on
        // a machine with less memory.
        if picture.vae_tiling != TilingMode::Off {
            settings.insert("vae_tiling".to_owned(), json!(picture.vae_tiling.to_string()));
            settings
                .insert("vae_tile_size".to_owned(), json!(self.tiling.tile(picture.vae_tiling)));
            settings.insert(
                "vae_tile_overlap".to_owned(),
                json!(self.tiling.overlap(picture.vae_tiling)),
            );
        }
        let mut facts = self.facts.clone();
        let (width, height) = picture.image.dimensions();
        facts["size"] = json!([width, height]);
        if self.request.easycache.is_some() {
            facts["reused_steps"] = json!(picture.reused_steps);
        }
        let record =
            json!({ "format": FORMAT, "tool": TOOL, "settings": settings, "facts": facts });
        let parameters = self.parameters(picture, index, negative).to_string();
        Metadata { parameters, record: ascii(&record.to_string()) }
    }

    /// The text that web UIs read, with the names they use.
    fn parameters(&self, picture: &Picture, index: usize, negative_prompt: &str) -> Parameters {
        let (request, transformer) = (&self.request, &self.facts["model"]["transformer"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (width, height) = picture.image.dimensions();
        let loras = self.facts["loras"].as_array().into_iter().flatten();
        let loras: Vec<_> = loras
            .map(|lora| {
                let hash: String = text(&lora["sha256"]).chars().take(10).collect();
                format!("{}: {hash} ({})", text(&lora["name"]), lora["strength"])
            })
            .collect();
        let hash = text(&transformer["source_sha256"]).chars().take(10).collect();
        let init = request.init.as_ref();
        let strength = init.map_or(String::new(), |init| init.strength.to_string());
        let variation = request.noise_seed(index).variation;
        let [towards, how_far] = match variation {
            Some(to) => [to.seed.to_string(), to.strength.to_string()],
            None => [String::new(), String::new()],
        };
        let pairs = [
            ("Steps", request.sampling_steps.to_string()),
            ("Sampler", sampler(request.sampling_method).to_owned()),
            ("CFG scale", request.guidance_scale.to_string()),
            ("Seed", picture.seed.to_string()),
            ("Size", format!("{width}x{height}")),
            ("Denoising strength", strength),
            ("Variation seed", towards),
            ("Variation seed strength", how_far),
            ("Model hash", hash),
            ("Model", text(&transformer["name"])),
            ("LoRA", loras.join(", ")),
            ("RNG", "CPU".to_owned()),
            ("Version", TOOL.to_owned()),
        ];
        Parameters {
            prompt: picture.prompt.clone(),
            negative_prompt: negative_prompt.to_owned(),
            pairs: pairs.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        }
    }

    /// What the run is made with.
    pub fn facts(&self) -> &Value {
        &self.facts
    }

    /// The name of the model, for file names.
    pub fn model(&self) -> &str {
        self.facts["model"]["transformer"]["name"].as_str().unwrap_or_default()
    }
}

/// A solver by the name that web UIs have for it, where they have one.
fn sampler(method: SamplingMethod) -> &'static str {
    match method {
        SamplingMethod::Dpm => "DPM++ 2M",
        SamplingMethod::Ddim => "DDIM",
        SamplingMethod::Lcm => "LCM",
        SamplingMethod::SaSolver => "SA-Solver",
        other => other.name(),
    }
}

/// The digits that are enough for 32 bits.
fn decimal(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// Makes a path, of a LoRA with its strength, fit to be shared.
fn share(value: &mut Value) {
    let Some(text) = value.as_str() else { return };
    let spec = LoraSpec::parse(text).ok().filter(|spec| spec.path.as_os_str() != text);
    *value = Value::from(match spec {
        Some(spec) => format!("{}:{}", shared(&spec.path), spec.strength),
        None => shared(Path::new(text)),
    });
}

/// JSON with nothing but ASCII: in a PNG it is a plain tEXt, which every program reads alike.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            // Outside of strings JSON is ASCII, so this is inside of one.
            c if !c.is_ascii() || c == '\u{7f}' => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    text.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_either_a_source_or_stays_out_of_pictures() {
        // A new flag with a path has to be put on one of the two sides: add what pictures are made from to
        // SOURCES, and give others one of the headings that are left out, or add them here.
        const OTHERS: [&str; 1] = ["prompt_path"];
        let command = Settings::augment_args(clap::Command::new("sample"));
        for arg in command.get_arguments().filter(|arg| names_path(arg)) {
            let name = arg.get_long().unwrap_or_default();
            let heading = arg.get_help_heading().unwrap_or_default();
            let left_out = LEFT_OUT_HEADINGS.contains(&heading) || OTHERS.contains(&name);
            assert!(left_out != SOURCES.contains(&name), "{name}");
        }
        let recorded = recorded();
        for name in ["prompt", "seed", "engine", "lora", "kv_compress", "guidance_rescale"] {
            assert!(recorded.iter().any(|other| other == name), "{name}");
        }
        for name in ["output_path", "output_name", "save_latents", "text_cache_dir", "prompt_path"]
        {
            assert!(!recorded.iter().any(|other| other == name), "{name}");
        }
    }

    #[test]
    fn tiles_that_nobody_asked_for_are_in_the_picture() {
        let request = Request { prompts: vec!["a".to_owned()], ..Request::default() };
        let mut picture = Picture {
            image: Default::default(),
            latents: Default::default(),
            seed: 1,
            prompt: "a".to_owned(),
            vae_tiling: TilingMode::Off,
            reused_steps: 0,
        };
        for (sparing, mode, expected) in [
            (false, TilingMode::Off, [Value::Null, Value::Null, Value::Null]),
            (false, TilingMode::Exact, [json!("true"), json!(512), json!(128)]),
            (false, TilingMode::Blended, [json!("blend"), json!(512), json!(128)]),
            (true, TilingMode::Exact, [json!("true"), json!(128), json!(32)]),
            (true, TilingMode::Blended, [json!("blend"), json!(512), json!(128)]),
        ] {
            let settings = Settings { low_memory: Some(sparing), ..Settings::default() };
            let record = Record::new(&settings, &request, json!({})).unwrap();
            picture.vae_tiling = mode;
            let record: Value = serde_json::from_str(&record.metadata(&picture, 0).record).unwrap();
            let found = ["vae_tiling", "vae_tile_size", "vae_tile_overlap"];
            assert_eq!(found.map(|name| record["settings"][name].clone()), expected, "{sparing}");
        }
    }

    #[test]
    fn json_is_ascii_and_means_the_same() {
        let value = json!({ "a": "für 🦊\n\u{7f}\"" });
        let text = ascii(&value.to_string());
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }

    #[test]
    fn numbers_keep_their_few_digits() {
        assert_eq!(decimal(0.7).to_string(), "0.7");
        assert_eq!(decimal(4.5).to_string(), "4.5");
    }
}
