//! A stretch of a graph as a graph of its own.

use std::{
    borrow::Cow,
    collections::HashSet,
    path::{Path, PathBuf},
};

use tract_onnx::pb::{
    AttributeProto, GraphProto, NodeProto, TensorShapeProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType, tensor_proto::DataType, tensor_shape_proto::Dimension,
    type_proto,
};

use super::{EngineError, model_file::ModelFile, signature::Signature, weights::WeightType};

/// A value at an end of a stretch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartValue {
    /// Its name in the graph.
    pub name: String,
    /// Its type in the graph: fp32, `int64`, or one that the session of the stretch has as fp32: fp16, `int8`,
    /// `uint8`, `bool`.
    pub dtype: WeightType,
    /// How many axes it has, where that is known.
    pub axes: Option<usize>,
}

impl PartValue {
    /// Floats of 32 bits.
    pub fn floats(name: &str, axes: usize) -> Self {
        Self { name: name.to_owned(), dtype: WeightType::F32, axes: Some(axes) }
    }

    /// Its name among the inputs or outputs of the session.
    pub fn outside(&self) -> Cow<'_, str> {
        match self.types() {
            Some((inside, session)) if inside != session => {
                Cow::Owned(format!("{}.carried", self.name))
            }
            _ => Cow::Borrowed(&self.name),
        }
    }

    /// Its type in the graph and in the session; `None` where a graph cannot be cut at it.
    pub(super) fn types(&self) -> Option<(DataType, DataType)> {
        let inside = match &self.dtype {
            WeightType::F32 => DataType::Float,
            WeightType::F16 => DataType::Float16,
            // tract has none.
            WeightType::Bf16 => return None,
            WeightType::Other(name) => match name.as_str() {
                "int64" => return Some((DataType::Int64, DataType::Int64)),
                "uint8" => DataType::Uint8,
                "int8" => DataType::Int8,
                "bool" => DataType::Bool,
                _ => return None,
            },
        };
        Some((inside, DataType::Float))
    }
}

/// A stretch of a graph: what lies between `inputs` and `outputs`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GraphPart {
    /// Values inside the graph that become inputs. The graph's own inputs stay inputs where the stretch uses
    /// them.
    pub inputs: Vec<PartValue>,
    /// The values that become the only outputs.
    pub outputs: Vec<PartValue>,
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
    let failed = |reason: String| unusable(&path, reason);
    let graph = file.proto.graph.as_mut().ok_or_else(|| failed("it has no graph".to_owned()))?;

    let ends: HashSet<&str> = part.inputs.iter().map(|input| input.name.as_str()).collect();
    let mut wanted: HashSet<String> = part.outputs.iter().map(|out| out.name.clone()).collect();
    let mut kept = Vec::new();
    for node in std::mem::take(&mut graph.node).into_iter().rev() {
        let makes =
            node.output.iter().any(|name| wanted.contains(name) && !ends.contains(name.as_str()));
        if !makes {
            continue;
        }
        let mut names = HashSet::new();
        if let (true, [output]) =
            (part.given_statistics.contains(&node.output[0]), &node.output[..])
        {
            let [mean, factor] = [GraphPart::mean_of(output), GraphPart::factor_of(output)];
            let centred = format!("{output}.centred");
            kept.push(simple("Mul", &[&centred, &factor], output));
            kept.push(simple("Sub", &[&node.input[0], &mean], &centred));
            names.extend([node.input[0].clone(), mean, factor]);
        } else {
            uses(&node, &mut |name| {
                names.insert(name.to_owned());
            });
            kept.push(node);
        }
        wanted.extend(names);
    }
    kept.reverse();
    graph.node = kept;
    graph.value_info.clear();
    graph.initializer.retain(|tensor| wanted.contains(&tensor.name));
    graph.input.retain(|input| wanted.contains(&input.name) && !ends.contains(input.name.as_str()));
    let statistics = |name: &String| [GraphPart::mean_of(name), GraphPart::factor_of(name)];
    let given = part.given_statistics.iter().flat_map(statistics);
    let given = given.filter(|name| wanted.contains(name));
    graph.input.extend(given.map(|name| declared(&name, DataType::Float, Some(4))));

    let own = std::mem::take(&mut graph.output);
    let mut widened = Vec::new();
    for (value, is_input) in
        part.inputs.iter().map(|v| (v, true)).chain(part.outputs.iter().map(|v| (v, false)))
    {
        let (inside, session) = value.types().ok_or_else(|| {
            failed(format!("it cannot be cut at \"{}\", which holds {}", value.name, value.dtype))
        })?;
        let outside = value.outside();
        let declared = declared(&outside, session, value.axes);
        match is_input {
            true => graph.input.push(declared),
            false => {
                // The graph may know more about its own outputs.
                let own = own.iter().find(|info| info.name == *outside && value.axes.is_none());
                graph.output.push(own.cloned().unwrap_or(declared));
            }
        }
        match (inside == session, is_input) {
            (true, _) => {}
            (false, true) => widened.push(cast(&outside, &value.name, inside)),
            (false, false) => graph.node.push(cast(&value.name, &outside, session)),
        }
    }
    graph.node.splice(0..0, widened);

    super::wiring::check(graph).map_err(&failed)?;
    file.signature = Signature::of(graph).map_err(&failed)?;
    let stays: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    file.stored.retain(|(name, _)| stays.contains(name.as_str()));
    Ok(())
}

pub(super) fn unusable(path: &Path, reason: String) -> EngineError {
    EngineError::ModelFormat { model: path.to_path_buf(), reason }
}

/// Tells all names a node uses, those that its inner graphs make themselves among them.
pub(super) fn uses<'a>(node: &'a NodeProto, tell: &mut dyn FnMut(&'a str)) {
    node.input.iter().filter(|name| !name.is_empty()).for_each(|name| tell(name));
    for attribute in &node.attribute {
        for graph in attribute.g.iter().chain(&attribute.graphs) {
            uses_inside(graph, tell);
        }
    }
}

fn uses_inside<'a>(graph: &'a GraphProto, tell: &mut dyn FnMut(&'a str)) {
    graph.node.iter().for_each(|node| uses(node, tell));
    graph.output.iter().for_each(|output| tell(&output.name));
}

/// A node without attributes, named like its output.
pub(super) fn simple(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: operator.to_owned(),
        name: output.to_owned(),
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: vec![output.to_owned()],
        ..Default::default()
    }
}

fn cast(from: &str, to: &str, dtype: DataType) -> NodeProto {
    let to_type = number("to", i64::from(dtype as i32));
    NodeProto { attribute: vec![to_type], ..simple("Cast", &[from], to) }
}

/// An attribute that is a whole number.
pub(super) fn number(name: &str, i: i64) -> AttributeProto {
    let r#type = AttributeType::Int as i32;
    AttributeProto { name: name.to_owned(), r#type, i, ..Default::default() }
}

/// A value of so many axes, sizes unknown.
pub(super) fn declared(name: &str, dtype: DataType, axes: Option<usize>) -> ValueInfoProto {
    let shape = axes.map(|axes| TensorShapeProto { dim: vec![Dimension::default(); axes] });
    let kind = type_proto::Tensor { elem_type: dtype as i32, shape };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(kind)),
            ..Default::default()
        }),
        ..Default::default()
    }
}
