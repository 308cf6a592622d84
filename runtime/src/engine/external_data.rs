//! Rules for the weights of a graph, beside it and in it.
//!
//! A graph names the files of its weights, so a hostile graph could name any file of the user's.
//! ONNX Runtime and tract each have rules of their own, which differ between versions; these are
//! checked first, for both:
//!
//! - A location is a plain file name in the model's own folder. Everything else is refused: `..`,
//!   absolute paths, folders, Windows drives and streams, and ONNX Runtime's tag for addresses in
//!   memory.
//! - What that name points to may lie elsewhere, because download caches keep every file as a
//!   symbolic link into a store. Whoever can place links in the model's folder can replace the model
//!   as well. For the same reason a file may have several names: the caches of some tools are made
//!   of hard links, and such a link gives nobody access who could not read the file before.
//! - It must be a file in the end: no folder, pipe or device, and no circle of links.
//! - Only the keys `location`, `offset`, `length` and `checksum` are known (the checksum is not
//!   compared; the manifest has a stronger one). Numbers are plain digits, the range lies in the
//!   file, and its length is exactly what type and shape ask for.
//! - Elements in the graph itself are as many as type and shape ask for, too, so that no engine
//!   reserves memory for a shape that nothing fills.
//!
//! Between the check and the moment when an engine opens the file somebody could exchange it; who can
//! do that owns the model.

use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
};

use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto,
    tensor_proto::{DataLocation, DataType},
};

use super::EngineError;
use crate::bundle::store::{self, Place};

/// The keys of the ONNX specification. `basepath`, which some tools use while they write, would move
/// the location and is not among them.
const KEYS: [&str; 4] = ["location", "offset", "length", "checksum"];

/// Where the bytes of one tensor lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// The file: in the model's folder, or the bundle that holds both.
    pub file: PathBuf,
    /// First byte.
    pub offset: u64,
    /// Number of bytes; exactly what the tensor's type and shape ask for.
    pub length: u64,
}

/// A refused tensor and why.
#[derive(Debug)]
pub(super) struct Refused {
    pub tensor: String,
    pub reason: String,
}

impl Refused {
    pub fn in_model(self, model: &Path) -> EngineError {
        let Self { tensor, reason } = self;
        EngineError::ExternalData { model: model.to_owned(), tensor, reason }
    }
}

/// Checks every tensor of `model`, in all its graphs, and says where those initializers of the main
/// graph lie that are not inline.
pub(super) fn check(model: &ModelProto, folder: &Path) -> Result<Vec<(String, Stored)>, Refused> {
    check_as(model, folder, false)
}

/// The same with the rules for bundles, where the graph is to go.
pub(super) fn check_to_bundle(
    model: &ModelProto,
    folder: &Path,
) -> Result<Vec<(String, Stored)>, Refused> {
    check_as(model, folder, true)
}

fn check_as(
    model: &ModelProto,
    folder: &Path,
    to_bundle: bool,
) -> Result<Vec<(String, Stored)>, Refused> {
    let mut rules = Rules { folder, places: HashMap::new(), inner: false, to_bundle };
    let mut stored = Vec::new();
    if let Some(graph) = &model.graph {
        for tensor in &graph.initializer {
            if let Some(place) = rules.tensor(tensor)? {
                stored.push((tensor.name.clone(), place));
            }
        }
        rules.inner = true;
        rules.nodes(graph)?;
    }
    rules.inner = true;
    for function in &model.functions {
        function.node.iter().try_for_each(|node| rules.node(node))?;
    }
    for training in &model.training_info {
        for graph in [&training.initialization, &training.algorithm].into_iter().flatten() {
            rules.graph(graph)?;
        }
    }
    Ok(stored)
}

/// Whether the bytes of `tensor` lie outside the graph.
pub(super) fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location == Some(DataLocation::External as i32)
}

struct Rules<'a> {
    folder: &'a Path,
    /// What is known about each location.
    places: HashMap<String, Place>,
    /// Whether the tensors are others than the initializers of the main graph.
    inner: bool,
    /// Whether the rules of bundles hold for files outside of one.
    to_bundle: bool,
}

