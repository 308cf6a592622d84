//! A graph as a chain of parts, so that a picture can go through it tile by tile.
//!
//! Between two values through which all of the computation passes lies a part. A part is *local* if
//! every pixel of its result depends on the pixels around it alone, but for the statistics of its
//! norms, which are taken over the whole picture. What a local part needs for a range of its result is
//! worked out from its convolutions and resizes.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    path::Path,
};

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

/// A value through which all of the computation passes, `[batch, channels, height, width]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Knot {
    /// Its name.
    pub name: String,
    /// Its channels.
    pub channels: usize,
    /// Its sides against those of the graph's input, as a fraction.
    pub scale: (usize, usize),
    /// The node that makes it; 0 nodes come before the graph's input.
    node: usize,
}

impl Knot {
    /// A side of the value where the graph's input has `side`.
    pub fn side(&self, side: usize) -> usize {
        side * self.scale.0 / self.scale.1
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

#[derive(Clone, Debug)]
struct Step {
    /// Values that carry pixels.
    inputs: Vec<String>,
    output: String,
    reach: Reach,
    norm: Option<Norm>,
}

/// A graph with one picture going in and one coming out.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    /// The graph's input first, its output last.
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

        let mut picture = HashMap::new();
        let declared = channels_of(graph, &input.name)?;
        picture.insert(input.name.as_str(), (declared, (1, 1)));
        let mut steps = Vec::with_capacity(graph.node.len());
        for node in &graph.node {
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
                        scale = (scale.0, scale.1 * stride);
                    }
                    Reach::Repeat(factor) => {
                        scale = (scale.0 * factor, scale.1);
                        if node.op_type == "DepthToSpace" {
                            channels /= factor.checked_mul(factor)?;
                        }
                    }
                    Reach::Pointwise if node.op_type == "Concat" => {
                        channels = carried.iter().map(|name| picture[name].0).sum();
                    }
                    _ => {}
                }
                picture.insert(name, (channels, reduced(scale)));
            }
            let norm = norm(node, &steps, &weights);
            let inputs = carried.into_iter().map(ToOwned::to_owned).collect();
            steps.push(Step { inputs, output: name.clone(), reach, norm });
        }

        let mut knots = vec![knot(&picture, &input.name, 0)?];
        knots.extend(
            passages(&graph.node, &steps)
                .into_iter()
                .filter_map(|node| knot(&picture, &steps[node].output, node + 1)),
        );
        if knots.last()?.name != output.name {
            return None;
        }
        Some(Self { knots, steps })
    }

    /// The part from one knot to a later one, by their places in [`Self::knots`].
    pub fn part(&self, from: usize, to: usize) -> Part<'_> {
        let (first, last) = (&self.knots[from], &self.knots[to]);
        Part { input: &first.name, output: &last.name, steps: &self.steps[first.node..last.node] }
    }
}

/// A stretch of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    /// The value it starts from.
    pub input: &'a str,
    /// The value it ends with.
    pub output: &'a str,
    steps: &'a [Step],
}

impl<'a> Part<'a> {
    /// Whether tiles can go through it.
    pub fn is_local(&self) -> bool {
        self.steps.iter().all(|step| {
            !step.inputs.is_empty()
                && (!matches!(step.reach, Reach::Anywhere) || step.norm.is_some())
        })
    }

    /// Whether it asks for the sides of the graph's input.
    pub fn reads_sizes(&self) -> bool {
        self.steps.iter().any(|step| step.inputs.is_empty())
    }

    /// Its norms in the order of computation.
    pub fn norms(&self) -> impl Iterator<Item = &'a Norm> + use<'a> {
        self.steps.iter().filter_map(|step| step.norm.as_ref())
    }

    /// The same part, but only up to a value inside.
    pub fn up_to(&self, value: &'a str) -> Self {
        let end = self.steps.iter().position(|step| step.output == value);
        Self { output: value, steps: &self.steps[..end.map_or(0, |end| end + 1)], ..*self }
    }

    /// By what the side of the result differs from that of the input, as a fraction.
    pub fn scale(&self) -> (usize, usize) {
        let mut scales = HashMap::from([(self.input, (1, 1))]);
        for step in self.steps {
            let known = step.inputs.iter().find_map(|input| scales.get(input.as_str()).copied());
            let Some((up, down)) = known else { continue };
            let scale = match step.reach {
                Reach::Window(_, stride, _) => (up, down * stride),
                Reach::Repeat(factor) => (up * factor, down),
                _ => (up, down),
            };
            scales.insert(&step.output, reduced(scale));
        }
        scales.get(self.output).copied().unwrap_or((1, 1))
    }

    /// The range of the input that a range of the result depends on. It can reach over the ends.
    pub fn needed(&self, result: Range<isize>) -> Range<isize> {
        let mut needed = HashMap::from([(self.output, result.clone())]);
        for step in self.steps.iter().rev() {
            let Some(range) = needed.get(step.output.as_str()).cloned() else { continue };
            let range = match step.reach {
                Reach::Window(kernel, stride, before) => {
                    let (kernel, stride) = (kernel as isize, stride as isize);
                    let start = range.start * stride - before as isize;
                    start..(range.end - 1) * stride - before as isize + kernel
                }
                Reach::Repeat(factor) => {
                    let factor = factor as isize;
                    range.start.div_euclid(factor)..(range.end - 1).div_euclid(factor) + 1
                }
                Reach::Pointwise | Reach::Anywhere => range,
            };
            for input in &step.inputs {
                let entry = needed.entry(input).or_insert(range.clone());
                *entry = entry.start.min(range.start)..entry.end.max(range.end);
            }
        }
        needed.remove(self.input).unwrap_or(result)
    }
}

fn reduced((up, down): (usize, usize)) -> (usize, usize) {
    let (mut a, mut b) = (up, down);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    (up / a, down / a)
}

fn knot(picture: &HashMap<&str, (usize, (usize, usize))>, name: &str, node: usize) -> Option<Knot> {
    let (channels, scale) = *picture.get(name)?;
    Some(Knot { name: name.to_owned(), channels, scale, node })
}

/// The nodes whose result is all that the nodes after them get of the picture. Only those are taken
/// whose result surely has channels, rows and columns.
fn passages(nodes: &[NodeProto], steps: &[Step]) -> Vec<usize> {
    let mut last_use = HashMap::new();
    for (place, step) in steps.iter().enumerate() {
        last_use.extend(step.inputs.iter().map(|input| (input.as_str(), place)));
    }
    let mut alive: HashSet<&str> = HashSet::new();
    let mut found = Vec::new();
    for (place, step) in steps.iter().enumerate() {
        alive.retain(|value| last_use.get(value).is_some_and(|last| *last > place));
        if step.inputs.is_empty() {
            continue;
        }
        alive.insert(&step.output);
        let picture = matches!(nodes[place].op_type.as_str(), "Conv" | "Add" | "DepthToSpace");
        let only = alive.len() == 1 && alive.contains(step.output.as_str());
        if picture && only {
            found.push(place);
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
