//! Where a graph can be cut so that its weights are loaded a part at a time.
//!
//! Between two nodes, some values are made already and still needed. In a network of blocks there are few of
//! them after each addition to the stream that goes through all blocks, and many inside a layer, so the
//! places with the fewest are the ends of blocks and of their layers. What depends on sizes alone is not
//! counted, as it is computed anew wherever it is needed.

use std::{
    collections::{HashMap, HashSet},
    iter,
    ops::{Range, RangeInclusive},
};

use tract_onnx::pb::{GraphProto, NodeProto, tensor_proto::DataType};

use super::{
    EngineError,
    model_file::ModelFile,
    part::{self, PartValue},
    value_types::{self, ValueTypes, weight_type},
};

/// A stretch of a graph, its weights, and what it exchanges with the others.
#[derive(Clone, Debug)]
pub(crate) struct Stretch {
    /// Values that earlier stretches make.
    pub inputs: Vec<PartValue>,
    /// Inputs of the graph that it reads.
    pub given: Vec<String>,
    /// Values that later stretches or the caller read.
    pub outputs: Vec<PartValue>,
    /// Its initializers.
    pub weights: HashSet<String>,
}

impl Stretch {
    /// Whether it reads a value that an earlier one makes.
    pub fn reads(&self, value: &str) -> bool {
        self.inputs.iter().any(|input| input.name == value)
    }
}

/// Cuts the graph of `file` into stretches of at most `most_bytes` of weights, as far as there are places
/// to cut at. Tables of which rows are taken do not count.
///
/// # Errors
/// When there is no place to cut at though there are more weights than that.
pub(crate) fn cut(file: &ModelFile, most_bytes: u64) -> Result<Vec<Stretch>, EngineError> {
    let graph = file.proto.graph.as_ref();
    let graph = graph.ok_or_else(|| part::unusable(&file.path, "it has no graph".to_owned()))?;
    let survey = Survey::of(graph, file);
    let ranges = survey.ranges(most_bytes).ok_or_else(|| {
        part::unusable(
            &file.path,
            "found no ends of blocks to cut it at, expected them for reading it layer by layer; --keep_resident loads \
             it as a whole"
                .to_owned(),
        )
    })?;
    Ok(ranges.into_iter().map(|range| survey.stretch(range)).collect())
}

/// What is known of a graph's nodes and values.
struct Survey<'a> {
    graph: &'a GraphProto,
    types: ValueTypes<'a>,
    /// All names that each node uses.
    uses: Vec<Vec<&'a str>>,
    /// The node that makes a value.
    made: HashMap<&'a str, usize>,
    /// The last node that uses a value; the number of nodes for outputs of the graph.
    last_use: HashMap<&'a str, usize>,
    /// Nodes that are computed anew wherever they are needed.
    light: Vec<bool>,
    /// Bytes of the weights that each node uses first.
    bytes: Vec<u64>,
}

impl<'a> Survey<'a> {
    fn of(graph: &'a GraphProto, file: &ModelFile) -> Self {
        let types = value_types::of(graph);
        let mut survey = Self {
            graph,
            types,
            uses: Vec::with_capacity(graph.node.len()),
            made: HashMap::new(),
            last_use: HashMap::new(),
            light: Vec::with_capacity(graph.node.len()),
            bytes: Vec::with_capacity(graph.node.len()),
        };
        let mut unseen: HashMap<&str, u64> =
            graph.initializer.iter().map(|t| (t.name.as_str(), t.raw_data.len() as u64)).collect();
        unseen.extend(file.stored.iter().map(|(name, stored)| (name.as_str(), stored.length)));
        let stored: HashSet<&str> = file.stored.iter().map(|(name, _)| name.as_str()).collect();
        for (place, node) in graph.node.iter().enumerate() {
            let mut uses = Vec::new();
            part::uses(node, &mut |name| uses.push(name));
            // Rows of a table are read where it lies.
            let table = (node.op_type == "Gather").then(|| node.input.first()).flatten();
            let weights = uses.iter().filter(|name| Some(**name) != table.map(String::as_str));
            survey.bytes.push(weights.filter_map(|name| unseen.remove(name)).sum());
            survey.light.push(survey.is_light(node, &uses, &stored));
            survey.last_use.extend(uses.iter().map(|name| (*name, place)));
            survey.made.extend(node.output.iter().map(|output| (output.as_str(), place)));
            survey.uses.push(uses);
        }
        let outputs = graph.output.iter().map(|info| (info.name.as_str(), graph.node.len()));
        survey.last_use.extend(outputs);
        survey
    }

