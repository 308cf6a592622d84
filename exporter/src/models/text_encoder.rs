//! The T5 v1.1 encoder (`T5EncoderModel`), arXiv 1910.10683.
//!
//! Names are those of the transformers checkpoint.

use crate::graph::dim::Dim;
use crate::graph::ir::{DType, Graph};
use crate::graph::{GraphBuilder, GraphError, GraphErrorKind, Value};
use crate::naming::TextEncoderConfig;
use crate::profile::{Attention, Profile};

/// Largest distance for which a table of buckets is made (a megabyte).
const MAX_DISTANCE: usize = 1 << 16;

/// The graph: `input_ids[batch_size, sequence_length]`, `attention_mask[batch_size,
/// sequence_length]` (1 keep, 0 padding) → `last_hidden_state[batch_size, sequence_length, d_model]`.
pub fn build(config: &TextEncoderConfig, profile: Profile) -> Result<Graph, GraphError> {
    let mut graph = GraphBuilder::new("text_encoder", profile);
    let b = &mut graph;
    let batch = Dim::symbol("batch_size");
    let length = Dim::symbol("sequence_length");
    let tokens = vec![batch.clone(), length.clone()];
    let ids = b.input("input_ids", DType::I64, tokens.clone())?;
    let mask = b.input("attention_mask", DType::I64, tokens)?;

    let mut x = b.scoped("shared", |b| {
        let table = b.weight("weight", &[config.vocab_size, config.d_model])?;
        b.gather(&table, &ids)
    })?;
    let positions = position_bias(b, config, &length)?;
    let bias = b.scoped("attention_mask", |b| {
        let padding = padding_bias(b, &mask)?;
        b.add(&positions, &padding)
    })?;
    for layer in 0..config.num_layers {
        x = b.scoped(&format!("encoder.block.{layer}"), |b| block(b, config, &x, &bias))?;
    }
    let x = b.rms_norm("encoder.final_layer_norm", &x, config.layer_norm_epsilon)?;

    b.output("last_hidden_state", &x, DType::F32, &[batch, length, config.d_model.into()])?;
    Ok(graph.finish())
}

/// 1 → 0, 0 → the most negative number, as `[batch, 1, 1, length]`.
fn padding_bias(b: &mut GraphBuilder, mask: &Value) -> Result<Value, GraphError> {
    let keep = b.cast(mask, DType::Bool)?;
    let (zero, masked) = (b.scalar_f32(0.0), b.scalar_f32(f32::MIN));
    let bias = b.select(&keep, &zero, &masked)?;
    b.unsqueeze(&bias, &[1, 2])
}

/// The learned bias of every pair of positions, `[1, heads, length, length]`; all blocks use the
/// table that is stored in the first.
fn position_bias(
    b: &mut GraphBuilder,
    config: &TextEncoderConfig,
    length: &Dim,
) -> Result<Value, GraphError> {
    b.scoped("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", |b| {
        let position = b.range(length)?;
        let query = b.unsqueeze(&position, &[1])?;
        let distance = b.sub(&position, &query)?;

        // Beyond the largest distance nothing changes, so a table of the buckets is finite; being
        // made here, it does not depend on how an engine rounds logarithms.
        let (count, reach) =
            (config.relative_attention_num_buckets, config.relative_attention_max_distance);
        if count < 4 || reach <= count / 4 || reach > MAX_DISTANCE {
            let expected = format!(
                "at least 4 buckets and a largest distance above a quarter of them, at most \
                 {MAX_DISTANCE}; not {count} buckets up to {reach}"
            );
            return b.fail(GraphErrorKind::Size, "relative position", &[&distance], expected);
        }
        let (count, reach) = (count as i64, reach as i64);
        let buckets: Vec<i64> = (-reach..=reach).map(|d| bucket(d, count, reach)).collect();
        let buckets = b.constant_i64(&buckets);
        let (low, high) = (b.scalar_i64(-reach), b.scalar_i64(reach));
        let distance = b.max(&distance, &low)?;
        let distance = b.min(&distance, &high)?;
        let row = b.add(&distance, &high)?;
        let bucket = b.gather(&buckets, &row)?;

        let shape = [config.relative_attention_num_buckets, config.num_heads];
        let table = b.weight("weight", &shape)?;
        let bias = b.gather(&table, &bucket)?;
        let bias = b.transpose(&bias, &[2, 0, 1])?;
        b.unsqueeze(&bias, &[0])
    })
}

