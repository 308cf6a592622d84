//! Variants of the transformer in files with the original names: what is recognised, and what is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pixart_exporter::naming::{ConfigError, WeightProblem};
use pixart_exporter::{
    Component, ExportError, ExportOptions, Exported, KvSampling, VariantFlags, export_component,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::model::{Stored, files, write_tensors};

/// A fixture's tensors, to be changed and written again.
struct Checkpoint {
    tensors: BTreeMap<String, Stored>,
    flags: VariantFlags,
}

impl Checkpoint {
    fn fixture(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/variants");
        let bytes = fs::read(folder.join(name).with_extension("safetensors")).unwrap();
        let parsed = SafeTensors::deserialize(&bytes).unwrap();
        let stored = |view: safetensors::tensor::TensorView<'_>| Stored {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            bytes: view.data().to_vec(),
        };
        let tensors = parsed.iter().map(|(name, view)| (name.to_owned(), stored(view))).collect();
        let flags = VariantFlags { num_attention_heads: Some(2), ..VariantFlags::default() };
        Self { tensors, flags }
    }

    fn sized(name: &str, sample_size: usize) -> Self {
        let mut checkpoint = Self::fixture(name);
        checkpoint.flags.sample_size = Some(sample_size);
        checkpoint
    }

    fn add(&mut self, name: &str, shape: &[usize]) {
        self.tensors.insert(name.to_owned(), Stored::new(name, Dtype::F32, shape));
    }

    fn rename(&mut self, from: &str, to: &str) {
        let tensor = self.tensors.remove(from).expect("the tensor exists");
        self.tensors.insert(to.to_owned(), tensor);
    }

    fn export(&self) -> (TempDir, Result<Exported, ExportError>) {
        let root = tempfile::tempdir().unwrap();
        let source = root.path().join("a-2K-MS.safetensors");
        write_tensors(&self.tensors, &source);
        let exported = export(&source, &root.path().join("output"), &self.flags);
        (root, exported)
    }

    /// The configuration that is written beside the graph.
    fn config(&self) -> Value {
        let (_root, exported) = self.export();
        read_json(&exported.unwrap().folder.join("config.json"))
    }

    fn manifest(&self) -> Value {
        let (_root, exported) = self.export();
        read_json(&exported.unwrap().folder.join("manifest.json"))
    }

    fn refusal(&self) -> ExportError {
        let (root, result) = self.export();
        assert!(!root.path().join("output").exists(), "something was written");
        result.unwrap_err()
    }

    fn problems(&self) -> Vec<WeightProblem> {
        match self.refusal() {
            ExportError::Weights(error) => error.problems,
            other => panic!("{other}"),
        }
    }
}

fn export(source: &Path, output: &Path, flags: &VariantFlags) -> Result<Exported, ExportError> {
    let options = ExportOptions { variant: flags.clone(), ..ExportOptions::default() };
    export_component(source, Component::Transformer, output, &options, &mut |_| ())
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_config_is_worked_out_for_a_file_without_one() {
    let config = Checkpoint::sized("alpha", 128).config();
    let fixture = "../tests/fixtures/variants/alpha/transformer/config.json";
    let mut expected = read_json(&Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture));
    // What diffusers wrote for the same model, but for its own version.
    expected.as_object_mut().unwrap().remove("_diffusers_version");
    assert_eq!(config, expected);
}

#[test]
fn the_position_scale_comes_from_the_size_and_never_from_the_name() {
    for (sample_size, scale) in [(32, json!(0.5)), (64, json!(1)), (128, json!(2)), (256, json!(4))]
    {
        let config = Checkpoint::sized("kv_conv", sample_size).config();
        assert_eq!(config["sample_size"], sample_size);
        assert_eq!(config["interpolation_scale"], scale);
    }
    let stored = Checkpoint::fixture("qk_norm").config();
    assert_eq!((&stored["sample_size"], &stored["interpolation_scale"]), (&json!(32), &json!(0.5)));

    let unknown = Checkpoint::fixture("kv_conv").refusal().to_string();
    assert!(unknown.contains("a-2K-MS.safetensors: sample_size is missing"), "{unknown}");
    assert!(unknown.contains("--sample_size 32, 64, 128 or 256"), "{unknown}");
}

