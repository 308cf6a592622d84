//! Whether every value of a graph is made once, and before it is used.
//!
//! The ONNX specification asks for it; engines differ in what they do with a graph that breaks it, and
//! one computes circles to the end.

use std::collections::HashSet;

use tract_onnx::pb::GraphProto;

/// Checks `graph` and all graphs inside it; the error names the value.
pub(super) fn check(graph: &GraphProto) -> Result<(), String> {
    check_inside(graph, &mut Vec::new())
}

/// `around` are the values that the graphs around this one have made so far.
// The depth of this recursion is bounded: the decoder refuses messages nested 100 deep.
fn check_inside<'a>(
    graph: &'a GraphProto,
    around: &mut Vec<HashSet<&'a str>>,
) -> Result<(), String> {
    let quoted = |name: &str| format!("the value \"{}\"", name.escape_debug());
    let mut made: HashSet<&str> = HashSet::new();
    made.extend(graph.input.iter().map(|input| input.name.as_str()));
    // Old files list the initializers among the inputs as well.
    made.extend(graph.initializer.iter().map(|tensor| tensor.name.as_str()));
    let sparse = graph.sparse_initializer.iter().filter_map(|sparse| sparse.values.as_ref());
    made.extend(sparse.map(|values| values.name.as_str()));

    around.push(made);
    for node in &graph.node {
        // An empty name is an optional input that is left out, or an output that nobody wants.
        for input in node.input.iter().filter(|input| !input.is_empty()) {
            if !around.iter().any(|made| made.contains(input.as_str())) {
                return Err(format!(
                    "{} is used by the node \"{}\" but nothing makes it before",
                    quoted(input),
                    node.name.escape_debug()
                ));
            }
        }
        for attribute in &node.attribute {
            for inner in attribute.g.iter().chain(&attribute.graphs) {
                check_inside(inner, around)?;
            }
        }
        for output in node.output.iter().filter(|output| !output.is_empty()) {
            if around.last_mut().is_some_and(|made| !made.insert(output)) {
                return Err(format!("{} is made twice", quoted(output)));
            }
        }
    }
    for output in &graph.output {
        if !around.iter().any(|made| made.contains(output.name.as_str())) {
            return Err(format!("{} is an output but nothing makes it", quoted(&output.name)));
        }
    }
    around.pop();
    Ok(())
}

#[cfg(test)]
mod tests {
    use tract_onnx::pb::{AttributeProto, NodeProto, ValueInfoProto};

    use super::*;

    fn values(names: &[&str]) -> Vec<ValueInfoProto> {
        let value = |name: &&str| ValueInfoProto { name: (*name).to_owned(), ..Default::default() };
        names.iter().map(value).collect()
    }

    /// A graph of nodes given as inputs and output.
    fn graph(inputs: &[&str], nodes: &[(&[&str], &str)], output: &str) -> GraphProto {
        let node = |(input, output): &(&[&str], &str)| NodeProto {
            input: input.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![(*output).to_owned()],
            ..Default::default()
        };
        GraphProto {
            input: values(inputs),
            node: nodes.iter().map(node).collect(),
            output: values(&[output]),
            ..Default::default()
        }
    }

    #[test]
    fn values_are_made_once_and_before_they_are_used() {
        check(&graph(&["x"], &[(&["x", ""], "a"), (&["a", "x"], "y")], "y")).expect("fine");
        for (nodes, said) in [
            (&[(&["nothing"][..], "y")][..], "\"nothing\""),
            (&[(&["y"], "a"), (&["a"], "y")], "\"y\" is used"),
            (&[(&["y"], "y")], "\"y\" is used"),
            (&[(&["x"], "y"), (&["x"], "y")], "\"y\" is made twice"),
            (&[(&["x"], "x"), (&["x"], "y")], "\"x\" is made twice"),
            (&[(&["x"], "a")], "\"y\" is an output"),
        ] {
            let reason = check(&graph(&["x"], nodes, "y")).expect_err(said);
            assert!(reason.contains(said), "{reason}");
        }
    }

    #[test]
    fn inner_graphs_see_what_is_made_before_them_outside() {
        let with_inner = |inner: GraphProto| {
            let mut outer = graph(&["x"], &[(&["x"], "a"), (&["a"], "b"), (&["b"], "y")], "y");
            let attribute = AttributeProto { g: Some(inner), ..Default::default() };
            outer.node[1].attribute.push(attribute);
            outer
        };
        check(&with_inner(graph(&["i"], &[(&["i", "a"], "j")], "j"))).expect("fine");
        check(&with_inner(graph(&[], &[], "a"))).expect("fine");
        for later in ["b", "y", "z"] {
            check(&with_inner(graph(&[], &[(&[later], "j")], "j"))).expect_err(later);
        }
        let outside = graph(&["x"], &[(&["x"], "a"), (&["j"], "y")], "y");
        check(&outside).expect_err("what an inner graph makes is its own");
    }
}