/// The bucket of a distance (key minus query): half of the buckets for each sign, the nearer half
/// of those exact, the rest logarithmic up to `max_distance`. Rounded as in float32, like the
/// reference.
fn bucket(distance: i64, num_buckets: i64, max_distance: i64) -> i64 {
    let half = num_buckets / 2;
    let sign = if distance > 0 { half } else { 0 };
    let distance = distance.abs();
    let exact = half / 2;
    if distance < exact {
        return sign + distance;
    }
    let octaves = (max_distance as f64 / exact as f64).ln() as f32;
    let position = (distance as f32 / exact as f32).ln() / octaves * (half - exact) as f32;
    sign + (exact + position as i64).min(half - 1)
}

/// One block: self-attention, then the gated feed-forward layer, each behind a norm.
fn block(
    b: &mut GraphBuilder,
    config: &TextEncoderConfig,
    x: &Value,
    bias: &Value,
) -> Result<Value, GraphError> {
    let x = b.scoped("layer.0", |b| {
        let normal = b.rms_norm("layer_norm", x, config.layer_norm_epsilon)?;
        let mixed = self_attention(b, config, &normal, bias)?;
        b.add(x, &mixed)
    })?;
    b.scoped("layer.1", |b| {
        let normal = b.rms_norm("layer_norm", &x, config.layer_norm_epsilon)?;
        let mixed = feed_forward(b, config, &normal)?;
        b.add(&x, &mixed)
    })
}

fn self_attention(
    b: &mut GraphBuilder,
    config: &TextEncoderConfig,
    x: &Value,
    bias: &Value,
) -> Result<Value, GraphError> {
    let inner = config.num_heads * config.d_kv;
    b.scoped("SelfAttention", |b| {
        let query = b.linear("q", x, inner, false)?;
        let key = b.linear("k", x, inner, false)?;
        let value = b.linear("v", x, inner, false)?;
        // T5 does not scale the scores; its initialisation makes up for that.
        let attention = Attention { heads: config.num_heads, scale: Some(1.0), bias: Some(bias) };
        let mixed = b.attention(&query, &key, &value, &attention)?;
        b.linear("o", &mixed, config.d_model, false)
    })
}

fn feed_forward(
    b: &mut GraphBuilder,
    config: &TextEncoderConfig,
    x: &Value,
) -> Result<Value, GraphError> {
    b.scoped("DenseReluDense", |b| {
        let gate = b.linear("wi_0", x, config.d_ff, false)?;
        let gate = b.gelu_tanh(&gate)?;
        let linear = b.linear("wi_1", x, config.d_ff, false)?;
        let x = b.mul(&gate, &linear)?;
        b.linear("wo", &x, config.d_model, false)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distances at which transformers' function goes to the next bucket.
    #[test]
    fn buckets_change_where_they_do_in_the_reference() {
        let cases: [(i64, i64, &[i64]); 4] = [
            (32, 128, &[1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]),
            (32, 64, &[1, 2, 3, 4, 5, 6, 7, 8, 11, 14, 18, 23, 30, 39, 50]),
            (16, 50, &[1, 2, 3, 4, 8, 15, 27]),
            (12, 40, &[1, 2, 3, 8, 17]),
        ];
        for (buckets, reach, expected) in cases {
            let of = |distance| bucket(distance, buckets, reach);
            for sign in [-1, 1] {
                let changes: Vec<i64> = (1..2 * reach)
                    .filter(|d| (of(sign * d) - of(sign * (d - 1))) % (buckets / 2) != 0)
                    .collect();
                assert_eq!(changes, expected, "{buckets} buckets up to {reach}");
            }
            assert_eq!(of(0), 0);
            assert_eq!(of(1), buckets / 2 + 1);
            assert_eq!(of(reach), buckets - 1);
            assert_eq!(of(-reach), buckets / 2 - 1);
        }
    }
}