#[test]
fn alpha_is_known_by_its_captions_and_has_another_scale_at_256() {
    let mut alpha = Checkpoint::sized("kv_conv", 32);
    alpha.add("y_embedder.y_embedding", &[120, 16]);
    assert_eq!(alpha.config()["interpolation_scale"], 1);
    assert_eq!(alpha.manifest()["architecture"]["variant"], "alpha");
    alpha.flags.interpolation_scale = Some(0.5);
    assert_eq!(alpha.config()["interpolation_scale"], 0.5);
    assert_eq!(Checkpoint::sized("kv_conv", 32).manifest()["architecture"]["variant"], "sigma");
    let conditions = Checkpoint::sized("alpha", 128).manifest();
    assert_eq!(conditions["architecture"]["use_additional_conditions"], true);
}

#[test]
fn compression_stands_in_config_and_manifest() {
    let checkpoint = Checkpoint::sized("kv_conv", 64);
    for place in [checkpoint.config(), checkpoint.manifest()["architecture"].clone()] {
        assert_eq!(place["kv_compress_sampling"], "conv");
        assert_eq!(place["kv_compress_scale_factor"], 2);
        assert_eq!(place["kv_compress_layer"], json!([1]));
        assert_eq!(place.get("qk_norm"), None);
    }
    let qk_norm = Checkpoint::fixture("qk_norm").config();
    assert_eq!(qk_norm["qk_norm"], true);
    assert_eq!(qk_norm.get("kv_compress_sampling"), None);
}

#[test]
fn heads_are_72_wide_unless_somebody_says_otherwise() {
    let mut checkpoint = Checkpoint::sized("kv_conv", 64);
    checkpoint.flags.num_attention_heads = None;
    let message = checkpoint.refusal().to_string();
    assert!(message.contains("num_attention_heads is missing"), "{message}");
    assert!(message.contains("give --num_attention_heads"), "{message}");
    for wrong in [0, 5] {
        checkpoint.flags.num_attention_heads = Some(wrong);
        let error = checkpoint.refusal();
        assert!(matches!(error, ExportError::Config(ConfigError::FlagInvalid { .. })), "{error}");
    }
}

#[test]
fn options_that_contradict_the_tensors_are_refused() {
    type Set = fn(&mut VariantFlags);
    let cases: [(&str, &str, Set); 5] = [
        ("qk_norm", "--sample_size", |flags| flags.sample_size = Some(64)),
        ("kv_conv", "--kv_compress_sampling", |flags| {
            flags.kv_compress_sampling = Some(KvSampling::Uniform);
        }),
        ("kv_conv", "--kv_compress_scale_factor", |flags| flags.kv_compress_scale_factor = Some(4)),
        ("kv_conv", "--kv_compress_layer", |flags| flags.kv_compress_layer = Some(vec![0, 1])),
        ("kv_conv", "--kv_compress_layer", |flags| flags.kv_compress_layer = Some(vec![])),
    ];
    for (fixture, name, set) in cases {
        let size = if fixture == "qk_norm" { 32 } else { 64 };
        let mut checkpoint = Checkpoint::sized(fixture, size);
        set(&mut checkpoint.flags);
        match checkpoint.refusal() {
            ExportError::Config(ConfigError::FlagConflict { flag, .. }) => assert_eq!(flag, name),
            other => panic!("{name}: {other}"),
        }
    }
    let mut agreeing = Checkpoint::sized("kv_conv", 64);
    agreeing.flags.kv_compress_sampling = Some(KvSampling::Conv);
    agreeing.flags.kv_compress_scale_factor = Some(2);
    agreeing.flags.kv_compress_layer = Some(vec![1]);
    assert_eq!(agreeing.config()["kv_compress_layer"], json!([1]));
}

