use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ::safetensors::tensor::{TensorView as View, serialize_to_file};
use serde_json::json;
use tempfile::TempDir;

use super::*;

/// A file with one f32 tensor of two elements for each name; the values are `start`, `start + 1`.
fn write_shard(path: &Path, names: &[&str], start: f32) {
    let bytes: Vec<u8> = [start, start + 1.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let tensors: BTreeMap<String, View<'_>> = names
        .iter()
        .map(|name| (name.to_string(), View::new(Dtype::F32, vec![2], &bytes).unwrap()))
        .collect();
    serialize_to_file(tensors, None, path).unwrap();
}

fn write_index(folder: &Path, weight_map: serde_json::Value) {
    let index = json!({ "metadata": { "total_size": 16 }, "weight_map": weight_map });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::open(path, &OpenOptions::default())
}

fn error_of(path: &Path) -> CheckpointError {
    match open(path) {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}

/// What is wrong with the only file of a folder.
fn problem_of(folder: &Path) -> FileProblem {
    match error_of(folder) {
        CheckpointError::File { problem, .. } => problem,
        error => panic!("{error}"),
    }
}

fn single() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_shard(&folder.path().join("model.safetensors"), &["a", "b"], 3.0);
    folder
}

/// Two shards, `a` in the first and `b` in the second.
fn sharded() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_shard(&folder.path().join("one.safetensors"), &["a"], 1.0);
    write_shard(&folder.path().join("two.safetensors"), &["b"], 2.0);
    write_index(folder.path(), json!({ "a": "one.safetensors", "b": "two.safetensors" }));
    folder
}

#[test]
fn a_single_file_opens() {
    let folder = single();
    let checkpoint = open(folder.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
    let view = checkpoint.tensor("b").unwrap();
    assert_eq!((view.dtype, &*view.shape), (Dtype::F32, [2].as_slice()));
    assert_eq!(view.bytes[..4], 3f32.to_le_bytes());
    assert!(checkpoint.tensor("c").is_none());
}

#[test]
fn shards_open_through_their_index() {
    let folder = sharded();
    let checkpoint = open(folder.path()).unwrap();
    assert_eq!(checkpoint.shards().len(), 2);
    assert_eq!(checkpoint.tensor("a").unwrap().bytes[..4], 1f32.to_le_bytes());
    assert_eq!(checkpoint.tensor("b").unwrap().bytes[..4], 2f32.to_le_bytes());
}

#[test]
fn released_pages_read_back_the_same() {
    let folder = single();
    let checkpoint = open(folder.path()).unwrap();
    let shard = &checkpoint.shards()[0];
    let before = shard.bytes().to_vec();
    shard.release(0..before.len());
    assert_eq!(shard.bytes(), before);
}

#[test]
fn tensors_the_index_does_not_list_are_still_seen() {
    let folder = sharded();
    write_shard(&folder.path().join("two.safetensors"), &["b", "extra"], 2.0);
    let checkpoint = open(folder.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "extra"]);
}

#[cfg(unix)]
#[test]
fn links_of_a_model_cache_are_followed() {
    let blobs = single();
    let folder = tempfile::tempdir().unwrap();
    let name = "model.safetensors";
    std::os::unix::fs::symlink(blobs.path().join(name), folder.path().join(name)).unwrap();
    let checkpoint = open(folder.path()).unwrap();
    assert_eq!(checkpoint.shards()[0].name(), name);
}

#[test]
fn a_truncated_file_says_how_much_is_missing() {
    let folder = single();
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap());
    for kept in [0, 5, 8, 20, whole.len() - 1] {
        fs::write(&path, &whole[..kept]).unwrap();
        let FileProblem::Truncated { found, expected } = problem_of(folder.path()) else {
            panic!("{kept} bytes: another error");
        };
        assert_eq!(found, kept as u64);
        let known = match kept {
            0..8 => 8,
            8..21 => header,
            _ => whole.len() as u64,
        };
        assert_eq!(expected, known, "{kept} bytes");
    }
}

#[test]
fn a_file_with_bytes_at_its_end_is_refused() {
    let folder = single();
    let path = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    bytes.push(0);
    fs::write(&path, bytes).unwrap();
    assert!(matches!(problem_of(folder.path()), FileProblem::TooLong { .. }));
}

