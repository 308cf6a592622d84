//! The PixArt diffusion transformer (`PixArtTransformer2DModel`): Σ, arXiv 2403.04692, and α,
//! arXiv 2310.00426.
//!
//! Names are those of the diffusers checkpoint.

pub mod parts;

use super::kv_compression::{KeyGrid, affine_layer_norm};
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
/// Height and width must be multiples of the patch size. With `use_additional_conditions` there are
/// two more inputs: `resolution[batch_size, 2]`, height and width of the picture in pixels, and
/// `aspect_ratio[batch_size, 1]`, height divided by width.
pub fn build(config: &TransformerConfig, profile: Profile) -> Result<Graph, GraphError> {
    let mut graph = GraphBuilder::new("transformer", profile);
    let b = &mut graph;
    let Inputs { latents, captions, mask, timestep, conditions } = inputs(b, config)?;

    let (mut x, grid) = embed_patches(b, config, &latents)?;
    let keys = match &config.kv_compression {
        Some(compression) => Some(KeyGrid::new(b, compression, &grid)?),
        None => None,
    };
    let time = embed_timestep(b, config, &timestep, &conditions)?;
    let captions = project_captions(b, config, &captions)?;
    let mask = mask_bias(b, &mask)?;
    for layer in 0..config.num_layers {
        x = b.scoped(&format!("transformer_blocks.{layer}"), |b| {
            let keys = keys.as_ref().filter(|keys| keys.compression.layers.contains(&layer));
            block(b, config, &x, &time.modulation, keys, &captions, &mask)
        })?;
    }
    let x = final_layer(b, config, &x, &time.embedding)?;
    let out = unpatchify(b, config, &x, &grid)?;

    let [batch, _, height, width] = [0, 1, 2, 3].map(|axis| latents.shape()[axis].clone());
    let shape = [batch, config.out_channels.into(), height, width];
    b.output("out_hidden_states", &out, DType::F32, &shape)?;
    Ok(graph.finish())
}

