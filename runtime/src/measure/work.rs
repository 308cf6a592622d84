//! How many floating-point operations the networks take, by the formulas of docs/performance.md: those of the
//! matrix products and convolutions, a multiplication and an addition being two. Norms, activations and
//! softmax are left out; they are a few thousandths.

use std::path::Path;

use serde::Deserialize;

use crate::{
    bundle::store,
    model_folder::{Architecture, Component, ComponentFolder, KvCompression, ModelError},
};

/// What counts of a transformer, from its manifest.
#[derive(Clone, Debug, Deserialize)]
pub struct TransformerShape {
    /// Blocks.
    pub num_layers: usize,
    /// Heads of a block.
    pub num_attention_heads: usize,
    /// Width of a head.
    pub attention_head_dim: usize,
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Side of a patch.
    pub patch_size: usize,
    /// Width of the caption embeddings.
    pub caption_channels: usize,
    /// Whether it is told the picture's size.
    #[serde(default)]
    pub use_additional_conditions: bool,
    /// How keys and values are compressed, if they are.
    #[serde(flatten)]
    pub kv_compression: Option<KvCompression>,
}

/// What counts of a text encoder, from its manifest.
#[derive(Clone, Debug, Deserialize)]
pub struct TextEncoderShape {
    /// Width of the states.
    pub d_model: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Heads of a block.
    pub num_heads: usize,
    /// Width of a head.
    pub d_kv: usize,
    /// Inner width of the feed-forward layers.
    pub d_ff: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
}

/// What counts of a VAE decoder, from its manifest.
#[derive(Clone, Debug, Deserialize)]
pub struct VaeDecoderShape {
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Widths of the levels, the finest first.
    pub block_out_channels: Vec<usize>,
    /// Residual units of a level of the encoder; the decoder has one more. The manifest does not have it.
    #[serde(skip)]
    pub layers_per_block: usize,
    /// Whether there is attention in the middle. The manifest does not have it.
    #[serde(skip)]
    pub attention: bool,
}

impl Architecture for TransformerShape {
    const COMPONENT: Component = Component::Transformer;
}
impl Architecture for TextEncoderShape {
    const COMPONENT: Component = Component::TextEncoder;
}
impl Architecture for VaeDecoderShape {
    const COMPONENT: Component = Component::VaeDecoder;
}

impl TransformerShape {
    /// Reads it from an exported folder.
    ///
    /// # Errors
    /// When the folder is missing, broken or of another component.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        Ok(ComponentFolder::<Self>::open(folder)?.architecture)
    }

    /// Operations of one run on `rows` latents of `height` × `width`, each with a caption of `tokens`.
    pub fn operations(&self, rows: usize, [height, width]: [usize; 2], tokens: usize) -> f64 {
        let inner = self.inner();
        let [rows, tokens, captions] = [rows, tokens, self.caption_channels].map(|n| n as f64);
        let grid = [height / self.patch_size, width / self.patch_size];
        let positions = (grid[0] * grid[1]) as f64;
        let patch = (self.patch_size * self.patch_size) as f64;

        let mut blocks = 0.0;
        for layer in 0..self.num_layers {
            let kept = self.keys(layer, grid);
            // Queries, keys, values and the output of both attentions; scores, and sums by them.
            let own = 4.0 * positions * inner * inner + 2.0 * positions * kept * inner;
            let caption =
                (2.0 * positions + 2.0 * tokens) * inner * inner + 2.0 * positions * tokens * inner;
            let feed_forward = 8.0 * positions * inner * inner;
            blocks += own + caption + feed_forward;
        }
        let patches = positions * patch * inner * (self.in_channels + self.out_channels) as f64;
        let projection = tokens * (captions * inner + inner * inner);
        let time = 256.0 * inner + 7.0 * inner * inner;
        2.0 * rows * (blocks + patches + projection + time)
    }

    /// Bytes that the values between the layers take at most, about: for telling beforehand what a machine has
    /// no memory for.
    pub fn activation_bytes(&self, rows: usize, [height, width]: [usize; 2], tokens: usize) -> u64 {
        let positions = (height / self.patch_size) * (width / self.patch_size);
        let inner = self.num_attention_heads * self.attention_head_dim;
        // Before and after the activation of the feed-forward layer, what flows past it, and the scores over
        // the caption; measured in docs/big-pictures.md.
        let numbers = 2 * 4 * inner + 6 * inner + 2 * self.num_attention_heads * tokens;
        4 * (rows as u64) * (positions as u64) * numbers as u64
    }

    fn inner(&self) -> f64 {
        (self.num_attention_heads * self.attention_head_dim) as f64
    }

    /// Keys of a block's self-attention.
    fn keys(&self, layer: usize, [rows, columns]: [usize; 2]) -> f64 {
        let compression = self.kv_compression.as_ref().filter(|kv| kv.layers.contains(&layer));
        let keys = match compression {
            Some(kv) if kv.sampling == "uniform_every" => rows * columns / kv.scale_factor.max(1),
            Some(kv) => (rows / kv.scale_factor.max(1)) * (columns / kv.scale_factor.max(1)),
            None => rows * columns,
        };
        keys as f64
    }
}

