//! From a checked graph file to tract's own graph, weights included.
//!
//! tract can read external data itself, but refuses the symbolic links of download caches and
//! compares each new weight with every earlier one. So the weights that lie outside the file are
//! handed to tract as inputs of the graph, and each such input is then turned into a constant.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
};

use tract_onnx::{
    Onnx,
    pb::{
        GraphProto, ModelProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
        tensor_proto::DataType,
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
    tract_hir::{internal::*, ops::konst::Const},
};

use super::{
    super::{external_data::Stored, model_file::ModelFile},
    replaced::Replaced,
};

/// A graph with symbolic sizes and all its weights.
pub(super) struct Graph {
    pub model: InferenceModel,
    /// Bytes of all weights that lay outside the file.
    pub weight_bytes: u64,
}

/// Products with matrices quantised in blocks. tract has this operator for 4 bits, but its results in
/// whole transformers were wrong (0.23.9: six times the error of the quantisation itself, though
/// single products are right), so it is not used.
const BLOCKS: &str = "MatMulNBits";

/// Builds tract's graph; takes the protobuf out of `file`. Of the `replaced` weights nothing is read.
pub(super) fn build(file: &mut ModelFile, replaced: &Replaced) -> TractResult<Graph> {
    let mut proto = std::mem::take(&mut file.proto);
    let stored: HashMap<&str, &Stored> =
        file.stored.iter().map(|(name, stored)| (name.as_str(), stored)).collect();
    if let Some(node) = proto.graph.iter().flat_map(|g| &g.node).find(|n| n.op_type == BLOCKS) {
        bail!(
            "{} is an operator of ONNX Runtime ({BLOCKS}); for tract export int8 with --profile \
             portable (int4 needs ONNX Runtime)",
            node.name
        );
    }
    replaced.place_inline(&mut proto, &stored);
    let weights = move_to_inputs(&mut proto, &stored)?;
    if let Some(graph) = &mut proto.graph {
        graph.initializer.iter_mut().for_each(widen_bf16);
        inner_graphs(graph, &mut forget_symbols);
    }
    let parsed = onnx().parse(&proto, None)?;
    if let Some(name) = parsed.unresolved_inputs.first() {
        bail!("the value \"{name}\" is used but nothing makes it");
    }
    let mut model = parsed.model;
    let mut reader = Reader::default();
    let mut weight_bytes = 0;
    for weight in weights {
        let place = stored.get(weight.name.as_str()).context("weight without a place")?;
        let tensor = match replaced.stored(&weight.name) {
            Some(tensor) => tensor,
            None => reader
                .read(&weight, place)
                .with_context(|| format!("reading the tensor \"{}\"", weight.name))?,
        };
        weight_bytes += place.length;
        let outlet = *parsed
            .outlets_by_name
            .get(&weight.name)
            .with_context(|| format!("the tensor \"{}\" is lost", weight.name))?;
        let fact = TypedFact::try_from(tensor.clone())?;
        let node = &mut model.nodes[outlet.node];
        node.op = Box::new(Const::new(tensor)?);
        node.outputs[outlet.slot].fact = fact.into();
        model.inputs.retain(|input| *input != outlet);
    }
    Ok(Graph { model, weight_bytes })
}

fn onnx() -> Onnx {
    // Declared inner sizes are symbolic and would contradict the real ones of a plan.
    tract_onnx::onnx().with_ignore_value_info(true)
}

/// Calls `change` with every graph inside the nodes of `graph`. The decoder bounds the depth.
fn inner_graphs(graph: &mut GraphProto, change: &mut dyn FnMut(&mut GraphProto)) {
    for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        for inner in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            change(inner);
            inner_graphs(inner, change);
        }
    }
}

/// Sizes that an inner graph declares by a symbol of the outer one would contradict the real sizes
/// of a plan: tract puts these in place of the symbols in the outer graph only.
fn forget_symbols(graph: &mut GraphProto) {
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(TypeProto { value: Some(type_proto::Value::TensorType(kind)), .. }) =
            &mut value.r#type
            && let Some(shape) = &mut kind.shape
        {
            for dim in &mut shape.dim {
                if matches!(dim.value, Some(dimension::Value::DimParam(_))) {
                    dim.value = None;
                }
            }
        }
    }
}

