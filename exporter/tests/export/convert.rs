//! Conversions, down to the byte, and what an inspection says.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pixart_exporter::checkpoint::{OpenOptions, WeightsKey};
use pixart_exporter::convert::{ConvertOptions, Converted, TargetNaming, convert};
use pixart_exporter::inspect::{InspectOptions, Inspection, inspect};
use pixart_exporter::naming::WeightProblem;
use pixart_exporter::write::WriteError;
use pixart_exporter::{ExportError, Naming, VariantFlags};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use super::model::{Stored, files, write_tensors};

const OFFICIAL: Option<TargetNaming> = Some(TargetNaming::Of(Naming::Official));
const DIFFUSERS: Option<TargetNaming> = Some(TargetNaming::Of(Naming::Diffusers));

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/variants").join(name)
}

fn tensors(path: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(path).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let content = |view: safetensors::tensor::TensorView<'_>| {
        (view.dtype(), view.shape().to_vec(), view.data().to_vec())
    };
    parsed.iter().map(|(name, view)| (name.to_owned(), content(view))).collect()
}

/// The tensors of a fixture, to be changed and written.
fn stored(name: &str) -> BTreeMap<String, Stored> {
    tensors(&fixture(name))
        .into_iter()
        .map(|(name, (dtype, shape, bytes))| (name, Stored { dtype, shape, bytes }))
        .collect()
}

fn run(
    source: &Path,
    target: &Path,
    naming: Option<TargetNaming>,
) -> Result<Converted, ExportError> {
    let options = ConvertOptions { naming, ..ConvertOptions::default() };
    convert(source, target, &options, &mut |_, _| ())
}

#[test]
fn a_pth_keeps_every_tensor_under_its_name() {
    let root = tempfile::tempdir().unwrap();
    for name in ["alpha", "kv_conv"] {
        let target = root.path().join(name).with_extension("safetensors");
        let source = fixture(name).with_extension("pth");
        let converted = run(&source, &target, None).unwrap();
        let found = tensors(&target);
        assert_eq!(converted.tensors, found.len());
        assert!(converted.notes.is_empty(), "{:?}", converted.notes);
        assert!(found == tensors(&fixture(name).with_extension("safetensors")), "{name}");
    }
}

#[test]
fn official_names_become_those_that_diffusers_wrote() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("a.safetensors");
    let converted = run(&fixture("alpha.pth"), &target, DIFFUSERS).unwrap();
    let expected = fixture("alpha/transformer/diffusion_pytorch_model.safetensors");
    assert!(tensors(&target) == tensors(&expected));
    assert_eq!(converted.notes.len(), 1);
    assert!(converted.notes[0].contains("left out: y_embedder.y_embedding"));
    assert_eq!(files(root.path()).len(), 1);
}

#[test]
fn diffusers_names_become_the_official_ones() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("a.safetensors");
    let converted = run(&fixture("alpha"), &target, OFFICIAL).unwrap();
    let mut expected = tensors(&fixture("alpha.safetensors"));
    expected.remove("y_embedder.y_embedding").unwrap();
    assert!(tensors(&target) == expected);
    assert!(converted.notes[0].contains("cannot be restored"), "{:?}", converted.notes);
}

#[test]
fn official_names_lose_their_wrappers_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("a.safetensors");
    run(&fixture("qk_norm.safetensors"), &target, OFFICIAL).unwrap();
    let expected: BTreeMap<_, _> = tensors(&fixture("qk_norm.safetensors"))
        .into_iter()
        .map(|(name, tensor)| (name.strip_prefix("model.").unwrap().to_owned(), tensor))
        .collect();
    assert!(expected.contains_key("pos_embed"));
    assert!(tensors(&target) == expected);
}

#[test]
fn there_and_back_is_the_same_with_every_variant() {
    let root = tempfile::tempdir().unwrap();
    for name in ["alpha", "kv_conv", "qk_norm", "depth_42"] {
        let path = |step: &str| root.path().join(format!("{name}-{step}.safetensors"));
        run(&fixture(name).with_extension("safetensors"), &path("a"), DIFFUSERS).unwrap();
        run(&path("a"), &path("b"), OFFICIAL).unwrap();
        run(&path("b"), &path("c"), DIFFUSERS).unwrap();
        assert!(fs::read(path("a")).unwrap() == fs::read(path("c")).unwrap(), "{name}");
    }
}

