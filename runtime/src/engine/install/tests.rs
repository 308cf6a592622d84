//! Records and lists of installed engines.

use std::path::Path;

use super::*;
use crate::{engine::EngineError, files::sha256_of};

/// An installed engine whose library is no library.
fn installed(data_folder: &Path, version: &str) -> Installed {
    let folder = engines_folder(data_folder).join(format!("cpu-{version}"));
    std::fs::create_dir_all(&folder).expect("folder");
    let library = format!("libonnxruntime.so.{version}");
    std::fs::write(folder.join(&library), "no library").expect("library");
    let file = FileRecord {
        name: library.clone(),
        bytes: 10,
        sha256: sha256_of(&folder.join(&library), &mut |_| ()).expect("hash"),
    };
    let record = Record {
        format: 1,
        name: "cpu".to_owned(),
        version: version.to_owned(),
        package: "onnxruntime".to_owned(),
        wheel: format!("onnxruntime-{version}-py3-none-any.whl"),
        wheel_sha256: "0".repeat(64),
        library,
        plugin: false,
        files: vec![file],
        installed: "2026-11-23T04:12:59Z".to_owned(),
    };
    record.write(&folder).expect("record");
    Installed { folder, record }
}

#[test]
fn a_record_comes_back_as_it_was_written() {
    let data = tempfile::tempdir().expect("folder");
    let written = installed(data.path(), "1.32.0");
    let read = records(data.path()).remove(0).expect("record");
    assert_eq!(read, written);
    read.verify().expect("whole");
}

#[test]
fn the_newest_version_comes_first() {
    let data = tempfile::tempdir().expect("folder");
    for version in ["1.9.0", "1.32.0", "1.24.4"] {
        installed(data.path(), version);
    }
    // What a cut-off installation left behind does not count.
    std::fs::create_dir(engines_folder(data.path()).join(".install-x")).expect("folder");
    let versions: Vec<String> = records(data.path())
        .into_iter()
        .map(|found| found.expect("record").record.version)
        .collect();
    assert_eq!(versions, ["1.32.0", "1.24.4", "1.9.0"]);
}

#[test]
fn a_changed_library_is_noticed_by_its_size_at_once_and_by_its_hash_in_the_list() {
    let data = tempfile::tempdir().expect("folder");
    let engine = installed(data.path(), "1.32.0");
    std::fs::write(engine.library(), "NO LIBRARY").expect("same size");
    assert!(matches!(engine.verify(), Err(EngineError::LibraryDamaged { .. })));
    std::fs::write(engine.library(), "longer than before").expect("other size");
    let error = engine.open().expect_err("damaged").to_string();
    assert!(error.contains("18 bytes") && error.contains("engine install cpu"), "{error}");
    std::fs::remove_file(engine.library()).expect("removed");
    assert!(matches!(engine.open(), Err(EngineError::LibraryDamaged { .. })));
}

#[test]
fn a_record_that_names_a_file_elsewhere_is_refused() {
    let data = tempfile::tempdir().expect("folder");
    let mut engine = installed(data.path(), "1.32.0");
    engine.record.library = "../../libonnxruntime.so".to_owned();
    engine.record.write(&engine.folder).expect("record");
    let error = records(data.path()).remove(0).expect_err("refused").to_string();
    assert!(error.contains("no file name"), "{error}");
    std::fs::write(engine.folder.join("engine.json"), "{").expect("broken record");
    let error = records(data.path()).remove(0).expect_err("refused").to_string();
    assert!(error.contains("engine install cpu"), "{error}");
}