/// Takes the stored initializers out of the graph and declares them as inputs instead.
fn move_to_inputs(
    proto: &mut ModelProto,
    stored: &HashMap<&str, &Stored>,
) -> TractResult<Vec<TensorProto>> {
    let graph: &mut GraphProto = proto.graph.as_mut().context("no graph")?;
    let (moved, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut graph.initializer)
        .into_iter()
        .partition(|tensor| stored.contains_key(tensor.name.as_str()));
    graph.initializer = kept;
    let declared: HashSet<String> = graph.input.iter().map(|input| input.name.clone()).collect();
    for tensor in &moved {
        if !declared.contains(&tensor.name) {
            graph.input.push(declare(tensor));
        }
    }
    Ok(moved)
}

fn declare(tensor: &TensorProto) -> ValueInfoProto {
    let dim = |size: &i64| Dimension {
        value: Some(dimension::Value::DimValue(*size)),
        ..Default::default()
    };
    let kind = type_proto::Tensor {
        elem_type: readable_type(tensor.data_type),
        shape: Some(TensorShapeProto { dim: tensor.dims.iter().map(dim).collect() }),
    };
    ValueInfoProto {
        name: tensor.name.clone(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(kind)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

const BF16: i32 = DataType::Bfloat16 as i32;

/// The type in which tract gets a tensor: it has no bf16, whose every number is one of f32 too. The
/// conversions to f32 in the graph then convert nothing.
fn readable_type(data_type: i32) -> i32 {
    if data_type == BF16 { DataType::Float as i32 } else { data_type }
}

/// The bytes of bf16 numbers as f32: the upper half, in front of it a lower half of zeros.
fn widened(bytes: &[u8]) -> Vec<u8> {
    bytes.as_chunks().0.iter().flat_map(|&[low, high]| [0, 0, low, high]).collect()
}

/// Gives a bf16 tensor in the graph itself the type that tract reads.
fn widen_bf16(tensor: &mut TensorProto) {
    if tensor.data_type == BF16 && !tensor.raw_data.is_empty() {
        tensor.raw_data = widened(&tensor.raw_data);
        tensor.data_type = DataType::Float as i32;
    }
}

/// Reads tensors, keeping the last file open.
#[derive(Default)]
struct Reader {
    open: Option<(PathBuf, File)>,
}

impl Reader {
    fn read(&mut self, tensor: &TensorProto, place: &Stored) -> TractResult<Arc<Tensor>> {
        let dtype: DatumType = DataType::try_from(readable_type(tensor.data_type))
            .map_err(|_| format_err!("unknown element type {}", tensor.data_type))?
            .try_into()?;
        if !dtype.is_copy() {
            bail!("elements of type {dtype:?} cannot be stored outside the graph");
        }
        let shape = tensor
            .dims
            .iter()
            .map(|dim| usize::try_from(*dim).map_err(|_| format_err!("negative size {dim}")))
            .collect::<TractResult<TVec<usize>>>()?;
        if self.open.as_ref().is_none_or(|(path, _)| *path != place.file) {
            let file = File::open(&place.file)
                .with_context(|| format!("opening {}", place.file.display()))?;
            self.open = Some((place.file.clone(), file));
        }
        let Some((_, file)) = &mut self.open else { bail!("no open file") };
        file.seek(SeekFrom::Start(place.offset))?;
        // The size was checked against type and shape, and against the file, before.
        let mut value = Tensor::zero_dt(dtype, &shape)?;
        let bytes = value.as_bytes_mut();
        let bf16 = tensor.data_type == BF16;
        let needed = if bf16 { bytes.len() / 2 } else { bytes.len() };
        ensure!(needed as u64 == place.length, "{needed} bytes are needed");
        file.read_exact(&mut bytes[..needed])
            .with_context(|| format!("reading {}", place.file.display()))?;
        if bf16 {
            // From the back, so that no number is overwritten before it has been moved.
            for index in (0..needed / 2).rev() {
                let [low, high] = [bytes[2 * index], bytes[2 * index + 1]];
                bytes[4 * index..][..4].copy_from_slice(&[0, 0, low, high]);
            }
        }
        if dtype == DatumType::Bool && bytes.iter().any(|byte| *byte > 1) {
            bail!("a truth value is neither 0 nor 1");
        }
        if cfg!(target_endian = "big") {
            bail!("weights are stored in little-endian order, which this processor does not use");
        }
        Ok(value.into_arc_tensor())
    }
}
