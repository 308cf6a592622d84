//! A safetensors file, written tensor by tensor.

use std::borrow::Cow;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::WriteError;
use crate::checkpoint::Dtype;

/// A tensor that will follow.
#[derive(Clone, Debug)]
pub(crate) struct Announced {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Size of its elements.
    pub bytes: u64,
}

/// Multiple that the data start at, so that a mapping of the file is aligned.
const ALIGNMENT: usize = 8;

/// Brings tensors into the order in which their elements have to be written: wide elements first,
/// which keeps every tensor aligned, then by name.
pub(crate) fn sort(tensors: &mut [Announced]) {
    tensors.sort_by(|a, b| {
        b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name))
    });
}

/// Writes everything that comes before the elements.
pub(crate) fn write_header(
    file: &mut File,
    path: &Path,
    tensors: &[Announced],
) -> Result<(), WriteError> {
    write_header_with(file, path, tensors, &[])
}

fn write_header_with(
    file: &mut File,
    path: &Path,
    tensors: &[Announced],
    metadata: &[(&str, String)],
) -> Result<(), WriteError> {
    let mut header = Map::new();
    // What torch's own readers look for.
    let mut about = Map::from_iter([("format".to_owned(), json!("pt"))]);
    about.extend(metadata.iter().map(|(key, value)| ((*key).to_owned(), json!(value))));
    header.insert("__metadata__".to_owned(), Value::Object(about));
    let mut end = 0;
    for Announced { name, dtype, shape, bytes } in tensors {
        let begin = end;
        end += bytes;
        let entry =
            json!({"dtype": dtype.to_string(), "shape": shape, "data_offsets": [begin, end]});
        header.insert(name.clone(), entry);
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(ALIGNMENT), b' ');
    let total = (ALIGNMENT + text.len()) as u64 + end;
    super::hash::reserve(file, path, total)?;
    file.write_all(&(text.len() as u64).to_le_bytes())
        .and_then(|()| file.write_all(&text))
        .map_err(WriteError::io(path, "write", total))
}

/// A tensor of 32-bit floats in memory.
#[derive(Clone, Debug)]
pub struct Floats<'a> {
    /// Its name in the file.
    pub name: String,
    /// Its shape, outermost axis first.
    pub shape: Vec<usize>,
    /// Its elements, outermost axis slowest; as many as the shape says.
    pub data: Cow<'a, [f32]>,
}

/// Writes a new safetensors file of floats and flushes it. Room for it is reserved first, where the
/// system can. `metadata` are texts by key, beside `format`.
///
/// # Errors
/// When the file is there already, there is no room, or it cannot be written.
pub fn write_floats(
    path: &Path,
    tensors: &[Floats<'_>],
    metadata: &[(&str, String)],
) -> Result<(), WriteError> {
    let mut order: Vec<&Floats<'_>> = tensors.iter().collect();
    // As `sort` has it, all elements being of one width.
    order.sort_by(|a, b| a.name.cmp(&b.name));
    let announced = order.iter().map(|tensor| Announced {
        name: tensor.name.clone(),
        dtype: Dtype::F32,
        shape: tensor.shape.clone(),
        bytes: size_of_val(&*tensor.data) as u64,
    });
    let announced: Vec<Announced> = announced.collect();
    let total = announced.iter().map(|tensor| tensor.bytes).sum();
    let mut file = File::create_new(path).map_err(WriteError::io(path, "create", total))?;
    write_header_with(&mut file, path, &announced, metadata)?;
    for tensor in order {
        debug_assert_eq!(tensor.shape.iter().product::<usize>(), tensor.data.len());
        let bytes = match cfg!(target_endian = "little") {
            true => Cow::Borrowed(bytemuck::cast_slice(&tensor.data)),
            false => tensor.data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        file.write_all(&bytes).map_err(WriteError::io(path, "write", total))?;
    }
    file.sync_all().map_err(WriteError::io(path, "flush", total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, OpenOptions};

    #[test]
    fn floats_are_read_back_with_their_metadata() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let floats = |name: &str, shape: &[usize], data: &[f32]| Floats {
            name: name.to_owned(),
            shape: shape.to_vec(),
            data: Cow::Owned(data.to_vec()),
        };
        let tensors = [floats("b", &[2, 1], &[1.5, f32::MIN]), floats("a", &[1], &[-0.0])];
        write_floats(&path, &tensors, &[("note", "\"quoted\"".to_owned())]).unwrap();
        let found = Checkpoint::open(&path, &OpenOptions::default()).unwrap();
        assert_eq!(found.names().collect::<Vec<_>>(), ["a", "b"]);
        let b = found.tensor("b").unwrap();
        assert_eq!((b.dtype, &*b.shape), (Dtype::F32, &[2, 1][..]));
        assert_eq!(*b.bytes, [1.5f32.to_le_bytes(), f32::MIN.to_le_bytes()].concat());
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = ::safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let about = header.metadata().as_ref().unwrap();
        assert_eq!((about["format"].as_str(), about["note"].as_str()), ("pt", "\"quoted\""));
        let again = write_floats(&path, &[], &[]).unwrap_err().to_string();
        assert!(again.contains("a.safetensors") && again.contains("create"), "{again}");
    }
}
