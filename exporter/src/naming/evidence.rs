//! What the tensors themselves say about an architecture.

use std::collections::BTreeSet;
use std::path::Path;

use crate::checkpoint::Checkpoint;

/// The file of a checkpoint, or its folder if it has several.
pub(super) fn place(checkpoint: &Checkpoint) -> &Path {
    match checkpoint.shards() {
        [single] => single.path(),
        _ => checkpoint.folder(),
    }
}

/// Size of one axis of a tensor of known rank, with the sentence that says where it is from.
/// `None` when there is no such tensor or it has another rank: then the check of all shapes, which
/// comes later, reports it together with everything else.
pub(super) fn axis(
    checkpoint: &Checkpoint,
    tensor: &str,
    rank: usize,
    axis: usize,
) -> Option<(usize, String)> {
    let info = checkpoint.info(tensor).filter(|info| info.shape.len() == rank)?;
    Some((info.shape[axis], format!("{tensor} has shape {:?}", info.shape)))
}

/// The number of the layer that a tensor is in and its name there, of `<prefix><i>.<rest>`.
pub(super) fn layer<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let (index, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    Some((index.parse().ok()?, rest))
}

/// Number of layers: one more than the highest `i` among the names `<prefix><i>.<rest>`.
pub(super) fn depth(checkpoint: &Checkpoint, prefix: &str) -> Option<(usize, String)> {
    // A number this high is no layer; it also keeps the graph from exploding.
    const MAX_DEPTH: usize = 1024;
    let highest = checkpoint
        .names()
        .filter_map(|name| Some(layer(name, prefix)?.0))
        .filter(|&index| index < MAX_DEPTH)
        .max()?;
    Some((highest + 1, format!("the last layer is {prefix}{highest}")))
}

/// The first tensor whose name contains one of these pieces.
pub(super) fn containing<'a>(checkpoint: &'a Checkpoint, pieces: &[&str]) -> Option<&'a str> {
    checkpoint.names().find(|name| pieces.iter().any(|piece| name.contains(piece)))
}

/// Whether this is a model that has no weights yet.
pub(super) fn is_empty(checkpoint: &Checkpoint) -> bool {
    checkpoint.names().next().is_none()
}

/// How many different `i` the names `<prefix><i>.<rest>` have.
pub(super) fn count(checkpoint: &Checkpoint, prefix: &str) -> usize {
    let indexes: BTreeSet<&str> = checkpoint
        .names()
        .filter_map(|name| Some(name.strip_prefix(prefix)?.split_once('.')?.0))
        .collect();
    indexes.len()
}