#[test]
fn a_folder_gets_the_config_that_diffusers_writes() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("transformer");
    let variant = VariantFlags {
        sample_size: Some(128),
        num_attention_heads: Some(2),
        ..VariantFlags::default()
    };
    let options = ConvertOptions { variant, ..ConvertOptions::default() };
    let source = fixture("alpha.pth");
    convert(&source, &target, &options, &mut |_, _| ()).unwrap();
    assert_eq!(files(&target), ["config.json", "diffusion_pytorch_model.safetensors"]);
    let read =
        |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let mut expected = read(fixture("alpha/transformer/config.json"));
    expected.as_object_mut().unwrap().remove("_diffusers_version");
    assert_eq!(read(target.join("config.json")), expected);

    // Without a size there is no config.
    let error = run(&source, &root.path().join("other"), None).unwrap_err();
    assert!(error.to_string().contains("is missing"), "{error}");
    // An existing one is kept, unless it may be replaced; other folders are never.
    let again = |force| {
        let options = ConvertOptions { force, ..options.clone() };
        convert(&source, &target, &options, &mut |_, _| ())
    };
    assert!(matches!(again(false), Err(ExportError::Write(WriteError::Exists { .. }))));
    again(true).unwrap();
    fs::write(target.join("notes.txt"), "mine").unwrap();
    assert!(matches!(again(true), Err(ExportError::Write(WriteError::NotAnExport { .. }))));
    assert!(target.join("notes.txt").exists());
    assert_eq!(files(root.path()).len(), 3);
}

#[test]
fn targets_that_cannot_be_written_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("source.safetensors");
    fs::copy(fixture("kv_conv.safetensors"), &source).unwrap();
    let before = fs::read(&source).unwrap();
    let force = ConvertOptions { force: true, ..ConvertOptions::default() };
    let result = convert(&source, &source, &force, &mut |_, _| ());
    let refused = matches!(result, Err(ExportError::Write(WriteError::WouldReplaceSource { .. })));
    assert!(refused);
    assert!(fs::read(&source).unwrap() == before);

    let target = root.path().join("taken.safetensors");
    fs::write(&target, "old").unwrap();
    let result = run(&source, &target, None);
    assert!(matches!(result, Err(ExportError::Write(WriteError::Exists { .. }))));
    assert_eq!(fs::read_to_string(&target).unwrap(), "old");
    convert(&source, &target, &force, &mut |_, _| ()).unwrap();
    assert!(tensors(&target) == tensors(&source));

    for (name, naming) in [("a.pth", None), ("a.onnx", DIFFUSERS), ("folder", OFFICIAL)] {
        let result = run(&source, &root.path().join(name), naming);
        assert!(matches!(result, Err(ExportError::BadTarget { .. })), "{name}");
    }
    let nowhere = run(&source, &root.path().join("none/a.safetensors"), None);
    assert!(nowhere.unwrap_err().to_string().contains("none: cannot create a file in"));
    assert_eq!(files(root.path()).len(), 2);
}

#[test]
fn other_names_need_a_whole_transformer() {
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("source.safetensors");
    let mut content = stored("kv_conv.safetensors");
    content.remove("blocks.1.mlp.fc1.weight");
    content.insert("extra".to_owned(), Stored::new("extra", Dtype::F32, &[2]));
    write_tensors(&content, &source);
    let target = root.path().join("target.safetensors");
    let problems = |naming| match run(&source, &target, naming) {
        Err(ExportError::Weights(error)) => error.problems,
        other => panic!("{other:?}"),
    };
    for naming in [DIFFUSERS, OFFICIAL] {
        let found: Vec<String> =
            problems(naming).iter().map(|problem| problem.tensor().to_owned()).collect();
        assert_eq!(found, ["blocks.1.mlp.fc1.weight", "extra"]);
    }
    // As it is, any file can be converted.
    run(&source, &target, None).unwrap();
    assert!(tensors(&target) == tensors(&source));
}