    /// Whether a node makes sizes, indices or truth values of nothing but such and the graph's inputs.
    fn is_light(&self, node: &NodeProto, uses: &[&str], stored: &HashSet<&str>) -> bool {
        let sources = uses.iter().all(|name| match self.made.get(name) {
            Some(&maker) => self.light[maker],
            None => !stored.contains(name),
        });
        sources && node.output.iter().all(|output| !self.is_float(output))
    }

    fn is_float(&self, name: &str) -> bool {
        let dtype = self.types.get(name);
        dtype.is_none_or(|dtype| {
            matches!(
                dtype,
                DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double
            )
        })
    }

    /// How many values are carried over the place after each node; `None` where one of them cannot be.
    fn carried(&self) -> Vec<Option<usize>> {
        let mut changes = vec![(0isize, 0isize); self.graph.node.len() + 1];
        for (name, &maker) in &self.made {
            let last = self.last_use.get(name).copied().unwrap_or(maker);
            if self.light[maker] || last == maker {
                continue;
            }
            let barred = isize::from(self.value(name).is_none());
            for (place, sign) in [(maker, 1), (last, -1)] {
                changes[place].0 += sign;
                changes[place].1 += sign * barred;
            }
        }
        let mut sums = (0, 0);
        let nodes = changes.into_iter().take(self.graph.node.len());
        let sum = nodes.map(|(carried, barred)| {
            sums = (sums.0 + carried, sums.1 + barred);
            (sums.1 == 0).then_some(sums.0.unsigned_abs())
        });
        sum.collect()
    }

    /// A value as the end of a stretch; `None` if it has a type that sessions do not exchange.
    fn value(&self, name: &str) -> Option<PartValue> {
        let dtype = weight_type(*self.types.get(name)?);
        let value = PartValue { name: name.to_owned(), dtype, axes: None };
        value.types().is_some().then_some(value)
    }

    /// The nodes of each stretch; `None` if there is no place to cut at.
    fn ranges(&self, most_bytes: u64) -> Option<Vec<Range<usize>>> {
        let nodes = self.graph.node.len();
        let total: u64 = self.bytes.iter().sum();
        if total <= most_bytes {
            return Some(iter::once(0..nodes).collect());
        }
        let carried = self.carried();
        let mut before = 0;
        let sums: Vec<u64> = self
            .bytes
            .iter()
            .map(|bytes| {
                before += bytes;
                before
            })
            .collect();
        // Before the first block and in the last one there may be fewer than between two.
        let fewest = |weights: RangeInclusive<u64>| {
            let nodes = (0..nodes).filter(|&node| weights.contains(&sums[node]));
            nodes.filter_map(|node| carried[node]).min()
        };
        let eighth = total / 8;
        let fewest = fewest(3 * eighth..=5 * eighth).or_else(|| fewest(1..=total - 1))?;
        let places = (0..nodes - 1).filter(|&node| carried[node].is_some_and(|n| n <= fewest));
        let weight = |range: &Range<usize>| self.bytes[range.clone()].iter().sum::<u64>();
        let (mut ranges, mut current) = (Vec::new(), 0..0);
        for end in places.map(|node| node + 1).chain([nodes]) {
            if weight(&(current.start..end)) > most_bytes && weight(&current) > 0 {
                ranges.push(current.clone());
                current = current.end..end;
            } else {
                current.end = end;
            }
        }
        ranges.push(current);
        (ranges.len() > 1).then_some(ranges)
    }

