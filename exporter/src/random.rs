//! Weights made on the spot for the shapes that a `config.json` tells: for measuring, where it does not matter
//! what is drawn. The same shapes and seed give the same bytes.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::checkpoint::{Checkpoint, Dtype};
use crate::naming::{TextEncoderConfig, TransformerConfig, VaeConfig, VariantFlags};
use crate::profile::Profile;
use crate::write::safetensors::{Announced, sort, write_header};
use crate::write::{self, WriteError};
use crate::{Component, ExportError, models};

/// The published models by the names under which their shapes can be had, and the sides of their latents.
pub const RELEASED: [(&str, usize); 4] = [
    ("pixart-sigma-256", 32),
    ("pixart-sigma-512", 64),
    ("pixart-sigma-1024", 128),
    ("pixart-sigma-2k", 256),
];

/// The `config.json` of a part of a published model with latents of this side: XL/2, T5 v1.1 XXL, the SDXL
/// auto-encoder.
pub fn released_config(component: Component, sample_size: usize) -> Value {
    match component {
        Component::Transformer => TransformerConfig::xl2(sample_size).to_json(),
        Component::TextEncoder => text_config(4096, 64, 64, 10240, 24, 32128),
        Component::VaeDecoder | Component::VaeEncoder => {
            vae_config(&[128, 256, 512, 512], 2, 32, 4)
        }
    }
}

/// The `config.json` of the smallest text encoder whose states are `width` wide: it stands in for a large one
/// where only its output's shape counts.
pub fn smallest_text_config(width: usize) -> Value {
    text_config(width, 1, 8, 8, 1, 8)
}

/// The same for an auto-encoder of latents with so many channels.
pub fn smallest_vae_config(latent_channels: usize) -> Value {
    vae_config(&[8; 4], 1, 1, latent_channels)
}

fn text_config(
    width: usize,
    heads: usize,
    head: usize,
    inner: usize,
    layers: usize,
    rows: usize,
) -> Value {
    json!({
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "d_model": width,
        "num_heads": heads,
        "d_kv": head,
        "d_ff": inner,
        "num_layers": layers,
        "vocab_size": rows,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
    })
}

fn vae_config(widths: &[usize], layers: usize, groups: usize, latent_channels: usize) -> Value {
    let blocks = |name: &str| vec![name.to_owned(); widths.len()];
    json!({
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": blocks("DownEncoderBlock2D"),
        "up_block_types": blocks("UpDecoderBlock2D"),
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": latent_channels,
        "layers_per_block": layers,
        "mid_block_add_attention": true,
        "norm_num_groups": groups,
        "scaling_factor": 0.13025,
        "use_post_quant_conv": true,
        "use_quant_conv": true,
    })
}

/// The tensors of a component, to be filled with random numbers.
pub struct RandomWeights {
    file: PathBuf,
    tensors: Vec<Announced>,
}

impl RandomWeights {
    /// What the graph of the model whose `config.json` lies in `folder` reads. Nothing is written yet.
    ///
    /// # Errors
    /// When the configuration is missing, broken or not supported.
    pub fn of(folder: &Path, component: Component) -> Result<Self, ExportError> {
        let profile = Profile::default();
        let nothing = Checkpoint::without_tensors(folder);
        let with_attention = || {
            let mut config = VaeConfig::read(&nothing)?;
            // Otherwise the tensors show it. What the configuration class has where the file is silent:
            config.mid_block_add_attention =
                flag(folder, "mid_block_add_attention").unwrap_or(true);
            Ok::<_, ExportError>(config)
        };
        let graph = match component {
            Component::Transformer => {
                let file = folder.join("config.json");
                let config = TransformerConfig::read_file(&file, &VariantFlags::default())?;
                models::transformer::build(&config, profile)
            }
            Component::TextEncoder => {
                models::text_encoder::build(&TextEncoderConfig::read(&nothing)?, profile)
            }
            Component::VaeDecoder => models::vae::build_decoder(&with_attention()?, profile),
            Component::VaeEncoder => models::vae::build_encoder(&with_attention()?, profile),
        };
        let graph = graph.map_err(|source| ExportError::Graph { component, source })?;
        let announced = graph.weights().map(|weight| Announced {
            name: weight.tensor.clone(),
            dtype: Dtype::BF16,
            shape: weight.shape.clone(),
            bytes: 2 * weight.shape.iter().product::<usize>() as u64,
        });
        let mut tensors: Vec<Announced> = announced.collect();
        sort(&mut tensors);
        tensors.dedup_by(|a, b| a.name == b.name);
        let name = match component {
            Component::TextEncoder => "model.safetensors",
            _ => write::DIFFUSERS_FILE,
        };
        Ok(Self { file: folder.join(name), tensors })
    }

