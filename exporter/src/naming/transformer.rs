//! The transformer's configuration, from `config.json` and the tensors.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::TransformerConfig;
use super::fields::Fields;
use super::variant::{self, HEADS_FLAG, VariantFlags};
use super::{ConfigError, evidence};
use crate::checkpoint::Checkpoint;

/// Names in a LoRA that was saved as a model.
const LORA: [&str; 4] = [".lora_A.", ".lora_B.", ".lora_down.", ".lora_up."];

/// Width of a head in every published model, where no config says how many there are.
const HEAD_DIM: usize = 72;

impl TransformerConfig {
    /// Works out the configuration of a transformer from its tensors, under diffusers' names (see
    /// [`super::in_diffusers_names`]), from its `config.json`, if it has one, and from options.
    ///
    /// Widths, channels and depth come from the tensors and must agree with the file where it
    /// names them. So do the variants that have tensors of their own: the conditions of PixArt-α
    /// (early uploads lack the field, and its default is wrong for them), normalised queries and
    /// keys, compression by convolution. The training size comes from the options, the file or a
    /// stored position table. The heads are in no tensor: without a file and an option they are
    /// 72 wide, as in every published model.
    ///
    /// # Errors
    ///
    /// An unreadable file, a value that is missing or of the wrong kind, a contradiction between
    /// options, file and tensors, or a variant that is not exported.
    pub fn read(
        checkpoint: &Checkpoint,
        config: Option<&Path>,
        flags: &VariantFlags,
    ) -> Result<Self, ConfigError> {
        let fields = match config {
            Some(path) => Fields::read(path)?,
            None => Fields::none(evidence::place(checkpoint)),
        };
        fields.only(
            "_class_name",
            &["PixArtTransformer2DModel".into(), "Transformer2DModel".into()],
        )?;
        if let Some(tensor) = evidence::containing(checkpoint, &LORA) {
            return Err(ConfigError::Unsupported {
                folder: evidence::place(checkpoint).to_owned(),
                feature: "a LoRA as a model of its own is",
                tensor: tensor.to_owned(),
                expected: "the weights of a whole transformer",
            });
        }
        fields.only("activation_fn", &["gelu-approximate".into()])?;
        fields.only("norm_type", &["ada_norm_single".into()])?;
        fields.only("attention_type", &["default".into()])?;
        fields.only("attention_bias", &[Value::Bool(true)])?;
        for field in ["norm_elementwise_affine", "double_self_attention", "only_cross_attention"] {
            fields.only(field, &[Value::Bool(false)])?;
        }

        let number = "a whole number";
        let size = |field, tensor, rank, axis| {
            let shown = evidence::axis(checkpoint, tensor, rank, axis);
            fields.agreed(field, fields.size(field)?, shown, number)
        };
        let patch = "pos_embed.proj.weight";
        let patch_size = size("patch_size", patch, 4, 2)?;
        let in_channels = size("in_channels", patch, 4, 1)?;
        let caption_channels =
            size("caption_channels", "caption_projection.linear_1.weight", 2, 1)?;
        let num_layers = fields.agreed(
            "num_layers",
            fields.layers("num_layers")?,
            evidence::depth(checkpoint, "transformer_blocks."),
            number,
        )?;

        let out_channels = fields.size("out_channels")?;
        let rows = evidence::axis(checkpoint, "proj_out.weight", 2, 0);
        let shown = rows
            .filter(|(rows, _)| rows % (patch_size * patch_size) == 0)
            .map(|(rows, evidence)| (rows / (patch_size * patch_size), evidence));
        let out_channels = fields.agreed("out_channels", out_channels, shown, number)?;

        let width = evidence::axis(checkpoint, patch, 4, 0);
        let num_attention_heads = heads(&fields, flags, width.as_ref().map(|(width, _)| *width))?;
        let given = match flags.num_attention_heads {
            // Said for another number of heads, it would not fit.
            Some(_) => None,
            None => fields.size("attention_head_dim")?,
        };
        let shown =
            width.filter(|(width, _)| width % num_attention_heads == 0).map(|(width, evidence)| {
                let head = width / num_attention_heads;
                (head, format!("{evidence}, for {num_attention_heads} heads"))
            });
        let attention_head_dim = fields.agreed("attention_head_dim", given, shown, number)?;

        let (sample_size, interpolation_scale) =
            variant::position(&fields, flags, checkpoint, patch_size)?;
        Ok(Self {
            sample_size,
            interpolation_scale,
            num_layers,
            num_attention_heads,
            attention_head_dim,
            in_channels,
            out_channels,
            patch_size,
            caption_channels,
            norm_eps: fields.positive("norm_eps")?.unwrap_or(1e-6),
            use_additional_conditions: variant::has_size_conditions(&fields, checkpoint)?,
            qk_norm: variant::qk_norm(&fields, checkpoint)?,
            kv_compression: variant::kv_compression(&fields, flags, checkpoint, num_layers)?,
        })
    }
}

