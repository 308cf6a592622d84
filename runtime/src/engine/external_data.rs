//! Rules for the weights that lie beside a graph.
//!
//! A graph names the files of its weights, so a hostile graph could name any file of the user's.
//! ONNX Runtime and tract each have rules of their own, which differ between versions; these are
//! checked first, for both: a location is a plain file name in the model's own folder. What that
//! name points to may lie elsewhere, because download caches keep every file as a symbolic link
//! into a store; whoever can place links in the model's folder can replace the model as well.

use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
};

use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto,
    tensor_proto::{DataLocation, DataType},
};

/// Keys that the ONNX specification knows.
const KEYS: [&str; 5] = ["location", "offset", "length", "checksum", "basepath"];

/// Where the bytes of one tensor lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// The file, in the model's folder.
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

/// Checks every tensor of `model`, in all its graphs, and says where those initializers of the main
/// graph lie that are not inline.
pub(super) fn check(model: &ModelProto, folder: &Path) -> Result<Vec<(String, Stored)>, Refused> {
    let mut rules = Rules { folder, sizes: HashMap::new() };
    let mut stored = Vec::new();
    if let Some(graph) = &model.graph {
        for tensor in &graph.initializer {
            if let Some(place) = rules.tensor(tensor)? {
                stored.push((tensor.name.clone(), place));
            }
        }
        rules.graph(graph)?;
    }
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
    sizes: HashMap<String, u64>,
}