    /// How many numbers there are.
    pub fn parameters(&self) -> u64 {
        self.bytes() / 2
    }

    /// Bytes that [`write`](Self::write) writes: the weights are stored in bf16.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// Writes the weights beside the `config.json`, as diffusers and transformers name the file. What flows
    /// through the network stays near 1: matrices and convolutions keep the size of their input, norms are
    /// neutral, and the gates and biases of the transformer are far from zero. `progress` is told the bytes
    /// written and those in all, and may end it early; half a file is there then.
    ///
    /// # Errors
    /// When there is a file already or it cannot be written, and [`WriteError::Stopped`].
    pub fn write(
        &self,
        seed: u64,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<(), WriteError> {
        let (path, total) = (&self.file, self.bytes());
        let mut file = File::create_new(path).map_err(WriteError::io(path, "create", total))?;
        write_header(&mut file, path, &self.tensors)?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        let mut done = 0;
        for (index, tensor) in self.tensors.iter().enumerate() {
            let (middle, spread) = distribution(&tensor.name, &tensor.shape);
            let mut numbers = Uniform::new(seed, index as u64);
            let mut left = tensor.bytes;
            let mut block = Vec::with_capacity(BLOCK);
            while left > 0 {
                block.clear();
                let count = left.min(BLOCK as u64) / 2;
                for _ in 0..count {
                    let number = middle + spread * numbers.next();
                    block.extend(half::bf16::from_f32(number).to_le_bytes());
                }
                out.write_all(&block).map_err(WriteError::io(path, "write", total))?;
                left -= 2 * count;
                done += 2 * count;
                if progress(done, total).is_break() {
                    return Err(WriteError::Stopped);
                }
            }
        }
        out.flush().map_err(WriteError::io(path, "write", total))
    }
}

/// Bytes made at a time.
const BLOCK: usize = 1 << 20;

/// A field of a `config.json` that is true or false.
fn flag(folder: &Path, field: &str) -> Option<bool> {
    let text = std::fs::read(folder.join("config.json")).ok()?;
    serde_json::from_slice::<Value>(&text).ok()?[field].as_bool()
}

/// Middle and half the width of a tensor's numbers.
fn distribution(name: &str, shape: &[usize]) -> (f32, f32) {
    /// Half the width of an even distribution whose deviation is 1.
    const WIDTH: f32 = 1.732;
    match shape {
        [_] if name.ends_with("weight") => (1.0, 0.0),
        [_] => (0.0, 0.1 * WIDTH),
        _ if name.ends_with("scale_shift_table") => (0.0, 0.3 * WIDTH),
        // A table of rows, not a matrix.
        _ if name == "shared.weight" => (0.0, WIDTH),
        [_, rest @ ..] => (0.0, WIDTH / (rest.iter().product::<usize>().max(1) as f32).sqrt()),
        [] => (0.0, 0.0),
    }
}

/// Numbers from -1 to 1 (SplitMix64), a stream of its own for every tensor.
struct Uniform(u64);

impl Uniform {
    fn new(seed: u64, stream: u64) -> Self {
        Self(seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95))
    }

    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits >> 40) as f32) / (1u32 << 23) as f32 - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ExportOptions, export_component, export_component_until};

    fn written(component: Component, config: &Value) -> (tempfile::TempDir, RandomWeights) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let weights = RandomWeights::of(folder.path(), component).unwrap();
        weights.write(7, &mut |_, _| ControlFlow::Continue(())).unwrap();
        (folder, weights)
    }

    #[test]
    fn published_models_have_as_many_numbers_as_they_are_known_for() {
        let folder = tempfile::tempdir().unwrap();
        let count = |component| {
            let config = released_config(component, 64).to_string();
            std::fs::write(folder.path().join("config.json"), config).unwrap();
            RandomWeights::of(folder.path(), component).unwrap().parameters()
        };
        assert_eq!(count(Component::Transformer), 610_856_096);
        // 19.05 GB in fp32.
        assert_eq!(count(Component::TextEncoder), 4_762_310_656);
        assert_eq!(count(Component::VaeDecoder) + count(Component::VaeEncoder), 83_653_863);
    }

    #[test]
    fn what_is_made_is_the_same_each_time_and_can_be_exported() {
        let transformer = TransformerConfig {
            num_layers: 1,
            num_attention_heads: 2,
            attention_head_dim: 8,
            caption_channels: 24,
            ..TransformerConfig::xl2(32)
        };
        for (component, config) in [
            (Component::Transformer, transformer.to_json()),
            (Component::TextEncoder, smallest_text_config(24)),
            (Component::VaeDecoder, smallest_vae_config(4)),
            (Component::VaeEncoder, smallest_vae_config(4)),
        ] {
            let (folder, weights) = written(component, &config);
            let (again, _) = written(component, &config);
            let bytes = |folder: &Path| {
                let name = weights.file.file_name().unwrap();
                std::fs::read(folder.join(name)).unwrap()
            };
            assert_eq!(bytes(folder.path()), bytes(again.path()), "{component}");
            let output = tempfile::tempdir().unwrap();
            let options = ExportOptions::default();
            let exported =
                export_component(folder.path(), component, output.path(), &options, &mut |_| ());
            exported.unwrap_or_else(|error| panic!("{component}: {error}"));
        }
    }

    #[test]
    fn what_is_no_longer_wanted_ends_early() {
        let (folder, weights) = written(Component::TextEncoder, &smallest_text_config(24));
        let until = |calls: usize| {
            let output = tempfile::tempdir().unwrap();
            let mut told = 0;
            let result = export_component_until(
                folder.path(),
                Component::TextEncoder,
                output.path(),
                &ExportOptions::default(),
                &mut |_| {
                    told += 1;
                    if told < calls { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                },
            );
            assert!(
                matches!(result, Err(ExportError::Write(WriteError::Stopped))),
                "{calls}: {result:?}"
            );
            assert_eq!(std::fs::read_dir(output.path()).unwrap().count(), 0, "{calls}");
            assert!(told <= calls, "{told} after {calls}");
        };
        until(1);
        until(3);

        std::fs::remove_file(&weights.file).unwrap();
        let result = weights.write(7, &mut |_, _| ControlFlow::Break(()));
        assert!(matches!(result, Err(WriteError::Stopped)), "{result:?}");
    }

    #[test]
    fn numbers_are_spread_evenly() {
        let mut numbers = Uniform::new(0, 0);
        let drawn: Vec<f32> = (0..100_000).map(|_| numbers.next()).collect();
        let mean = drawn.iter().sum::<f32>() / drawn.len() as f32;
        let square = drawn.iter().map(|x| x * x).sum::<f32>() / drawn.len() as f32;
        assert!(mean.abs() < 0.01 && (square - 1.0 / 3.0).abs() < 0.01, "{mean} {square}");
        assert!(drawn.iter().all(|x| (-1.0..=1.0).contains(x)));
        assert_ne!(Uniform::new(0, 1).next(), Uniform::new(0, 2).next());
    }
}
