//! The transformer in three parts, for training: what goes into the blocks, one block, and what
//! comes after them.
//!
//! All blocks have the same graph, so that one session computes any of them from its weights
//! ([`GraphBuilder::weights_as_inputs`]), and what is kept between the parts are the checkpoints of
//! gradient checkpointing. Weights have the names of the checkpoint, those of a block without the
//! `transformer_blocks.<index>.` in front.
//!
//! Tokens are a grid `[batch_size, rows, columns, inner_dim]` on the way from part to part, because a
//! block that compresses its keys needs to know the grid.

use super::{
    KeyGrid, block as whole_block, embed_patches, embed_timestep, final_layer, mask_bias,
    project_captions, unpatchify,
};
use crate::graph::dim::{Dim, product};
use crate::graph::ir::DType;
use crate::graph::{GraphBuilder, GraphError, Value};
use crate::naming::TransformerConfig;

/// What a part reads and what it passes on; the weights it reads are inputs or constants of the graph.
#[derive(Clone, Debug)]
pub struct Part {
    /// Inputs that come from another part.
    pub carried: Vec<Value>,
    /// Results by name, not yet declared as outputs.
    pub outputs: Vec<(&'static str, Value)>,
}

/// The part in front of the blocks.
///
/// Inputs are those of the whole transformer, see [`super::build`]. Results: `tokens[batch_size, rows,
/// columns, inner_dim]`, positions added; `time_embedding[batch_size, inner_dim]`;
/// `modulation[batch_size, 6, inner_dim]`; `captions[batch_size, sequence_length, inner_dim]`.
/// Nothing is carried.
pub fn embedding(b: &mut GraphBuilder, config: &TransformerConfig) -> Result<Part, GraphError> {
    let inputs = super::inputs(b, config)?;
    let (tokens, [rows, columns]) = embed_patches(b, config, &inputs.latents)?;
    let time = embed_timestep(b, config, &inputs.timestep, &inputs.conditions)?;
    let captions = project_captions(b, config, &inputs.captions)?;
    let grid = [tokens.shape()[0].clone(), rows, columns, config.inner_dim().into()];
    let tokens = b.reshape(&tokens, &grid)?;
    Ok(Part {
        carried: vec![],
        outputs: vec![
            ("tokens", tokens),
            ("time_embedding", time.embedding),
            ("modulation", time.modulation),
            ("captions", captions),
        ],
    })
}

/// A block; with `compressed`, one of those whose keys and values are compressed.
///
/// Carried are `tokens[batch_size, rows, columns, inner_dim]`, `modulation[batch_size, 6, inner_dim]`
/// and `captions[batch_size, sequence_length, inner_dim]`; `encoder_attention_mask[batch_size,
/// sequence_length]` (i64: 1 keep, 0 padding) is an input besides. Result: `out_tokens`, in the shape of
/// the tokens.
///
/// # Errors
/// Besides wiring mistakes: `compressed` for a model without compression.
pub fn block(
    b: &mut GraphBuilder,
    config: &TransformerConfig,
    compressed: bool,
) -> Result<Part, GraphError> {
    let tokens = tokens(b, config)?;
    let [batch, rows, columns, width] = [0, 1, 2, 3].map(|axis| tokens.shape()[axis].clone());
    let six = vec![batch.clone(), 6.into(), width.clone()];
    let modulation = b.input("modulation", DType::F32, six)?;
    let sequence = Dim::symbol("sequence_length");
    let shape = vec![batch.clone(), sequence.clone(), width.clone()];
    let captions = b.input("captions", DType::F32, shape)?;
    let mask = b.input("encoder_attention_mask", DType::I64, vec![batch.clone(), sequence])?;
    let mask = mask_bias(b, &mask)?;

    let keys = match (&config.kv_compression, compressed) {
        (Some(compression), true) => {
            Some(KeyGrid::new(b, compression, &[rows.clone(), columns.clone()])?)
        }
        (None, true) => {
            let expected = "a model whose configuration has compressed keys";
            return b.fail(crate::graph::GraphErrorKind::Size, "block", &[&tokens], expected);
        }
        (_, false) => None,
    };
    let x = b.reshape(&tokens, &[batch, &rows * &columns, width])?;
    let x = whole_block(b, config, &x, &modulation, keys.as_ref(), &captions, &mask)?;
    let x = b.reshape(&x, tokens.shape())?;
    Ok(Part { carried: vec![tokens, modulation, captions], outputs: vec![("out_tokens", x)] })
}

/// The part behind the blocks.
///
/// Carried are `tokens[batch_size, rows, columns, inner_dim]` and `time_embedding[batch_size,
/// inner_dim]`. Result: `out_hidden_states[batch_size, out_channels, patch_size·rows,
/// patch_size·columns]`, noise first, then variance.
pub fn final_part(b: &mut GraphBuilder, config: &TransformerConfig) -> Result<Part, GraphError> {
    let tokens = tokens(b, config)?;
    let [batch, rows, columns, width] = [0, 1, 2, 3].map(|axis| tokens.shape()[axis].clone());
    let embedding = b.input("time_embedding", DType::F32, vec![batch.clone(), width.clone()])?;
    let sequence = [batch, product(&[rows.clone(), columns.clone()]), width];
    let x = b.reshape(&tokens, &sequence)?;
    let x = final_layer(b, config, &x, &embedding)?;
    let out = unpatchify(b, config, &x, &[rows, columns])?;
    Ok(Part { carried: vec![tokens, embedding], outputs: vec![("out_hidden_states", out)] })
}

fn tokens(b: &mut GraphBuilder, config: &TransformerConfig) -> Result<Value, GraphError> {
    let [batch, rows, columns] = ["batch_size", "rows", "columns"].map(Dim::symbol);
    b.input("tokens", DType::F32, vec![batch, rows, columns, config.inner_dim().into()])
}
