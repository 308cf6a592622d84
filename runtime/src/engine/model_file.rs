//! Opening a graph file: what both engines need to know before they load it.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use tract_onnx::pb::{
    GraphProto, ModelProto, OperatorSetIdProto, StringStringEntryProto, ValueInfoProto, type_proto,
};

use super::{EngineError, external_data, external_data::Stored, signature::Signature, wiring};
use crate::bundle::store;

/// Protobuf cannot hold more.
const MOST_BYTES: u64 = i32::MAX as u64;

/// A model of a graph made here, of versions so old that every provider knows them.
pub(crate) fn small_model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 15 }],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

/// A graph whose external data has been checked.
pub(super) struct ModelFile {
    pub path: PathBuf,
    pub proto: ModelProto,
    pub signature: Signature,
    /// Initializers of the main graph that lie outside the file.
    pub stored: Vec<(String, Stored)>,
    /// The folder in which the weights are named, if that is not the graph's: a bundle's, out of which an engine
    /// cannot open the path, or the one that links lead to.
    pub elsewhere: Option<PathBuf>,
}

impl ModelFile {
    /// Bytes of the weights that lie outside the graph's file.
    pub fn stored_bytes(&self) -> u64 {
        self.stored.iter().map(|(_, stored)| stored.length).sum()
    }

    /// Whether one of its inputs is a picture, or the latents of one.
    pub fn takes_pictures(&self) -> bool {
        self.proto.graph.iter().any(|graph| pictures(graph).next().is_some())
    }

    /// Reads and checks the graph at `path`.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let unreadable = |source| EngineError::ModelFile { model: path.to_path_buf(), source };
        let unusable = |reason| EngineError::ModelFormat { model: path.to_path_buf(), reason };
        // A link to a device would never end.
        let place = store::place(path).map_err(unreadable)?;
        let place = place.ok_or_else(|| unusable("it is not a file".to_owned()))?;
        let size = place.bytes;
        if size > MOST_BYTES {
            return Err(unusable(format!("it is {size} bytes long, more than ONNX files can be")));
        }
        let mut file = Self::parse(path, &place.read().map_err(unreadable)?)?;
        if place.bundled {
            file.point_into(&place.file).map_err(unusable)?;
        }
        Ok(file)
    }

    /// Names the weights as parts of the bundle, so that engines map them from there.
    fn point_into(&mut self, bundle: &Path) -> Result<(), String> {
        let bundle = real(bundle).map_err(|error| error.to_string())?;
        let name = bundle.file_name().and_then(|name| name.to_str());
        let name = name.ok_or("the name of the bundle is not valid Unicode; rename it")?;
        self.name_weights(|_| name);
        self.elsewhere = bundle.parent().map(Path::to_path_buf);
        Ok(())
    }

    /// Names the weights where they lie if they are links, as download caches have them. An engine that gets the
    /// graph from memory would refuse them.
    ///
    /// # Errors
    /// When it would look for them in vain: they lie in several folders, or belong to a graph inside of this one.
    pub fn follow_links(&mut self) -> Result<(), EngineError> {
        let files: HashSet<PathBuf> =
            self.stored.iter().map(|(_, stored)| stored.file.clone()).collect();
        if self.elsewhere.is_some() || !files.iter().any(|file| file.is_symlink()) {
            return Ok(());
        }
        let unusable = |reason| EngineError::ModelFormat { model: self.path.clone(), reason };
        external_data::check_to_bundle(&self.proto, folder_of(&self.path)).map_err(|_| {
            unusable(
                "weights of its inner graphs are links; copy the files in their place".to_owned(),
            )
        })?;
        let mut names = HashMap::new();
        let mut folder: Option<PathBuf> = None;
        for file in files {
            let there = real(&file)
                .map_err(|source| EngineError::ModelFile { model: file.clone(), source })?;
            let shown = there.display();
            let name = there.file_name().and_then(|name| name.to_str());
            let name = name.ok_or_else(|| {
                unusable(format!(
                    "the name of its weights, {shown}, is not valid Unicode; rename it"
                ))
            })?;
            names.insert(file, name.to_owned());
            let parent = there.parent().unwrap_or(Path::new(""));
            match &folder {
                Some(folder) if folder != parent => {
                    return Err(unusable(format!(
                        "its weights lie in {} and in {}, expected one folder; copy the files in the place \
                         of the links",
                        folder.display(),
                        parent.display()
                    )));
                }
                _ => folder = Some(parent.to_owned()),
            }
        }
        self.name_weights(|stored| &names[&stored.file]);
        self.elsewhere = folder;
        Ok(())
    }

    fn name_weights<'a>(&mut self, name: impl Fn(&Stored) -> &'a str) {
        let stored: HashMap<&str, &Stored> =
            self.stored.iter().map(|(name, stored)| (name.as_str(), stored)).collect();
        for tensor in self.proto.graph.iter_mut().flat_map(|graph| &mut graph.initializer) {
            let Some(stored) = stored.get(tensor.name.as_str()) else { continue };
            let entry =
                |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
            tensor.external_data = vec![
                entry("location", name(stored).to_owned()),
                entry("offset", stored.offset.to_string()),
                entry("length", stored.length.to_string()),
            ];
        }
    }

    /// Checks the content of the file at `path`, and of the folder it lies in.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, EngineError> {
        use prost::Message as _;

        let unusable = |reason| EngineError::ModelFormat { model: path.to_path_buf(), reason };
        // Refuses messages nested a hundred deep, so that nothing after it recurses further.
        let proto = ModelProto::decode(bytes)
            .map_err(|error| unusable(format!("it cannot be decoded: {error}")))?;
        let graph = proto.graph.as_ref().ok_or_else(|| unusable("it has no graph".to_owned()))?;
        let mut names = HashSet::new();
        for tensor in &graph.initializer {
            if !names.insert(tensor.name.as_str()) {
                let name = tensor.name.escape_debug();
                return Err(unusable(format!("the initializer \"{name}\" is there twice")));
            }
        }
        let signature = Signature::of(graph).map_err(unusable)?;
        if signature.outputs.is_empty() {
            return Err(unusable("its graph has no output".to_owned()));
        }
        // Without one, no operator means anything; it is also what comes last in many files.
        if proto.opset_import.is_empty() {
            return Err(unusable(
                "it names no operator set, perhaps because it is cut short".to_owned(),
            ));
        }
        wiring::check(graph).map_err(unusable)?;
        let stored = external_data::check(&proto, folder_of(path))
            .map_err(|refused| refused.in_model(path))?;
        Ok(Self { path: path.to_path_buf(), proto, signature, stored, elsewhere: None })
    }

    /// Names of the files that hold its weights, if all of them can be reached in a bundle.
    pub fn files_to_bundle(&self) -> Result<Vec<String>, EngineError> {
        let stored = external_data::check_to_bundle(&self.proto, folder_of(&self.path))
            .map_err(|refused| refused.in_model(&self.path))?;
        let names = stored.iter().filter_map(|(_, stored)| stored.file.file_name()?.to_str());
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

/// The inputs that are pictures, or latents of pictures: those of four axes.
pub(super) fn pictures(graph: &GraphProto) -> impl Iterator<Item = &ValueInfoProto> {
    let axes = |input: &ValueInfoProto| match input.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => Some(tensor.shape.as_ref()?.dim.len()),
    };
    graph.input.iter().filter(move |input| axes(input) == Some(4))
}

