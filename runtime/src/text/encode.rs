//! From ids to what the transformer attends to.

use ndarray::Array2;

use super::PromptIds;
use crate::{error::PipelineError, pipeline::LoadedComponent, sampler::UncondMask, tensor::Tensor};

/// Captions are padded to a multiple of this many tokens, so that few different shapes occur.
const LENGTH_MULTIPLE: usize = 8;

/// Caption embeddings and mask for one picture. With guidance the batch is 2, the unconditional half
/// first.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// f32 [batch, tokens, width].
    pub embeddings: Tensor,
    /// int64 [batch, tokens]: 1 where the transformer may attend, 0 where not.
    pub mask: Tensor,
}

/// Runs the text encoder on one prompt and its negative prompt.
///
/// Both are padded with `pad` to the longer of the two, rounded up to a multiple of 8 and at most
/// `max_length`, instead of always to `max_length`. The picture is the same: padded positions have no
/// weight in the encoder, T5's position bias depends on distances alone, and the transformer
/// does not attend to them either. With [`UncondMask::Caption`] the unconditional half attends with
/// the *positive* prompt's mask, hence to what T5 makes of padded positions of the negative prompt;
/// these positions are computed here too because both prompts are padded to one length.
///
/// # Errors
/// When the engine fails, or the embeddings are not finite.
pub(crate) fn encode(
    encoder: &mut LoadedComponent,
    ids: &PromptIds,
    pad: i64,
    uncond_mask: UncondMask,
    max_length: usize,
) -> Result<Conditioning, PipelineError> {
    let rows: Vec<&[i64]> = ids.negative.iter().chain([&ids.positive]).map(Vec::as_slice).collect();
    let longest = rows.iter().map(|row| row.len()).max().unwrap_or(0);
    let length = longest.next_multiple_of(LENGTH_MULTIPLE).min(max_length).max(longest);

    let shape = (rows.len(), length);
    let input_ids = Array2::from_shape_fn(shape, |(b, i)| rows[b].get(i).copied().unwrap_or(pad));
    let own_mask = Array2::from_shape_fn(shape, |(b, i)| i64::from(i < rows[b].len()));
    let mask = match uncond_mask {
        UncondMask::Caption => {
            Array2::from_shape_fn(shape, |(_, i)| i64::from(i < ids.positive.len()))
        }
        UncondMask::Own => own_mask.clone(),
    };

    let inputs = [("input_ids", input_ids.into()), ("attention_mask", own_mask.into())];
    let embeddings = encoder.run(&inputs, "last_hidden_state")?;
    encoder.check_finite(&embeddings, None)?;
    Ok(Conditioning { embeddings: embeddings.into(), mask: mask.into() })
}
