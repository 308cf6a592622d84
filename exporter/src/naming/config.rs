//! What a graph needs to know about a checkpoint.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// A PixArt transformer (`PixArtTransformer2DModel`), Σ or α.
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
    /// Added to the variance in every layer norm that has no weights.
    pub norm_eps: f64,
    /// Whether the size and the aspect ratio of the picture are inputs (PixArt-α at 1024 px).
    pub use_additional_conditions: bool,
    /// Whether queries and keys of the self-attention are normalised over the full width.
    pub qk_norm: bool,
    /// Fewer keys and values in the self-attention of some blocks.
    pub kv_compression: Option<KvCompression>,
}

/// Which keys and values are left in the self-attention of some blocks (arXiv 2403.04692, 3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvCompression {
    /// How they are chosen.
    pub sampling: KvSampling,
    /// Factor along each side of the grid of tokens (`uniform_every`: along the sequence), at
    /// least 2.
    pub scale_factor: usize,
    /// The blocks that have it, counted from 0; not empty.
    pub layers: BTreeSet<usize>,
}

/// How keys and values are chosen, under upstream's names. Where the factor does not divide a side,
/// what is left over at the end is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvSampling {
    /// A depth-wise convolution of kernel and stride `scale_factor`, then a layer norm.
    Conv,
    /// The top left token of each square. (Upstream resizes with nearest neighbours, which is the
    /// same; no average is taken.)
    Ave,
    /// Every `scale_factor`-th row and column.
    Uniform,
    /// Every `scale_factor`-th token of the sequence.
    UniformEvery,
}

impl KvSampling {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Conv, Self::Ave, Self::Uniform, Self::UniformEvery];

    /// The name on the command line and in `config.json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Conv => "conv",
            Self::Ave => "ave",
            Self::Uniform => "uniform",
            Self::UniformEvery => "uniform_every",
        }
    }
}

impl fmt::Display for KvSampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name of a sampling that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("unknown sampling `{0}`: expected `conv`, `ave`, `uniform` or `uniform_every`")]
pub struct UnknownKvSampling(String);

impl FromStr for KvSampling {
    type Err = UnknownKvSampling;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|sampling| sampling.as_str() == name)
            .ok_or_else(|| UnknownKvSampling(name.to_owned()))
    }
}

impl TransformerConfig {
    /// PixArt-Σ as it was published (XL/2), for latents of this side: 28 blocks of 16 heads, 72 wide.
    pub fn xl2(sample_size: usize) -> Self {
        Self {
            sample_size,
            interpolation_scale: sample_size as f64 / 64.0,
            num_layers: 28,
            num_attention_heads: 16,
            attention_head_dim: 72,
            in_channels: 4,
            out_channels: 8,
            patch_size: 2,
            caption_channels: 4096,
            norm_eps: 1e-6,
            use_additional_conditions: false,
            qk_norm: false,
            kv_compression: None,
        }
    }

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
