//! A shorter model out of a long one: its first and last blocks, and everything around them.
//!
//! A text encoder with 24 blocks is too large to be run twice just to see whether its weights survived
//! a conversion, and its blocks are all of one kind. The graph without the blocks in the middle is
//! made from the graph itself, so it is right for every profile, precision and variant.

use std::collections::{HashMap, HashSet};

use super::ir::{Attribute, Graph, Node};

/// The blocks of a graph: nodes named `<prefix><index>.…` or `<prefix><index>/…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    prefix: &'static str,
    /// How many there are.
    pub count: usize,
}

/// How the blocks of the known architectures are named.
const PREFIXES: [&str; 2] = ["transformer_blocks.", "encoder.block."];

impl Blocks {
    /// The blocks of `graph`; `None` if it does not consist of blocks.
    pub fn of(graph: &Graph) -> Option<Self> {
        PREFIXES.into_iter().find_map(|prefix| {
            let indexes = graph.nodes.iter().filter_map(|node| index(prefix, &node.name));
            let count = indexes.max()? + 1;
            (count > 1).then_some(Self { prefix, count })
        })
    }

    /// Index of the block that a name of a node or initializer belongs to.
    pub fn index(&self, name: &str) -> Option<usize> {
        index(self.prefix, name)
    }
}

fn index(prefix: &str, name: &str) -> Option<usize> {
    // A layer or weight inside the block, or an operator of the block itself.
    name.strip_prefix(prefix)?.split_once(['.', '/'])?.0.parse().ok()
}

/// How many blocks are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    /// At the beginning, at least one.
    pub first: usize,
    /// At the end.
    pub last: usize,
}

/// The graph with only the blocks at its ends: what leaves the first ones goes straight into the last
/// ones. `None` where that leaves nothing out, or where the blocks are not a chain.
pub(crate) fn ends(graph: &Graph, blocks: &Blocks, kept: Ends) -> Option<Graph> {
    let Ends { first, last } = kept;
    if first == 0 || first + last >= blocks.count {
        return None;
    }
    // A block is built in one go, and the last thing it does is to compute what it passes on.
    let result = |block: usize| {
        let last = graph.nodes.iter().rposition(|node| blocks.index(&node.name) == Some(block))?;
        match graph.nodes[last].outputs.as_slice() {
            [output] => Some((last, output.clone())),
            _ => None,
        }
    };
    let (_, from) = result(first - 1)?;
    let (end, to) = result(blocks.count - last - 1)?;
    let mut graph = graph.clone();
    let rest = graph.nodes[end + 1..].iter_mut();
    if rest.map(|node| rename(node, &to, &from)).sum::<usize>() == 0 {
        return None;
    }
    prune(&mut graph);
    let left: HashSet<usize> =
        graph.nodes.iter().filter_map(|node| blocks.index(&node.name)).collect();
    let is_kept = |block: usize| block < first || block >= blocks.count - last;
    // The sizes that a block in the middle was the first to need may stay; its weights must not.
    let mut weights = graph.initializers.iter().filter_map(|weight| blocks.index(&weight.name));
    let complete = (0..blocks.count).filter(|&b| is_kept(b)).all(|block| left.contains(&block));
    (complete && weights.all(is_kept)).then_some(graph)
}

/// Lets a node, and the graphs inside it, read `to` where they read `from`; returns how often.
fn rename(node: &mut Node, from: &str, to: &str) -> usize {
    let mut count = 0;
    for input in node.inputs.iter_mut().filter(|input| *input == from) {
        to.clone_into(input);
        count += 1;
    }
    for (_, attribute) in &mut node.attributes {
        if let Attribute::Graph(body) = attribute {
            count += body.nodes.iter_mut().map(|node| rename(node, from, to)).sum::<usize>();
        }
    }
    count
}

impl Graph {
    /// Removes the nodes and initializers that no output depends on. The inputs stay.
    pub fn prune(&mut self) {
        prune(self);
    }
}

fn prune(graph: &mut Graph) {
    let mut producers = HashMap::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        producers.extend(node.outputs.iter().map(|output| (output.as_str(), index)));
    }
    let mut needed = HashSet::new();
    let mut read: HashSet<String> = HashSet::new();
    let mut open: Vec<String> = graph.outputs.iter().map(|output| output.name.clone()).collect();
    while let Some(name) = open.pop() {
        if let Some(&index) = producers.get(name.as_str())
            && needed.insert(index)
        {
            inputs(&graph.nodes[index], &mut open);
        }
        read.insert(name);
    }
    let mut index = 0;
    graph.nodes.retain(|_| {
        index += 1;
        needed.contains(&(index - 1))
    });
    graph.initializers.retain(|initializer| read.contains(&initializer.name));
}

/// The values that a node reads, and those that the graphs inside it read. A body's own values are
/// among them; nothing outside has their names.
fn inputs(node: &Node, into: &mut Vec<String>) {
    into.extend(node.inputs.iter().filter(|input| !input.is_empty()).cloned());
    for (_, attribute) in &node.attributes {
        if let Attribute::Graph(body) = attribute {
            into.extend(body.outputs.iter().map(|output| output.name.clone()));
            body.nodes.iter().for_each(|node| inputs(node, into));
        }
    }
}
