//! Opening a graph file: what both engines need to know before they load it.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use tract_onnx::pb::ModelProto;

use super::{EngineError, external_data, external_data::Stored, signature::Signature};

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
        use prost::Message as _;

        let unreadable = |source| EngineError::ModelFile { model: path.to_path_buf(), source };
        let unusable = |reason| EngineError::ModelFormat { model: path.to_path_buf(), reason };
        let size = std::fs::metadata(path).map_err(unreadable)?.len();
        if size > MOST_BYTES {
            return Err(unusable(format!("it is {size} bytes long, more than ONNX files can be")));
        }
        let bytes = std::fs::read(path).map_err(unreadable)?;
        let proto = ModelProto::decode(bytes.as_slice())
            .map_err(|error| unusable(format!("it cannot be decoded: {error}")))?;
        drop(bytes);
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
