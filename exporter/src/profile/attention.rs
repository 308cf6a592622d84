//! Multi-head attention.

use super::Profile;
use crate::graph::dim::Dim;
use crate::graph::ir::{Attribute, DType};
use crate::graph::{GraphBuilder, GraphError, GraphErrorKind, Value};

/// What an attention layer computes: `softmax(q·kᵀ·scale + bias)·v` in each head.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Number of heads; the widths of queries, keys and values are shared out evenly.
    pub heads: usize,
    /// Factor of the scores; `None` is the usual `1/√(head width)`.
    pub scale: Option<f64>,
    /// Added to the scores; broadcasts to `[batch, heads, queries, keys]`.
    pub bias: Option<&'a Value>,
}

/// Sizes of the operands of one attention layer, checked.
pub(super) struct Sizes {
    pub batch: Dim,
    pub queries: Dim,
    pub keys: Dim,
    pub heads: Dim,
    pub head_dim: Dim,
    pub width: Dim,
}

impl GraphBuilder {
    /// Attention of `query[batch, queries, width]` over `key` and `value[batch, keys, width]`;
    /// the result has the query's shape.
    pub fn attention(
        &mut self,
        query: &Value,
        key: &Value,
        value: &Value,
        attention: &Attention,
    ) -> Result<Value, GraphError> {
        let sizes = self.attention_sizes(query, key, value, attention)?;
        let scale = match (attention.scale, sizes.head_dim.as_const()) {
            (Some(scale), _) => scale,
            (None, Some(head_dim)) => 1.0 / (head_dim as f64).sqrt(),
            (None, None) => {
                let expected = "a head width that is constant, or an explicit scale";
                return self.fail(GraphErrorKind::Size, "Attention", &[query], expected);
            }
        };
        match (self.profile(), attention.bias) {
            // Flash kernels on every provider, as long as there is no bias.
            (Profile::Ort, None) => {
                let attributes = vec![
                    ("num_heads", Attribute::Int(attention.heads as i64)),
                    ("scale", Attribute::Float(scale as f32)),
                ];
                let shape = query.shape().to_vec();
                let inputs = [query, key, value];
                let op = "MultiHeadAttention";
                Ok(self.push_microsoft(op, &inputs, attributes, DType::F32, shape))
            }
            (Profile::Portable, bias) if bias.is_none_or(same_for_all_queries) => {
                self.chunked_attention(query, key, value, bias, scale, &sizes)
            }
            (_, bias) => self.plain_attention(query, key, value, bias, scale, &sizes),
        }
    }

    fn attention_sizes(
        &self,
        query: &Value,
        key: &Value,
        value: &Value,
        attention: &Attention,
    ) -> Result<Sizes, GraphError> {
        let op = "Attention";
        let operands = [query, key, value];
        for operand in operands {
            self.expect_dtype(op, operand, DType::F32)?;
            self.expect_rank(op, operand, 3)?;
        }
        if key.shape() != value.shape()
            || query.shape()[0] != key.shape()[0]
            || query.shape()[2] != key.shape()[2]
        {
            let expected = "query [batch, queries, width], key and value [batch, keys, width]";
            return self.fail(GraphErrorKind::Size, op, &operands, expected);
        }
        let heads = Dim::from(attention.heads);
        let Some(head_dim) = query.shape()[2].exact_div(&heads) else {
            let expected = format!("a width that {} heads share evenly", attention.heads);
            return self.fail(GraphErrorKind::Divisibility, op, &[query], expected);
        };
        let sizes = Sizes {
            batch: query.shape()[0].clone(),
            queries: query.shape()[1].clone(),
            keys: key.shape()[1].clone(),
            heads,
            head_dim,
            width: query.shape()[2].clone(),
        };
        if let Some(bias) = attention.bias {
            let scores = [&sizes.batch, &sizes.heads, &sizes.queries, &sizes.keys].map(Dim::clone);
            let operands = [query, key, bias];
            if self.broadcast(op, &operands, &scores, bias.shape())? != scores {
                let expected = "a bias that broadcasts to [batch, heads, queries, keys]";
                return self.fail(GraphErrorKind::Broadcast, op, &operands, expected);
            }
        }
        Ok(sizes)
    }

    /// The scores of all queries at once.
    fn plain_attention(
        &mut self,
        query: &Value,
        key: &Value,
        value: &Value,
        bias: Option<&Value>,
        scale: f64,
        sizes: &Sizes,
    ) -> Result<Value, GraphError> {
        let query = self.split_heads(query, sizes, [0, 2, 1, 3])?;
        let key = self.split_heads(key, sizes, [0, 2, 3, 1])?;
        let value = self.split_heads(value, sizes, [0, 2, 1, 3])?;
        let mixed = self.attend(&query, &key, &value, bias, scale)?;
        let mixed = self.transpose(&mixed, &[0, 2, 1, 3])?;
        let Sizes { batch, queries, width, .. } = sizes;
        self.reshape(&mixed, &[batch.clone(), queries.clone(), width.clone()])
    }

    /// `[batch, length, width]` as `[batch, length, heads, head_dim]`, axes reordered.
    pub(super) fn split_heads(
        &mut self,
        x: &Value,
        sizes: &Sizes,
        order: [usize; 4],
    ) -> Result<Value, GraphError> {
        let Sizes { batch, heads, head_dim, .. } = sizes;
        let length = x.shape()[1].clone();
        let x = self.reshape(x, &[batch.clone(), length, heads.clone(), head_dim.clone()])?;
        self.transpose(&x, &order)
    }

    /// `softmax(q·k·scale + bias)·v` for `q[…, queries, head_dim]`, `k[…, head_dim, keys]`,
    /// `v[…, keys, head_dim]`.
    pub(super) fn attend(
        &mut self,
        query: &Value,
        key: &Value,
        value: &Value,
        bias: Option<&Value>,
        scale: f64,
    ) -> Result<Value, GraphError> {
        let mut query = query.clone();
        if scale != 1.0 {
            // Scaling the queries touches fewer numbers than scaling the scores.
            let scale = self.scalar_f32(scale as f32);
            query = self.mul(&query, &scale)?;
        }
        let mut scores = self.matmul(&query, key)?;
        if let Some(bias) = bias {
            scores = self.add(&scores, bias)?;
        }
        let weights = self.softmax(&scores)?;
        self.matmul(&weights, value)
    }
}

/// Whether a bias is the same for every query, so that queries can be taken in any portions.
fn same_for_all_queries(bias: &Value) -> bool {
    let rank = bias.rank();
    rank < 2 || bias.shape()[rank - 2].is(1)
}