impl Rules<'_> {
    // The depth of this recursion is bounded: the decoder refuses messages nested 100 deep.
    fn graph(&mut self, graph: &GraphProto) -> Result<(), Refused> {
        for tensor in &graph.initializer {
            self.tensor(tensor)?;
        }
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
                true => Ok(None),
                false => Err("it names external data but is marked as inline".to_owned()),
            };
        }
        if !tensor.raw_data.is_empty() {
            return Err("it is marked as external but has inline bytes".to_owned());
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
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| {
                format!("its {key} \"{}\" is not a whole number", text.escape_debug())
            }),
        };
        let file = self.folder.join(location);
        let size = self.size(location, &file)?;
        let offset = number("offset")?.unwrap_or(0);
        let rest = size.checked_sub(offset).ok_or_else(|| {
            format!("its offset {offset} lies beyond the end of {location} ({size} bytes)")
        })?;
        let length = number("length")?.unwrap_or(rest);
        if length > rest {
            return Err(format!(
                "its {length} bytes from offset {offset} reach beyond the end of {location} \
                 ({size} bytes); the file is cut short"
            ));
        }
        if let Some(needed) = byte_size(tensor)?
            && needed != length
        {
            return Err(format!(
                "its type and shape {:?} need {needed} bytes, {length} are given",
                tensor.dims
            ));
        }
        Ok(Some(Stored { file, offset, length }))
    }

    fn size(&mut self, location: &str, file: &Path) -> Result<u64, String> {
        if let Some(size) = self.sizes.get(location) {
            return Ok(*size);
        }
        let metadata = std::fs::metadata(file)
            .map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
        if !metadata.is_file() {
            return Err(format!("{} is not a file", file.display()));
        }
        self.sizes.insert(location.to_owned(), metadata.len());
        Ok(metadata.len())
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

/// Bytes of a tensor by its type and shape; `None` for a type of unknown width.
fn byte_size(tensor: &TensorProto) -> Result<Option<u64>, String> {
    let bits: u64 = match DataType::try_from(tensor.data_type) {
        Ok(DataType::Bool | DataType::Uint8 | DataType::Int8) => 8,
        Ok(DataType::Uint16 | DataType::Int16 | DataType::Float16 | DataType::Bfloat16) => 16,
        Ok(DataType::Uint32 | DataType::Int32 | DataType::Float) => 32,
        Ok(DataType::Uint64 | DataType::Int64 | DataType::Double | DataType::Complex64) => 64,
        Ok(DataType::Complex128) => 128,
        Ok(DataType::Uint4 | DataType::Int4 | DataType::Float4e2m1) => 4,
        Ok(DataType::String | DataType::Undefined) => {
            return Err("its type cannot be stored outside the graph".to_owned());
        }
        Ok(_) => 8, // the four 8-bit float types
        Err(_) => return Ok(None),
    };
    let mut count = 1u64;
    for &dim in &tensor.dims {
        count = u64::try_from(dim)
            .ok()
            .and_then(|dim| count.checked_mul(dim))
            .ok_or_else(|| format!("its shape {:?} is impossible", tensor.dims))?;
    }
    let bits = count
        .checked_mul(bits)
        .ok_or_else(|| format!("its shape {:?} is impossible", tensor.dims))?;
    Ok(Some(bits.div_ceil(8)))
}

#[cfg(test)]
mod tests {
    use tract_onnx::pb::StringStringEntryProto;

    use super::*;

    fn tensor(entries: &[(&str, &str)]) -> TensorProto {
        TensorProto {
            name: "w".to_owned(),
            data_type: DataType::Float as i32,
            dims: vec![2, 3],
            data_location: Some(DataLocation::External as i32),
            external_data: entries
                .iter()
                .map(|(key, value)| StringStringEntryProto {
                    key: (*key).to_owned(),
                    value: (*value).to_owned(),
                })
                .collect(),
            ..Default::default()
        }
    }

    fn model(tensor: TensorProto) -> ModelProto {
        let graph = GraphProto { initializer: vec![tensor], ..Default::default() };
        ModelProto { graph: Some(graph), ..Default::default() }
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::create_dir(folder.path().join("model")).expect("model folder");
        std::fs::write(folder.path().join("model/data"), [0u8; 100]).expect("data");
        std::fs::write(folder.path().join("secret"), [0u8; 100]).expect("secret");
        folder
    }

    fn verdict(entries: &[(&str, &str)]) -> Result<Vec<(String, Stored)>, String> {
        let folder = folder();
        check(&model(tensor(entries)), &folder.path().join("model"))
            .map_err(|refused| refused.reason)
    }

    #[test]
    fn a_range_inside_a_file_of_the_folder_is_found() {
        let stored = verdict(&[("location", "data"), ("offset", "76"), ("length", "24")]);
        let (name, place) = stored.expect("accepted").remove(0);
        assert_eq!((name.as_str(), place.offset, place.length), ("w", 76, 24));
        assert!(place.file.ends_with("model/data"));
    }

    #[test]
    fn ways_out_of_the_folder_are_refused() {
        let absolute = if cfg!(windows) { "C:\\secret" } else { "/etc/passwd" };
        for location in
            ["../secret", "..", ".", "", "sub/data", "./data", "a\\b", "c:data", "d\0", absolute]
        {
            let reason = verdict(&[("location", location), ("length", "24")]).expect_err(location);
            assert!(reason.contains("plain file name"), "{location:?}: {reason}");
        }
    }

    #[test]
    fn wrong_ranges_are_refused() {
        for (offset, length) in [("0", "101"), ("77", "24"), ("101", "24"), ("0", "20")] {
            let entries = [("location", "data"), ("offset", offset), ("length", length)];
            verdict(&entries).expect_err("out of range or of the wrong size");
        }
        for (key, text) in [("offset", "-1"), ("length", "1e3"), ("offset", ""), ("length", "x")] {
            let reason = verdict(&[("location", "data"), (key, text)]).expect_err(text);
            assert!(reason.contains("whole number"), "{reason}");
        }
        let most = u64::MAX.to_string();
        verdict(&[("location", "data"), ("offset", &most), ("length", &most)])
            .expect_err("the sum overflows");
    }

    #[test]
    fn unknown_doubled_and_missing_keys_are_refused() {
        for entries in [
            vec![("location", "data"), ("length", "24"), ("owner", "x")],
            vec![("location", "data"), ("location", "data"), ("length", "24")],
            vec![("length", "24")],
            vec![("location", "absent"), ("length", "24")],
        ] {
            verdict(&entries).expect_err("refused");
        }
    }

    #[test]
    fn impossible_shapes_are_refused() {
        for dims in [vec![-1, 6], vec![i64::MAX, i64::MAX], vec![i64::MAX]] {
            let folder = folder();
            let mut tensor = tensor(&[("location", "data"), ("length", "24")]);
            tensor.dims = dims;
            let refused = check(&model(tensor), &folder.path().join("model")).expect_err("refused");
            assert!(refused.reason.contains("impossible"), "{}", refused.reason);
        }
    }

    #[test]
    fn tensors_hidden_in_attributes_and_inner_graphs_are_checked_too() {
        let folder = folder();
        let hidden = tensor(&[("location", "../secret"), ("length", "24")]);
        let inner = GraphProto { initializer: vec![hidden.clone()], ..Default::default() };
        let attributes = [
            AttributeProto { t: Some(hidden), ..Default::default() },
            AttributeProto { g: Some(inner), ..Default::default() },
        ];
        for attribute in attributes {
            let node = NodeProto { attribute: vec![attribute], ..Default::default() };
            let graph = GraphProto { node: vec![node], ..Default::default() };
            let model = ModelProto { graph: Some(graph), ..Default::default() };
            let refused = check(&model, &folder.path().join("model")).expect_err("refused");
            assert_eq!(refused.tensor, "w");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_the_folder_is_followed_as_download_caches_need() {
        let folder = folder();
        let model_folder = folder.path().join("model");
        std::os::unix::fs::symlink("../secret", model_folder.join("linked")).expect("link");
        let tensor = tensor(&[("location", "linked"), ("length", "24")]);
        check(&model(tensor), &model_folder).expect("accepted");
    }
}