#[test]
fn compression_without_tensors_must_be_said_in_full() {
    let with = |sampling, factor, layers: Option<&[usize]>| {
        let mut checkpoint = Checkpoint::fixture("qk_norm");
        checkpoint.flags.kv_compress_sampling = sampling;
        checkpoint.flags.kv_compress_scale_factor = factor;
        checkpoint.flags.kv_compress_layer = layers.map(<[usize]>::to_vec);
        checkpoint
    };
    let ave = Some(KvSampling::Ave);
    for (checkpoint, expected) in [
        (with(None, Some(2), Some(&[0])), "give --kv_compress_sampling"),
        (with(ave, None, Some(&[0])), "give --kv_compress_scale_factor"),
        (with(ave, Some(2), None), "give --kv_compress_layer"),
        (with(Some(KvSampling::Conv), Some(2), Some(&[0])), "the weights have no attn.sr tensors"),
        (
            with(ave, Some(2), Some(&[0, 2])),
            "--kv_compress_layer is 2; expected numbers of blocks from 0 to 1",
        ),
        (with(ave, Some(1000), Some(&[0])), "--kv_compress_scale_factor is 1000"),
        (with(ave, Some(0), Some(&[0])), "--kv_compress_scale_factor is 0"),
    ] {
        let message = checkpoint.refusal().to_string();
        assert!(message.contains(expected), "{message}");
    }
    // Upstream's defaults mean none.
    for off in [with(ave, Some(1), None), with(None, Some(2), Some(&[]))] {
        assert_eq!(off.config().get("kv_compress_sampling"), None);
    }
}

#[test]
fn problems_are_told_in_the_names_of_the_file() {
    let mut checkpoint = Checkpoint::sized("kv_conv", 64);
    checkpoint.tensors.remove("blocks.0.attn.qkv.weight");
    checkpoint.tensors.remove("blocks.1.attn.sr.bias");
    checkpoint.add("blocks.1.cross_attn.kv_linear.weight", &[48, 23]);
    checkpoint.add("blocks.1.attn.qkv.bias", &[71]);
    checkpoint.add("blocks.1.extra.weight", &[3]);
    let found = checkpoint.problems();
    let missing = |tensor: &str, expected: &[usize]| WeightProblem::Missing {
        tensor: tensor.to_owned(),
        expected: expected.to_vec(),
    };
    let shape = |tensor: &str, found: &[usize], expected: &[usize]| WeightProblem::Shape {
        tensor: tensor.to_owned(),
        found: found.to_vec(),
        expected: expected.to_vec(),
    };
    let expected = [
        missing("blocks.0.attn.qkv.weight", &[72, 24]),
        shape("blocks.1.attn.qkv.bias", &[71], &[72]),
        missing("blocks.1.attn.sr.bias", &[24]),
        shape("blocks.1.cross_attn.kv_linear.weight", &[48, 23], &[48, 24]),
        WeightProblem::Unexpected { tensor: "blocks.1.extra.weight".to_owned(), found: vec![3] },
    ];
    assert_eq!(found, expected);
}