impl Rules<'_> {
    // The depth of this recursion is bounded: the decoder refuses messages nested 100 deep.
    fn graph(&mut self, graph: &GraphProto) -> Result<(), Refused> {
        for tensor in &graph.initializer {
            self.tensor(tensor)?;
        }
        self.nodes(graph)
    }

    fn nodes(&mut self, graph: &GraphProto) -> Result<(), Refused> {
        for sparse in &graph.sparse_initializer {
            self.sparse(sparse)?;
        }
        graph.node.iter().try_for_each(|node| self.node(node))
    }

    fn node(&mut self, node: &NodeProto) -> Result<(), Refused> {
        node.attribute.iter().try_for_each(|attribute| self.attribute(attribute))
    }

    fn attribute(&mut self, attribute: &AttributeProto) -> Result<(), Refused> {
        for tensor in attribute.t.iter().chain(&attribute.tensors) {
            self.tensor(tensor)?;
        }
        for sparse in attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors) {
            self.sparse(sparse)?;
        }
        for graph in attribute.g.iter().chain(&attribute.graphs) {
            self.graph(graph)?;
        }
        Ok(())
    }

    fn sparse(&mut self, sparse: &SparseTensorProto) -> Result<(), Refused> {
        for tensor in sparse.values.iter().chain(&sparse.indices) {
            self.tensor(tensor)?;
        }
        Ok(())
    }

    fn tensor(&mut self, tensor: &TensorProto) -> Result<Option<Stored>, Refused> {
        self.place(tensor).map_err(|reason| Refused { tensor: tensor.name.clone(), reason })
    }

    fn place(&mut self, tensor: &TensorProto) -> Result<Option<Stored>, String> {
        if !is_external(tensor) {
            return match tensor.external_data.is_empty() {
                true => inline_fits(tensor).map(|()| None),
                false => Err("it names external data but is marked as inline".to_owned()),
            };
        }
        if !tensor.raw_data.is_empty() || typed_entries(tensor) > 0 {
            return Err("it is marked as external but has inline elements".to_owned());
        }
        let mut values: HashMap<&str, &str> = HashMap::new();
        for entry in &tensor.external_data {
            let key = entry.key.as_str();
            if !KEYS.contains(&key) {
                return Err(format!("unknown key \"{}\"", key.escape_debug()));
            }
            if values.insert(key, &entry.value).is_some() {
                return Err(format!("the key \"{key}\" is there twice"));
            }
        }
        let location = values.get("location").ok_or("it names no location")?;
        if !is_plain_file_name(location) {
            return Err(format!(
                "its location \"{}\" is not a plain file name in the model's folder",
                location.escape_debug()
            ));
        }
        let number = |key: &str| match values.get(key) {
            None => Ok(None),
            // The standard parser would take a sign as well.
            Some(text) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse::<u64>().map(Some).map_err(|error| format!("its {key} {text}: {error}"))
            }
            Some(text) => {
                Err(format!("its {key} \"{}\" is not a whole number", text.escape_debug()))
            }
        };
        let file = self.folder.join(location);
        let place = self.stored_at(location, &file)?;
        if (place.bundled || self.to_bundle) && self.inner {
            return Err(
                "in a bundle, only initializers of the main graph can lie outside of it".to_owned()
            );
        }
        let size = place.bytes;
        let offset = number("offset")?.unwrap_or(0);
        let rest = size.checked_sub(offset).ok_or_else(|| {
            let location = location.escape_debug();
            format!("its offset {offset} lies beyond the end of {location} ({size} bytes)")
        })?;
        let length = number("length")?.unwrap_or(rest);
        if length > rest {
            return Err(format!(
                "its {length} bytes from offset {offset} reach beyond the end of {} ({size} bytes); the \
                 file is cut short",
                location.escape_debug()
            ));
        }
        let needed = byte_size(tensor)?;
        if needed != length {
            return Err(format!(
                "its type and shape {:?} need {needed} bytes, {length} are given",
                tensor.dims
            ));
        }
        Ok(Some(Stored { file: place.file, offset: place.offset + offset, length }))
    }

    fn stored_at(&mut self, location: &str, file: &Path) -> Result<Place, String> {
        if let Some(place) = self.places.get(location) {
            return Ok(place.clone());
        }
        let place = store::place(file)
            .map_err(|error| format!("\"{}\" cannot be read: {error}", location.escape_debug()))?
            .ok_or_else(|| format!("\"{}\" is not a file", location.escape_debug()))?;
        self.places.insert(location.to_owned(), place.clone());
        Ok(place)
    }
}

