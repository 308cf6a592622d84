//! Attention in portions, so that memory does not grow with the square of the size.
//!
//! The standard operators have no fused attention that every engine runs, and all scores at once
//! take `16·N²·4` bytes per picture: 17 GB at 2048 px. Where they are many, a `Scan` takes one head
//! at a time and of its queries a portion, which needs a few megabytes; where they are few, all heads
//! are one portion, which costs nothing.
//!
//! Measured with two DiT-XL/2 blocks and a batch of 2, processor seconds of one thread: ONNX Runtime's
//! time is that of portions of the queries alone, tract's a third of it at 4096 tokens. Four times as
//! many scores at once took a fifth more memory and time at 1024 tokens.

use super::attention::Sizes;
use crate::graph::dim::Dim;
use crate::graph::ir::{Attribute, DType};
use crate::graph::{GraphBuilder, GraphError, Value};

/// Up to so many scores in all heads are computed at once: 32 MiB.
const MAX_AT_ONCE: i64 = 1 << 23;

/// Scores of a portion: 8 MiB, which stay in a processor's cache.
const MAX_PORTION: i64 = 1 << 21;

/// A portion has at least so many queries for each number of a key. Engines arrange the keys and
/// values of a head anew for every portion, and this keeps that small against the products.
const MIN_QUERIES: i64 = 2;