    fn stretch(&self, range: Range<usize>) -> Stretch {
        let inputs: HashSet<&str> =
            self.graph.input.iter().map(|input| input.name.as_str()).collect();
        let initializers: HashSet<&str> =
            self.graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
        let mut stretch = Stretch {
            inputs: Vec::new(),
            given: Vec::new(),
            outputs: Vec::new(),
            weights: HashSet::new(),
        };
        for output in self.graph.node[range.clone()].iter().flat_map(|node| &node.output) {
            let last = self.last_use.get(output.as_str());
            let maker = self.made.get(output.as_str());
            let (Some(&last), Some(&maker)) = (last, maker) else { continue };
            let is_result = last == self.graph.node.len();
            if is_result || last >= range.end && !self.light[maker] {
                stretch.outputs.extend(self.value(output));
            }
        }
        let makers =
            stretch.outputs.iter().filter_map(|output| self.made.get(output.name.as_str()));
        let (mut seen, mut open) = (HashSet::new(), makers.copied().collect::<Vec<_>>());
        while let Some(node) = open.pop() {
            for &name in &self.uses[node] {
                if !seen.insert(name) {
                    continue;
                }
                match self.made.get(name) {
                    Some(&maker) if range.contains(&maker) || self.light[maker] => open.push(maker),
                    Some(_) => stretch.inputs.extend(self.value(name)),
                    None if initializers.contains(name) => {
                        stretch.weights.insert(name.to_owned());
                    }
                    None if inputs.contains(name) => stretch.given.push(name.to_owned()),
                    // An inner graph makes it itself.
                    None => {}
                }
            }
        }
        stretch
    }
}

#[cfg(test)]
mod tests {
    use tract_onnx::pb::{
        AttributeProto, ModelProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
        ValueInfoProto, tensor_shape_proto::Dimension, type_proto,
    };

    use super::*;
    use crate::engine::{GraphPart, WeightType, part::simple as node};

    const ELEMENTS: usize = 16;
    const BYTES: u64 = 4 * ELEMENTS as u64;

    fn value(name: &str, dtype: DataType, axes: usize) -> ValueInfoProto {
        let shape = Some(TensorShapeProto { dim: vec![Dimension::default(); axes] });
        let kind = type_proto::Tensor { elem_type: dtype as i32, shape };
        let value = Some(type_proto::Value::TensorType(kind));
        ValueInfoProto {
            name: name.to_owned(),
            r#type: Some(TypeProto { value, ..Default::default() }),
            ..Default::default()
        }
    }

    fn weight(name: &str) -> TensorProto {
        TensorProto {
            name: name.to_owned(),
            dims: vec![ELEMENTS as i64],
            data_type: DataType::Float as i32,
            raw_data: vec![0; BYTES as usize],
            ..Default::default()
        }
    }

    /// Blocks `x + w·x·bias` with a bias that all share, reshaped to a size that is computed from the input.
    fn blocks(count: usize) -> ModelFile {
        let mut nodes =
            vec![node("Shape", &["x0"], "sizes"), node("Mul", &["x0", "table"], "bias")];
        let mut weights = vec![weight("table")];
        for block in 1..=count {
            let [before, after, product, shaped, mixed] = [
                format!("x{}", block - 1),
                format!("x{block}"),
                format!("p{block}"),
                format!("s{block}"),
                format!("m{block}"),
            ];
            let name = format!("w{block}");
            weights.push(weight(&name));
            nodes.push(node("Mul", &[&before, &name], &product));
            nodes.push(node("Reshape", &[&product, "sizes"], &shaped));
            nodes.push(node("Mul", &[&shaped, "bias"], &mixed));
            nodes.push(node("Add", &[&before, &mixed], &after));
        }
        let last = format!("x{count}");
        file(nodes, weights, &last)
    }

    fn file(node: Vec<NodeProto>, initializer: Vec<TensorProto>, output: &str) -> ModelFile {
        use prost::Message as _;
        let graph = GraphProto {
            node,
            initializer,
            input: vec![value("x0", DataType::Float, 1)],
            output: vec![value(output, DataType::Float, 1)],
            ..Default::default()
        };
        let model = ModelProto {
            opset_import: vec![OperatorSetIdProto { version: 18, ..Default::default() }],
            graph: Some(graph),
            ..Default::default()
        };
        ModelFile::parse("model.onnx".as_ref(), &model.encode_to_vec()).expect("a graph")
    }

    fn names(values: &[PartValue]) -> Vec<&str> {
        values.iter().map(|value| value.name.as_str()).collect()
    }

