//! The PixArt-Σ diffusion transformer (`PixArtTransformer2DModel`), arXiv 2403.04692.
//!
//! Names are those of the diffusers checkpoint.

use super::position::position_table;
use super::timestep::timestep_sinusoid;
use crate::graph::dim::Dim;
use crate::graph::ir::{DType, Graph};
use crate::graph::{GraphBuilder, GraphError, Value, Window};
use crate::naming::TransformerConfig;
use crate::profile::{Attention, Profile};

/// Added to the scores of padded caption tokens: their weight underflows to exactly zero, and a row
/// of nothing but padding still has finite scores.
const MASKED: f32 = -1e9;

/// The graph: `hidden_states[batch_size, 4, height, width]`,
/// `encoder_hidden_states[batch_size, sequence_length, caption_channels]`,
/// `encoder_attention_mask[batch_size, sequence_length]` (1 keep, 0 padding), `timestep[batch_size]`
/// → `out_hidden_states[batch_size, 8, height, width]`, noise first, then variance.
///
/// Height and width must be multiples of the patch size.
pub fn build(config: &TransformerConfig, profile: Profile) -> Result<Graph, GraphError> {
    let mut graph = GraphBuilder::new("transformer", profile);
    let b = &mut graph;
    let patch = config.patch_size;
    let batch = Dim::symbol("batch_size");
    let height = Dim::symbol_multiple_of("height", patch as i64);
    let width = Dim::symbol_multiple_of("width", patch as i64);
    let sequence = Dim::symbol("sequence_length");

    let latents = [batch.clone(), config.in_channels.into(), height.clone(), width.clone()];
    let latents = b.input("hidden_states", DType::F32, latents.to_vec())?;
    let captions = [batch.clone(), sequence.clone(), config.caption_channels.into()];
    let captions = b.input("encoder_hidden_states", DType::F32, captions.to_vec())?;
    let mask = b.input("encoder_attention_mask", DType::I64, vec![batch.clone(), sequence])?;
    let timestep = b.input("timestep", DType::F32, vec![batch.clone()])?;

    let (mut x, grid) = embed_patches(b, config, &latents)?;
    let time = embed_timestep(b, config, &timestep)?;
    let captions = project_captions(b, config, &captions)?;
    let mask = mask_bias(b, &mask)?;
    for layer in 0..config.num_layers {
        x = b.scoped(&format!("transformer_blocks.{layer}"), |b| {
            block(b, config, &x, &time.modulation, &captions, &mask)
        })?;
    }
    let x = final_layer(b, config, &x, &time.embedding)?;
    let out = unpatchify(b, config, &x, &grid)?;

    let shape = [batch, config.out_channels.into(), height, width];
    b.output("out_hidden_states", &out, DType::F32, &shape)?;
    Ok(graph.finish())
}

/// Latents to tokens, with their positions added: `[batch, rows·columns, inner_dim]`; also the grid
/// `[rows, columns]`.
fn embed_patches(
    b: &mut GraphBuilder,
    config: &TransformerConfig,
    latents: &Value,
) -> Result<(Value, [Dim; 2]), GraphError> {
    let inner_dim = config.inner_dim();
    let patches = b.scoped("pos_embed", |b| {
        b.conv2d("proj", latents, inner_dim, Window::patches(config.patch_size))
    })?;
    let [batch, channels, rows, columns] = [0, 1, 2, 3].map(|axis| patches.shape()[axis].clone());
    b.scoped("pos_embed", |b| {
        let tokens = b.reshape(&patches, &[batch, channels, &rows * &columns])?;
        let tokens = b.transpose(&tokens, &[0, 2, 1])?;
        let base = config.sample_size / config.patch_size;
        let scale = config.interpolation_scale;
        let table = position_table(b, &rows, &columns, inner_dim, base, scale)?;
        Ok((b.add(&tokens, &table)?, [rows, columns]))
    })
}

/// What the blocks and the final layer need to know about the time.
struct Time {
    /// `[batch, inner_dim]`, for the final layer.
    embedding: Value,
    /// `[batch, 6, inner_dim]`, shared by all blocks.
    modulation: Value,
}

fn embed_timestep(
    b: &mut GraphBuilder,
    config: &TransformerConfig,
    timestep: &Value,
) -> Result<Time, GraphError> {
    let inner_dim = config.inner_dim();
    b.scoped("adaln_single", |b| {
        let embedding = b.scoped("emb", |b| {
            let x = timestep_sinusoid(b, timestep)?;
            b.scoped("timestep_embedder", |b| {
                let x = b.linear("linear_1", &x, inner_dim, true)?;
                let x = b.silu(&x)?;
                b.linear("linear_2", &x, inner_dim, true)
            })
        })?;
        let x = b.silu(&embedding)?;
        let x = b.linear("linear", &x, 6 * inner_dim, true)?;
        let rows = [x.shape()[0].clone(), Dim::from(6), inner_dim.into()];
        Ok(Time { modulation: b.reshape(&x, &rows)?, embedding })
    })
}

