//! The readers of checkpoints.

#[allow(dead_code, unreachable_pub, reason = "the targets use a part of the module")]
#[path = "../../exporter/src/checkpoint/mod.rs"]
mod checkpoint;

use std::path::Path;

use checkpoint::{Contents, Dtype, FileProblem, OpenOptions, WeightsKey};

/// Tensors that are larger are not put together, so that each run is fast.
const MAX_COPIED_BYTES: usize = 1 << 20;

/// An empty dictionary that says the machine was little-endian, as the old format has it.
const OLD_HEAD: &[u8] =
    b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\
    \x80\x02}X\x0d\x00\x00\x00little_endian\x88s.";

/// Reads a file and everything in it.
fn read(bytes: &[u8]) {
    let automatic = checkpoint::file::read(bytes, false, &OpenOptions::default());
    check(automatic, bytes);
}

fn check(result: Result<Contents, FileProblem>, bytes: &[u8]) {
    let contents = match result {
        Ok(contents) => contents,
        Err(problem) => {
            let message = problem.to_string();
            assert!(message.len() < 16384, "a message of {} bytes", message.len());
            assert!(!message.chars().any(|c| c.is_control()), "{message:?}");
            return;
        }
    };
    for (name, stored) in &contents.tensors {
        let range = stored.range();
        assert!(range.start <= range.end && range.end <= bytes.len(), "{name}: {range:?}");
        let size = byte_count(stored.dtype, &stored.shape);
        if size > MAX_COPIED_BYTES {
            continue;
        }
        let view = stored.view(bytes).expect("a tensor inside of the file");
        assert_eq!(view.bytes.len(), size, "{name}");
        let Some(&rows) = stored.shape.first() else { continue };
        for part in [0..rows, 0..rows / 2, rows / 2..rows] {
            let Some(part_stored) = stored.rows(&part) else { continue };
            let row_bytes = if rows == 0 { 0 } else { size / rows };
            let found = part_stored.view(bytes).expect("rows inside of the file");
            assert_eq!(*found.bytes, view.bytes[part.start * row_bytes..part.end * row_bytes]);
        }
    }
}

fn byte_count(dtype: Dtype, shape: &[usize]) -> usize {
    if shape.contains(&0) {
        return 0;
    }
    shape.iter().fold(dtype.bitsize(), |product, &size| product.checked_mul(size).unwrap()) / 8
}

/// A safetensors file: its header, and as many bytes of data as the first two say.
pub fn safetensors(data: &[u8]) {
    let Some((length, header)) = data.split_first_chunk::<2>() else { return };
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.resize(file.len() + usize::from(u16::from_le_bytes(*length)), 0);
    check(checkpoint::file::read(&file, true, &OpenOptions::default()), &file);
    check(checkpoint::file::read(data, true, &OpenOptions::default()), data);
}

/// The index of shards.
pub fn index(data: &[u8]) {
    let Ok(index) = checkpoint::index::read(data, Path::new("index.json")) else { return };
    for shard in index.values() {
        let path = Path::new(shard);
        assert_eq!(path.file_name(), Some(path.as_os_str()), "{shard:?} leaves the folder");
    }
}

/// A pickle and what follows it in the old format, which has the least around it.
pub fn pickle(data: &[u8]) {
    let file = [OLD_HEAD, data].concat();
    read(&file);
    let weights_key = WeightsKey::Bare;
    check(
        checkpoint::file::read(&file, false, &OpenOptions { weights_key, ..Default::default() }),
        &file,
    );
}

/// A file in PyTorch's format before 1.6.
pub fn torch_legacy(data: &[u8]) {
    read(data);
}

/// A zip file, as PyTorch writes it.
pub fn torch_zip(data: &[u8]) {
    read(data);
}

/// A MindSpore checkpoint.
pub fn mindspore(data: &[u8]) {
    read(data);
}
