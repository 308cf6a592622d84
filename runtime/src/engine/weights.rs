//! The weights of a graph, and others in their place.
//!
//! A graph need not be exported again for weights that differ from the stored ones: an engine takes
//! [`Override`]s when it loads the graph. [`GraphWeights`] tells what there is to be replaced.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use tract_onnx::pb::{
    GraphProto, NodeProto, TensorProto, attribute_proto::AttributeType, tensor_proto::DataType,
};

use super::{EngineError, external_data::Stored, model_file::ModelFile};

/// The element type of a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightType {
    /// 32-bit IEEE floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// 16-bit brain floats.
    Bf16,
    /// Anything else, by its ONNX name: `uint8`.
    Other(String),
}

impl WeightType {
    pub(super) fn of(data_type: i32) -> Self {
        match DataType::try_from(data_type) {
            Ok(DataType::Float) => Self::F32,
            Ok(DataType::Float16) => Self::F16,
            Ok(DataType::Bfloat16) => Self::Bf16,
            Ok(other) => Self::Other(other.as_str_name().to_lowercase()),
            Err(_) => Self::Other(format!("type {data_type}")),
        }
    }

    /// Bytes of an element; `None` for other types.
    pub fn size(&self) -> Option<usize> {
        match self {
            Self::F32 => Some(4),
            Self::F16 | Self::Bf16 => Some(2),
            Self::Other(_) => None,
        }
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "fp32",
            Self::F16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Other(name) => name,
        })
    }
}

/// In which order a graph holds the elements of a layer's weight, as its operator tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Outputs first: `[out, in]`, or `[out, in, height, width]` of a convolution.
    OutputsFirst,
    /// A matrix `[in, out]`.
    InputsFirst,
    /// Not the weight of a linear layer or a convolution, or used in several ways.
    Other,
}

/// A weight stored with a graph.
#[derive(Clone, Debug)]
pub struct GraphWeight {
    /// Its element type.
    pub dtype: WeightType,
    /// Its shape as stored.
    pub shape: Vec<usize>,
    /// What the axes mean.
    pub layout: Layout,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Inline(Vec<u8>),
    Stored(Stored),
}

/// The initializers of a graph, by name. Their elements stay in the files until they are read.
#[derive(Clone, Debug)]
pub struct GraphWeights {
    model: PathBuf,
    weights: BTreeMap<String, GraphWeight>,
}

impl GraphWeights {
    /// Reads the graph `model` and checks where its external data lies.
    ///
    /// # Errors
    /// As [`Engine::load`](super::Engine::load), but for what only an engine finds.
    pub fn open(model: &Path) -> Result<Self, EngineError> {
        let file = ModelFile::open(model)?;
        let stored: HashMap<String, Stored> = file.stored.into_iter().collect();
        let graph = file.proto.graph.unwrap_or_default();
        let mut layouts = Layouts::default();
        layouts.graph(&graph);
        let weights = graph
            .initializer
            .into_iter()
            .filter_map(|tensor| {
                let shape = shape_of(&tensor)?;
                let dtype = WeightType::of(tensor.data_type);
                let layout = layouts.of(&tensor.name);
                let place = match stored.get(&tensor.name) {
                    Some(stored) => Place::Stored(stored.clone()),
                    None => Place::Inline(inline_bytes(&tensor)),
                };
                Some((tensor.name, GraphWeight { dtype, shape, layout, place }))
            })
            .collect();
        Ok(Self { model: file.path, weights })
    }

    /// The graph file.
    pub fn model(&self) -> &Path {
        &self.model
    }

    /// Every weight, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &GraphWeight)> {
        self.weights.iter().map(|(name, weight)| (name.as_str(), weight))
    }

    /// The weight of this name.
    pub fn get(&self, name: &str) -> Option<&GraphWeight> {
        self.weights.get(name)
    }

    /// The elements of a weight, little-endian, as stored.
    ///
    /// # Errors
    /// When there is no such weight or its file cannot be read.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, EngineError> {
        let refused = |reason: String| EngineError::ExternalData {
            model: self.model.clone(),
            tensor: name.to_owned(),
            reason,
        };
        let weight = self.get(name).ok_or_else(|| refused("there is none".to_owned()))?;
        match &weight.place {
            Place::Inline(bytes) => Ok(bytes.clone()),
            Place::Stored(stored) => read(stored).map_err(|error| {
                refused(format!("{} cannot be read: {error}", stored.file.display()))
            }),
        }
    }
}

fn read(stored: &Stored) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(&stored.file)?;
    file.seek(SeekFrom::Start(stored.offset))?;
    // The length was compared with the file's size before.
    let mut bytes = vec![0; usize::try_from(stored.length).map_err(std::io::Error::other)?];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn shape_of(tensor: &TensorProto) -> Option<Vec<usize>> {
    tensor.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect()
}

