//! Checkpoints of every container through the binary: the same weights give the same files, and
//! hostile ones give one clear error, no file, and nothing of what they ask for.

use pixart_tests::binary::{Run, Sandbox};
use pixart_tests::fixtures;
use safetensors::SafeTensors;
use std::fs;
use std::path::Path;

const FAILED: i32 = 1;

/// A sandbox with the transformer's config in `model`, and no weights yet.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    let model = sandbox.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::copy(fixtures::tiny().join("transformer/config.json"), model.join("config.json")).unwrap();
    sandbox
}

fn export(sandbox: &Sandbox, output: &str) -> Run {
    let arguments = ["export", "transformer", "--source", "model", "--output", output];
    sandbox.pixart(&arguments)
}

/// The transformer's tensors: name, shape and float32 values.
fn weights() -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let file = fixtures::tiny().join("transformer/diffusion_pytorch_model.safetensors");
    let bytes = fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut weights: Vec<_> = tensors
        .iter()
        .map(|(name, view)| (name.to_owned(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    weights.sort();
    weights
}

fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 127 {
        bytes.push(number as u8 & 127 | 128);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn field(number: u8, content: &[u8]) -> Vec<u8> {
    [vec![number << 3 | 2], varint(content.len()), content.to_vec()].concat()
}

/// The weights as MindSpore writes them; large ones in parts.
fn mindspore() -> Vec<u8> {
    let mut file = Vec::new();
    for (name, shape, bytes) in weights() {
        let dims: Vec<u8> =
            shape.iter().flat_map(|&size| [vec![8], varint(size)].concat()).collect();
        for part in bytes.chunks(10_000) {
            let tensor = [dims.clone(), field(2, b"Float32"), field(3, part)].concat();
            let value = [field(1, name.as_bytes()), field(2, &tensor)].concat();
            file.extend(field(1, &value));
        }
    }
    file
}

const OLD_HEAD: &[u8] =
    b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\
    \x80\x02}X\x0d\x00\x00\x00little_endian\x88s.";

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn sizes(sizes: &[usize]) -> Vec<u8> {
    let items: Vec<u8> =
        sizes.iter().flat_map(|&size| [b"J", &(size as i32).to_le_bytes()[..]].concat()).collect();
    [b"(", &items[..], b"t"].concat()
}

/// The weights in PyTorch's old format, under `state_dict`; matrices are stored transposed, as
/// views whose strides put them right.
fn transposed_torch() -> Vec<u8> {
    let (mut items, mut keys, mut data) = (Vec::new(), Vec::new(), Vec::new());
    for (name, shape, bytes) in weights() {
        let count = bytes.len() / 4;
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis];
        }
        let mut stored = bytes.clone();
        if let [rows, columns] = shape[..] {
            strides = vec![1, rows];
            for (index, value) in bytes.chunks(4).enumerate() {
                let at = (index % columns * rows + index / columns) * 4;
                stored[at..at + 4].copy_from_slice(value);
            }
        }
        items.extend(text(&name));
        items.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        items.extend(text("storage"));
        items.extend(b"ctorch\nFloatStorage\n");
        items.extend(text(&name));
        items.extend(text("cpu"));
        items.extend([b"J", &(count as i32).to_le_bytes()[..], b"NtQK\x00"].concat());
        items.extend([sizes(&shape), sizes(&strides), b"\x89NtR".to_vec()].concat());
        keys.extend(text(&name));
        data.extend((count as i64).to_le_bytes());
        data.extend(stored);
    }
    let value = [b"\x80\x02}", &text("state_dict")[..], b"}(", &items, b"us."].concat();
    [OLD_HEAD, &value, b"\x80\x02](", &keys, b"e.", &data].concat()
}

