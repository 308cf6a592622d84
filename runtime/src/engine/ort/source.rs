//! What sessions are made of: a graph, its weights, and others in their place.

use std::{
    fmt::Debug,
    path::{Path, PathBuf},
    sync::Arc,
};

use half::{bf16, f16};
use ort::{
    session::{Session, builder::SessionBuilder},
    value::{DynTensor, DynValue, PrimitiveTensorElementType},
};
use prost::Message as _;

use super::specialised::Sizes;
use crate::engine::{
    EngineError, LARGE,
    model_file::ModelFile,
    provider::{Identity, sha256},
    signature::{Described, Signature},
    weights::{Override, WeightType},
};

/// Where the external data of a graph lies that does not come from a file.
const EXTERNAL_DATA_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// A graph of which one session is made, or several for different sizes.
pub(super) struct Source {
    pub model: PathBuf,
    pub signature: Signature,
    /// The graph, where it is not the one in the file.
    graph: Option<Vec<u8>>,
    /// The folder of the weights, where it is not that of the file.
    folder: Option<PathBuf>,
    overrides: Vec<(String, Arc<DynValue>)>,
    /// Whether kernels lay out its weights anew when a session is made.
    pub repack: bool,
    /// Files that hold weights.
    weights: Vec<PathBuf>,
    /// Hashes of the overrides, where somebody wants to know.
    changes: Vec<String>,
}

impl Source {
    /// A graph as it was read or, if it is `changed`, as it is now. `repack` is what [`gains_by_repacking`] says of
    /// the whole graph; `hashed` tells whether overrides are hashed.
    pub fn new(
        file: ModelFile,
        changed: bool,
        repack: bool,
        overrides: Vec<Override>,
        hashed: bool,
    ) -> ort::Result<Self> {
        let ModelFile { path, proto, signature, elsewhere, stored } = file;
        // ONNX Runtime replaces what lies outside the graph; for the rest, it gets a changed graph.
        let graph = (changed || elsewhere.is_some()).then(|| proto.encode_to_vec());
        drop(proto);
        let mut weights: Vec<PathBuf> = stored.into_iter().map(|(_, stored)| stored.file).collect();
        weights.sort();
        weights.dedup();
        let (mut values, mut changes) = (Vec::new(), Vec::new());
        for new in overrides {
            if hashed {
                changes.push(format!("{} {} {:?}", new.name, sha256(&new.data), new.shape));
            }
            values.push((new.name.clone(), Arc::new(owned_tensor(&new)?.into_dyn())));
        }
        let (model, folder, overrides) = (path, elsewhere, values);
        Ok(Self { model, signature, graph, folder, overrides, repack, weights, changes })
    }

    /// The open sizes of its inputs, as these have them.
    ///
    /// # Errors
    /// When the inputs are not those of the graph.
    pub fn sizes<T: Described>(&self, inputs: &[(&str, &T)]) -> Result<Sizes, EngineError> {
        let sorted = self.signature.sort(inputs);
        let sorted = sorted.map_err(|mismatch| mismatch.in_model(&self.model))?;
        Ok(self.signature.sizes(&sorted))
    }

    /// What it is, for caches.
    pub fn identity(&self) -> std::io::Result<Identity> {
        Identity::of(&self.model, self.graph.as_deref(), &self.weights, &self.changes)
    }

    /// Whether its weights are other than those of the files.
    pub fn is_changed(&self) -> bool {
        !self.overrides.is_empty()
    }

    /// The last steps of making a session: of this graph, or of what was `compiled` from it.
    pub fn commit(
        &self,
        mut builder: SessionBuilder,
        compiled: Option<&Path>,
    ) -> ort::Result<Session> {
        if let Some(compiled) = compiled {
            return builder.commit_from_file(compiled);
        }
        for (name, value) in &self.overrides {
            builder = builder.with_external_initializer(name, value.clone())?;
        }
        let Some(graph) = &self.graph else { return builder.commit_from_file(&self.model) };
        let folder = self.folder.as_deref().or(self.model.parent());
        let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).to_string_lossy();
        builder.with_config_entry(EXTERNAL_DATA_FOLDER, folder)?.commit_from_memory(graph)
    }
}

