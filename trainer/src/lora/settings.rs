//! Which layers get a LoRA, and how large it is.

use serde_json::{Value, json};

use super::AdapterError;

/// The layers that the official scripts train: every matrix of the transformer, and the convolution
/// that makes the patches. `proj_in` and `to_q`-like names fit by their ends, as in PEFT.
pub const DEFAULT_TARGETS: [&str; 12] = [
    "to_k",
    "to_q",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "proj",
    "linear",
    "linear_1",
    "linear_2",
];

/// As [`DEFAULT_TARGETS`], without the convolution: all matrices of the transformer.
pub const LINEAR_TARGETS: [&str; 10] = [
    "to_k",
    "to_q",
    "to_v",
    "to_out.0",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "adaln_single.linear",
    "linear_1",
    "linear_2",
];

/// Largest rank: more than any matrix of the model has.
const MOST_RANK: usize = 4096;

/// How the factors `A` begin; `B` begins at zero, so that a new LoRA changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// Uniform within ±1/√inputs, PEFT's default.
    #[default]
    KaimingUniform,
    /// Normal with standard deviation 1/rank, PEFT's `gaussian`.
    Gaussian,
}

/// The settings of a LoRA.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSettings {
    /// Names of layers, or ends of their names behind a dot; those that no layer has are passed over.
    pub targets: Vec<String>,
    /// Rows of `A` and columns of `B`, from 1 to 4096.
    pub rank: usize,
    /// The changes are multiplied by alpha / rank; above 0.
    pub alpha: f64,
    /// alpha / √rank instead (rsLoRA).
    pub rank_stabilised: bool,
    /// How the factors begin.
    pub start: Start,
}

impl Default for AdapterSettings {
    /// Those of mindone's script: rank 16, alpha 16, all of [`DEFAULT_TARGETS`].
    fn default() -> Self {
        Self {
            targets: DEFAULT_TARGETS.map(str::to_owned).to_vec(),
            rank: 16,
            alpha: 16.0,
            rank_stabilised: false,
            start: Start::default(),
        }
    }
}

impl AdapterSettings {
    /// The factor on `B·A`.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rank_stabilised { rank.sqrt() } else { rank }
    }

    /// Whether a layer is one of the targets, as PEFT decides it.
    pub(super) fn is_target(&self, layer: &str) -> bool {
        self.targets.iter().any(|target| {
            layer.strip_suffix(target.as_str()).is_some_and(|b| b.is_empty() || b.ends_with('.'))
        })
    }

    pub(super) fn check(&self) -> Result<(), AdapterError> {
        let fail =
            |setting, found, expected| Err(AdapterError::Setting { setting, found, expected });
        if !(1..=MOST_RANK).contains(&self.rank) {
            return fail("lora_rank", self.rank.to_string(), "a whole number from 1 to 4096");
        }
        if !(self.alpha > 0.0 && (self.alpha as f32).is_finite()) {
            return fail("lora_alpha", self.alpha.to_string(), "a number above 0");
        }
        if self.targets.iter().any(String::is_empty) {
            return fail("lora_targets", "an empty name".to_owned(), "names of layers");
        }
        Ok(())
    }

    /// The settings that PEFT and diffusers read; `targets` are those that some layer has.
    pub(super) fn to_json(&self, targets: &[&str]) -> Value {
        // A whole number where it is one: the key is typed so in PEFT.
        let alpha = match self.alpha {
            alpha if alpha.fract() == 0.0 && alpha < 1e15 => json!(alpha as u64),
            alpha => json!(alpha),
        };
        json!({
            "base_model_name_or_path": null,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": match self.start {
                Start::KaimingUniform => json!(true),
                Start::Gaussian => json!("gaussian"),
            },
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.rank,
            "target_modules": targets,
            "task_type": null,
            "use_dora": false,
            "use_rslora": self.rank_stabilised,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_fit_whole_names_and_ends_behind_a_dot() {
        let settings = AdapterSettings {
            targets: ["to_q", "proj", "adaln_single.linear"].map(str::to_owned).to_vec(),
            ..AdapterSettings::default()
        };
        for (layer, fits) in [
            ("transformer_blocks.0.attn1.to_q", true),
            ("to_q", true),
            ("pos_embed.proj", true),
            ("auto_q", false),
            ("final_proj", false),
            ("adaln_single.linear", true),
            ("linear", false),
        ] {
            assert_eq!(settings.is_target(layer), fits, "{layer}");
        }
    }

    #[test]
    fn scales_follow_the_rank_or_its_root() {
        let settings = AdapterSettings { alpha: 8.0, ..AdapterSettings::default() };
        assert_eq!(settings.scale(), 0.5);
        assert_eq!(AdapterSettings { rank_stabilised: true, ..settings }.scale(), 2.0);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let default = AdapterSettings::default;
        for (settings, name) in [
            (AdapterSettings { rank: 0, ..default() }, "lora_rank"),
            (AdapterSettings { rank: 5000, ..default() }, "lora_rank"),
            (AdapterSettings { alpha: 0.0, ..default() }, "lora_alpha"),
            (AdapterSettings { alpha: f64::NAN, ..default() }, "lora_alpha"),
            (AdapterSettings { targets: vec![String::new()], ..default() }, "lora_targets"),
        ] {
            let error = settings.check().expect_err(name).to_string();
            assert!(error.starts_with(name), "{error}");
        }
        default().check().expect("fine");
    }
}
