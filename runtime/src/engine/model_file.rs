//! Opening a graph file: what both engines need to know before they load it.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use tract_onnx::pb::ModelProto;

use super::{EngineError, external_data, external_data::Stored, signature::Signature, wiring};

/// Protobuf cannot hold more.
const MOST_BYTES: u64 = i32::MAX as u64;

/// A graph whose external data has been checked.
pub(super) struct ModelFile {
    pub path: PathBuf,
    pub proto: ModelProto,
    pub signature: Signature,
    /// Initializers of the main graph that lie outside the file.
    pub stored: Vec<(String, Stored)>,
}

impl ModelFile {
    /// Reads and checks the graph at `path`.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let unreadable = |source| EngineError::ModelFile { model: path.to_path_buf(), source };
        let unusable = |reason| EngineError::ModelFormat { model: path.to_path_buf(), reason };
        let metadata = std::fs::metadata(path).map_err(unreadable)?;
        // A link to a device would never end.
        if !metadata.is_file() {
            return Err(unusable("it is not a file".to_owned()));
        }
        let size = metadata.len();
        if size > MOST_BYTES {
            return Err(unusable(format!("it is {size} bytes long, more than ONNX files can be")));
        }
        Self::parse(path, &std::fs::read(path).map_err(unreadable)?)
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
        // A path without a folder part means the current folder.
        let folder = path.parent().unwrap_or(Path::new(""));
        let stored =
            external_data::check(&proto, folder).map_err(|refused| EngineError::ExternalData {
                model: path.to_path_buf(),
                tensor: refused.tensor,
                reason: refused.reason,
            })?;
        Ok(Self { path: path.to_path_buf(), proto, signature, stored })
    }
}