impl TransformerConfig {
    /// The configuration of a model that has no weights yet: all of it is in its `config.json`.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn read_file(config: &Path, flags: &VariantFlags) -> Result<Self, ConfigError> {
        let folder = config.parent().unwrap_or(Path::new("."));
        Self::read(&Checkpoint::without_tensors(folder), Some(config), flags)
    }

    /// As [`Self::read`] with what the tensors show, where that is not all: the size is then that of
    /// the 512 model, and there is one head. Also gives back what is missing.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn read_shown(
        checkpoint: &Checkpoint,
        config: Option<&Path>,
        flags: &VariantFlags,
    ) -> Result<(Self, Vec<ConfigError>), ConfigError> {
        let mut flags = flags.clone();
        let mut missing = Vec::new();
        loop {
            let error = match Self::read(checkpoint, config, &flags) {
                Ok(config) => return Ok((config, missing)),
                Err(error) => error,
            };
            match &error {
                ConfigError::Missing { field: "sample_size", .. }
                    if flags.sample_size.is_none() =>
                {
                    flags.sample_size = Some(64);
                }
                ConfigError::Missing { field: "num_attention_heads", .. }
                    if flags.num_attention_heads.is_none() =>
                {
                    flags.num_attention_heads = Some(1);
                }
                _ => return Err(error),
            }
            missing.push(error);
        }
    }

    /// The content of a `config.json`: the keys that diffusers writes for this class and, only in
    /// models that have them, `qk_norm`, `kv_compress_sampling`, `kv_compress_scale_factor` and
    /// `kv_compress_layer`, which its class has no place for. [`Self::read`] understands all of it.
    pub fn to_json(&self) -> Value {
        // A whole number where it is one: the key is typed so upstream.
        let scale = match self.interpolation_scale {
            scale if scale.fract() == 0.0 => json!(scale as u64),
            scale => json!(scale),
        };
        let mut config = json!({
            "_class_name": "PixArtTransformer2DModel",
            "activation_fn": "gelu-approximate",
            "attention_bias": true,
            "attention_head_dim": self.attention_head_dim,
            "attention_type": "default",
            "caption_channels": self.caption_channels,
            "cross_attention_dim": self.inner_dim(),
            "dropout": 0.0,
            "in_channels": self.in_channels,
            "interpolation_scale": scale,
            "norm_elementwise_affine": false,
            "norm_eps": self.norm_eps,
            "norm_num_groups": 32,
            "norm_type": "ada_norm_single",
            "num_attention_heads": self.num_attention_heads,
            "num_embeds_ada_norm": 1000,
            "num_layers": self.num_layers,
            "out_channels": self.out_channels,
            "patch_size": self.patch_size,
            "sample_size": self.sample_size,
            "upcast_attention": false,
            "use_additional_conditions": self.use_additional_conditions,
        });
        if let Value::Object(map) = &mut config {
            map.extend(self.variant_json());
        }
        config
    }

    /// An existing `config.json` with every key of [`Self::to_json`] brought up to date.
    ///
    /// # Errors
    ///
    /// The file cannot be read or is no JSON object.
    pub fn to_json_over(&self, file: &Path) -> Result<Value, ConfigError> {
        let mut map = Fields::read(file)?.into_map();
        map.retain(|key, _| !key.starts_with("kv_compress") && key != "qk_norm");
        if let Value::Object(own) = self.to_json() {
            map.extend(own);
        }
        Ok(Value::Object(map))
    }

    /// The keys of what diffusers' class does not have; empty for the published models.
    pub fn variant_json(&self) -> Map<String, Value> {
        let mut map = Map::new();
        if self.qk_norm {
            map.insert("qk_norm".to_owned(), json!(true));
        }
        if let Some(kv) = &self.kv_compression {
            map.insert("kv_compress_sampling".to_owned(), json!(kv.sampling.as_str()));
            map.insert("kv_compress_scale_factor".to_owned(), json!(kv.scale_factor));
            map.insert("kv_compress_layer".to_owned(), json!(kv.layers));
        }
        map
    }
}

/// Heads of a block: from the option, the file, or the width.
fn heads(
    fields: &Fields,
    flags: &VariantFlags,
    width: Option<usize>,
) -> Result<usize, ConfigError> {
    let field = "num_attention_heads";
    match (flags.num_attention_heads, width) {
        (Some(heads), Some(width)) if heads == 0 || width % heads != 0 => {
            return Err(ConfigError::FlagInvalid {
                flag: HEADS_FLAG,
                found: heads.to_string(),
                expected: format!("a number that divides the width, {width}"),
            });
        }
        (Some(heads), _) if heads > 0 => return Ok(heads),
        _ => {}
    }
    if !fields.is_empty() {
        return fields.required(field, fields.size(field)?, "a whole number");
    }
    let heads = width.filter(|width| width.is_multiple_of(HEAD_DIM)).map(|width| width / HEAD_DIM);
    let expected = format!(
        "the number of heads, which no tensor shows; the width is no multiple of {HEAD_DIM}, which \
         every published model's heads have: give {HEADS_FLAG}"
    );
    fields.required(field, heads, &expected)
}
