//! A graph as a chain of parts, so that a picture can go through it tile by tile.
//!
//! Between two *knots*, sets of values through which all of the computation passes, lies a part. A part is
//! *local* if every pixel of its results depends on the pixels around it alone, but for the statistics of its
//! norms, which are taken over the whole picture. What a local part needs for a range of its results is
//! worked out from its convolutions and resizes.

mod order;
mod part;
#[cfg(test)]
pub(crate) mod samples;
mod work;

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

pub(crate) use part::Part;
use tract_onnx::pb::{GraphProto, NodeProto, TensorProto, tensor_proto::DataType};

use super::{EngineError, model_file::ModelFile};

/// A norm of whole channels groups (`InstanceNormalization` between two reshapes).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Norm {
    /// The value normalised, `[batch, channels, height, width]`.
    pub input: String,
    /// The value that the node makes, `[batch, groups, …, width]`.
    pub output: String,
    /// How many groups the channels fall into.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f64,
}

/// A value that carries the picture, `[batch, channels, height, width]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plane {
    /// Its name.
    pub name: String,
    /// Its channels.
    pub channels: usize,
    /// Its sides against those of the graph's input, as a fraction.
    pub scale: (usize, usize),
}

impl Plane {
    /// A side of the value where the graph's input has `side`.
    pub fn side(&self, side: usize) -> usize {
        side * self.scale.0 / self.scale.1
    }

    /// Its bytes where the graph's input has these sides.
    pub fn bytes(&self, sides: [usize; 2]) -> u64 {
        4 * self.channels as u64 * sides.map(|side| self.side(side) as u64).iter().product::<u64>()
    }
}

/// Values through which all of the computation passes: one between residual units, two inside of them. They
/// have the same sides.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Knot {
    /// The values, in the order in which they are computed.
    pub values: Vec<Plane>,
    /// The nodes that come before; none before the graph's input.
    node: usize,
}

impl Knot {
    /// The sides of its values against those of the graph's input, as a fraction.
    pub fn scale(&self) -> (usize, usize) {
        self.values[0].scale
    }
}

/// What one node does with the pixels of a side.
#[derive(Clone, Copy, Debug)]
enum Reach {
    /// Every pixel comes of the one at its place.
    Pointwise,
    /// A convolution: kernel, stride, padding before; the kernel may be taken for larger than it is.
    Window(usize, usize, usize),
    /// Every pixel becomes so many.
    Repeat(usize),
    /// Every pixel can depend on all others.
    Anywhere,
}

/// No auto-encoder makes its sides as many times longer or shorter; sizes can be computed without care.
const MOST_SCALE: usize = 1 << 10;

#[derive(Clone, Debug)]
struct Step {
    /// Values that carry pixels.
    inputs: Vec<String>,
    output: String,
    reach: Reach,
    norm: Option<Norm>,
    made: work::Made,
}

/// A graph with one picture going in and one coming out.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    /// The graph's input alone first, its output alone last.
    pub knots: Vec<Knot>,
    steps: Vec<Step>,
}

impl Chain {
    /// Reads the graph `model`. `None` if it is none of which the parts are known: it has several
    /// inputs or outputs, or computes in another type than f32.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn open(model: &Path) -> Result<Option<Self>, EngineError> {
        let file = ModelFile::open(model)?;
        Ok(file.proto.graph.as_ref().and_then(Self::of))
    }

    fn of(graph: &GraphProto) -> Option<Self> {
        let ([input], [output]) = (&graph.input[..], &graph.output[..]) else { return None };
        let weights: HashMap<&str, &TensorProto> =
            graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        let other = |tensor: &TensorProto| {
            !matches!(DataType::try_from(tensor.data_type), Ok(DataType::Float | DataType::Int64))
        };
        let casts = graph.node.iter().any(|node| node.op_type == "Cast");
        if casts && graph.initializer.iter().any(other) {
            return None;
        }

        let mut picture: Pictures<'_> = HashMap::new();
        let declared = channels_of(graph, &input.name)?;
        picture.insert(input.name.as_str(), (declared, (1, 1)));
        let nodes = order::ordered(&graph.node, &weights);
        let mut steps = Vec::with_capacity(nodes.len());
        for node in nodes.iter().copied() {
            let carried: Vec<&str> = match node.op_type.as_str() {
                // Sizes are no pixels.
                "Shape" => Vec::new(),
                _ => node.input.iter().map(String::as_str).collect(),
            };
            let carried: Vec<&str> =
                carried.into_iter().filter(|name| picture.contains_key(name)).collect();
            let name = node.output.first()?;
            let reach = reach(node, &weights);
            if let Some(first) = carried.first() {
                let (mut channels, mut scale) = picture[first];
                match reach {
                    Reach::Window(_, stride, _) => {
                        let weight = weights.get(node.input.get(1)?.as_str())?;
                        channels = usize::try_from(*weight.dims.first()?).ok()?;
                        scale = (scale.0, scale.1.checked_mul(stride)?);
                    }
                    Reach::Repeat(factor) => {
                        scale = (scale.0.checked_mul(factor)?, scale.1);
                        if node.op_type == "DepthToSpace" {
                            channels /= factor.checked_mul(factor)?;
                        }
                    }
                    Reach::Pointwise if node.op_type == "Concat" => {
                        channels = carried.iter().map(|name| picture[name].0).sum();
                    }
                    _ => {}
                }
                let scale = reduced(scale);
                if scale.0.max(scale.1) > MOST_SCALE {
                    return None;
                }
                picture.insert(name, (channels, scale));
            }
            let norm = norm(node, &steps, &weights).filter(|norm| {
                let channels =
                    picture.get(norm.input.as_str()).map_or(0, |(channels, _)| *channels);
                channels > 0 && norm.groups > 0 && channels.is_multiple_of(norm.groups)
            });
            let inputs = carried.into_iter().map(ToOwned::to_owned).collect();
            let made = work::made(node, picture.get(name.as_str()), &weights);
            steps.push(Step { inputs, output: name.clone(), reach, norm, made });
        }

        let mut knots = vec![knot(&picture, &[&input.name], 0)?];
        knots.extend(
            passages(&nodes, &steps)
                .into_iter()
                .filter_map(|(node, values)| knot(&picture, &values, node + 1)),
        );
        let ends = knots.last().is_some_and(|last| last.values[0].name == output.name);
        ends.then_some(Self { knots, steps })
    }

    /// The part from one knot to a later one, by their places in [`Self::knots`].
    pub fn part(&self, from: usize, to: usize) -> Part<'_> {
        Part::between(&self.knots[from], &self.knots[to], &self.steps)
    }

    /// The norms of a value.
    pub fn norms_of(&self, value: &str) -> impl Iterator<Item = &Norm> {
        self.steps.iter().filter_map(|step| step.norm.as_ref()).filter(move |n| n.input == value)
    }
}

