//! Every container holds the same tensors, bit by bit, as the safetensors twin that PyTorch wrote.

use pixart_exporter::checkpoint::{
    Checkpoint, CheckpointError, Container, FileProblem, OpenOptions, WeightsKey,
};
use pixart_tests::fixtures;
use std::borrow::Cow;
use std::path::PathBuf;

/// Values of these types and without elements are in no MindSpore file.
const NOT_IN_MINDSPORE: [&str; 2] = ["complex", "empty"];

fn path(name: &str) -> PathBuf {
    fixtures::root().join("checkpoints").join(name)
}

fn open(name: &str, weights_key: WeightsKey) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::open(&path(name), &OpenOptions { weights_key, ..Default::default() })
}

/// Compares names, types, shapes and bytes of all tensors, but for those named.
fn assert_same(name: &str, found: &Checkpoint, expected: &Checkpoint, without: &[&str]) {
    let names: Vec<&str> = expected.names().filter(|name| !without.contains(name)).collect();
    assert_eq!(found.names().collect::<Vec<_>>(), names, "{name}");
    for tensor in names {
        let (found, expected) = (found.tensor(tensor).unwrap(), expected.tensor(tensor).unwrap());
        assert_eq!(found.dtype, expected.dtype, "{name}: {tensor}");
        assert_eq!(found.shape, expected.shape, "{name}: {tensor}");
        assert_eq!(found.bytes, expected.bytes, "{name}: {tensor}");
    }
}

#[test]
fn every_container_holds_the_same_values() {
    let expected = open("values.safetensors", WeightsKey::Auto).unwrap();
    assert_eq!(expected.names().count(), 23);
    for (name, container) in [
        ("values.pth", Container::TorchZip),
        ("values_protocol_1.pth", Container::TorchZip),
        ("values_protocol_5.pth", Container::TorchZip),
        ("values_old.pth", Container::TorchLegacy),
        ("values_old_protocol_1.pth", Container::TorchLegacy),
        ("values_old_protocol_4.pth", Container::TorchLegacy),
        ("values.ckpt", Container::MindSpore),
        ("values_parts.ckpt", Container::MindSpore),
    ] {
        let checkpoint = open(name, WeightsKey::Auto).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(checkpoint.shards()[0].container(), container, "{name}");
        assert_eq!(checkpoint.shards()[0].weights_key(), None, "{name}");
        let without: &[&str] =
            if container == Container::MindSpore { &NOT_IN_MINDSPORE } else { &[] };
        assert_same(name, &checkpoint, &expected, without);
    }
}

#[test]
fn weights_are_found_under_their_key() {
    let expected = open("module.safetensors", WeightsKey::Auto).unwrap();
    let named = |key: &str| WeightsKey::Named(key.to_owned());
    for (name, key, found) in [
        ("module.bin", WeightsKey::Auto, None),
        ("module.bin", WeightsKey::Bare, None),
        ("ema.pth", WeightsKey::Auto, Some("ema")),
        ("model.pth", WeightsKey::Auto, Some("model")),
        ("nested.pth", WeightsKey::Auto, Some("state_dict.state_dict")),
        ("nested.pth", named("state_dict"), Some("state_dict.state_dict")),
        ("training.pth", WeightsKey::Auto, Some("state_dict")),
        ("training.pth", named("state_dict"), Some("state_dict")),
        ("training_old.pth", WeightsKey::Auto, Some("state_dict")),
        ("sharded_bin", WeightsKey::Auto, None),
    ] {
        let checkpoint =
            open(name, key.clone()).unwrap_or_else(|error| panic!("{name}, {key:?}: {error}"));
        assert_eq!(checkpoint.shards()[0].weights_key(), found, "{name}, {key:?}");
        assert_same(name, &checkpoint, &expected, &[]);
    }
}

#[test]
fn averaged_weights_are_others() {
    let trained = open("training.pth", WeightsKey::Auto).unwrap();
    for name in ["training.pth", "training_old.pth"] {
        let averaged = open(name, WeightsKey::Named("state_dict_ema".to_owned())).unwrap();
        assert_eq!(averaged.names().collect::<Vec<_>>(), trained.names().collect::<Vec<_>>());
        for tensor in trained.names() {
            let values = |checkpoint: &Checkpoint| -> Vec<f32> {
                let view = checkpoint.tensor(tensor).unwrap();
                let (numbers, []) = view.bytes.as_chunks() else { panic!("{tensor}") };
                numbers.iter().map(|&number| f32::from_le_bytes(number)).collect()
            };
            let halves: Vec<f32> = values(&trained).iter().map(|value| value * 0.5).collect();
            assert_eq!(values(&averaged), halves, "{tensor}");
        }
    }
}

#[test]
fn a_missing_key_lists_those_that_are_there() {
    for (name, key, expected) in [
        ("training.pth", WeightsKey::Named("weights".to_owned()), "state_dict, state_dict_ema"),
        ("training.pth", WeightsKey::Bare, "epoch, state_dict"),
        ("module.bin", WeightsKey::Named("ema".to_owned()), "conv.weight, conv.bias"),
        ("training.pth", WeightsKey::Named("scheduler".to_owned()), "optimizer, scheduler, note"),
    ] {
        match open(name, key) {
            Err(CheckpointError::File {
                problem: problem @ FileProblem::WeightsKey { .. },
                ..
            }) => {
                assert!(problem.to_string().contains(expected), "{name}: {problem}");
            }
            Err(error) => panic!("{name}: {error}"),
            Ok(_) => panic!("{name}: opened"),
        }
    }
}

#[test]
fn only_tensors_that_lie_apart_are_copied() {
    let checkpoint = open("values.pth", WeightsKey::Auto).unwrap();
    let copied: Vec<&str> = checkpoint
        .names()
        .filter(|name| matches!(checkpoint.tensor(name).unwrap().bytes, Cow::Owned(_)))
        .collect();
    assert_eq!(copied, ["columns", "every_other", "expanded", "permuted", "transposed"]);

    // Views of one storage lie over each other in the file.
    let place = |name: &str| checkpoint.position(name).unwrap().1;
    assert_eq!(place("shared.head").start, place("shared.all").start);
    assert_eq!(place("shared.tail").end, place("shared.all").end);
    assert_eq!(place("shared.tail").start, place("shared.all").start + 8);
}

#[test]
fn rows_are_taken_from_any_layout() {
    use pixart_exporter::checkpoint::Renamed;
    for name in ["values.pth", "values_parts.ckpt"] {
        for tensor in ["plain.weight", "transposed", "permuted", "expanded"] {
            let checkpoint = open(name, WeightsKey::Auto).unwrap();
            let whole = checkpoint.tensor(tensor).unwrap().bytes.into_owned();
            let info = checkpoint.info(tensor).unwrap();
            let row = whole.len() / info.shape[0];
            let rows = Renamed {
                name: "rows".to_owned(),
                stored: tensor.to_owned(),
                rows: Some(1..info.shape[0]),
            };
            let renamed = checkpoint.renamed(vec![rows]).unwrap();
            assert_eq!(*renamed.tensor("rows").unwrap().bytes, whole[row..], "{name}: {tensor}");
        }
    }
}
