//! Libraries that only look like ONNX Runtime, compiled here, and what is said about them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use pixart_runtime::engine::{
    self, EngineChoice, EngineError, EngineOptions,
    library::{self, Origin},
};

/// A library with ONNX Runtime's entry point and this version. Using it further ends the process,
/// where a real old library would hang.
fn stand_in(folder: &Path, version: &str) -> PathBuf {
    let source = folder.join("stand_in.rs");
    let text = r#"
        #[repr(C)]
        pub struct Base {
            api: extern "C" fn(u32) -> *const u8,
            version: extern "C" fn() -> *const u8,
        }
        static BASE: Base = Base { api, version };
        extern "C" fn api(_level: u32) -> *const u8 { std::process::abort() }
        extern "C" fn version() -> *const u8 { VERSION }
        #[unsafe(no_mangle)]
        pub extern "C" fn OrtGetApiBase() -> *const Base { &BASE }
    "#;
    let version = match version {
        "" => "const VERSION: *const u8 = std::ptr::null();".to_owned(),
        version => format!("const VERSION: *const u8 = c{version:?}.as_ptr().cast();"),
    };
    std::fs::write(&source, format!("{text}\n{version}\n")).expect("source");
    let library = folder.join("libonnxruntime.so.1.20.1");
    let output = Command::new(option_env!("RUSTC").unwrap_or("rustc"))
        .args(["--edition=2024", "--crate-type=cdylib", "-Cpanic=abort", "-o"])
        .args([&library, &source])
        .output()
        .expect("the compiler starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    library
}

#[test]
fn an_old_library_is_refused_with_both_versions_and_what_to_type() {
    let folder = tempfile::tempdir().expect("folder");
    let path = stand_in(folder.path(), "1.20.1");
    for choice in [EngineChoice::Ort, EngineChoice::Auto] {
        let options = EngineOptions {
            library: Some(path.clone()),
            threads: None,
            ..EngineOptions::default()
        };
        let error = engine::open(choice, &options).err().expect("refused");
        assert!(matches!(error, EngineError::LibraryTooOld { .. }), "{error:?}");
        let text = error.to_string();
        let file = path.display().to_string();
        for part in [file.as_str(), "1.20.1", "1.24 or newer", "pixart engine install cpu"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

#[test]
fn a_library_that_does_not_tell_its_version_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    for (name, version) in [("none", ""), ("words", "newest")] {
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder).expect("folder");
        let error =
            library::inspect(&stand_in(&folder, version), Origin::Option).expect_err("refused");
        assert!(matches!(error, EngineError::NotOnnxRuntime { .. }), "{error:?}");
    }
}

#[test]
fn looking_at_a_new_enough_library_only_reads_its_version() {
    let folder = tempfile::tempdir().expect("folder");
    let path = stand_in(folder.path(), "1.24.0");
    let library = library::inspect(&path, Origin::Option).expect("accepted");
    assert_eq!((library.path, library.version.as_str()), (path, "1.24.0"));
}