fn reduced((up, down): (usize, usize)) -> (usize, usize) {
    let (mut a, mut b) = (up, down);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    (up / a, down / a)
}

type Pictures<'a> = HashMap<&'a str, (usize, (usize, usize))>;

/// `None` where a value is no picture, or the values have different sides.
fn knot(pictures: &Pictures<'_>, names: &[&str], node: usize) -> Option<Knot> {
    let plane = |name: &&str| {
        let (channels, scale) = *pictures.get(name)?;
        Some(Plane { name: (*name).to_owned(), channels, scale })
    };
    let values: Vec<Plane> = names.iter().map(plane).collect::<Option<_>>()?;
    let one_size = values.windows(2).all(|pair| pair[0].scale == pair[1].scale);
    one_size.then_some(Knot { values, node })
}

/// The nodes whose result, with a few values before it, is all that the nodes after them get of the
/// picture; and these values. Only values are taken that surely have channels, rows and columns. Where they
/// are several, only the places before norms count: there the statistics of what comes next can be had.
fn passages<'a>(nodes: &[&NodeProto], steps: &'a [Step]) -> Vec<(usize, Vec<&'a str>)> {
    let mut last_use = HashMap::new();
    for (place, step) in steps.iter().enumerate() {
        last_use.extend(step.inputs.iter().map(|input| (input.as_str(), place)));
    }
    let norms = steps.iter().filter_map(|step| step.norm.as_ref());
    let normed: HashSet<&str> = norms.map(|norm| norm.input.as_str()).collect();
    let mut pictures: HashSet<&str> = HashSet::new();
    let mut alive: Vec<&str> = Vec::new();
    let mut found = Vec::new();
    for (place, step) in steps.iter().enumerate() {
        alive.retain(|value| last_use.get(value).is_some_and(|last| *last > place));
        if step.inputs.is_empty() {
            continue;
        }
        alive.push(&step.output);
        let picture = matches!(nodes[place].op_type.as_str(), "Conv" | "Add" | "DepthToSpace");
        if picture {
            pictures.insert(&step.output);
        }
        let alone = alive.len() == 1 || normed.contains(step.output.as_str());
        if alone && alive.iter().all(|value| pictures.contains(value)) {
            found.push((place, alive.clone()));
        }
    }
    found
}

fn channels_of(graph: &GraphProto, input: &str) -> Option<usize> {
    let reader = graph.node.iter().find(|node| {
        node.op_type == "Conv" && node.input.first().is_some_and(|name| name == input)
    })?;
    let weight =
        graph.initializer.iter().find(|tensor| Some(&tensor.name) == reader.input.get(1))?;
    usize::try_from(*weight.dims.get(1)?).ok()
}

