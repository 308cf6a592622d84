//! Products of many rows, a portion of the rows at a time.
//!
//! The processor's kernels multiply all rows of a thread with one strip of the weights before they go on to the next
//! strip. From some thousand rows on, as pictures of 1024 pixels have, rows and results are too many for a
//! core's cache and are read from memory for every strip. A `Scan` over portions that fit does the same work
//! in two thirds of the time (docs/performance.md), and what lies between the two products of a
//! feed-forward layer is as small as a portion.
//!
//! Engines that compile graphs, and accelerators, have no use for it: so it is done here and not in exported graphs.

use std::collections::{HashMap, HashSet};

use tract_onnx::pb::{
    AttributeProto, GraphProto, NodeProto, TensorProto, attribute_proto::AttributeType,
    tensor_proto::DataType,
};

use crate::engine::{
    model_file::{ModelFile, pictures},
    part::{declared, number, simple, uses},
};

/// Portions have more rows than this for each thread, and at most twice as many if the number of rows has enough
/// factors of two. Between 512 and 2048 rows on two threads, products are equally fast.
const LEAST_ROWS: i64 = 256;

/// Weights with fewer elements are multiplied where they stand: little is to be gained.
const LEAST_ELEMENTS: i64 = 1 << 20;

/// Numbers of portions: powers of two, which divide the rows of most pictures.
const COUNTS: u32 = 13;

/// The oldest operators with which the sizes can be computed.
const LEAST_OPSET: i64 = 15;

/// How the names of all that is added begin.
const PREFIX: &str = "pixart.portions";

/// Cuts the products of `file` whose rows are places of a picture into portions; says whether there are any.
/// `ends` are values that stay what they are because somebody else wants them.
pub(super) fn cut(file: &mut ModelFile, ends: &HashSet<&str>, threads: usize) -> bool {
    let opset = file.proto.opset_import.iter().find(|set| set.domain.is_empty());
    let recent = opset.is_some_and(|set| set.version >= LEAST_OPSET);
    match file.proto.graph.as_mut() {
        Some(graph) if recent => cut_graph(graph, ends, threads),
        _ => false,
    }
}

fn cut_graph(graph: &mut GraphProto, ends: &HashSet<&str>, threads: usize) -> bool {
    let chains = chains(graph, ends);
    if chains.is_empty() {
        return false;
    }
    let mut first: HashMap<usize, Chain> =
        chains.into_iter().map(|chain| (chain.nodes[0], chain)).collect();
    let inside: HashSet<usize> =
        first.values().flat_map(|chain| chain.nodes.iter().copied()).collect();
    let nodes = std::mem::take(&mut graph.node);
    let mut measured = HashSet::new();
    for (place, node) in nodes.iter().enumerate() {
        if let Some(chain) = first.remove(&place) {
            let input = &node.input[0];
            if measured.insert(input) {
                graph.node.extend(count_portions(input));
            }
            let members = chain.nodes.iter().map(|&place| nodes[place].clone()).collect();
            let (replacing, width) = portioned(members, input, chain.columns);
            graph.node.extend(replacing);
            graph.initializer.push(width);
        }
        if !inside.contains(&place) {
            graph.node.push(node.clone());
        }
    }
    graph.initializer.extend(shared(threads));
    // It may tell of values that are in portions now.
    graph.value_info.clear();
    true
}

/// The constants that [`count_portions`] uses.
fn shared(threads: usize) -> [TensorProto; 5] {
    let counts: Vec<i64> = (0..COUNTS).map(|k| 1 << k).collect();
    let least = LEAST_ROWS.saturating_mul(i64::try_from(threads).unwrap_or(i64::MAX));
    let rows: Vec<i64> = counts.iter().map(|count| count.saturating_mul(least)).collect();
    let shared =
        [("counts", &counts[..]), ("least", &rows), ("zero", &[0]), ("one", &[1]), ("open", &[-1])];
    shared.map(|(name, numbers)| constant(&added("all", name), numbers))
}

/// Nodes that follow one another, each of which computes every row of its input for itself.
struct Chain {
    /// Their places; the first is a product with weights.
    nodes: Vec<usize>,
    /// Numbers in a row of the result.
    columns: i64,
}