fn inline_bytes(tensor: &TensorProto) -> Vec<u8> {
    match tensor.raw_data.is_empty() {
        true => tensor.float_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
        false => tensor.raw_data.clone(),
    }
}

/// How each weight is used, conversions of its type seen through.
#[derive(Default)]
struct Layouts {
    /// Converted value → weight.
    converted: HashMap<String, String>,
    found: HashMap<String, Layout>,
}

impl Layouts {
    fn of(&self, name: &str) -> Layout {
        self.found.get(name).copied().unwrap_or(Layout::Other)
    }

    // The decoder of the file bounds the depth of this recursion.
    fn graph(&mut self, graph: &GraphProto) {
        for node in &graph.node {
            self.node(node);
            for attribute in &node.attribute {
                attribute.g.iter().chain(&attribute.graphs).for_each(|inner| self.graph(inner));
            }
        }
    }

    fn node(&mut self, node: &NodeProto) {
        let converts = matches!(node.op_type.as_str(), "Cast" | "Identity");
        if let (true, [input], [output]) = (converts, &node.input[..], &node.output[..]) {
            let source = self.converted.get(input).unwrap_or(input).clone();
            self.converted.insert(output.clone(), source);
            return;
        }
        for (position, input) in node.input.iter().enumerate() {
            let layout = match (node.op_type.as_str(), position) {
                ("MatMul", 1) => Layout::InputsFirst,
                ("Gemm", 1) if flag(node, "transB") => Layout::OutputsFirst,
                ("Gemm", 1) => Layout::InputsFirst,
                ("Conv", 1) => Layout::OutputsFirst,
                _ => Layout::Other,
            };
            let source = self.converted.get(input).unwrap_or(input).clone();
            let known = self.found.entry(source).or_insert(layout);
            if *known != layout {
                *known = Layout::Other;
            }
        }
    }
}

fn flag(node: &NodeProto, name: &str) -> bool {
    node.attribute
        .iter()
        .any(|a| a.name == name && a.r#type == AttributeType::Int as i32 && a.i != 0)
}

/// Other elements for one initializer of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// The initializer.
    pub name: String,
    /// The element type, which has to be the initializer's.
    pub dtype: WeightType,
    /// The shape, which has to be the initializer's.
    pub shape: Vec<usize>,
    /// The elements, little-endian, in row-major order.
    pub data: Vec<u8>,
}

/// Refuses overrides that do not fit the graph.
pub(super) fn check(file: &ModelFile, overrides: &[Override]) -> Result<(), EngineError> {
    let graph = file.proto.graph.iter().flat_map(|graph| &graph.initializer);
    let known: HashMap<&str, &TensorProto> = match overrides.is_empty() {
        true => return Ok(()),
        false => graph.map(|tensor| (tensor.name.as_str(), tensor)).collect(),
    };
    for new in overrides {
        let refused = |reason: String| {
            let (model, tensor) = (file.path.clone(), new.name.clone());
            Err(EngineError::Override { model, tensor, reason })
        };
        let Some(tensor) = known.get(new.name.as_str()) else {
            return refused("the graph has no initializer of this name".to_owned());
        };
        let (dtype, shape) = (WeightType::of(tensor.data_type), shape_of(tensor));
        if dtype != new.dtype || shape.as_ref() != Some(&new.shape) {
            return refused(format!(
                "found {} {:?}, expected the graph's own {dtype} {:?}",
                new.dtype, new.shape, tensor.dims
            ));
        }
        let needed = new.dtype.size().map(|size| size * new.shape.iter().product::<usize>());
        if needed != Some(new.data.len()) {
            return refused(format!("found {} bytes, expected {needed:?}", new.data.len()));
        }
    }
    Ok(())
}

/// Puts the overrides of initializers that the graph file holds itself into their place, and returns
/// the others, which lie outside of it. Whether there were any of the first kind is told, too.
pub(super) fn place_inline(
    file: &mut ModelFile,
    overrides: Vec<Override>,
) -> (Vec<Override>, bool) {
    let stored: std::collections::HashSet<&str> =
        file.stored.iter().map(|(name, _)| name.as_str()).collect();
    let (outside, inline): (Vec<_>, Vec<_>) =
        overrides.into_iter().partition(|new| stored.contains(new.name.as_str()));
    let changed = !inline.is_empty();
    let tensors = file.proto.graph.iter_mut().flat_map(|graph| &mut graph.initializer);
    let mut by_name: HashMap<String, &mut TensorProto> =
        tensors.map(|tensor| (tensor.name.clone(), tensor)).collect();
    for new in inline {
        if let Some(tensor) = by_name.get_mut(&new.name) {
            tensor.float_data.clear();
            tensor.int32_data.clear();
            tensor.raw_data = new.data;
        }
    }
    (outside, changed)
}
