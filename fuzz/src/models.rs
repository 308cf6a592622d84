//! The checks of graphs, which stand before every engine.

use std::path::Path;

use super::{model_file::ModelFile, signature::Signature};
use crate::tensor::Tensor;

/// A `model.onnx`; external data may lie in the files of this package.
pub fn onnx(data: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = match ModelFile::parse(&folder.join("model.onnx"), data) {
        Ok(file) => file,
        Err(error) => return harmless(&error.to_string()),
    };
    assert_eq!(file.path.parent(), Some(folder));
    assert!(file.proto.graph.is_some());
    for (name, stored) in &file.stored {
        let size = std::fs::metadata(&stored.file).expect("a file").len();
        assert!(stored.offset.checked_add(stored.length).is_some_and(|end| end <= size), "{name}");
        assert_eq!(stored.file.parent(), Some(folder), "{name} leaves the folder");
    }
    run(&file.signature);
}

/// What happens before a run, with one value for every other input.
fn run(signature: &Signature) {
    let value = Tensor::F32(ndarray::ArrayD::zeros(vec![1, 3]));
    let names = signature.inputs.iter().map(|input| input.name.as_str());
    let given: Vec<_> = names.step_by(2).map(|name| (name, &value)).collect();
    if let Err(mismatch) = signature.sort(&given) {
        harmless(&mismatch.in_model(Path::new("model.onnx")).to_string());
    }
}

fn harmless(message: &str) {
    assert!(message.len() < 1 << 16, "a message of {} bytes", message.len());
    assert!(!message.chars().any(char::is_control), "{message:?}");
}
