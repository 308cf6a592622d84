//! The auto-encoder's configuration, from `config.json` and the tensors.

use serde_json::Value;

use super::config::VaeConfig;
use super::fields::Fields;
use super::{ConfigError, evidence};
use crate::checkpoint::Checkpoint;

/// More levels than this would mean a picture side of a million pixels per latent.
const MAX_LEVELS: usize = 16;

impl VaeConfig {
    /// Reads the configuration of the auto-encoder in the checkpoint's folder.
    ///
    /// `force_upcast` is ignored: the graphs are in fp32.
    ///
    /// # Errors
    ///
    /// An unreadable file, a value that is missing or of the wrong kind, a contradiction between
    /// file and tensors, or another model than an SDXL-style `AutoencoderKL`.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self, ConfigError> {
        let fields = Fields::read(&checkpoint.folder().join("config.json"))?;
        fields.only("_class_name", &["AutoencoderKL".into()])?;
        fields.only("act_fn", &["silu".into()])?;
        fields.only_entries("up_block_types", "UpDecoderBlock2D")?;
        // The pipeline only divides by the scaling factor.
        fields.only("shift_factor", &[Value::from(0), Value::from(0.0)])?;
        fields.only("latents_mean", &[])?;
        fields.only("latents_std", &[])?;

        let number = "a whole number";
        let size = |field, tensor, axis| {
            let shown = evidence::axis(checkpoint, tensor, 4, axis);
            fields.agreed(field, fields.size(field)?, shown, number)
        };
        let latent_channels = size("latent_channels", "decoder.conv_in.weight", 1)?;
        let out_channels = size("out_channels", "decoder.conv_out.weight", 0)?;

        let widths = "the widths of the resolution levels, finest first";
        let block_out_channels =
            fields.required("block_out_channels", fields.sizes("block_out_channels")?, widths)?;
        if block_out_channels.len() > MAX_LEVELS {
            return Err(
                fields.invalid("block_out_channels", format!("at most {MAX_LEVELS} levels"))
            );
        }
        // The decoder's blocks run from the coarsest level to the finest.
        for (block, &width) in block_out_channels.iter().rev().enumerate() {
            let tensor = format!("decoder.up_blocks.{block}.resnets.0.conv1.weight");
            let shown = evidence::axis(checkpoint, &tensor, 4, 0);
            fields.agreed("block_out_channels", Some(width), shown, widths)?;
        }
        let norm_num_groups = fields.size("norm_num_groups")?.unwrap_or(32);
        if let Some(width) = block_out_channels.iter().find(|&width| width % norm_num_groups != 0) {
            return Err(fields.invalid("norm_num_groups", format!("a divisor of {width}")));
        }

        let units = "decoder.up_blocks.0.resnets.";
        let shown = match evidence::count(checkpoint, units) {
            0 | 1 => None,
            units_per_block => Some((
                units_per_block - 1,
                format!("the decoder's first block has {units_per_block} residual units"),
            )),
        };
        let layers_per_block =
            fields.agreed("layers_per_block", fields.layers("layers_per_block")?, shown, number)?;

        Ok(Self {
            latent_channels,
            out_channels,
            block_out_channels,
            layers_per_block,
            norm_num_groups,
            // The default of the configuration class, for files that leave it out.
            scaling_factor: fields.positive("scaling_factor")?.unwrap_or(0.18215),
            use_post_quant_conv: evidence::containing(checkpoint, &["post_quant_conv."]).is_some(),
            mid_block_add_attention: evidence::containing(
                checkpoint,
                &["decoder.mid_block.attentions."],
            )
            .is_some(),
        })
    }
}