fn reach(node: &NodeProto, weights: &HashMap<&str, &TensorProto>) -> Reach {
    match node.op_type.as_str() {
        "Add" | "Mul" | "Sigmoid" => Reach::Pointwise,
        "Conv" => window(node).unwrap_or(Reach::Anywhere),
        "Resize" => repeat(node, weights).unwrap_or(Reach::Anywhere),
        "DepthToSpace" => spread(node).unwrap_or(Reach::Anywhere),
        "Concat" if joins_channels(node, weights) => Reach::Pointwise,
        // The two around a norm, which put channels and rows together and apart again.
        "Reshape" => match node.input.get(1).and_then(|shape| integers(weights.get(&**shape)?)) {
            Some(shape) if matches!(shape[..], [0, 1..=i64::MAX, -1, 0]) => Reach::Pointwise,
            _ => Reach::Anywhere,
        },
        _ => Reach::Anywhere,
    }
}

/// A convolution with a window of the same size along both sides. Where it lies differently along
/// them, as it does in what puts an enlarged picture together, all that either reaches counts.
fn window(node: &NodeProto) -> Option<Reach> {
    let list = |name: &str| node.attribute.iter().find(|a| a.name == name).map(|a| &a.ints[..]);
    let same = |name: &str| match list(name) {
        None => Some(1),
        Some([a, b]) if a == b && *a > 0 => usize::try_from(*a).ok(),
        Some(_) => None,
    };
    let automatic = node.attribute.iter().any(|a| a.name == "auto_pad" && a.s != b"NOTSET");
    if automatic || same("dilations")? != 1 {
        return None;
    }
    let (kernel, stride) = (same("kernel_shape")?, same("strides")?);
    let pads = list("pads").unwrap_or(&[0; 4]);
    let [top, left, bottom, right] = *pads else { return None };
    // The result is as large as the input, divided by the stride.
    let kept = |before: i64, after: i64| {
        before >= 0 && after >= 0 && before + after + stride as i64 == kernel as i64
    };
    if !kept(top, bottom) || !kept(left, right) {
        return None;
    }
    let before = usize::try_from(top.max(left)).ok()?;
    let after = usize::try_from(bottom.max(right)).ok()?;
    Some(Reach::Window(before + stride + after, stride, before))
}

/// Channels that become pixels.
fn spread(node: &NodeProto) -> Option<Reach> {
    let factor = node.attribute.iter().find(|attribute| attribute.name == "blocksize")?.i;
    usize::try_from(factor).ok().filter(|factor| *factor > 0).map(Reach::Repeat)
}

/// Whether a `Concat` puts the channels of pictures together.
fn joins_channels(node: &NodeProto, weights: &HashMap<&str, &TensorProto>) -> bool {
    let channels = node.attribute.iter().any(|a| a.name == "axis" && matches!(a.i, 1 | -3));
    channels && !node.input.iter().any(|input| weights.contains_key(input.as_str()))
}

fn repeat(node: &NodeProto, weights: &HashMap<&str, &TensorProto>) -> Option<Reach> {
    let text = |name: &str, value: &[u8]| {
        node.attribute.iter().any(|attribute| attribute.name == name && attribute.s == value)
    };
    let known = text("mode", b"nearest")
        && text("coordinate_transformation_mode", b"asymmetric")
        && text("nearest_mode", b"floor");
    let scales = floats(weights.get(node.input.get(2)?.as_str())?)?;
    match scales[..] {
        [1.0, 1.0, a, b] if known && a == b && a >= 1.0 && a.fract() == 0.0 => {
            Some(Reach::Repeat(a as usize))
        }
        _ => None,
    }
}

fn norm(node: &NodeProto, before: &[Step], weights: &HashMap<&str, &TensorProto>) -> Option<Norm> {
    if node.op_type != "InstanceNormalization" {
        return None;
    }
    let [grouped, scale, shift] = &node.input[..] else { return None };
    let (scale, shift) = (floats(weights.get(scale.as_str())?)?, floats(weights.get(&**shift)?)?);
    let neutral =
        scale.iter().all(|value| *value == 1.0) && shift.iter().all(|value| *value == 0.0);
    let reshape = before.iter().find(|step| step.output == *grouped)?;
    let epsilon = node.attribute.iter().find(|attribute| attribute.name == "epsilon");
    (neutral && matches!(reshape.reach, Reach::Pointwise)).then(|| Norm {
        input: reshape.inputs[0].clone(),
        output: node.output[0].clone(),
        groups: scale.len(),
        epsilon: epsilon.map_or(1e-5, |attribute| f64::from(attribute.f)),
    })
}

fn floats(tensor: &TensorProto) -> Option<Vec<f32>> {
    let stored = tensor.raw_data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
    let all: Vec<f32> = tensor.float_data.iter().copied().chain(stored).collect();
    complete(tensor, DataType::Float, all)
}

fn integers(tensor: &TensorProto) -> Option<Vec<i64>> {
    let stored = tensor.raw_data.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes));
    let all: Vec<i64> = tensor.int64_data.iter().copied().chain(stored).collect();
    complete(tensor, DataType::Int64, all)
}

/// `None` for a tensor whose elements lie outside of the graph, or have another type.
fn complete<T>(tensor: &TensorProto, dtype: DataType, all: Vec<T>) -> Option<Vec<T>> {
    let count: i64 = tensor.dims.iter().product();
    (tensor.data_type == dtype as i32 && all.len() as i64 == count).then_some(all)
}