impl TextEncoderShape {
    /// Reads it from an exported folder.
    ///
    /// # Errors
    /// When the folder is missing, broken or of another component.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        Ok(ComponentFolder::<Self>::open(folder)?.architecture)
    }

    /// Operations for `rows` texts of `tokens`.
    pub fn operations(&self, rows: usize, tokens: usize) -> f64 {
        let [rows, tokens, width, layers, inner, ff] =
            [rows, tokens, self.d_model, self.num_layers, self.num_heads * self.d_kv, self.d_ff]
                .map(|n| n as f64);
        let token = 4.0 * width * inner + 2.0 * tokens * inner + 3.0 * width * ff;
        2.0 * rows * tokens * layers * token
    }
}

impl VaeDecoderShape {
    /// Reads it from an exported folder, and from the `config.json` in it.
    ///
    /// # Errors
    /// When the folder is missing, broken or of another component, or has no such `config.json`.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        #[derive(Deserialize)]
        struct Config {
            layers_per_block: usize,
            #[serde(default = "yes")]
            mid_block_add_attention: bool,
        }
        fn yes() -> bool {
            true
        }
        let shape = ComponentFolder::<Self>::open(folder)?.architecture;
        let file = folder.join("config.json");
        let text = store::read(&file);
        let text = text.map_err(|source| ModelError::Read { file: file.clone(), source })?;
        let config: Config = serde_json::from_slice(&text).map_err(|source| {
            ModelError::Manifest { file, component: Component::VaeDecoder, source }
        })?;
        let (layers_per_block, attention) =
            (config.layers_per_block, config.mid_block_add_attention);
        Ok(Self { layers_per_block, attention, ..shape })
    }

    /// Operations for `rows` latents of `height` × `width`, as a whole.
    pub fn operations(&self, rows: usize, [height, width]: [usize; 2]) -> f64 {
        let mut positions = (height * width) as f64;
        let conv =
            |positions: f64, from: f64, to: f64, side: f64| positions * from * to * side * side;
        let unit = |positions: f64, from: f64, to: f64| {
            let shortcut = if from == to { 0.0 } else { conv(positions, from, to, 1.0) };
            conv(positions, from, to, 3.0) + conv(positions, to, to, 3.0) + shortcut
        };
        let latent = self.latent_channels as f64;
        let widths: Vec<f64> = self.block_out_channels.iter().rev().map(|n| *n as f64).collect();
        let Some((&coarsest, &finest)) = widths.first().zip(widths.last()) else { return 0.0 };

        let mut sum = conv(positions, latent, latent, 1.0) + conv(positions, latent, coarsest, 3.0);
        sum += 2.0 * unit(positions, coarsest, coarsest);
        if self.attention {
            sum += 4.0 * positions * coarsest * coarsest + 2.0 * positions * positions * coarsest;
        }
        let mut channels = coarsest;
        for (level, &width) in widths.iter().enumerate() {
            for _ in 0..=self.layers_per_block {
                sum += unit(positions, channels, width);
                channels = width;
            }
            if level + 1 < widths.len() {
                positions *= 4.0;
                sum += conv(positions, width, width, 3.0);
            }
        }
        sum += conv(positions, finest, 3.0, 3.0);
        2.0 * rows as f64 * sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transformer(kv_compression: Option<KvCompression>) -> TransformerShape {
        TransformerShape {
            num_layers: 28,
            num_attention_heads: 16,
            attention_head_dim: 72,
            in_channels: 4,
            out_channels: 8,
            patch_size: 2,
            caption_channels: 4096,
            use_additional_conditions: false,
            kv_compression,
        }
    }

    fn near(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 1e-6, "{found} for {expected}");
    }

    /// The expected numbers are those of torch.utils.flop_counter 2.15 for the classes of diffusers 0.42.1 and
    /// transformers 5.23 (docs/performance.md has the script).
    #[test]
    fn operations_are_those_that_torch_counts() {
        let xl2 = transformer(None);
        near(xl2.operations(2, [32, 32], 24), 559_016_902_656.0);
        near(xl2.operations(2, [64, 64], 300), 2_577_396_989_952.0);
        let small = TextEncoderShape {
            d_model: 64,
            num_layers: 3,
            num_heads: 4,
            d_kv: 8,
            d_ff: 160,
            vocab_size: 100,
        };
        near(small.operations(2, 24), 11_649_024.0);
        let sdxl = VaeDecoderShape {
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            attention: true,
        };
        near(sdxl.operations(1, [64, 64]), 2_514_518_933_504.0);
    }

    #[test]
    fn compressed_keys_are_less_work() {
        let compressed = |sampling: &str, factor, layers: std::ops::Range<usize>| {
            let kv = KvCompression {
                sampling: sampling.to_owned(),
                scale_factor: factor,
                layers: layers.collect(),
            };
            transformer(Some(kv)).operations(1, [128, 128], 8)
        };
        let all = transformer(None).operations(1, [128, 128], 8);
        // Scores and sums of 4096 positions over 4096 keys, or a quarter of them, in half of the blocks.
        let scores = 2.0 * 2.0 * 4096.0 * 4096.0 * 1152.0;
        near(all - compressed("conv", 2, 14..28), 14.0 * 0.75 * scores);
        near(all - compressed("uniform_every", 4, 0..1), 0.75 * scores);
    }

    #[test]
    fn memory_grows_with_the_picture() {
        let bytes = |side| transformer(None).activation_bytes(2, [side, side], 300);
        assert_eq!(bytes(256), 4 * bytes(128));
        // Two blocks took 2.9 GB at 2048 px, a third of a GB of them weights.
        assert!((2.3e9..3.6e9).contains(&(bytes(256) as f64)), "{}", bytes(256));
    }
}