fn chains(graph: &GraphProto, ends: &HashSet<&str>) -> Vec<Chain> {
    let constants: HashMap<&str, &[i64]> = graph
        .initializer
        .iter()
        .filter(|tensor| tensor.data_type == DataType::Float as i32)
        .map(|tensor| (tensor.name.as_str(), &tensor.dims[..]))
        .collect();
    let in_pictures = of_pictures(graph);
    let mut users: HashMap<&str, Vec<usize>> = HashMap::new();
    for (place, node) in graph.node.iter().enumerate() {
        uses(node, &mut |name| users.entry(name).or_default().push(place));
    }
    let wanted: HashSet<&str> = graph.output.iter().map(|output| output.name.as_str()).collect();
    let weights = |node: &NodeProto| match (node.op_type.as_str(), &node.input[..]) {
        ("MatMul", [_, weights]) => match constants.get(weights.as_str()) {
            Some(&&[rows, columns]) => Some((rows, columns)),
            _ => None,
        },
        _ => None,
    };
    let row = |name: &String| constants.get(name.as_str()).is_some_and(|dims| dims.len() <= 1);
    let next = |node: &NodeProto| -> Option<usize> {
        let [output] = &node.output[..] else { return None };
        let &[place] = &users.get(output.as_str())?[..] else { return None };
        let user = &graph.node[place];
        let by_row = match (user.op_type.as_str(), &user.input[..]) {
            ("Gelu" | "FastGelu", [_]) => true,
            ("Add" | "Mul", [a, b]) => (a == output && row(b)) || (b == output && row(a)),
            ("MatMul", [a, _]) => a == output && weights(user).is_some(),
            _ => false,
        };
        let stays = ends.contains(output.as_str()) || wanted.contains(output.as_str());
        (by_row && !stays).then_some(place)
    };
    let mut chains: Vec<Chain> = Vec::new();
    let mut inside = HashSet::new();
    for (place, node) in graph.node.iter().enumerate() {
        let Some((rows, mut columns)) = weights(node) else { continue };
        let large = rows.saturating_mul(columns) >= LEAST_ELEMENTS;
        if !large || !in_pictures.contains(node.input[0].as_str()) || inside.contains(&place) {
            continue;
        }
        let mut nodes = vec![place];
        while let Some(place) = next(&graph.node[nodes[nodes.len() - 1]]) {
            columns = weights(&graph.node[place]).map_or(columns, |(_, columns)| columns);
            nodes.push(place);
        }
        inside.extend(nodes.iter().copied());
        chains.push(Chain { nodes, columns });
    }
    chains
}

/// The values that are computed from a picture, not from captions or times alone: from an input of four axes.
fn of_pictures(graph: &GraphProto) -> HashSet<&str> {
    let mut names: HashSet<&str> = pictures(graph).map(|input| input.name.as_str()).collect();
    for node in &graph.node {
        let mut any = false;
        uses(node, &mut |name| any |= names.contains(name));
        if any {
            names.extend(node.output.iter().map(String::as_str));
        }
    }
    names
}

/// Nodes that compute into how many portions the rows of `input` are cut, as many as divide them and leave
/// enough in each, and cut them.
fn count_portions(input: &str) -> [NodeProto; 11] {
    let own = |what: &str| added(input, what);
    let [counts, least, zero, one, open] =
        ["counts", "least", "zero", "one", "open"].map(|what| added("all", what));
    let node = |operator, inputs: &[&str], what| simple(operator, inputs, &own(what));
    let with = |mut node: NodeProto, attribute| {
        node.attribute.push(attribute);
        node
    };
    [
        with(node("Shape", &[input], "around"), number("end", -1)),
        with(node("Shape", &[input], "depth"), number("start", -1)),
        node("ReduceProd", &[&own("around")], "rows"),
        node("Mod", &[&own("rows"), &counts], "left"),
        node("Equal", &[&own("left"), &zero], "divides"),
        node("Less", &[&least, &own("rows")], "enough"),
        node("And", &[&own("divides"), &own("enough")], "fits"),
        node("Where", &[&own("fits"), &counts, &one], "possible"),
        node("ReduceMax", &[&own("possible")], "count"),
        with(
            node("Concat", &[&own("count"), &one, &open, &own("depth")], "shape"),
            number("axis", 0),
        ),
        node("Reshape", &[input, &own("shape")], "portions"),
    ]
}

/// A chain as a `Scan` over the portions of its input, and the constant that it needs.
fn portioned(
    mut chain: Vec<NodeProto>,
    input: &str,
    columns: i64,
) -> ([NodeProto; 3], TensorProto) {
    let last = chain.len() - 1;
    let output = chain[last].output[0].clone();
    let [portion, result, body, results, width, whole] =
        ["portion", "result", "body", "results", "width", "whole"].map(|what| added(&output, what));
    chain[0].input[0].clone_from(&portion);
    chain[last].output[0].clone_from(&result);
    // With two axes, ONNX Runtime would make a `Gemm` of a product and its bias, which is slower.
    let rows = |name: &str| declared(name, DataType::Float, Some(3));
    let body = GraphProto {
        name: body,
        node: chain,
        input: vec![rows(&portion)],
        output: vec![rows(&result)],
        ..GraphProto::default()
    };
    let mut scan = simple("Scan", &[&added(input, "portions")], &results);
    scan.attribute = vec![
        number("num_scan_inputs", 1),
        AttributeProto {
            name: "body".to_owned(),
            r#type: AttributeType::Graph as i32,
            g: Some(body),
            ..AttributeProto::default()
        },
    ];
    let mut sizes = simple("Concat", &[&added(input, "around"), &width], &whole);
    sizes.attribute.push(number("axis", 0));
    ([scan, sizes, simple("Reshape", &[&results, &whole], &output)], constant(&width, &[columns]))
}

/// The name of something that is added for a value.
fn added(value: &str, what: &str) -> String {
    format!("{PREFIX}.{value}.{what}")
}