    #[test]
    fn blocks_are_cut_apart_and_what_they_share_is_carried() {
        let file = blocks(4);
        let stretches = cut(&file, BYTES + 1).expect("cut");
        let outputs: Vec<_> = stretches.iter().map(|stretch| names(&stretch.outputs)).collect();
        assert_eq!(outputs, [vec!["bias"], vec!["x1"], vec!["x2"], vec!["x3"], vec!["x4"]]);
        for (block, stretch) in stretches.iter().enumerate().skip(2) {
            let (mut inputs, before) = (names(&stretch.inputs), format!("x{}", block - 1));
            inputs.sort_unstable();
            assert_eq!(inputs, ["bias", before.as_str()]);
            // Sizes are computed anew.
            assert_eq!(stretch.given, ["x0"]);
            assert_eq!(stretch.weights, HashSet::from([format!("w{block}")]));
        }
        let pairs = cut(&file, 2 * BYTES).expect("cut");
        let outputs: Vec<_> = pairs.iter().map(|stretch| names(&stretch.outputs)).collect();
        assert_eq!(outputs, [vec!["bias", "x1"], vec!["x3"], vec!["x4"]]);
        let whole = cut(&file, 5 * BYTES).expect("cut");
        assert_eq!((whole.len(), names(&whole[0].outputs)), (1, vec!["x4"]));
        assert!(whole[0].inputs.is_empty());
    }

    #[test]
    fn a_stretch_is_a_graph_of_its_own() {
        let stretches = cut(&blocks(4), BYTES).expect("cut");
        let mut file = blocks(4);
        let Stretch { inputs, outputs, .. } = stretches[3].clone();
        part::cut(&mut file, &GraphPart { inputs, outputs, ..GraphPart::default() }).expect("cut");
        let graph = file.proto.graph.expect("a graph");
        let made: Vec<_> = graph.node.iter().map(|node| node.output[0].as_str()).collect();
        assert_eq!(made, ["sizes", "p3", "s3", "m3", "x3"]);
        let weights: Vec<_> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(weights, ["w3"]);
        assert_eq!(file.signature.outputs, ["x3"]);
    }

    #[test]
    fn sixteen_bits_are_exchanged_as_floats() {
        let to = |dtype: DataType| AttributeProto {
            name: "to".to_owned(),
            i: dtype as i64,
            ..Default::default()
        };
        let mut half = node("Cast", &["x0"], "half");
        half.attribute.push(to(DataType::Float16));
        let mut full = node("Cast", &["b"], "y");
        full.attribute.push(to(DataType::Float));
        let half_weight = |name: &str| TensorProto {
            data_type: DataType::Float16 as i32,
            dims: vec![2 * ELEMENTS as i64],
            ..weight(name)
        };
        let nodes =
            vec![half, node("Mul", &["half", "w1"], "a"), node("Mul", &["a", "w2"], "b"), full];
        let graph = || file(nodes.clone(), vec![half_weight("w1"), half_weight("w2")], "y");
        let stretches = cut(&graph(), BYTES).expect("cut");
        assert_eq!(stretches.len(), 2);
        let Stretch { inputs, outputs, .. } = stretches[1].clone();
        assert_eq!((names(&inputs), &inputs[0].dtype), (vec!["a"], &WeightType::F16));
        let mut second = graph();
        part::cut(&mut second, &GraphPart { inputs, outputs, ..GraphPart::default() })
            .expect("cut");
        let declared = &second.signature.inputs[0];
        assert_eq!((declared.name.as_str(), declared.dtype), ("a.carried", DataType::Float));
        let mut first = graph();
        let outputs = stretches[0].outputs.clone();
        part::cut(&mut first, &GraphPart { outputs, ..GraphPart::default() }).expect("cut");
        assert_eq!(first.signature.outputs, ["a.carried"]);
    }

    #[test]
    fn a_graph_without_places_to_cut_at_is_refused() {
        let file = file(vec![node("Mul", &["x0", "w"], "y")], vec![weight("w")], "y");
        let error = cut(&file, BYTES / 2).expect_err("one node").to_string();
        assert!(error.contains("model.onnx") && error.contains("ends of blocks"), "{error}");
        // All of it fits.
        assert_eq!(cut(&file, BYTES).expect("whole").len(), 1);
    }
}
