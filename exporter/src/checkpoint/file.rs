//! The one place that decides what kind of file some bytes are. Names have no say in it: a pickle
//! that calls itself `.safetensors` is a pickle.

use super::{Contents, FileProblem, OpenOptions, WeightsKey, mindspore, safetensors, torch};

/// Reads what is stored in a file, of whatever kind. Where that cannot be told, a name that
/// promises safetensors chooses the words of the error, and nothing else.
pub(crate) fn read(
    bytes: &[u8],
    promises_safetensors: bool,
    options: &OpenOptions,
) -> Result<Contents, FileProblem> {
    let key = &options.weights_key;
    let contents = if is_zip(bytes) {
        torch::read_zip(bytes, key)?
    } else if torch::is_legacy(bytes) {
        torch::read_legacy(bytes, key)?
    } else if safetensors::looks_like(bytes) {
        safetensors::read(bytes)?
    } else if mindspore::looks_like(bytes) {
        mindspore::read(bytes)?
    } else if let Some(problem) = known_other(bytes) {
        return Err(problem);
    } else if promises_safetensors {
        safetensors::read(bytes)?
    } else {
        let found = match bytes {
            [] => "found an empty file",
            _ => "found an unknown kind of file",
        };
        return Err(FileProblem::Unrecognised { found: found.to_owned() });
    };
    match key {
        // Other containers have no keys; asking for one is a mistake that should not pass.
        WeightsKey::Named(asked) if contents.weights_key.is_none() => {
            Err(FileProblem::WeightsKey { asked: Some(asked.clone()), found: Vec::new() })
        }
        _ => Ok(contents),
    }
}

fn is_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06")
}

/// Whether a file is text that can be the index of shards.
pub(super) fn is_index(bytes: &[u8]) -> bool {
    // Both can begin with a number that is the code of a brace.
    let other = safetensors::looks_like(bytes) || mindspore::looks_like(bytes);
    !other && bytes.trim_ascii_start().starts_with(b"{")
}

/// Files that people have where weights should be.
fn known_other(bytes: &[u8]) -> Option<FileProblem> {
    const TAR_AT: usize = 257;
    if bytes.starts_with(b"version https://git-lfs") {
        return Some(FileProblem::LfsPointer);
    }
    let begins = |magic: &[u8]| bytes.starts_with(magic);
    let found = if bytes.get(TAR_AT..).is_some_and(|rest| rest.starts_with(b"ustar")) {
        "found a tar file, PyTorch's format before 0.1.10 or an archive; unpack it, or load it with \
         an old PyTorch and save it again"
    } else if begins(b"\x80") && bytes.get(1).is_some_and(|version| (2..=5).contains(version)) {
        "found a plain pickle, not a file of torch.save"
    } else if begins(b"\x1f\x8b") || begins(b"7z\xbc\xaf") || begins(b"\x28\xb5\x2f\xfd") {
        "found a compressed archive; unpack it"
    } else if begins(b"\x89HDF") {
        "found an HDF5 file (Keras or TensorFlow)"
    } else if begins(b"GGUF") {
        "found a GGUF file"
    } else if bytes.trim_ascii_start().starts_with(b"<") {
        "found a web page, not the file it was to bring; fetch it again"
    } else if is_index(bytes) {
        "found JSON text"
    } else {
        return None;
    };
    Some(FileProblem::Unrecognised { found: found.to_owned() })
}
