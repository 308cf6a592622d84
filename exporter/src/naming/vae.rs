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
        fields.only_entries("down_block_types", "DownEncoderBlock2D")?;
        fields.only_entries("up_block_types", "UpDecoderBlock2D")?;
        // The pipeline only divides by the scaling factor.
        fields.only("shift_factor", &[Value::from(0), Value::from(0.0)])?;
        fields.only("latents_mean", &[])?;
        fields.only("latents_std", &[])?;

        let number = "a whole number";
        // Either half may be missing from a file, so both are asked what they show.
        let size = |field, shown: [(&str, usize, usize); 2]| {
            let shown = shown.into_iter().filter_map(|(tensor, axis, per_channel)| {
                let (found, evidence) = evidence::axis(checkpoint, tensor, 4, axis)?;
                (found % per_channel == 0).then_some((found / per_channel, evidence))
            });
            let (given, mut agreed) = (fields.size(field)?, None);
            for shown in shown {
                agreed = Some(fields.agreed(field, agreed.or(given), Some(shown), number)?);
            }
            Ok(agreed.or(given))
        };
        // The encoder gives a mean and a variance for every channel.
        let shown = [("decoder.conv_in.weight", 1, 1), ("encoder.conv_out.weight", 0, 2)];
        let latent_channels = size("latent_channels", shown)?;
        let latent_channels = fields.required("latent_channels", latent_channels, number)?;
        let picture = |field, tensor, axis| Ok(size(field, [(tensor, axis, 1); 2])?.unwrap_or(3));
        let in_channels = picture("in_channels", "encoder.conv_in.weight", 1)?;
        let out_channels = picture("out_channels", "decoder.conv_out.weight", 0)?;

        let widths = "the widths of the resolution levels, finest first";
        let block_out_channels =
            fields.required("block_out_channels", fields.sizes("block_out_channels")?, widths)?;
        if block_out_channels.len() > MAX_LEVELS {
            return Err(
                fields.invalid("block_out_channels", format!("at most {MAX_LEVELS} levels"))
            );
        }
        let coarsest = block_out_channels.len() - 1;
        for (level, &width) in block_out_channels.iter().enumerate() {
            for block in [
                format!("encoder.down_blocks.{level}"),
                // The decoder's blocks run from the coarsest level to the finest.
                format!("decoder.up_blocks.{}", coarsest - level),
            ] {
                let tensor = format!("{block}.resnets.0.conv1.weight");
                let shown = evidence::axis(checkpoint, &tensor, 4, 0);
                fields.agreed("block_out_channels", Some(width), shown, widths)?;
            }
        }
        let norm_num_groups = fields.size("norm_num_groups")?.unwrap_or(32);
        if let Some(width) = block_out_channels.iter().find(|&width| width % norm_num_groups != 0) {
            return Err(fields.invalid("norm_num_groups", format!("a divisor of {width}")));
        }

        let units = |half: &str, block: &str, more: usize| match evidence::count(
            checkpoint,
            &format!("{half}.{block}.0.resnets."),
        ) {
            found if found > more => {
                Some((found - more, format!("the {half}'s first block has {found} residual units")))
            }
            _ => None,
        };
        let field = "layers_per_block";
        let mut given = fields.layers(field)?;
        // A block of the decoder has one unit more than one of the encoder.
        for shown in [units("encoder", "down_blocks", 0), units("decoder", "up_blocks", 1)] {
            given = shown.map_or(Ok(given), |shown| {
                fields.agreed(field, given, Some(shown), number).map(Some)
            })?;
        }
        let layers_per_block = fields.required(field, given, number)?;

        // What the file says must then be there; older files say nothing.
        let used = |field, prefix: &str| {
            let shown = checkpoint.names().any(|name| name.starts_with(prefix));
            Ok(fields.flag(field)?.unwrap_or(shown))
        };

        Ok(Self {
            latent_channels,
            in_channels,
            out_channels,
            block_out_channels,
            layers_per_block,
            norm_num_groups,
            // The default of the configuration class, for files that leave it out.
            scaling_factor: fields.positive("scaling_factor")?.unwrap_or(0.18215),
            use_quant_conv: used("use_quant_conv", "quant_conv.")?,
            use_post_quant_conv: used("use_post_quant_conv", "post_quant_conv.")?,
            mid_block_add_attention: evidence::containing(
                checkpoint,
                &["encoder.mid_block.attentions.", "decoder.mid_block.attentions."],
            )
            .is_some(),
        })
    }
}