/// A file as engines want it that are told of its folder: they would take a link amiss.
fn real(file: &Path) -> std::io::Result<PathBuf> {
    if cfg!(unix) { std::fs::canonicalize(file) } else { std::path::absolute(file) }
}

/// Where the weights of a graph lie. A path without a folder part means the current folder.
fn folder_of(model: &Path) -> &Path {
    model.parent().unwrap_or(Path::new(""))
}

#[cfg(all(test, unix))]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use prost::Message as _;
    use tract_onnx::pb::{
        TensorProto,
        tensor_proto::{DataLocation, DataType},
    };

    use super::*;
    use crate::engine::part::{declared, simple};

    /// A graph with two weights in files of their own.
    fn graph() -> GraphProto {
        let weight = |name: &str| TensorProto {
            name: name.to_owned(),
            dims: vec![2],
            data_type: DataType::Float as i32,
            data_location: Some(DataLocation::External as i32),
            external_data: vec![StringStringEntryProto {
                key: "location".to_owned(),
                value: format!("{name}.bin"),
            }],
            ..TensorProto::default()
        };
        GraphProto {
            initializer: vec![weight("a"), weight("b")],
            node: vec![simple("Add", &["a", "b"], "sum")],
            output: vec![declared("sum", DataType::Float, Some(1))],
            ..GraphProto::default()
        }
    }

    fn locations(file: &ModelFile) -> Vec<&str> {
        let tensors = file.proto.graph.iter().flat_map(|graph| &graph.initializer);
        tensors.map(|tensor| tensor.external_data[0].value.as_str()).collect()
    }

    #[test]
    fn weights_that_are_links_are_named_where_they_lie() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for place in ["model", "store", "other"] {
            fs::create_dir(at(place)).expect("a folder");
        }
        let model = at("model/model.onnx");
        fs::write(&model, small_model(graph()).encode_to_vec()).expect("written");
        let place = |name: &str, stored: &str| {
            let link = at("model").join(format!("{name}.bin"));
            let _ = fs::remove_file(&link);
            fs::write(at(stored), [0; 8]).expect("written");
            symlink(at(stored), link).expect("a link");
        };
        let followed = || {
            let mut file = ModelFile::open(&model)?;
            file.follow_links()?;
            Ok::<_, EngineError>(file)
        };
        place("a", "store/1f");
        place("b", "store/2f");
        let file = followed().expect("one folder");
        let store = at("store").canonicalize().expect("a folder");
        assert_eq!((locations(&file), file.elsewhere.clone()), (vec!["1f", "2f"], Some(store)));

        place("b", "other/2f");
        let told = followed().err().expect("two folders").to_string();
        for part in ["model.onnx", "store", "other", "one folder"] {
            assert!(told.contains(part), "{told}");
        }
        for name in ["a", "b"] {
            fs::remove_file(at("model").join(format!("{name}.bin"))).expect("removed");
            fs::write(at("model").join(format!("{name}.bin")), [0; 8]).expect("written");
        }
        let file = followed().expect("no links");
        assert_eq!((locations(&file), file.elsewhere.clone()), (vec!["a.bin", "b.bin"], None));
    }
}