#[test]
fn damaged_headers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let with_header = |header: &str, data: &[u8]| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    };
    let cases = [
        with_header("not json", &[]),
        with_header("[]", &[]),
        // Overlap, hole, wrong size, sizes that overflow when multiplied or added.
        with_header(
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#,
            &[0; 6],
        ),
        with_header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, &[0; 8]),
        with_header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, &[0; 4]),
        with_header(
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#,
            &[0; 4],
        ),
        with_header(
            r#"{"a":{"dtype":"U8","shape":[18446744073709551544],"data_offsets":[0,18446744073709551544]}}"#,
            &[0; 4],
        ),
        // The same name twice, at the top and inside of an entry; text that is no UTF-8; a header of
        // spaces in front of its brace; a negative and a fractional size.
        with_header(
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            &[0; 8],
        ),
        with_header(
            r#"{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}"#,
            &[0; 4],
        ),
        [&4u64.to_le_bytes()[..], b"{\"\xff\""].concat(),
        with_header(r#"  {"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, &[0; 4]),
        with_header(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, &[0; 4]),
        with_header(r#"{"a":{"dtype":"F32","shape":[0.5],"data_offsets":[0,2]}}"#, &[0; 2]),
        with_header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, &[0; 4]),
        with_header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#, &[0; 4]),
        with_header(&"[".repeat(100_000), &[]),
        with_header(&format!("{{\"a\":{}", "[".repeat(100_000)), &[]),
        with_header(r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#, &[0; 4]),
        u64::MAX.to_le_bytes().to_vec(),
    ];
    for (case, bytes) in cases.iter().enumerate() {
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let problem = problem_of(folder.path());
        let refused = matches!(
            problem,
            FileProblem::Safetensors { .. }
                | FileProblem::TooLong { .. }
                | FileProblem::Truncated { .. }
        );
        assert!(refused, "case {case}: {problem}");
    }
}

#[test]
fn a_git_lfs_pointer_is_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    fs::write(folder.path().join("model.safetensors"), pointer).unwrap();
    assert!(matches!(problem_of(folder.path()), FileProblem::LfsPointer));
}

#[test]
fn an_index_cannot_leave_its_folder() {
    let outside = single();
    let inside = tempfile::tempdir_in(outside.path()).unwrap();
    let absolute = outside.path().join("model.safetensors");
    for name in ["../model.safetensors", absolute.to_str().unwrap(), "..", "x/../../m.safetensors"]
    {
        write_index(inside.path(), json!({ "a": name }));
        match error_of(inside.path()) {
            CheckpointError::IndexEscapes { tensor, shard, .. } => {
                assert_eq!((tensor.as_str(), shard.as_str()), ("a", name));
            }
            error => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn index_and_shards_must_belong_together() {
    let folder = sharded();
    write_index(folder.path(), json!({ "a": "one.safetensors", "c": "two.safetensors" }));
    match error_of(folder.path()) {
        CheckpointError::NotInShard { tensor, shard, .. } => {
            assert_eq!((tensor.as_str(), shard.as_str()), ("c", "two.safetensors"));
        }
        error => panic!("{error}"),
    }
    write_index(folder.path(), json!({ "a": "one.safetensors", "b": "three.safetensors" }));
    match error_of(folder.path()) {
        CheckpointError::MissingShard { shard, .. } => assert_eq!(shard, "three.safetensors"),
        error => panic!("{error}"),
    }
    for text in ["{}", "{\"weight_map\": {}}", "{\"weight_map\": {\"a\": 3}}", "nonsense"] {
        fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
        assert!(matches!(error_of(folder.path()), CheckpointError::Index { .. }), "{text}");
    }
}

#[test]
fn rows_can_be_had_under_other_names() {
    let folder = single();
    let checkpoint = open(folder.path()).unwrap();
    let whole = checkpoint.tensor("a").unwrap().bytes.to_vec();
    let entry = |name: &str, rows| Renamed { name: name.to_owned(), stored: "a".to_owned(), rows };
    let renamed = checkpoint
        .renamed(vec![entry("x", None), entry("y", Some(1..2)), entry("z", Some(0..0))])
        .unwrap();
    assert_eq!(renamed.names().collect::<Vec<_>>(), ["x", "y", "z"]);
    assert_eq!(*renamed.tensor("x").unwrap().bytes, whole);
    let second = renamed.tensor("y").unwrap();
    assert_eq!((&*second.shape, &*second.bytes), ([1].as_slice(), &whole[4..]));
    assert!(renamed.tensor("z").unwrap().bytes.is_empty());
    assert_eq!(renamed.position("y"), renamed.position("x"));

    let again = || open(folder.path()).unwrap();
    let missing = Renamed { name: "x".to_owned(), stored: "no".to_owned(), rows: None };
    for wrong in [missing, entry("y", Some(1..3))] {
        assert_eq!(again().renamed(vec![wrong.clone()]).err(), Some(wrong));
    }
}

#[test]
fn the_name_of_a_file_does_not_say_what_it_is() {
    let folder = single();
    let safetensors = folder.path().join("model.safetensors");
    let other = folder.path().join("x.pth");
    fs::rename(&safetensors, &other).unwrap();
    for path in [folder.path(), &other] {
        let checkpoint = open(path).unwrap();
        assert_eq!(checkpoint.shards()[0].container(), Container::Safetensors);
        assert_eq!(checkpoint.folder(), folder.path());
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
    }
}

#[test]
fn an_index_opens_by_its_own_name() {
    let folder = sharded();
    let checkpoint = open(&folder.path().join("model.safetensors.index.json")).unwrap();
    assert_eq!(checkpoint.shards().len(), 2);
}

#[test]
fn plain_files_come_before_variants() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, tensor| write_shard(&folder.path().join(name), &[tensor], 1.0);
    let names = |variant: Option<&str>| {
        let options = OpenOptions { variant: variant.map(str::to_owned), ..Default::default() };
        Checkpoint::open(folder.path(), &options)
            .map(|checkpoint| checkpoint.names().map(str::to_owned).collect::<Vec<_>>())
    };
    write("diffusion_pytorch_model.fp16.safetensors", "half");
    assert_eq!(names(None).unwrap(), ["half"]);
    assert_eq!(names(Some("fp16")).unwrap(), ["half"]);

    // A second variant, in shards.
    write("diffusion_pytorch_model.bf16-00001-of-00001.safetensors", "brain");
    fs::write(
        folder.path().join("diffusion_pytorch_model.safetensors.index.bf16.json"),
        r#"{"weight_map":{"brain":"diffusion_pytorch_model.bf16-00001-of-00001.safetensors"}}"#,
    )
    .unwrap();
    assert_eq!(names(Some("bf16")).unwrap(), ["brain"]);
    let error = names(None).expect_err("which of them?").to_string();
    assert!(error.contains("bf16, fp16"), "{error}");
    let error = names(Some("fp8")).expect_err("not there").to_string();
    assert!(error.contains("fp8") && error.contains("bf16, fp16"), "{error}");

    write("diffusion_pytorch_model.safetensors", "plain");
    assert_eq!(names(None).unwrap(), ["plain"]);
    assert_eq!(names(Some("fp16")).unwrap(), ["half"]);
    for variant in ["../fp16", "", "a.b", "fp16/"] {
        let error = names(Some(variant)).expect_err("a path");
        assert!(matches!(error, CheckpointError::BadVariant { .. }), "{error}");
    }
}

#[test]
fn a_folder_of_unusual_names_has_to_be_clear() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(error_of(folder.path()), CheckpointError::NoWeights { .. }));
    write_shard(&folder.path().join("mine.ckpt"), &["a"], 1.0);
    assert_eq!(open(folder.path()).unwrap().shards()[0].name(), "mine.ckpt");
    write_shard(&folder.path().join("other.pt"), &["a"], 1.0);
    match error_of(folder.path()) {
        CheckpointError::SeveralFiles { found, .. } => assert_eq!(found, ["mine.ckpt", "other.pt"]),
        error => panic!("{error}"),
    }
    let missing = folder.path().join("missing");
    assert!(matches!(error_of(&missing), CheckpointError::Unreadable { .. }));
}

