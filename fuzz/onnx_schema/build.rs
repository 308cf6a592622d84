//! Finds the messages in the source of the `tract-onnx` that the product is built with.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    let product = Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .ancestors()
        .nth(2)
        .expect("fuzz lies in the product's folder")
        .join("Cargo.toml");
    println!("cargo::rerun-if-changed={}", product.with_file_name("Cargo.lock").display());
    let output = Command::new(env::var_os("CARGO").expect("set by cargo"))
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(product)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let manifest = metadata["packages"]
        .as_array()
        .and_then(|packages| packages.iter().find(|package| package["name"] == "tract-onnx"))
        .and_then(|package| package["manifest_path"].as_str())
        .expect("the product depends on tract-onnx");
    let messages = PathBuf::from(manifest).with_file_name("src").join("prost").join("onnx.rs");
    assert!(messages.is_file(), "tract-onnx keeps its messages no longer in {messages:?}");
    println!("cargo::rustc-env=ONNX_MESSAGES={}", messages.display());
}
