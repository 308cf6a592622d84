//! Attention in portions of the queries, so that memory does not grow with the square of the size.
//!
//! The standard operators have no fused attention that every engine runs, and the scores of all
//! queries at once take `16·N²·4` bytes per picture: 34 GB at 2048 px. A `Scan` takes the queries in
//! as many portions as it needs to keep `queries·keys` of one portion below [`MAX_SCORES`]; up to
//! 1024 tokens that is one portion, which costs nothing.
//!
//! Measured on ONNX Runtime's CPU provider, two DiT-XL/2 blocks, batch of 2: the same time and memory
//! as its fused attention up to 4096 tokens (7.6 against 7.4 s, 0.99 against 0.98 GB), 15 % more time
//! at 9216 tokens.

use super::attention::Sizes;
use crate::graph::dim::Dim;
use crate::graph::ir::{Attribute, DType};
use crate::graph::{GraphBuilder, GraphError, Value};

/// Scores that one head computes at a time: 4 MiB, which a processor's cache holds. Four times as
/// many took 25 % more time at 4096 tokens, and more than twice the memory.
const MAX_SCORES: i64 = 1 << 20;

impl GraphBuilder {
    /// `softmax(q·kᵀ·scale + bias)·v`, the bias being the same for every query.
    pub(super) fn chunked_attention(
        &mut self,
        query: &Value,
        key: &Value,
        value: &Value,
        bias: Option<&Value>,
        scale: f64,
        sizes: &Sizes,
    ) -> Result<Value, GraphError> {
        let (chunks, length) = self.query_chunks(&sizes.queries, &sizes.keys)?;
        let Sizes { batch, heads, head_dim, width, .. } = sizes;
        let key = self.split_heads(key, sizes, [0, 2, 3, 1])?;
        let value = self.split_heads(value, sizes, [0, 2, 1, 3])?;

        // The portions are of one length; zeros fill the last one and are cut off at the end.
        let padded = &chunks * &length;
        let query = self.pad_end(query, 1, &padded)?;
        let shape = [batch, &chunks, &length, heads, head_dim].map(Dim::clone);
        let query = self.reshape(&query, &shape)?;
        let query = self.transpose(&query, &[1, 0, 3, 2, 4])?;

        let part = query.shape()[1..].to_vec();
        let body = self.body("chunk", vec![("query", DType::F32, part)], |b, inputs| {
            Ok(vec![b.attend(&inputs[0], &key, &value, bias, scale)?])
        })?;
        let attributes =
            vec![("num_scan_inputs", Attribute::Int(1)), ("body", Attribute::Graph(body.into()))];
        let shape = query.shape().to_vec();
        let mixed = self.push("Scan", &[&query], attributes, DType::F32, shape);

        let mixed = self.transpose(&mixed, &[1, 0, 3, 2, 4])?;
        let mixed = self.reshape(&mixed, &[batch.clone(), padded, width.clone()])?;
        self.take(&mixed, 1, &sizes.queries)
    }

    /// Number and length of the portions for so many queries and keys, computed once a graph.
    fn query_chunks(&mut self, queries: &Dim, keys: &Dim) -> Result<(Dim, Dim), GraphError> {
        let pair = (queries.clone(), keys.clone());
        if let Some(chunks) = self.query_chunks.get(&pair) {
            return Ok(chunks.clone());
        }
        let index = self.query_chunks.len();
        let chunks = self.at_root("sizes", |b| {
            let scores = b.size(&(queries * keys))?;
            let most = b.constant_i64(&[MAX_SCORES]);
            let chunks = b.div_ceil(&scores, &most)?;
            let count = b.size(queries)?;
            let length = b.div_ceil(&count, &chunks)?;
            let chunks = b.name_size(&format!("query_chunks_{index}"), &chunks)?;
            let length = b.name_size(&format!("queries_per_chunk_{index}"), &length)?;
            Ok((chunks, length))
        })?;
        self.query_chunks.insert(pair, chunks.clone());
        Ok(chunks)
    }

    /// `⌈a / b⌉` of positive integers.
    fn div_ceil(&mut self, a: &Value, b: &Value) -> Result<Value, GraphError> {
        let one = self.constant_i64(&[1]);
        let less = self.sub(b, &one)?;
        let sum = self.add(a, &less)?;
        self.div(&sum, b)
    }
}