#[test]
fn every_block_must_be_like_the_others() {
    let mut checkpoint = Checkpoint::fixture("qk_norm");
    checkpoint.tensors.remove("model.blocks.1.attn.k_norm.weight");
    match checkpoint.problems().as_slice() {
        [WeightProblem::Missing { tensor, .. }] => {
            assert_eq!(tensor, "blocks.1.attn.k_norm.weight");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_tensors_for_one_place_are_refused() {
    let mut checkpoint = Checkpoint::sized("kv_conv", 64);
    checkpoint.add("module.t_block.1.bias", &[144]);
    match checkpoint.refusal() {
        ExportError::Config(ConfigError::TwoTensors { name, first, second, .. }) => {
            assert_eq!(name, "t_block.1.bias");
            assert_eq!(
                (first.as_str(), second.as_str()),
                ("module.t_block.1.bias", "t_block.1.bias")
            );
        }
        other => panic!("{other}"),
    }
    // What is dropped may be there twice.
    let mut dropped = Checkpoint::fixture("qk_norm");
    dropped.add("base_model.pos_embed", &[1, 256, 24]);
    dropped.export().1.unwrap();
}

#[test]
fn wrappers_and_dropped_tensors_change_nothing() {
    let plain = Checkpoint::sized("alpha", 128);
    let mut wrapped = Checkpoint::sized("alpha", 128);
    for name in plain.tensors.keys() {
        wrapped.rename(name, &format!("module.base_model.{name}"));
    }
    wrapped.tensors.remove("module.base_model.y_embedder.y_embedding");
    wrapped.add("base_model.pos_embed", &[1, 4096, 24]);
    let data = |checkpoint: &Checkpoint| {
        let (_root, exported) = checkpoint.export();
        fs::read(exported.unwrap().folder.join("model.onnx")).unwrap()
    };
    assert!(data(&plain) == data(&wrapped));
}

#[test]
fn other_models_are_not_taken_for_transformers() {
    let mut checkpoint = Checkpoint::sized("kv_conv", 64);
    checkpoint.tensors.clear();
    checkpoint.add("encoder.block.0.layer.0.SelfAttention.q.weight", &[8, 8]);
    let message = checkpoint.refusal().to_string();
    assert!(message.contains("not a PixArt transformer"), "{message}");
    assert!(message.contains("SelfAttention.q.weight"), "{message}");
}

#[test]
fn a_file_of_a_diffusers_folder_has_the_config_beside_it() {
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/variants/alpha/transformer");
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("source");
    fs::create_dir(&source).unwrap();
    let name = "diffusion_pytorch_model.safetensors";
    for file in ["config.json", name] {
        fs::copy(fixture.join(file), source.join(file)).unwrap();
    }
    let none = VariantFlags::default();
    export(&source.join(name), &root.path().join("a"), &none).unwrap();
    // Under another name it may be any model's config that lies there.
    fs::rename(source.join(name), source.join("other.safetensors")).unwrap();
    let error =
        export(&source.join("other.safetensors"), &root.path().join("b"), &none).unwrap_err();
    assert!(matches!(error, ExportError::Config(ConfigError::Missing { .. })), "{error}");
}

#[test]
fn an_option_wins_over_a_config_and_takes_its_scale_with_it() {
    // As the early 2K revision, whose config was wrong.
    let part = super::model::Part::transformer();
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("source");
    part.write(&source);
    let flags = VariantFlags { sample_size: Some(256), ..VariantFlags::default() };
    let exported = export(&source, &root.path().join("output"), &flags).unwrap();
    let config = read_json(&exported.folder.join("config.json"));
    assert_eq!((&config["sample_size"], &config["interpolation_scale"]), (&json!(256), &json!(4)));
    assert_eq!(config["a_key_from_the_future"], true);
    let same = VariantFlags { sample_size: Some(16), ..VariantFlags::default() };
    let exported = export(&source, &root.path().join("same"), &same).unwrap();
    let config = read_json(&exported.folder.join("config.json"));
    assert_eq!(config["interpolation_scale"], 0.5);
}

#[test]
fn only_a_transformer_can_be_a_file() {
    let root = tempfile::tempdir().unwrap();
    let source: PathBuf = root.path().join("t5.safetensors");
    write_tensors(&Checkpoint::fixture("kv_conv").tensors, &source);
    let output = root.path().join("output");
    for component in [Component::TextEncoder, Component::VaeDecoder] {
        let error = export_component(&source, component, &output, &Default::default(), &mut |_| ());
        assert!(matches!(error, Err(ExportError::SourceIsFile { .. })), "{component}");
    }
    assert_eq!(files(root.path()).len(), 1);
}