/// Text encoder states to keys and values of the cross-attention: `[batch, length, inner_dim]`.
fn project_captions(
    b: &mut GraphBuilder,
    config: &TransformerConfig,
    captions: &Value,
) -> Result<Value, GraphError> {
    b.scoped("caption_projection", |b| {
        let x = b.linear("linear_1", captions, config.inner_dim(), true)?;
        let x = b.gelu_tanh(&x)?;
        b.linear("linear_2", &x, config.inner_dim(), true)
    })
}

/// 1 → 0, 0 → [`MASKED`], as `[batch, 1, 1, length]`.
fn mask_bias(b: &mut GraphBuilder, mask: &Value) -> Result<Value, GraphError> {
    b.scoped("encoder_attention_mask", |b| {
        let keep = b.cast(mask, DType::Bool)?;
        let (zero, masked) = (b.scalar_f32(0.0), b.scalar_f32(MASKED));
        let bias = b.select(&keep, &zero, &masked)?;
        b.unsqueeze(&bias, &[1, 2])
    })
}

/// One block: self-attention and feed-forward under adaptive norms, cross-attention between them.
fn block(
    b: &mut GraphBuilder,
    config: &TransformerConfig,
    x: &Value,
    modulation: &Value,
    captions: &Value,
    mask: &Value,
) -> Result<Value, GraphError> {
    let inner_dim = config.inner_dim();
    let table = b.weight("scale_shift_table", &[6, inner_dim])?;
    let rows = b.add(modulation, &table)?;
    let rows = b.split(&rows, 6, 1)?;
    let [shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp] = &rows[..] else {
        unreachable!("a split has as many results as asked for")
    };

    let normal =
        b.scoped("norm1", |b| b.modulated_layer_norm(x, scale_msa, shift_msa, config.norm_eps))?;
    let mixed = attention(b, config, "attn1", &normal, &normal, None)?;
    let gated = b.mul(&mixed, gate_msa)?;
    let x = b.add(x, &gated)?;

    // Captions are read by the plain tokens: no norm, no gate.
    let mixed = attention(b, config, "attn2", &x, captions, Some(mask))?;
    let x = b.add(&x, &mixed)?;

    let normal =
        b.scoped("norm2", |b| b.modulated_layer_norm(&x, scale_mlp, shift_mlp, config.norm_eps))?;
    let mixed = feed_forward(b, config, &normal)?;
    let gated = b.mul(&mixed, gate_mlp)?;
    b.add(&x, &gated)
}

/// Multi-head attention with its four projections; `context` gives keys and values.
fn attention(
    b: &mut GraphBuilder,
    config: &TransformerConfig,
    name: &str,
    x: &Value,
    context: &Value,
    bias: Option<&Value>,
) -> Result<Value, GraphError> {
    let inner_dim = config.inner_dim();
    b.scoped(name, |b| {
        let query = b.linear("to_q", x, inner_dim, true)?;
        let key = b.linear("to_k", context, inner_dim, true)?;
        let value = b.linear("to_v", context, inner_dim, true)?;
        let attention = Attention { heads: config.num_attention_heads, scale: None, bias };
        let mixed = b.attention(&query, &key, &value, &attention)?;
        b.linear("to_out.0", &mixed, inner_dim, true)
    })
}

fn feed_forward(
    b: &mut GraphBuilder,
    config: &TransformerConfig,
    x: &Value,
) -> Result<Value, GraphError> {
    b.scoped("ff", |b| {
        let x = b.linear("net.0.proj", x, 4 * config.inner_dim(), true)?;
        let x = b.scoped("net.0", |b| b.gelu_tanh(&x))?;
        b.linear("net.2", &x, config.inner_dim(), true)
    })
}

/// The last adaptive norm and the projection to pixels of a patch: `[batch, tokens, p·p·channels]`.
fn final_layer(
    b: &mut GraphBuilder,
    config: &TransformerConfig,
    x: &Value,
    embedding: &Value,
) -> Result<Value, GraphError> {
    let table = b.weight("scale_shift_table", &[2, config.inner_dim()])?;
    let normal = b.scoped("norm_out", |b| {
        // The time embedding itself, neither activated nor projected.
        let embedding = b.unsqueeze(embedding, &[1])?;
        let rows = b.add(&embedding, &table)?;
        let rows = b.split(&rows, 2, 1)?;
        b.modulated_layer_norm(x, &rows[1], &rows[0], config.norm_eps)
    })?;
    let features = config.patch_size * config.patch_size * config.out_channels;
    b.linear("proj_out", &normal, features, true)
}

/// Tokens back to a picture; a token holds its patch row by row, channels innermost.
fn unpatchify(
    b: &mut GraphBuilder,
    config: &TransformerConfig,
    x: &Value,
    [rows, columns]: &[Dim; 2],
) -> Result<Value, GraphError> {
    b.scoped("unpatchify", |b| {
        let (patch, channels) = (Dim::from(config.patch_size), Dim::from(config.out_channels));
        let batch = &x.shape()[0];
        let split = [batch, rows, columns, &patch, &patch, &channels].map(Dim::clone);
        let x = b.reshape(x, &split)?;
        let x = b.transpose(&x, &[0, 5, 1, 3, 2, 4])?;
        b.reshape(&x, &[batch.clone(), channels, rows * &patch, columns * &patch])
    })
}
