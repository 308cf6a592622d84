//! What the transformer is told besides latents and time.

use ndarray::{ArrayD, ArrayViewD, Axis, Slice, concatenate};

use crate::{size::LATENT_SCALE, tensor::Tensor, text::Conditioning};

/// What stays the same from step to step of the transformer's inputs, for `halves` rows a picture: first all
/// unconditional ones, if there are two, then all prompts.
///
/// Captions of different lengths, and of less than `least` tokens, are padded with zeros, to which nobody attends.
pub(super) fn constant_inputs(
    captions: &[&Conditioning],
    halves: usize,
    latent_size: Option<(usize, usize)>,
    least: usize,
) -> Vec<(&'static str, Tensor)> {
    let batch = halves * captions.len();
    let longest = captions.iter().map(|caption| caption.mask.shape()[1]).max().unwrap_or(0);
    let length = longest.max(least);
    let mut embeddings = Vec::with_capacity(batch);
    let mut masks = Vec::with_capacity(batch);
    for half in (0..halves).rev() {
        for caption in captions {
            embeddings.push(padded(row_from_end(caption.embeddings.as_f32(), half), length));
            masks.push(padded(row_from_end(caption.mask.as_i64(), half), length));
        }
    }
    let mut inputs = vec![
        ("encoder_hidden_states", stacked(&embeddings).into()),
        ("encoder_attention_mask", stacked(&masks).into()),
    ];
    if let Some((height, width)) = latent_size {
        inputs.extend(size_inputs(batch, (height, width)));
    }
    inputs
}

/// What a transformer with size conditions is told about a picture of this latent height and width, for so many
/// rows: f32 `resolution` \[rows, 2\], height and width in pixels, and `aspect_ratio` \[rows, 1\], height to width.
pub fn size_inputs(rows: usize, (height, width): (usize, usize)) -> [(&'static str, Tensor); 2] {
    let scale = LATENT_SCALE as f32;
    let (height, width) = (scale * height as f32, scale * width as f32);
    let sizes = [height, width].repeat(rows);
    let sizes = ArrayD::from_shape_vec(vec![rows, 2], sizes).expect("two numbers a row");
    let ratios = ArrayD::from_elem(vec![rows, 1], height / width);
    [("resolution", sizes.into()), ("aspect_ratio", ratios.into())]
}

/// The last entry but `before` along the first dimension; the prompt's half is always the last.
fn row_from_end<T>(values: Option<&ArrayD<T>>, before: usize) -> ArrayViewD<'_, T> {
    let values = values.expect("captions have the types they were made with");
    let row = values.shape()[0] - 1 - before;
    values.slice_axis(Axis(0), Slice::from(row..=row))
}

/// The same with zeros behind it along the second dimension, up to `length`.
fn padded<T: Clone + Default>(row: ArrayViewD<'_, T>, length: usize) -> ArrayD<T> {
    let mut shape = row.shape().to_vec();
    let own = std::mem::replace(&mut shape[1], length);
    let mut padded = ArrayD::default(shape);
    padded.slice_axis_mut(Axis(1), Slice::from(..own)).assign(&row);
    padded
}

fn stacked<T: Clone>(rows: &[ArrayD<T>]) -> ArrayD<T> {
    let views: Vec<_> = rows.iter().map(|row| row.view()).collect();
    concatenate(Axis(0), &views).expect("padded rows have one shape")
}
