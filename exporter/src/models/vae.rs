//! The two halves of the SDXL auto-encoder (`AutoencoderKL`).
//!
//! Names are those of the diffusers checkpoint.

use crate::graph::dim::Dim;
use crate::graph::ir::{DType, Graph};
use crate::graph::{GraphBuilder, GraphError, Value, Window};
use crate::naming::VaeConfig;
use crate::profile::{Attention, Profile};

/// Added to the variance in every group norm.
const EPSILON: f64 = 1e-6;

/// The decoder: `latent_sample[batch_size, 4, height, width]`, already divided by the scaling factor
/// → `sample[batch_size, 3, 8·height, 8·width]`, nominally in `-1..1`.
pub fn build_decoder(config: &VaeConfig, profile: Profile) -> Result<Graph, GraphError> {
    let mut graph = GraphBuilder::new("vae_decoder", profile);
    let b = &mut graph;
    let batch = Dim::symbol("batch_size");
    let (height, width) = (Dim::symbol("height"), Dim::symbol("width"));
    let channels = Dim::from(config.latent_channels);
    let latents = vec![batch.clone(), channels, height.clone(), width.clone()];
    let mut x = b.input("latent_sample", DType::F32, latents)?;

    if config.use_post_quant_conv {
        x = b.conv2d("post_quant_conv", &x, config.latent_channels, Window::same(1))?;
    }
    let x = b.scoped("decoder", |b| decoder(b, config, &x))?;

    let factor = Dim::from(config.scale_factor());
    let shape = [batch, config.out_channels.into(), &height * &factor, &width * &factor];
    b.output("sample", &x, DType::F32, &shape)?;
    Ok(graph.finish())
}

/// The encoder: `sample[batch_size, 3, height, width]` in `-1..1`, sides multiples of 8 →
/// `latent_parameters[batch_size, 8, height/8, width/8]`.
///
/// The parameters are those of a diagonal normal distribution as they leave `quant_conv`, or the
/// encoder where the model has none: the first half of the channels is the mean, the second the
/// logarithm of the variance, which the reader clamps to `-30..20` before using it. Neither is
/// multiplied by the scaling factor.
pub fn build_encoder(config: &VaeConfig, profile: Profile) -> Result<Graph, GraphError> {
    let mut graph = GraphBuilder::new("vae_encoder", profile);
    let b = &mut graph;
    let batch = Dim::symbol("batch_size");
    let factor = config.scale_factor();
    let side = |name| Dim::symbol_multiple_of(name, factor as i64);
    let (height, width) = (side("height"), side("width"));
    let pixels = vec![batch, config.in_channels.into(), height, width];
    let sample = b.input("sample", DType::F32, pixels)?;

    let parameters = 2 * config.latent_channels;
    let mut x = b.scoped("encoder", |b| encoder(b, config, &sample))?;
    if config.use_quant_conv {
        x = b.conv2d("quant_conv", &x, parameters, Window::same(1))?;
    }

    let shape = x.shape().to_vec();
    b.output("latent_parameters", &x, DType::F32, &shape)?;
    Ok(graph.finish())
}

/// From the finest level to the coarsest, halving the sides between two levels.
fn encoder(b: &mut GraphBuilder, config: &VaeConfig, x: &Value) -> Result<Value, GraphError> {
    let groups = config.norm_num_groups;
    let levels = &config.block_out_channels;
    let finest = levels.first().copied().unwrap_or(config.latent_channels);
    let mut x = b.conv2d("conv_in", x, finest, Window::same(3))?;
    for (level, &channels) in levels.iter().enumerate() {
        let last = level + 1 == levels.len();
        x = b.scoped(&format!("down_blocks.{level}"), |b| {
            let mut x = x;
            for unit in 0..config.layers_per_block {
                x = residual_unit(b, &format!("resnets.{unit}"), &x, channels, groups)?;
            }
            if last {
                return Ok(x);
            }
            b.scoped("downsamplers.0", |b| b.conv2d("conv", &x, channels, Window::halving()))
        })?;
    }
    let x = b.scoped("mid_block", |b| middle_block(b, config, &x))?;
    let x = b.group_norm("conv_norm_out", &x, groups, EPSILON)?;
    let x = b.scoped("conv_act", |b| b.silu(&x))?;
    b.conv2d("conv_out", &x, 2 * config.latent_channels, Window::same(3))
}

