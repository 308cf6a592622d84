//! The text encoder's configuration, from `config.json` and the tensors.

use super::config::TextEncoderConfig;
use super::fields::Fields;
use super::{ConfigError, evidence};
use crate::checkpoint::Checkpoint;

impl TextEncoderConfig {
    /// Reads the configuration of the text encoder in the checkpoint's folder.
    ///
    /// # Errors
    ///
    /// An unreadable file, a value that is missing or of the wrong kind, a contradiction between
    /// file and tensors, or another model than a T5 v1.1 encoder.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self, ConfigError> {
        let fields = Fields::read(&checkpoint.folder().join("config.json"))?;
        // A missing model type is fine: early configs lack it.
        fields.only("model_type", &["t5".into()])?;
        let first = "encoder.block.0.layer";
        if let Some(tensor) = evidence::containing(checkpoint, &[".DenseReluDense.wi.weight"]) {
            return Err(ConfigError::Unsupported {
                folder: checkpoint.folder().to_owned(),
                feature: "the ungated feed-forward layer of T5 v1.0 is",
                tensor: tensor.to_owned(),
                expected: "a T5 v1.1 encoder (feed_forward_proj \"gated-gelu\")",
            });
        }
        fields.only("feed_forward_proj", &["gated-gelu".into()])?;
        fields.only("dense_act_fn", &["gelu_new".into()])?;

        let number = "a whole number";
        let size = |field, tensor: &str, axis| {
            let shown = evidence::axis(checkpoint, tensor, 2, axis);
            fields.agreed(field, fields.size(field)?, shown, number)
        };
        let norm = "encoder.final_layer_norm.weight";
        let d_model = fields.agreed(
            "d_model",
            fields.size("d_model")?,
            evidence::axis(checkpoint, norm, 1, 0),
            number,
        )?;
        let table = ["shared.weight", "encoder.embed_tokens.weight"]
            .into_iter()
            .find(|name| checkpoint.info(name).is_some())
            .unwrap_or("shared.weight");
        let vocab_size = size("vocab_size", table, 0)?;
        let bias = format!("{first}.0.SelfAttention.relative_attention_bias.weight");
        let relative_attention_num_buckets = size("relative_attention_num_buckets", &bias, 0)?;
        let num_heads = size("num_heads", &bias, 1)?;
        let d_ff = size("d_ff", &format!("{first}.1.DenseReluDense.wi_0.weight"), 0)?;
        let given = fields.size("d_kv")?;
        let shown = evidence::axis(checkpoint, &format!("{first}.0.SelfAttention.q.weight"), 2, 0)
            .filter(|(width, _)| width % num_heads == 0)
            .map(|(width, evidence)| {
                (width / num_heads, format!("{evidence}, for {num_heads} heads"))
            });
        let d_kv = fields.agreed("d_kv", given, shown, number)?;
        let num_layers = fields.agreed(
            "num_layers",
            fields.layers("num_layers")?,
            evidence::depth(checkpoint, "encoder.block."),
            number,
        )?;
        // The defaults below are those of the T5 configuration class, for fields that old files
        // leave out.
        Ok(Self {
            d_model,
            num_layers,
            num_heads,
            d_kv,
            d_ff,
            vocab_size,
            relative_attention_num_buckets,
            relative_attention_max_distance: fields
                .size("relative_attention_max_distance")?
                .unwrap_or(128),
            layer_norm_epsilon: fields.positive("layer_norm_epsilon")?.unwrap_or(1e-6),
        })
    }
}