struct Inputs {
    latents: Value,
    captions: Value,
    mask: Value,
    timestep: Value,
    /// Names of the embedders, and what they embed.
    conditions: Vec<(&'static str, Value)>,
}

/// Declares the inputs.
fn inputs(b: &mut GraphBuilder, config: &TransformerConfig) -> Result<Inputs, GraphError> {
    let patch = config.patch_size as i64;
    let batch = Dim::symbol("batch_size");
    let height = Dim::symbol_multiple_of("height", patch);
    let width = Dim::symbol_multiple_of("width", patch);
    let sequence = Dim::symbol("sequence_length");

    let latents = vec![batch.clone(), config.in_channels.into(), height, width];
    let latents = b.input("hidden_states", DType::F32, latents)?;
    let captions = vec![batch.clone(), sequence.clone(), config.caption_channels.into()];
    let captions = b.input("encoder_hidden_states", DType::F32, captions)?;
    let mask = b.input("encoder_attention_mask", DType::I64, vec![batch.clone(), sequence])?;
    let timestep = b.input("timestep", DType::F32, vec![batch.clone()])?;
    let mut conditions = Vec::new();
    if config.use_additional_conditions {
        for (embedder, name, numbers) in
            [("resolution_embedder", "resolution", 2), ("aspect_ratio_embedder", "aspect_ratio", 1)]
        {
            let value = b.input(name, DType::F32, vec![batch.clone(), numbers.into()])?;
            conditions.push((embedder, value));
        }
    }
    Ok(Inputs { latents, captions, mask, timestep, conditions })
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
    conditions: &[(&str, Value)],
) -> Result<Time, GraphError> {
    let inner_dim = config.inner_dim();
    b.scoped("adaln_single", |b| {
        let embedding = b.scoped("emb", |b| {
            let time = embed_number(b, "timestep_embedder", timestep, inner_dim)?;
            if conditions.is_empty() {
                return Ok(time);
            }
            let conditions = embed_conditions(b, config, conditions)?;
            b.add(&time, &conditions)
        })?;
        let x = b.silu(&embedding)?;
        let x = b.linear("linear", &x, 6 * inner_dim, true)?;
        let rows = [x.shape()[0].clone(), Dim::from(6), inner_dim.into()];
        Ok(Time { modulation: b.reshape(&x, &rows)?, embedding })
    })
}

/// Numbers of any size in `x[count]` to `[count, width]`.
fn embed_number(
    b: &mut GraphBuilder,
    name: &str,
    x: &Value,
    width: usize,
) -> Result<Value, GraphError> {
    let x = timestep_sinusoid(b, x)?;
    b.scoped(name, |b| {
        let x = b.linear("linear_1", &x, width, true)?;
        let x = b.silu(&x)?;
        b.linear("linear_2", &x, width, true)
    })
}

/// Size and aspect ratio to `[batch, inner_dim]`: three numbers, each a third of the width.
fn embed_conditions(
    b: &mut GraphBuilder,
    config: &TransformerConfig,
    conditions: &[(&str, Value)],
) -> Result<Value, GraphError> {
    let mut parts = Vec::with_capacity(conditions.len());
    for (name, value) in conditions {
        let (batch, count) = (&value.shape()[0], &value.shape()[1]);
        let flat = b.reshape(value, &[batch * count])?;
        let third = config.inner_dim() / 3;
        let x = embed_number(b, name, &flat, third)?;
        parts.push(b.reshape(&x, &[batch.clone(), count * &Dim::from(third)])?);
    }
    b.concat(&parts.iter().collect::<Vec<_>>(), -1)
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
    keys: Option<&KeyGrid>,
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
    let mixed = self_attention(b, config, &normal, keys)?;
    let gated = b.mul(&mixed, gate_msa)?;
    let x = b.add(x, &gated)?;

    // Captions are read by the plain tokens: no norm, no gate.
    let mixed = cross_attention(b, config, &x, captions, mask)?;
    let x = b.add(&x, &mixed)?;

    let normal =
        b.scoped("norm2", |b| b.modulated_layer_norm(&x, scale_mlp, shift_mlp, config.norm_eps))?;
    let mixed = feed_forward(b, config, &normal)?;
    let gated = b.mul(&mixed, gate_mlp)?;
    b.add(&x, &gated)
}

/// Attention of the tokens over themselves, or over those that a compression leaves.
fn self_attention(
    b: &mut GraphBuilder,
    config: &TransformerConfig,
    x: &Value,
    keys: Option<&KeyGrid>,
) -> Result<Value, GraphError> {
    b.scoped("attn1", |b| {
        let [mut query, mut key, mut value] = project(b, config, x, x)?;
        if config.qk_norm {
            query = affine_layer_norm(b, "q_norm", &query, config.inner_dim())?;
            key = affine_layer_norm(b, "k_norm", &key, config.inner_dim())?;
        }
        if let Some(keys) = keys {
            [key, value] = keys.reduce(b, &key, &value, config.inner_dim())?;
        }
        attend(b, config, &query, &key, &value, None)
    })
}

/// Attention of the tokens over the caption.
fn cross_attention(
    b: &mut GraphBuilder,
    config: &TransformerConfig,
    x: &Value,
    captions: &Value,
    mask: &Value,
) -> Result<Value, GraphError> {
    b.scoped("attn2", |b| {
        let [query, key, value] = project(b, config, x, captions)?;
        attend(b, config, &query, &key, &value, Some(mask))
    })
}

/// Queries of `x`, keys and values of `context`.
fn project(
    b: &mut GraphBuilder,
    config: &TransformerConfig,
    x: &Value,
    context: &Value,
) -> Result<[Value; 3], GraphError> {
    let inner_dim = config.inner_dim();
    Ok([
        b.linear("to_q", x, inner_dim, true)?,
        b.linear("to_k", context, inner_dim, true)?,
        b.linear("to_v", context, inner_dim, true)?,
    ])
}

fn attend(
    b: &mut GraphBuilder,
    config: &TransformerConfig,
    query: &Value,
    key: &Value,
    value: &Value,
    bias: Option<&Value>,
) -> Result<Value, GraphError> {
    let attention = Attention { heads: config.num_attention_heads, scale: None, bias };
    let mixed = b.attention(query, key, value, &attention)?;
    b.linear("to_out.0", &mixed, config.inner_dim(), true)
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
