//! What a graph needs to know about a checkpoint.

/// A PixArt-Σ transformer (`PixArtTransformer2DModel`).
#[derive(Clone, Debug, PartialEq)]
pub struct TransformerConfig {
    /// Side of the training latents; the model's pixel side is eight times this.
    pub sample_size: usize,
    /// Scale of the position coordinates: 0.5, 1, 2, 4 for 256, 512, 1024, 2048 px.
    pub interpolation_scale: f64,
    /// Number of transformer blocks.
    pub num_layers: usize,
    /// Attention heads of a block.
    pub num_attention_heads: usize,
    /// Width of a head; the model's width is heads times this.
    pub attention_head_dim: usize,
    /// Latent channels.
    pub in_channels: usize,
    /// Predicted channels: noise, then variance.
    pub out_channels: usize,
    /// Side of a patch, in latent positions.
    pub patch_size: usize,
    /// Width of the text encoder's states.
    pub caption_channels: usize,
    /// Added to the variance in every layer norm.
    pub norm_eps: f64,
}

impl TransformerConfig {
    /// Width of the tokens.
    pub fn inner_dim(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }
}

/// A T5 v1.1 encoder (`T5EncoderModel`, gated GELU).
#[derive(Clone, Debug, PartialEq)]
pub struct TextEncoderConfig {
    /// Width of the token states.
    pub d_model: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Attention heads of a block.
    pub num_heads: usize,
    /// Width of a head.
    pub d_kv: usize,
    /// Inner width of the feed-forward layers.
    pub d_ff: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Rows of the relative position bias table.
    pub relative_attention_num_buckets: usize,
    /// Distance from which all positions share the last bucket.
    pub relative_attention_max_distance: usize,
    /// Added to the mean square in every RMS norm.
    pub layer_norm_epsilon: f64,
}

/// An SDXL-style variational auto-encoder (`AutoencoderKL`).
#[derive(Clone, Debug, PartialEq)]
pub struct VaeConfig {
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of the pictures that go into the encoder.
    pub in_channels: usize,
    /// Channels of the pictures that come out of the decoder.
    pub out_channels: usize,
    /// Widths of the resolution levels, finest first.
    pub block_out_channels: Vec<usize>,
    /// Residual units of a level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Latents are divided by this before decoding (not part of the graph).
    pub scaling_factor: f64,
    /// Whether the encoder ends with a 1×1 convolution of the distribution's parameters.
    pub use_quant_conv: bool,
    /// Whether the decoder starts with a 1×1 convolution of the latents.
    pub use_post_quant_conv: bool,
    /// Whether the middle block has an attention layer.
    pub mid_block_add_attention: bool,
}

impl VaeConfig {
    /// Pixels per latent position along one side.
    pub fn scale_factor(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1)
    }
}