fn constant(name: &str, numbers: &[i64]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        data_type: DataType::Int64 as i32,
        dims: vec![numbers.len() as i64],
        raw_data: numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
        ..TensorProto::default()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::engine::{Engine as _, model_file::small_model, tract::TractEngine, wiring};

    fn weights(name: &str, dims: &[i64]) -> TensorProto {
        TensorProto {
            name: name.to_owned(),
            data_type: DataType::Float as i32,
            dims: dims.to_vec(),
            ..TensorProto::default()
        }
    }

    /// Two products of one input, a feed-forward layer, and captions.
    fn graph() -> GraphProto {
        let input = |name, axes| declared(name, DataType::Float, Some(axes));
        GraphProto {
            input: vec![input("picture", 4), input("captions", 3)],
            initializer: vec![
                weights("wide", &[1024, 4096]),
                weights("bias", &[4096]),
                weights("narrow", &[4096, 1024]),
                weights("square", &[1024, 1024]),
                weights("small", &[1024, 8]),
            ],
            node: vec![
                simple("Flatten", &["picture"], "x"),
                simple("MatMul", &["x", "square"], "query"),
                simple("MatMul", &["captions", "square"], "key"),
                simple("Mul", &["query", "key"], "mixed"),
                simple("MatMul", &["x", "wide"], "a"),
                simple("Add", &["bias", "a"], "b"),
                simple("Gelu", &["b"], "c"),
                simple("MatMul", &["c", "narrow"], "d"),
                simple("Add", &["d", "mixed"], "e"),
                simple("MatMul", &["e", "small"], "y"),
            ],
            output: vec![input("y", 2)],
            ..GraphProto::default()
        }
    }

    /// What is in each `Scan`.
    fn scans(graph: &GraphProto) -> Vec<Vec<&str>> {
        let scans = graph.node.iter().filter(|node| node.op_type == "Scan");
        let bodies = scans.flat_map(|scan| &scan.attribute).filter_map(|a| a.g.as_ref());
        bodies.map(|body| body.node.iter().map(|node| node.op_type.as_str()).collect()).collect()
    }

    #[test]
    fn what_computes_each_row_alone_goes_together() {
        let mut graph = graph();
        assert!(cut_graph(&mut graph, &HashSet::new(), 2));
        wiring::check(&graph).expect("a graph in order");
        let expected: [&[&str]; 2] = [&["MatMul"], &["MatMul", "Add", "Gelu", "MatMul"]];
        assert_eq!(scans(&graph), expected);
        let count = |name: &str| graph.node.iter().filter(|node| node.op_type == name).count();
        // The portions of an input are made once; captions and small products stay.
        assert_eq!((count("ReduceProd"), count("MatMul")), (1, 2));
        let made = |name: &str| graph.node.iter().any(|node| node.output == [name]);
        assert!(made("query") && made("d") && !made("a"));
    }

    #[test]
    fn a_value_that_is_wanted_stays() {
        let mut graph = graph();
        assert!(cut_graph(&mut graph, &HashSet::from(["c"]), 2));
        wiring::check(&graph).expect("a graph in order");
        let expected: [&[&str]; 3] = [&["MatMul"], &["MatMul", "Add", "Gelu"], &["MatMul"]];
        assert_eq!(scans(&graph), expected);
        assert!(graph.node.iter().any(|node| node.output == ["c"]));
    }

    #[test]
    fn there_are_as_many_portions_as_divide_the_rows_and_leave_enough_in_each() {
        let mut graph = GraphProto {
            node: count_portions("x").to_vec(),
            initializer: shared(2).to_vec(),
            input: vec![declared("x", DataType::Float, Some(3))],
            output: vec![declared(&added("x", "portions"), DataType::Float, Some(4))],
            ..GraphProto::default()
        };
        graph.output[0].r#type = None;
        let folder = tempfile::tempdir().expect("a folder");
        let model = folder.path().join("count.onnx");
        std::fs::write(&model, small_model(graph).encode_to_vec()).expect("written");
        let engine = TractEngine::new(1);
        let mut session = engine.load(&model).expect("a graph");
        for (batch, tokens, portions) in [
            (2, 256, 1),
            (2, 512, 1),
            (2, 1024, 2),
            (1, 1155, 1),
            (2, 1155, 2),
            (2, 900, 2),
            (4, 1024, 4),
            (2, 4096, 8),
            (2, 65536, 128),
        ] {
            let x = ndarray::ArrayD::<f32>::zeros(vec![batch, tokens, 3]).into();
            let (_, made) = session.run(&[("x", &x)]).expect("a run").remove(0);
            assert_eq!(made.shape(), [portions, 1, batch * tokens / portions, 3]);
        }
    }

    #[test]
    fn graphs_without_pictures_stay_as_they_are() {
        let mut other = graph();
        other.input[0] = declared("picture", DataType::Float, Some(3));
        let before = other.clone();
        assert!(!cut_graph(&mut other, &HashSet::new(), 2));
        assert_eq!(other, before);
    }
}
