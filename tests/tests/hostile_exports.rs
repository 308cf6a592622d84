//! Exported folders that somebody has tampered with, through the binary: one clear error, exit code
//! 1, no picture, nothing read outside the folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use pixart_tests::{
    binary::{Run, Sandbox},
    fixtures,
};
use prost::Message as _;
use serde_json::Value;
use tract_onnx::pb::{ModelProto, StringStringEntryProto, TensorProto};

const ENGINES: [&str; 2] = ["tract", "ort"];

/// A sandbox with an export of the tiny pipeline in `model`.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    let source = fixtures::tiny();
    let source = source.to_str().expect("a path");
    let args = ["export", "all", "--source", source, "--output", "model", "--profile", "portable"];
    let run = sandbox.pixart(&args);
    assert_eq!(run.code, 0, "{run:?}");
    sandbox
}

fn sample(sandbox: &Sandbox, engine: &str) -> Run {
    sandbox.pixart(&[
        "sample", "--model", "model", "--prompt", "a", "--steps", "2", "--engine", engine,
    ])
}

fn assert_refused(sandbox: &Sandbox, said: &[&str]) {
    let before = sandbox.files();
    for engine in ENGINES {
        let run = sample(sandbox, engine);
        assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{engine}: {run:?}");
        for text in said {
            assert!(run.stderr.contains(text), "{engine}: no `{text}` in: {}", run.stderr);
        }
        assert!(!run.stderr.contains("panicked"), "{engine}: {}", run.stderr);
        assert_eq!(sandbox.files(), before, "{engine}");
    }
}

fn transformer(sandbox: &Sandbox) -> PathBuf {
    sandbox.path().join("model/transformer")
}

/// Lets the manifest speak of the files as they are now, so that their sizes are no obstacle.
fn update_manifest(folder: &Path) {
    let path = folder.join("manifest.json");
    let text = fs::read(&path).expect("a manifest");
    let mut manifest: Value = serde_json::from_slice(&text).expect("JSON");
    for file in manifest["files"].as_array_mut().expect("files") {
        let name = file["name"].as_str().expect("a name").to_owned();
        file["bytes"] = fs::metadata(folder.join(name)).expect("a file").len().into();
    }
    fs::write(&path, manifest.to_string()).expect("written");
}

/// Changes the graph of the transformer; the manifest goes along with it.
fn rewrite(sandbox: &Sandbox, change: impl FnOnce(&mut ModelProto)) {
    let folder = transformer(sandbox);
    let path = folder.join("model.onnx");
    let bytes = fs::read(&path).expect("a graph");
    let mut model = ModelProto::decode(bytes.as_slice()).expect("a model");
    change(&mut model);
    fs::write(&path, model.encode_to_vec()).expect("written");
    update_manifest(&folder);
}

/// The first tensor whose weights lie beside the graph.
fn external(model: &mut ModelProto) -> &mut TensorProto {
    let graph = model.graph.as_mut().expect("a graph");
    let mut tensors = graph.initializer.iter_mut();
    tensors.find(|tensor| !tensor.external_data.is_empty()).expect("an external tensor")
}

fn set(tensor: &mut TensorProto, key: &str, value: &str) {
    tensor.external_data.retain(|entry| entry.key != key);
    let (key, value) = (key.to_owned(), value.to_owned());
    tensor.external_data.push(StringStringEntryProto { key, value });
}

