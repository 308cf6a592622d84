//! A stretch of a graph as a graph of its own.

use std::{collections::HashSet, path::PathBuf};

use tract_onnx::pb::{
    GraphProto, NodeProto, TensorShapeProto, TypeProto, ValueInfoProto, tensor_proto::DataType,
    tensor_shape_proto::Dimension, type_proto,
};

use super::{EngineError, model_file::ModelFile, signature::Signature};

/// A stretch of a graph whose values are f32: what lies between `input` and `output`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GraphPart {
    /// The value inside the graph that becomes an input, with four axes. The graph's own inputs stay
    /// inputs where the stretch uses them.
    pub input: String,
    /// The value that becomes the only output.
    pub output: String,
    /// Results of `InstanceNormalization` nodes without scale and shift whose statistics are given
    /// instead of computed: each of them makes two more inputs f32 `[1, groups, 1, 1]`, named by
    /// [`GraphPart::mean_of`] and [`GraphPart::factor_of`].
    pub given_statistics: Vec<String>,
}

impl GraphPart {
    /// The input for the mean of each group.
    pub fn mean_of(norm: &str) -> String {
        format!("{norm}.mean")
    }

    /// The input for what each group is multiplied with after the mean is taken off: one over the
    /// root of variance plus epsilon.
    pub fn factor_of(norm: &str) -> String {
        format!("{norm}.factor")
    }
}

/// Leaves only `part` of the graph.
pub(super) fn cut(file: &mut ModelFile, part: &GraphPart) -> Result<(), EngineError> {
    let path: PathBuf = file.path.clone();
    let failed = |reason: String| EngineError::ModelFormat { model: path.clone(), reason };
    let graph = file.proto.graph.as_mut().ok_or_else(|| failed("it has no graph".to_owned()))?;

    let mut wanted: HashSet<String> = HashSet::from([part.output.clone()]);
    let mut kept = Vec::new();
    for node in std::mem::take(&mut graph.node).into_iter().rev() {
        let makes = node.output.iter().any(|name| wanted.contains(name) && *name != part.input);
        if !makes {
            continue;
        }
        let mut names = HashSet::new();
        if let (true, [output]) =
            (part.given_statistics.contains(&node.output[0]), &node.output[..])
        {
            let [mean, factor] = [GraphPart::mean_of(output), GraphPart::factor_of(output)];
            let centred = format!("{output}.centred");
            kept.push(binary("Mul", &centred, &factor, output));
            kept.push(binary("Sub", &node.input[0], &mean, &centred));
            names.extend([node.input[0].clone(), mean, factor]);
        } else {
            uses(&node, &mut names);
            kept.push(node);
        }
        wanted.extend(names);
    }
    kept.reverse();
    graph.node = kept;
    graph.value_info.clear();
    graph.initializer.retain(|tensor| wanted.contains(&tensor.name));
    graph.input.retain(|input| wanted.contains(&input.name) && input.name != part.input);
    let statistics = |name: &String| [GraphPart::mean_of(name), GraphPart::factor_of(name)];
    let given = part.given_statistics.iter().flat_map(statistics);
    let new = given.filter(|name| wanted.contains(name)).chain([part.input.clone()]);
    graph.input.extend(new.map(|name| value(&name, 4)));
    graph.output = vec![value(&part.output, 4)];

    super::wiring::check(graph).map_err(&failed)?;
    file.signature = Signature::of(graph).map_err(&failed)?;
    let stays: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    file.stored.retain(|(name, _)| stays.contains(name.as_str()));
    Ok(())
}

/// All names a node uses, those that its inner graphs make themselves among them.
fn uses(node: &NodeProto, names: &mut HashSet<String>) {
    names.extend(node.input.iter().filter(|name| !name.is_empty()).cloned());
    let inner = |graph: &GraphProto, names: &mut HashSet<String>| {
        graph.node.iter().for_each(|node| uses(node, names));
        names.extend(graph.output.iter().map(|output| output.name.clone()));
    };
    for attribute in &node.attribute {
        attribute.g.iter().chain(&attribute.graphs).for_each(|graph| inner(graph, names));
    }
}

fn binary(operator: &str, a: &str, b: &str, output: &str) -> NodeProto {
    NodeProto {
        op_type: operator.to_owned(),
        name: output.to_owned(),
        input: vec![a.to_owned(), b.to_owned()],
        output: vec![output.to_owned()],
        ..Default::default()
    }
}

/// An f32 value of so many axes, sizes unknown.
fn value(name: &str, axes: usize) -> ValueInfoProto {
    let shape = TensorShapeProto { dim: vec![Dimension::default(); axes] };
    let kind = type_proto::Tensor { elem_type: DataType::Float as i32, shape: Some(shape) };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(kind)),
            ..Default::default()
        }),
        ..Default::default()
    }
}