/// Whether a graph is computed so much faster with repacked weights that it pays to wait for them, and to have them
/// in memory instead of mapped from their file.
///
/// Products of floats do without: repacking XL/2 takes two seconds and 2.4 GB, and afterwards a step is faster by 7 to
/// 9 % at 256 px and hardly from 512 px on (docs/performance.md). Small models are repacked quickly, and then compute
/// the same bits whatever the batch and the number of threads. What is cut out of a graph follows the whole.
///
/// Where weights are to stay for long, those of transformers are repacked whatever they take; text encoders can be
/// as large as memory is, and are run too seldom.
pub(super) fn gains_by_repacking(file: &ModelFile, to_stay: bool) -> bool {
    const OPERATORS: [&str; 2] = ["MatMulInteger", "MatMulNBits"];
    let mut nodes = file.proto.graph.iter().flat_map(|graph| &graph.node);
    let quantised = nodes.any(|node| OPERATORS.contains(&&*node.op_type));
    quantised || file.stored_bytes() <= LARGE || (to_stay && file.takes_pictures())
}

/// The elements of an override as a value that owns them: ONNX Runtime reads them where they lie.
fn owned_tensor(new: &Override) -> ort::Result<DynTensor> {
    fn numbers<T: PrimitiveTensorElementType + Debug + Clone + 'static, const N: usize>(
        new: &Override,
        read: fn([u8; N]) -> T,
    ) -> ort::Result<DynTensor> {
        let (bytes, _) = new.data.as_chunks();
        let numbers: Vec<T> = bytes.iter().map(|&bytes| read(bytes)).collect();
        Ok(ort::value::Tensor::from_array((new.shape.clone(), numbers))?.upcast())
    }
    match &new.dtype {
        WeightType::F32 => numbers(new, f32::from_le_bytes),
        WeightType::F16 => numbers(new, f16::from_le_bytes),
        WeightType::Bf16 => numbers(new, bf16::from_le_bytes),
        WeightType::Other(name) => Err(ort::Error::new(format!("{name} weights"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{external_data::Stored, model_file::small_model, part::declared};
    use tract_onnx::pb::{GraphProto, NodeProto, tensor_proto::DataType};

    #[test]
    fn large_weights_of_float_products_stay_as_they_are() {
        let file = |operators: &[&str], length: u64| {
            let node =
                |name: &&str| NodeProto { op_type: (*name).to_owned(), ..Default::default() };
            let node = operators.iter().map(node).collect();
            let stored = Stored { file: "weights".into(), offset: 0, length };
            ModelFile {
                path: "model.onnx".into(),
                proto: small_model(GraphProto { node, ..GraphProto::default() }),
                signature: Signature::of(&GraphProto::default()).expect("no inputs"),
                stored: vec![("w".to_owned(), stored)],
                elsewhere: None,
            }
        };
        assert!(gains_by_repacking(&file(&["MatMul"], LARGE), false));
        assert!(!gains_by_repacking(&file(&["Conv", "MatMul"], LARGE + 1), false));
        assert!(gains_by_repacking(&file(&["MatMul", "MatMulNBits"], LARGE + 1), false));
        assert!(gains_by_repacking(&file(&["MatMulInteger"], LARGE + 1), false));
        // Those that are to stay, if they are a transformer's.
        let mut large = file(&["MatMul"], LARGE + 1);
        assert!(!gains_by_repacking(&large, true));
        let latents = declared("latents", DataType::Float, Some(4));
        large.proto.graph.as_mut().expect("a graph").input.push(latents);
        assert!(gains_by_repacking(&large, true) && !gains_by_repacking(&large, false));
    }
}