#[test]
fn matrices_of_different_types_cannot_be_joined() {
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("source.safetensors");
    let mut content = stored("alpha/transformer/diffusion_pytorch_model.safetensors");
    let name = "transformer_blocks.0.attn1.to_k.weight";
    content.insert(name.to_owned(), Stored::new(name, Dtype::F32, &[24, 24]));
    write_tensors(&content, &source);
    match run(&source, &root.path().join("target.safetensors"), OFFICIAL) {
        Err(ExportError::Weights(error)) => match error.problems.as_slice() {
            [WeightProblem::MixedDtypes { tensor, found }] => {
                assert_eq!(tensor, "blocks.0.attn.qkv.weight");
                assert_eq!(found, &["BF16", "F32"]);
            }
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn look(path: &Path, options: &InspectOptions) -> Inspection {
    inspect(path, options, &mut |_, _| ()).unwrap()
}

#[test]
fn an_inspection_tells_variants_apart() {
    let heads = VariantFlags { num_attention_heads: Some(2), ..VariantFlags::default() };
    let options = InspectOptions { variant: heads, ..InspectOptions::default() };
    let alpha = look(&fixture("alpha.pth"), &options);
    assert_eq!(alpha.files[0].weights_key.as_deref(), Some("state_dict"));
    assert_eq!(alpha.dtypes.keys().collect::<Vec<_>>(), ["BF16"]);
    assert_eq!(alpha.suspicious, Some(vec![]));
    let alpha = alpha.transformer.unwrap();
    assert_eq!((alpha.naming.as_str(), alpha.family.as_str()), ("official", "alpha"));
    assert_eq!(alpha.unused, ["y_embedder.y_embedding"]);
    let config = alpha.config.unwrap();
    assert_eq!((&config["sample_size"], &config["num_layers"]), (&Value::Null, &json!(2)));
    assert_eq!(config["use_additional_conditions"], true);
    assert_eq!(alpha.problems.len(), 1);
    assert!(alpha.problems[0].contains("--sample_size"), "{:?}", alpha.problems);

    let qk_norm = look(&fixture("qk_norm.safetensors"), &options).transformer.unwrap();
    let config = qk_norm.config.unwrap();
    assert_eq!((&config["sample_size"], &config["qk_norm"]), (&json!(32), &json!(true)));
    assert!(qk_norm.problems.is_empty(), "{:?}", qk_norm.problems);
    let deep = look(&fixture("depth_42.safetensors"), &options).transformer.unwrap();
    assert_eq!(deep.config.unwrap()["num_layers"], 42);
}

#[test]
fn an_inspection_finds_what_is_wrong() {
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("source.safetensors");
    let mut content = stored("kv_conv.safetensors");
    content.get_mut("t_block.1.bias").unwrap().bytes[6..8].copy_from_slice(&[0, 0x7e]);
    content.get_mut("t_block.1.weight").unwrap().bytes[..2].copy_from_slice(&[0, 0xfc]);
    content.get_mut("blocks.0.attn.proj.bias").unwrap().bytes.fill(0);
    content.remove("blocks.1.attn.norm.bias");
    write_tensors(&content, &source);
    let found = look(&source, &InspectOptions::default());
    let suspicious = found.suspicious.unwrap();
    let kinds: Vec<_> = suspicious
        .iter()
        .map(|s| (s.tensor.as_str(), s.elements, s.nan, s.infinite, s.all_zero))
        .collect();
    assert_eq!(
        kinds,
        [
            ("blocks.0.attn.proj.bias", 24, 0, 0, true),
            ("t_block.1.bias", 144, 1, 0, false),
            ("t_block.1.weight", 3456, 0, 1, false),
        ]
    );
    let problems = found.transformer.unwrap().problems;
    assert!(problems.iter().any(|p| p.contains("blocks.1.attn.norm.bias")), "{problems:?}");

    let quick = InspectOptions { values: false, ..InspectOptions::default() };
    assert_eq!(look(&source, &quick).suspicious, None);
    let key = WeightsKey::Named("ema".to_owned());
    let open = OpenOptions { weights_key: key, ..OpenOptions::default() };
    let options = InspectOptions { open, ..InspectOptions::default() };
    inspect(&source, &options, &mut |_, _| ()).unwrap_err();
}
