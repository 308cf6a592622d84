//! Hostile and damaged tensors.

use tract_onnx::pb::StringStringEntryProto;

use super::*;

fn tensor(entries: &[(&str, &str)]) -> TensorProto {
    TensorProto {
        name: "w".to_owned(),
        data_type: DataType::Float as i32,
        dims: vec![2, 3],
        data_location: Some(DataLocation::External as i32),
        external_data: entries
            .iter()
            .map(|(key, value)| StringStringEntryProto {
                key: (*key).to_owned(),
                value: (*value).to_owned(),
            })
            .collect(),
        ..Default::default()
    }
}

fn model(tensor: TensorProto) -> ModelProto {
    let graph = GraphProto { initializer: vec![tensor], ..Default::default() };
    ModelProto { graph: Some(graph), ..Default::default() }
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::create_dir(folder.path().join("model")).expect("model folder");
    std::fs::write(folder.path().join("model/data"), [0u8; 100]).expect("data");
    std::fs::write(folder.path().join("secret"), [0u8; 100]).expect("secret");
    folder
}

fn verdict(entries: &[(&str, &str)]) -> Result<Vec<(String, Stored)>, String> {
    let folder = folder();
    check(&model(tensor(entries)), &folder.path().join("model")).map_err(|refused| refused.reason)
}

#[test]
fn a_range_inside_a_file_of_the_folder_is_found() {
    let stored = verdict(&[("location", "data"), ("offset", "76"), ("length", "24")]);
    let (name, place) = stored.expect("accepted").remove(0);
    assert_eq!((name.as_str(), place.offset, place.length), ("w", 76, 24));
    assert!(place.file.ends_with("model/data"));
}

#[test]
fn ways_out_of_the_folder_are_refused() {
    let absolute = if cfg!(windows) { "C:\\secret" } else { "/etc/passwd" };
    for location in [
        "../secret",
        "..",
        ".",
        "",
        "sub/data",
        "./data",
        "data/",
        "data/..",
        "a\\b",
        "..\\secret",
        "c:data",
        "data:stream",
        "d\0",
        "file://data",
        // An address in the process's memory, to ONNX Runtime.
        "*/_ORT_MEM_ADDR_/*",
        absolute,
    ] {
        let reason = verdict(&[("location", location), ("length", "24")]).expect_err(location);
        assert!(reason.contains("plain file name"), "{location:?}: {reason}");
    }
}

#[test]
fn wrong_ranges_are_refused() {
    for (offset, length) in [("0", "101"), ("77", "24"), ("101", "24"), ("0", "20")] {
        let entries = [("location", "data"), ("offset", offset), ("length", length)];
        verdict(&entries).expect_err("out of range or of the wrong size");
    }
    for (key, text) in [
        ("offset", "-1"),
        ("offset", "+4"),
        ("offset", " 4"),
        ("offset", "0x4"),
        ("offset", "٤"),
        ("length", "1e3"),
        ("offset", ""),
        ("length", "x"),
    ] {
        let reason = verdict(&[("location", "data"), (key, text)]).expect_err(text);
        assert!(reason.contains("whole number"), "{reason}");
    }
    let most = u64::MAX.to_string();
    verdict(&[("location", "data"), ("offset", &most), ("length", &most)])
        .expect_err("the sum overflows");
    let more = format!("{most}0");
    for key in ["offset", "length"] {
        verdict(&[("location", "data"), (key, &more)]).expect_err("more than 64 bits");
    }
    // Without a length it is the rest of the file, which must be exactly what is needed.
    verdict(&[("location", "data"), ("offset", "76")]).expect("accepted");
    verdict(&[("location", "data"), ("offset", "75")]).expect_err("one byte more");
    verdict(&[("location", "data"), ("offset", "100")]).expect_err("nothing is left");
}

#[test]
fn unknown_doubled_and_missing_keys_are_refused() {
    for entries in [
        vec![("location", "data"), ("length", "24"), ("owner", "x")],
        vec![("location", "data"), ("length", "24"), ("basepath", "..")],
        vec![("location", "data"), ("length", "24"), ("Location", "data")],
        vec![("location", "data"), ("length", "24"), ("length", "24")],
        vec![("location", "data"), ("location", "data"), ("length", "24")],
        vec![("length", "24")],
        vec![("location", "absent"), ("length", "24")],
    ] {
        verdict(&entries).expect_err("refused");
    }
}

#[test]
fn impossible_shapes_are_refused() {
    for dims in [vec![-1, 6], vec![i64::MAX, i64::MAX], vec![i64::MAX]] {
        let folder = folder();
        let mut tensor = tensor(&[("location", "data"), ("length", "24")]);
        tensor.dims = dims;
        let refused = check(&model(tensor), &folder.path().join("model")).expect_err("refused");
        assert!(refused.reason.contains("impossible"), "{}", refused.reason);
    }
}

