//! From ids to what the transformer attends to.

use ndarray::{Array2, ArrayD, Axis, Slice};

use super::PromptIds;
use crate::{error::PipelineError, pipeline::LoadedComponent, sampler::UncondMask, tensor::Tensor};

/// Captions are padded to a multiple of this many tokens, so that few different shapes occur.
pub const LENGTH_MULTIPLE: usize = 8;

/// Caption embeddings and mask for one picture. With guidance the batch is 2, the unconditional half
/// first.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// f32 [batch, tokens, width].
    pub embeddings: Tensor,
    /// int64 [batch, tokens]: 1 where the transformer may attend, 0 where not.
    pub mask: Tensor,
}

/// How long a prompt and its negative prompt are made.
///
/// Both are padded to the longer of the two, rounded up to a multiple of 8 and at most
/// `max_length`, instead of always to `max_length`. The picture is the same: padded positions have no
/// weight in the encoder, T5's position bias depends on distances alone, and the transformer
/// does not attend to them either. With [`UncondMask::Caption`] the unconditional half attends with
/// the *positive* prompt's mask, hence to what T5 makes of padded positions of the negative prompt;
/// these positions are computed here too because both prompts are padded to one length.
pub(super) fn padded_length(rows: &[&[i64]], max_length: usize) -> usize {
    let longest = rows.iter().map(|row| row.len()).max().unwrap_or(0);
    longest.next_multiple_of(LENGTH_MULTIPLE).min(max_length).max(longest)
}

/// Where the transformer may attend.
pub(super) fn mask(ids: &PromptIds, length: usize, uncond_mask: UncondMask) -> Tensor {
    let lengths: Vec<usize> = match uncond_mask {
        UncondMask::Caption => ids.rows().iter().map(|_| ids.positive.len()).collect(),
        UncondMask::Own => ids.rows().iter().map(|row| row.len()).collect(),
    };
    Array2::from_shape_fn((lengths.len(), length), |(b, i)| i64::from(i < lengths[b])).into()
}

/// The rows of one caption, and how many tokens they are padded to.
pub(super) struct Padded<'a> {
    pub rows: Vec<&'a [i64]>,
    pub length: usize,
}

/// Runs the text encoder on the rows of each caption, padded with `pad`: f32 [rows, length, width] each. An
/// encoder for which few sizes should occur computes `most` tokens, of which the rest is cut off again.
///
/// # Errors
/// When the engine fails, or the embeddings are not finite.
pub(super) fn embed(
    encoder: &mut LoadedComponent<'_>,
    captions: &[Padded<'_>],
    pad: i64,
    most: usize,
) -> Result<Vec<ArrayD<f32>>, PipelineError> {
    let per_size = encoder.compiles_per_size();
    let computed = |length: usize| if per_size { most.max(length) } else { length };
    let inputs = |Padded { rows, length }: &Padded<'_>| {
        let shape = (rows.len(), computed(*length));
        let ids = Array2::from_shape_fn(shape, |(b, i)| rows[b].get(i).copied().unwrap_or(pad));
        let own_mask = Array2::from_shape_fn(shape, |(b, i)| i64::from(i < rows[b].len()));
        vec![("input_ids", Tensor::from(ids)), ("attention_mask", own_mask.into())]
    };
    let inputs: Vec<_> = captions.iter().map(inputs).collect();
    let mut all = encoder.run_each(&inputs, "last_hidden_state")?;
    for (embeddings, Padded { length, .. }) in all.iter_mut().zip(captions) {
        let computed = computed(*length);
        if computed > *length && embeddings.ndim() == 3 && embeddings.shape()[1] == computed {
            *embeddings = embeddings.slice_axis(Axis(1), Slice::from(..*length)).to_owned();
        }
        encoder.check_finite(embeddings, None)?;
    }
    Ok(all)
}