#[test]
fn other_kinds_of_file_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pth");
    let tar = [&[b'x'; 257][..], b"ustar", &[0; 250]].concat();
    let cases: [(&[u8], &str); 10] = [
        (b"", "empty file"),
        (b"anything", "unknown kind"),
        (&tar, "tar file"),
        (b"\x80\x02}q\x00.", "plain pickle"),
        (b"\x1f\x8b\x08\x00", "compressed archive"),
        (b"7z\xbc\xaf\x27\x1c", "compressed archive"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    ];
    for (content, expected) in cases {
        fs::write(&path, content).unwrap();
        let error = error_of(&path).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_key_of_a_file_without_keys_is_refused() {
    let folder = single();
    let weights_key = WeightsKey::Named("ema".to_owned());
    let options = OpenOptions { weights_key, ..Default::default() };
    match Checkpoint::open(folder.path(), &options) {
        Err(CheckpointError::File { problem: FileProblem::WeightsKey { asked, .. }, .. }) => {
            assert_eq!(asked.as_deref(), Some("ema"));
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("opened"),
    }
}

#[test]
fn floats_of_every_width_are_read_as_32_bits() {
    let view = |dtype, bytes: &[u8]| TensorView {
        dtype,
        shape: vec![2].into(),
        bytes: bytes.to_vec().into(),
    };
    let expected = Some(vec![1.5, -2.0]);
    for (dtype, bytes) in [
        (Dtype::F64, [1.5f64, -2.0].map(f64::to_le_bytes).concat()),
        (Dtype::F32, [1.5f32, -2.0].map(f32::to_le_bytes).concat()),
        (Dtype::F16, vec![0x00, 0x3e, 0x00, 0xc0]),
        (Dtype::BF16, vec![0xc0, 0x3f, 0x00, 0xc0]),
    ] {
        assert_eq!(view(dtype, &bytes).to_f32(), expected, "{dtype:?}");
    }
    assert_eq!(view(Dtype::I32, &[0; 8]).to_f32(), None);
}