#[test]
fn tensors_hidden_in_attributes_and_inner_graphs_are_checked_too() {
    let folder = folder();
    let hidden = tensor(&[("location", "../secret"), ("length", "24")]);
    let inner = GraphProto { initializer: vec![hidden.clone()], ..Default::default() };
    let attributes = [
        AttributeProto { t: Some(hidden), ..Default::default() },
        AttributeProto { g: Some(inner), ..Default::default() },
    ];
    for attribute in attributes {
        let node = NodeProto { attribute: vec![attribute], ..Default::default() };
        let graph = GraphProto { node: vec![node], ..Default::default() };
        let model = ModelProto { graph: Some(graph), ..Default::default() };
        let refused = check(&model, &folder.path().join("model")).expect_err("refused");
        assert_eq!(refused.tensor, "w");
    }
}

#[test]
fn elements_in_the_graph_are_as_many_as_type_and_shape_say() {
    let floats = |dims: &[i64]| TensorProto {
        data_type: DataType::Float as i32,
        dims: dims.to_vec(),
        ..Default::default()
    };
    let raw = |dims: &[i64], bytes: usize| TensorProto { raw_data: vec![0; bytes], ..floats(dims) };
    let typed =
        |dims: &[i64], count: usize| TensorProto { float_data: vec![0.0; count], ..floats(dims) };
    let nibbles = |dims: &[i64], count: usize| TensorProto {
        data_type: DataType::Int4 as i32,
        int32_data: vec![0; count],
        ..floats(dims)
    };
    let judge = |tensor| check(&model(tensor), Path::new("nowhere")).map_err(|r| r.reason);
    for tensor in
        [raw(&[2, 3], 24), typed(&[2, 3], 6), typed(&[], 1), floats(&[2, 0]), nibbles(&[3], 2)]
    {
        judge(tensor).expect("accepted");
    }
    for tensor in [
        raw(&[2, 3], 20),
        raw(&[2, 3], 28),
        typed(&[2, 3], 5),
        typed(&[], 2),
        floats(&[]),
        floats(&[1 << 40, 1 << 10]),
        nibbles(&[3], 3),
        TensorProto { float_data: vec![0.0; 6], ..raw(&[2, 3], 24) },
        TensorProto { data_type: 99, ..raw(&[2, 3], 24) },
        TensorProto { data_type: DataType::Undefined as i32, ..raw(&[2, 3], 24) },
        TensorProto { data_location: Some(1), ..typed(&[2, 3], 6) },
    ] {
        judge(tensor).expect_err("refused");
    }
    for dims in [vec![-1], vec![i64::MAX, 3], vec![i64::MIN, i64::MIN]] {
        let reason = judge(raw(&dims, 24)).expect_err("refused");
        assert!(reason.contains("impossible"), "{reason}");
    }
}

#[test]
fn an_unknown_element_type_beside_the_graph_is_refused() {
    let folder = folder();
    for kind in [99, -1, DataType::String as i32, DataType::Undefined as i32] {
        let mut tensor = tensor(&[("location", "data"), ("length", "24")]);
        tensor.data_type = kind;
        check(&model(tensor), &folder.path().join("model")).expect_err("refused");
    }
}

/// What `make` puts at `model/data` in place of the weights, as seen by the check.
#[cfg(unix)]
fn in_place_of_the_weights(make: impl FnOnce(&Path)) -> Result<(), String> {
    let folder = folder();
    let model_folder = folder.path().join("model");
    std::fs::remove_file(model_folder.join("data")).expect("removed");
    make(&model_folder.join("data"));
    let tensor = tensor(&[("location", "data"), ("offset", "0"), ("length", "24")]);
    check(&model(tensor), &model_folder).map(drop).map_err(|refused| refused.reason)
}

#[cfg(unix)]
#[test]
fn only_a_file_will_do_in_the_end() {
    use std::os::unix::fs::symlink;
    let refused = |make: &dyn Fn(&Path)| in_place_of_the_weights(make).expect_err("refused");
    let reason = refused(&|path| std::fs::create_dir(path).expect("folder"));
    assert!(reason.contains("is not a file"), "{reason}");
    let reason = refused(&|path| symlink("/dev/zero", path).expect("link"));
    assert!(reason.contains("is not a file"), "{reason}");
    let reason = refused(&|path| {
        let made = std::process::Command::new("mkfifo").arg(path).status().expect("mkfifo runs");
        assert!(made.success());
    });
    assert!(reason.contains("is not a file"), "{reason}");
    let reason = refused(&|path| symlink("data", path).expect("link"));
    assert!(reason.contains("cannot be read"), "{reason}");
    let reason = refused(&|path| symlink("nowhere", path).expect("link"));
    assert!(reason.contains("cannot be read"), "{reason}");
}

#[cfg(unix)]
#[test]
fn a_file_with_a_second_name_is_accepted() {
    in_place_of_the_weights(|path| {
        let blob = path.with_file_name("blob");
        std::fs::write(&blob, [0; 24]).expect("written");
        std::fs::hard_link(&blob, path).expect("link");
    })
    .expect("accepted");
}

#[cfg(unix)]
#[test]
fn a_link_in_the_folder_is_followed_as_download_caches_need() {
    let folder = folder();
    let model_folder = folder.path().join("model");
    std::os::unix::fs::symlink("../secret", model_folder.join("linked")).expect("link");
    let tensor = tensor(&[("location", "linked"), ("length", "24")]);
    check(&model(tensor), &model_folder).expect("accepted");
}