/// A name without any way out of the folder it is joined to, on any system.
pub(crate) fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let one =
        matches!(components.next(), Some(Component::Normal(_))) && components.next().is_none();
    // On every system, because folders travel: a colon starts a Windows drive or stream.
    one && !name.contains(['/', '\\', ':', '\0'])
}

/// Bytes of a tensor by its type and shape.
fn byte_size(tensor: &TensorProto) -> Result<u64, String> {
    let bits: u64 = match data_type(tensor)? {
        DataType::Bool | DataType::Uint8 | DataType::Int8 => 8,
        DataType::Float8e4m3fn
        | DataType::Float8e4m3fnuz
        | DataType::Float8e5m2
        | DataType::Float8e5m2fnuz => 8,
        DataType::Uint16 | DataType::Int16 | DataType::Float16 | DataType::Bfloat16 => 16,
        DataType::Uint32 | DataType::Int32 | DataType::Float => 32,
        DataType::Uint64 | DataType::Int64 | DataType::Double | DataType::Complex64 => 64,
        DataType::Complex128 => 128,
        DataType::Uint4 | DataType::Int4 | DataType::Float4e2m1 => 4,
        DataType::String | DataType::Undefined => {
            return Err("its type has no fixed size, so it cannot be stored as bytes".to_owned());
        }
    };
    let bits = element_count(tensor)?.checked_mul(bits).ok_or_else(|| impossible(tensor))?;
    Ok(bits.div_ceil(8))
}

/// Whether the elements in the graph are as many as the shape says.
fn inline_fits(tensor: &TensorProto) -> Result<(), String> {
    let (found, needed) = if tensor.raw_data.is_empty() {
        let count = element_count(tensor)?;
        let needed = match data_type(tensor)? {
            DataType::Complex64 | DataType::Complex128 => {
                count.checked_mul(2).ok_or_else(|| impossible(tensor))?
            }
            // Two elements in a byte, one byte in an entry.
            DataType::Uint4 | DataType::Int4 | DataType::Float4e2m1 => count.div_ceil(2),
            _ => count,
        };
        (typed_entries(tensor), needed)
    } else if typed_entries(tensor) > 0 {
        return Err("it has its elements twice, as bytes and as numbers".to_owned());
    } else {
        (tensor.raw_data.len() as u64, byte_size(tensor)?)
    };
    match found == needed {
        true => Ok(()),
        false => Err(format!(
            "its type and shape {:?} need {needed} entries, {found} are given",
            tensor.dims
        )),
    }
}

/// Elements that are stored as numbers, of whatever type.
fn typed_entries(tensor: &TensorProto) -> u64 {
    let entries = tensor.float_data.len()
        + tensor.int32_data.len()
        + tensor.int64_data.len()
        + tensor.double_data.len()
        + tensor.uint64_data.len()
        + tensor.string_data.len();
    entries as u64
}

fn data_type(tensor: &TensorProto) -> Result<DataType, String> {
    DataType::try_from(tensor.data_type)
        .map_err(|_| format!("its element type {} is not known", tensor.data_type))
}

fn element_count(tensor: &TensorProto) -> Result<u64, String> {
    let mut count = 1u64;
    for &dim in &tensor.dims {
        let size = u64::try_from(dim).map_err(|_| impossible(tensor))?;
        count = count.checked_mul(size).ok_or_else(|| impossible(tensor))?;
    }
    Ok(count)
}

fn impossible(tensor: &TensorProto) -> String {
    format!("its shape {:?} is impossible", tensor.dims)
}

#[cfg(test)]
mod tests;