#[test]
fn weights_that_lie_elsewhere_or_nowhere_are_refused() {
    let sandbox = sandbox();
    // Long enough for the tensor, so that only the rule stands in the way.
    fs::write(sandbox.path().join("secret"), vec![0; 1 << 20]).expect("written");
    let secret = sandbox.path().join("secret");
    let secret = secret.to_str().expect("a path").to_owned();
    let original = fs::read(transformer(&sandbox).join("model.onnx")).expect("a graph");
    for (key, value, said) in [
        ("location", "../../secret", "plain file name"),
        ("location", secret.as_str(), "plain file name"),
        ("location", "*/_ORT_MEM_ADDR_/*", "plain file name"),
        ("location", "absent", "cannot be read"),
        ("offset", "-4096", "whole number"),
        ("offset", "18446744073709551616", "offset"),
        ("offset", "9223372036854775807", "beyond the end"),
        ("length", "18446744073709551615", "beyond the end"),
        ("length", "4", "need"),
        ("basepath", "..", "unknown key"),
        ("owner", "me", "unknown key"),
    ] {
        fs::write(transformer(&sandbox).join("model.onnx"), &original).expect("written");
        rewrite(&sandbox, |model| set(external(model), key, value));
        assert_refused(&sandbox, &["model.onnx", said]);
    }
    for dims in [vec![1 << 40], vec![i64::MAX, i64::MAX], vec![-1]] {
        fs::write(transformer(&sandbox).join("model.onnx"), &original).expect("written");
        rewrite(&sandbox, |model| external(model).dims = dims);
        assert_refused(&sandbox, &["model.onnx", "its "]);
    }
    fs::write(transformer(&sandbox).join("model.onnx"), &original).expect("written");
    update_manifest(&transformer(&sandbox));
    assert_eq!(sample(&sandbox, "tract").code, 0, "the original is accepted");
}

#[cfg(unix)]
#[test]
fn links_are_followed_where_caches_have_them_and_circles_are_refused() {
    use std::os::unix::fs::symlink;
    let sandbox = sandbox();
    let blobs = sandbox.path().join("blobs");
    fs::create_dir(&blobs).expect("a folder");
    let folder = transformer(&sandbox);
    for (index, name) in
        ["model.onnx", "model.onnx_data", "manifest.json", "config.json"].iter().enumerate()
    {
        let blob = blobs.join(format!("{index}f00"));
        fs::rename(folder.join(name), &blob).expect("moved");
        symlink(Path::new("../../blobs").join(format!("{index}f00")), folder.join(name))
            .expect("link");
    }
    for engine in ENGINES {
        assert_eq!(sample(&sandbox, engine).code, 0, "{engine}");
    }
    let verified = sandbox.pixart(&["export", "--verify", "model"]);
    assert_eq!(verified.code, 0, "{verified:?}");

    for name in ["model.onnx_data", "manifest.json"] {
        let link = folder.join(name);
        let target = fs::read_link(&link).expect("a link");
        fs::remove_file(&link).expect("removed");
        symlink(name, &link).expect("link");
        assert_refused(&sandbox, &[name]);
        fs::remove_file(&link).expect("removed");
        symlink(target, &link).expect("link");
    }
}

#[test]
fn a_graph_cut_short_is_refused_by_size_and_by_content() {
    let sandbox = sandbox();
    let path = transformer(&sandbox).join("model.onnx");
    let bytes = fs::read(&path).expect("a graph");
    fs::write(&path, &bytes[..bytes.len() / 2]).expect("written");
    assert_refused(&sandbox, &["model.onnx", "incomplete"]);
    update_manifest(&transformer(&sandbox));
    assert_refused(&sandbox, &["model.onnx", "not a usable ONNX model"]);
    fs::write(&path, "").expect("written");
    update_manifest(&transformer(&sandbox));
    assert_refused(&sandbox, &["model.onnx", "no graph"]);
}

#[test]
fn manifests_that_are_missing_broken_or_lead_elsewhere_are_refused() {
    let sandbox = sandbox();
    let path = transformer(&sandbox).join("manifest.json");
    let text = fs::read_to_string(&path).expect("a manifest");
    fs::remove_file(&path).expect("removed");
    assert_refused(&sandbox, &["manifest.json", "missing"]);
    let outside = text.replace("\"model.onnx_data\"", "\"../../secret\"");
    assert_ne!(outside, text);
    for (content, said) in [
        ("".to_owned(), "EOF"),
        ("[]".to_owned(), "manifest.json"),
        (format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000)), "recursion limit"),
        (text.replace("\"transformer\"", "\"vae_decoder\""), "another component"),
        (outside, "plain file name"),
    ] {
        fs::write(&path, content).expect("written");
        assert_refused(&sandbox, &["manifest.json", said]);
    }
}
