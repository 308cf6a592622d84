//! Flags about how a checkpoint is read, the same for every command that reads one.

use clap::Args;
use pixart_exporter::checkpoint::{OpenOptions, WeightsKey};
use pixart_exporter::{KvSampling, VariantFlags};

/// Flags about what part of the files is read.
#[derive(Args, Clone)]
#[command(next_help_heading = "Reading")]
pub struct OpenArgs {
    /// Key of a PyTorch file that holds the weights, for example `state_dict_ema`; `none` for the
    /// file's own dictionary, `auto` for the first of state_dict, ema, model, state_dict_ema
    #[arg(long = "weights_key", value_name = "KEY", default_value = "auto")]
    weights_key: String,
    /// Variant of the files in a folder, such as `fp16` for model.fp16.safetensors [default: the plain
    /// files, else the only variant]
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
}

impl OpenArgs {
    /// As the exporter takes them.
    pub fn options(&self) -> OpenOptions {
        let weights_key = WeightsKey::parse(&self.weights_key);
        OpenOptions { variant: self.variant.clone(), weights_key }
    }
}

/// Flags about what the tensors of a transformer do not show.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Transformer, where neither its tensors nor its config.json say")]
pub struct VariantArgs {
    /// Side of the training latents: 32, 64, 128 or 256 for the 256, 512, 1024 or 2K model. Wins over
    /// config.json
    #[arg(long = "sample_size", value_name = "N")]
    sample_size: Option<usize>,
    /// Scale of the position coordinates [default: sample_size / 64; 1 for PixArt-α at 256]
    #[arg(long = "interpolation_scale", value_name = "X")]
    interpolation_scale: Option<f64>,
    /// Attention heads of a block [default: the width / 72]
    #[arg(long = "num_attention_heads", value_name = "N")]
    num_attention_heads: Option<usize>,
    /// How keys and values are compressed: conv (which the tensors show), ave, uniform or
    /// uniform_every
    #[arg(long = "kv_compress_sampling", value_name = "NAME")]
    kv_compress_sampling: Option<KvSampling>,
    /// Factor of the compression; 1 is none
    #[arg(long = "kv_compress_scale_factor", value_name = "N")]
    kv_compress_scale_factor: Option<usize>,
    /// Blocks with compression, counted from 0
    #[arg(long = "kv_compress_layer", value_name = "N", num_args = 1.., value_delimiter = ',')]
    kv_compress_layer: Option<Vec<usize>>,
}

impl VariantArgs {
    /// As the exporter takes them.
    pub fn flags(&self) -> VariantFlags {
        VariantFlags {
            sample_size: self.sample_size,
            interpolation_scale: self.interpolation_scale,
            num_attention_heads: self.num_attention_heads,
            kv_compress_sampling: self.kv_compress_sampling,
            kv_compress_scale_factor: self.kv_compress_scale_factor,
            kv_compress_layer: self.kv_compress_layer.clone(),
        }
    }
}