#[test]
fn every_container_gives_the_same_export() {
    let sandbox = sandbox();
    let model = sandbox.path().join("model");
    let file = "diffusion_pytorch_model.safetensors";
    fs::copy(fixtures::tiny().join("transformer").join(file), model.join(file)).unwrap();
    let run = export(&sandbox, "expected");
    assert_eq!(run.code, 0, "{run:?}");
    fs::remove_file(model.join(file)).unwrap();

    for (name, content) in
        [("trained.ckpt", mindspore()), ("diffusion_pytorch_model.bin", transposed_torch())]
    {
        fs::write(model.join(name), content).unwrap();
        let run = export(&sandbox, name);
        assert_eq!(run.code, 0, "{name}: {run:?}");
        for part in ["model.onnx", "model.onnx_data"] {
            let [found, expected] = [name, "expected"].map(|folder| {
                fs::read(sandbox.path().join(folder).join("transformer").join(part)).unwrap()
            });
            assert!(found == expected, "{name}: {part} differs");
        }
        fs::remove_file(model.join(name)).unwrap();
    }
}

/// Exports a model whose weights are `content` under `name`.
fn refuses(name: &str, content: &[u8], said: &[&str]) {
    let sandbox = sandbox();
    fs::write(sandbox.path().join("model").join(name), content).unwrap();
    let before = sandbox.files();
    let run = export(&sandbox, "out");
    assert_eq!(run.code, FAILED, "{name}: {run:?}");
    assert_eq!(run.stdout, "", "{name}: {run:?}");
    let errors = run.stderr.lines().filter(|line| line.starts_with("error")).count();
    assert_eq!(errors, 1, "{name}: {}", run.stderr);
    for text in said.iter().chain(&[name]) {
        assert!(run.stderr.contains(text), "no `{text}` in: {}", run.stderr);
    }
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    assert_eq!(sandbox.files(), before, "{name}: files were left behind");
}

#[test]
fn a_pickle_that_would_run_a_command() {
    let attack = b"\x80\x02cposix\nsystem\n(X\x0c\x00\x00\x00touch hackedtR.";
    let old = [OLD_HEAD, attack, b"\x80\x02]."].concat();
    for name in ["pytorch_model.bin", "epoch_3.pth", "model.safetensors", "weights.ckpt"] {
        refuses(name, &old, &["posix.system", "save the weights alone"]);
    }
    refuses("epoch_3.pth", attack, &["plain pickle", "expected weights as safetensors"]);
}

#[test]
fn files_that_are_damaged() {
    let folder = fixtures::root().join("checkpoints");
    let read = |name: &str| fs::read(Path::new(&folder).join(name)).unwrap();
    let cut = |name: &str| {
        let bytes = read(name);
        bytes[..bytes.len() - 100].to_vec()
    };
    refuses("a.pth", &cut("values.pth"), &["truncated", "fetch it again"]);
    refuses("a.pth", &cut("values_old.pth"), &["truncated", "fetch it again"]);
    refuses("a.ckpt", &cut("values.ckpt"), &["truncated"]);
    refuses("a.pth", b"", &["empty file"]);
    refuses("a.pth", b"<html>", &["web page"]);
    // A good file of something else than a transformer.
    let sandbox = sandbox();
    fs::write(sandbox.path().join("model/a.pth"), read("values.pth")).unwrap();
    let run = export(&sandbox, "out");
    assert_eq!(run.code, FAILED, "{run:?}");
    assert!(run.stderr.contains("tensor"), "{}", run.stderr);
    assert!(!sandbox.path().join("out").exists());
}

#[test]
fn an_index_of_pickles_that_leaves_its_folder() {
    let index = br#"{"weight_map": {"a": "../../secret.bin"}}"#;
    refuses("pytorch_model.bin.index.json", index, &["../../secret.bin", "same folder"]);
    let index = br#"{"weight_map": {"a": "pytorch_model-1.bin"}}"#;
    refuses("pytorch_model.bin.index.json", index, &["pytorch_model-1.bin", "fetch it"]);
}
