//! The transformer's configuration, from `config.json` and the tensors.

use serde_json::Value;

use super::config::TransformerConfig;
use super::fields::Fields;
use super::{ConfigError, evidence};
use crate::checkpoint::Checkpoint;

/// What distinguishes the variants that are not exported: name pieces and how to call them.
const UNSUPPORTED: [(&[&str], &str); 5] = [
    (
        &["resolution_embedder.", "aspect_ratio_embedder.", "csize_embedder.", "ar_embedder."],
        "the size and aspect-ratio conditions of PixArt-α 1024 are",
    ),
    (&[".attn1.sr.", ".attn.sr.", ".attn1.norm.", ".attn.norm."], "KV compression is"),
    (&[".q_norm.", ".k_norm."], "normalisation of queries and keys (qk_norm) is"),
    (&[".lora_A.", ".lora_B.", ".lora_down.", ".lora_up."], "a LoRA as a model of its own is"),
    (
        &["x_embedder.proj.", ".attn.qkv.", "y_embedder."],
        "the tensor naming of the original PixArt files is",
    ),
];

impl TransformerConfig {
    /// Reads the configuration of the transformer in the checkpoint's folder.
    ///
    /// Widths, channels and depth come from the tensors and must agree with the file where it
    /// names them; the heads and the training size are only in the file. Whether the model has the
    /// extra conditions of PixArt-α is seen from the tensors, because early uploads lack the field
    /// and its default is wrong for them.
    ///
    /// # Errors
    ///
    /// An unreadable file, a value that is missing or of the wrong kind, a contradiction between
    /// file and tensors, or a variant that is not exported.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self, ConfigError> {
        let fields = Fields::read(&checkpoint.folder().join("config.json"))?;
        fields.only(
            "_class_name",
            &["PixArtTransformer2DModel".into(), "Transformer2DModel".into()],
        )?;
        for (pieces, feature) in UNSUPPORTED {
            if let Some(tensor) = evidence::containing(checkpoint, pieces) {
                return Err(ConfigError::Unsupported {
                    folder: checkpoint.folder().to_owned(),
                    feature,
                    tensor: tensor.to_owned(),
                    expected: "a plain PixArt-Σ transformer in the diffusers layout",
                });
            }
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

        let num_attention_heads =
            fields.required("num_attention_heads", fields.size("num_attention_heads")?, number)?;
        let given = fields.size("attention_head_dim")?;
        let shown = evidence::axis(checkpoint, patch, 4, 0)
            .filter(|(width, _)| width % num_attention_heads == 0)
            .map(|(width, evidence)| {
                let head = width / num_attention_heads;
                (head, format!("{evidence}, for {num_attention_heads} heads"))
            });
        let attention_head_dim = fields.agreed("attention_head_dim", given, shown, number)?;

        let sample_size = fields.required("sample_size", fields.size("sample_size")?, number)?;
        let interpolation_scale = match fields.positive("interpolation_scale")? {
            Some(scale) => scale,
            None => default_interpolation_scale(sample_size),
        };
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
        })
    }
}

/// The scale of the position coordinates when the config does not say.
///
/// The released sizes were trained with `sample_size / 64`. diffusers computes that in whole
/// numbers and at least 1, which is wrong for 32 alone; a model of another size can only come from
/// diffusers, so its rule holds there.
fn default_interpolation_scale(sample_size: usize) -> f64 {
    if sample_size == 32 { 0.5 } else { (sample_size / 64).max(1) as f64 }
}

#[cfg(test)]
mod tests {
    use super::default_interpolation_scale;

    #[test]
    fn interpolation_scale_follows_the_training_size() {
        let cases = [(16, 1.0), (32, 0.5), (64, 1.0), (128, 2.0), (256, 4.0)];
        for (sample_size, scale) in cases {
            assert_eq!(default_interpolation_scale(sample_size), scale, "{sample_size}");
        }
    }
}