/// How the work of an attention layer is cut. All are sizes of the graph.
#[derive(Clone, Debug)]
pub(crate) struct Portions {
    /// Number of groups of heads, all pictures of the batch together, and heads in a group: either
    /// several groups of one head each, or one group of all heads, with one portion.
    ///
    /// A layer that has one head has no groups and computes the batch together.
    groups: Option<(Dim, Dim)>,
    /// Portions of the queries of a group.
    count: Dim,
    /// Queries in a portion; the last one is filled up with zeros.
    length: Dim,
}

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
        let portions = self.portions(sizes)?;
        let count = &portions.count;
        let [key, value] = self.groups_of_keys(key, value, sizes, &portions)?;
        let bias = match bias {
            None => None,
            Some(bias) => {
                let Sizes { batch, heads, keys, .. } = sizes;
                let one = Dim::from(1);
                let bias = self.expand(bias, &[batch, heads, &one, keys].map(Dim::clone))?;
                Some(match &portions.groups {
                    None => self.regroup(&bias, &[batch, &one, keys])?,
                    Some((groups, together)) => {
                        self.regroup(&bias, &[groups, together, &one, keys])?
                    }
                })
            }
        };
        let query = self.portions_of_queries(query, sizes, &portions)?;

        let mut inputs = vec![("query", DType::F32, query.shape()[1..].to_vec())];
        let mut operands = vec![query];
        if portions.groups.is_some() {
            let items = operands[0].shape()[0].clone();
            operands.push(self.group_of_each(&items, count)?);
            inputs.push(("group", DType::F32, vec![]));
        }
        let body = self.body("portion", inputs, |b, inputs| {
            let group = inputs.get(1).map(|group| b.cast(group, DType::I64)).transpose()?;
            let of_group = |b: &mut Self, x: Value| match &group {
                Some(group) => b.gather(&x, group),
                None => Ok(x),
            };
            let (key, value) = (of_group(b, key)?, of_group(b, value)?);
            let bias = bias.map(|bias| of_group(b, bias)).transpose()?;
            Ok(vec![b.attend(&inputs[0], &key, &value, bias.as_ref(), scale)?])
        })?;
        let scanned = operands.len() as i64;
        let attributes = vec![
            ("num_scan_inputs", Attribute::Int(scanned)),
            ("body", Attribute::Graph(body.into())),
        ];
        let shape = operands[0].shape().to_vec();
        let operands: Vec<&Value> = operands.iter().collect();
        let mixed = self.push("Scan", &operands, attributes, DType::F32, shape);

        self.whole_queries(&mixed, sizes, &portions)
    }

    /// `key` as `[group, heads, head_dim, keys]` and `value` as `[group, heads, keys, head_dim]`, the
    /// heads of the whole batch; without groups, neither has that axis.
    fn groups_of_keys(
        &mut self,
        key: &Value,
        value: &Value,
        sizes: &Sizes,
        portions: &Portions,
    ) -> Result<[Value; 2], GraphError> {
        let Sizes { keys, head_dim, .. } = sizes;
        let Some((groups, together)) = &portions.groups else {
            return Ok([self.transpose(key, &[0, 2, 1])?, value.clone()]);
        };
        let key = self.split_heads(key, sizes, [0, 2, 3, 1])?;
        let value = self.split_heads(value, sizes, [0, 2, 1, 3])?;
        Ok([
            self.regroup(&key, &[groups, together, head_dim, keys])?,
            self.regroup(&value, &[groups, together, keys, head_dim])?,
        ])
    }

    /// The queries as `[item, heads, queries of a portion, head_dim]`, the portions of one group one
    /// after the other.
    fn portions_of_queries(
        &mut self,
        query: &Value,
        sizes: &Sizes,
        portions: &Portions,
    ) -> Result<Value, GraphError> {
        let Sizes { batch, heads, head_dim, width, .. } = sizes;
        let Portions { groups, count, length } = portions;
        let query = self.pad_end(query, 1, &(count * length))?;
        let Some((groups, together)) = groups else {
            let split = [batch, count, length, width].map(Dim::clone);
            let query = self.reshape(&query, &split)?;
            return self.transpose(&query, &[1, 0, 2, 3]);
        };
        let split = [batch, count, length, heads, head_dim].map(Dim::clone);
        let query = self.reshape(&query, &split)?;
        let query = self.transpose(&query, &[0, 3, 1, 2, 4])?;
        self.regroup(&query, &[&(groups * count), together, length, head_dim])
    }

    /// What [`Self::portions_of_queries`] did to the queries, undone for the result.
    fn whole_queries(
        &mut self,
        mixed: &Value,
        sizes: &Sizes,
        portions: &Portions,
    ) -> Result<Value, GraphError> {
        let Sizes { batch, heads, head_dim, width, queries, .. } = sizes;
        let Portions { groups, count, length } = portions;
        let mixed = if groups.is_none() {
            self.transpose(mixed, &[1, 0, 2, 3])?
        } else {
            let mixed = self.regroup(mixed, &[batch, heads, count, length, head_dim])?;
            self.transpose(&mixed, &[0, 2, 3, 1, 4])?
        };
        let mixed = self.reshape(&mixed, &[batch.clone(), count * length, width.clone()])?;
        self.take(&mixed, 1, queries)
    }

    /// The group that each item belongs to, `count` to a group.
    fn group_of_each(&mut self, items: &Dim, count: &Dim) -> Result<Value, GraphError> {
        let index = self.range(items)?;
        let count = self.size(count)?;
        let group = self.div(&index, &count)?;
        // tract has an integer type of its own for what comes of sizes, which a body cannot take.
        self.cast(&group, DType::F32)
    }

    /// `x` under another shape of as many elements, which holds by the choice of the portions but
    /// cannot be seen from the symbols.
    fn regroup(&mut self, x: &Value, shape: &[&Dim]) -> Result<Value, GraphError> {
        let shape: Vec<Dim> = shape.iter().map(|&dim| dim.clone()).collect();
        let target = self.sizes(&shape)?;
        Ok(self.push("Reshape", &[x, &target], vec![], x.dtype(), shape))
    }

    /// How to cut a layer of these sizes, computed once a graph.
    fn portions(&mut self, sizes: &Sizes) -> Result<Portions, GraphError> {
        let Sizes { batch, queries, keys, heads, head_dim, .. } = sizes;
        let known = [batch * heads, queries.clone(), keys.clone(), head_dim.clone()];
        if let Some(portions) = self.portions.get(&known) {
            return Ok(portions.clone());
        }
        let index = self.portions.len();
        let portions = self.at_root("sizes", |b| {
            let [all_heads, queries, keys, head_dim] = &known;
            let one = b.constant_i64(&[1]);
            let scores = b.size(&(&(all_heads * queries) * keys))?;
            let (queries, keys) = (b.size(queries)?, b.size(keys)?);

            // 1 if everything fits at once, else 0.
            let most = b.constant_i64(&[MAX_AT_ONCE]);
            let at_once = b.div(&most, &scores)?;
            let at_once = b.min(&at_once, &one)?;

            let most = b.constant_i64(&[MAX_PORTION]);
            let most = b.div(&most, &keys)?;
            let least = b.size(&(head_dim * &Dim::from(MIN_QUERIES)))?;
            let most = b.max(&most, &least)?;
            let count = b.div_ceil(&queries, &most)?;
            let count = b.choose(&at_once, &one, &count)?;
            let length = b.div_ceil(&queries, &count)?;
            let name = |b: &mut Self, what, value| b.name_size(&format!("{what}_{index}"), value);
            let count = name(b, "portions_of_queries", &count)?;
            let length = name(b, "queries_in_portion", &length)?;
            if sizes.heads.is(1) {
                return Ok(Portions { groups: None, count, length });
            }
            let all_heads = b.size(all_heads)?;
            let together = b.choose(&at_once, &all_heads, &one)?;
            let groups = b.div(&all_heads, &together)?;
            let groups = name(b, "groups_of_heads", &groups)?;
            let together = name(b, "heads_in_group", &together)?;
            Ok(Portions { groups: Some((groups, together)), count, length })
        })?;
        self.portions.insert(known, portions.clone());
        Ok(portions)
    }

    /// `a` where `condition` is 1, `b` where it is 0.
    fn choose(&mut self, condition: &Value, a: &Value, b: &Value) -> Result<Value, GraphError> {
        let difference = self.sub(a, b)?;
        let chosen = self.mul(&difference, condition)?;
        self.add(b, &chosen)
    }

    /// `⌈a / b⌉` of positive integers.
    fn div_ceil(&mut self, a: &Value, b: &Value) -> Result<Value, GraphError> {
        let one = self.constant_i64(&[1]);
        let less = self.sub(b, &one)?;
        let sum = self.add(a, &less)?;
        self.div(&sum, b)
    }
}