/// From the coarsest level to the finest, doubling the sides between two levels.
fn decoder(b: &mut GraphBuilder, config: &VaeConfig, x: &Value) -> Result<Value, GraphError> {
    let groups = config.norm_num_groups;
    let levels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
    let coarsest = levels.first().copied().unwrap_or(config.latent_channels);
    let x = b.conv2d("conv_in", x, coarsest, Window::same(3))?;
    let mut x = b.scoped("mid_block", |b| middle_block(b, config, &x))?;
    for (level, &channels) in levels.iter().enumerate() {
        let last = level + 1 == levels.len();
        x = b.scoped(&format!("up_blocks.{level}"), |b| {
            let mut x = x;
            for unit in 0..=config.layers_per_block {
                x = residual_unit(b, &format!("resnets.{unit}"), &x, channels, groups)?;
            }
            if last {
                return Ok(x);
            }
            b.scoped("upsamplers.0", |b| b.upsampled_conv2d("conv", &x, channels))
        })?;
    }
    let x = b.group_norm("conv_norm_out", &x, groups, EPSILON)?;
    let x = b.scoped("conv_act", |b| b.silu(&x))?;
    b.conv2d("conv_out", &x, config.out_channels, Window::same(3))
}

fn middle_block(b: &mut GraphBuilder, config: &VaeConfig, x: &Value) -> Result<Value, GraphError> {
    let groups = config.norm_num_groups;
    let channels = config.block_out_channels.last().copied().unwrap_or(config.latent_channels);
    let mut x = residual_unit(b, "resnets.0", x, channels, groups)?;
    if config.mid_block_add_attention {
        x = b.scoped("attentions.0", |b| spatial_attention(b, &x, channels, groups))?;
    }
    residual_unit(b, "resnets.1", &x, channels, groups)
}

/// `x + conv(silu(norm(conv(silu(norm(x))))))`, the sum through a 1×1 convolution where the number
/// of channels changes.
fn residual_unit(
    b: &mut GraphBuilder,
    name: &str,
    x: &Value,
    channels: usize,
    groups: usize,
) -> Result<Value, GraphError> {
    b.scoped(name, |b| {
        let y = b.group_norm("norm1", x, groups, EPSILON)?;
        let y = b.silu(&y)?;
        let y = b.conv2d("conv1", &y, channels, Window::same(3))?;
        let y = b.group_norm("norm2", &y, groups, EPSILON)?;
        let y = b.silu(&y)?;
        let y = b.conv2d("conv2", &y, channels, Window::same(3))?;
        if x.shape()[1] == y.shape()[1] {
            return b.add(x, &y);
        }
        let shortcut = b.conv2d("conv_shortcut", x, channels, Window::same(1))?;
        b.add(&shortcut, &y)
    })
}

/// Attention of every position over all others, one head as wide as the channels.
fn spatial_attention(
    b: &mut GraphBuilder,
    x: &Value,
    channels: usize,
    groups: usize,
) -> Result<Value, GraphError> {
    let [batch, width_c, rows, columns] = [0, 1, 2, 3].map(|axis| x.shape()[axis].clone());
    let normal = b.group_norm("group_norm", x, groups, EPSILON)?;
    let tokens = b.reshape(&normal, &[batch, width_c, &rows * &columns])?;
    let tokens = b.transpose(&tokens, &[0, 2, 1])?;
    let query = b.linear("to_q", &tokens, channels, true)?;
    let key = b.linear("to_k", &tokens, channels, true)?;
    let value = b.linear("to_v", &tokens, channels, true)?;
    let attention = Attention { heads: 1, scale: None, bias: None };
    let mixed = b.attention(&query, &key, &value, &attention)?;
    let mixed = b.linear("to_out.0", &mixed, channels, true)?;
    let mixed = b.transpose(&mixed, &[0, 2, 1])?;
    let mixed = b.reshape(&mixed, x.shape())?;
    b.add(x, &mixed)
}
