//! Precisions other than fp32: the files, the manifest, and what is refused.

use std::fs;
use std::path::Path;

use pixart_exporter::write::WriteError;
use pixart_exporter::{
    Component, ExportError, ExportOptions, Exported, Int8Mode, PipelineSource, Precision,
    export_component, export_pipeline,
};
use safetensors::Dtype;
use serde_json::Value;
use tempfile::TempDir;

use super::model::{Part, write_pipeline};

fn export(part: &Part, options: ExportOptions) -> (TempDir, Result<Exported, ExportError>) {
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("source");
    part.write(&source);
    let output = root.path().join("output");
    let exported = export_component(&source, part.component, &output, &options, &mut |_| ());
    (root, exported)
}

fn of(precision: Precision) -> ExportOptions {
    ExportOptions { precision, ..Default::default() }
}

fn manifest(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap()
}

fn data_bytes(exported: &Exported) -> u64 {
    fs::metadata(exported.folder.join("model.onnx_data")).unwrap().len()
}

#[test]
fn the_manifest_tells_how_the_weights_are_stored() {
    for component in [Component::Transformer, Component::TextEncoder] {
        let part = Part::new(component, Dtype::F32);
        let numbers = |manifest: &Value| -> u64 {
            let classes = manifest["weights"].as_array().unwrap();
            classes.iter().map(|class| class["parameters"].as_u64().unwrap()).sum()
        };
        let (_root, single) = export(&part, of(Precision::Fp32));
        let single = single.unwrap();
        let expected = numbers(&manifest(&single.folder));
        let mut sizes = vec![data_bytes(&single)];
        for (precision, stored) in [
            (Precision::Bf16, "bfloat16"),
            (Precision::Int8, "8-bit codes in blocks of 32"),
            (Precision::Int4, "4-bit codes in blocks of 32"),
        ] {
            let (_root, exported) = export(&part, of(precision));
            let exported = exported.unwrap();
            assert!(exported.warnings.is_empty());
            let manifest = manifest(&exported.folder);
            assert_eq!(manifest["precision"], precision.as_str());
            let mode = manifest.get("int8_mode").and_then(Value::as_str);
            assert_eq!(mode, (precision == Precision::Int8).then_some("weight_only"));
            assert_eq!(numbers(&manifest), expected, "{component} {precision}");
            assert!(manifest["weights"].to_string().contains(stored), "{manifest:#}");
            sizes.push(data_bytes(&exported));
        }
        // So small a model has much outside its blocks: bf16 may take less than int8.
        let [single, bf16, int8, int4] = sizes[..] else { panic!("{sizes:?}") };
        assert!(bf16 < single && int8 < single && int4 < int8, "{component} {sizes:?}");
    }
}

#[test]
fn dynamic_int8_is_named_and_differs() {
    let part = Part::transformer();
    let options = ExportOptions { int8_mode: Some(Int8Mode::Dynamic), ..of(Precision::Int8) };
    let (_root, exported) = export(&part, options);
    let manifest = manifest(&exported.unwrap().folder);
    assert_eq!(manifest["int8_mode"], "dynamic");
    assert!(manifest["weights"].to_string().contains("scale for each output"), "{manifest:#}");
}

#[test]
fn a_number_too_large_for_fp16_is_named_and_nothing_is_left() {
    let mut part = Part::transformer();
    let name = "transformer_blocks.1.ff.net.2.weight";
    part.tensors.get_mut(name).unwrap().bytes[4 * 777..][..4]
        .copy_from_slice(&(-70000f32).to_le_bytes());
    let (root, result) = export(&part, of(Precision::Fp16));
    match result {
        Err(ExportError::Write(error @ WriteError::TooLarge { .. })) => {
            let text = error.to_string();
            for said in [name, "-70000", "element 777", "f16", "bf16", ".safetensors"] {
                assert!(text.contains(said), "no `{said}` in: {text}");
            }
        }
        other => panic!("{other:?}"),
    }
    let left: Vec<_> = fs::read_dir(root.path().join("output"))
        .map(|entries| entries.map(|entry| entry.unwrap().file_name()).collect())
        .unwrap_or_default();
    assert!(left.is_empty(), "{left:?}");
    let (_root, exported) = export(&part, of(Precision::Bf16));
    exported.unwrap();
}

#[test]
fn a_pipeline_keeps_its_auto_encoder_unless_told_otherwise() {
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("source");
    write_pipeline(&source);
    let source = PipelineSource::from_folder(&source).unwrap();
    for (vae_precision, expected) in [(None, "fp32"), (Some(Precision::Fp16), "fp16")] {
        let options = ExportOptions { vae_precision, ..of(Precision::Fp16) };
        let output = root.path().join(expected);
        let parts = export_pipeline(&source, &output, &options, &mut |_| ()).unwrap();
        for part in parts {
            let vae = part.component == Component::VaeDecoder;
            let found = manifest(&part.folder)["precision"].clone();
            assert_eq!(found, if vae { expected } else { "fp16" }, "{}", part.component);
            assert_eq!(part.warnings.is_empty(), !(vae && expected == "fp16"));
        }
    }
}

#[test]
fn what_a_part_does_not_have_is_refused_before_anything_is_written() {
    let cases = [
        (Component::VaeDecoder, of(Precision::Int8), "vae_decoder"),
        (Component::VaeDecoder, of(Precision::Int4), "int4"),
        (
            Component::TextEncoder,
            ExportOptions { int8_mode: Some(Int8Mode::Dynamic), ..of(Precision::Int8) },
            "weight_only",
        ),
        (
            Component::Transformer,
            ExportOptions { int8_mode: Some(Int8Mode::Dynamic), ..of(Precision::Fp16) },
            "expected precision int8",
        ),
    ];
    for (component, options, said) in cases {
        let (root, result) = export(&Part::new(component, Dtype::F32), options);
        let text = match result {
            Err(ExportError::Precision(error)) => error.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(text.contains(said), "no `{said}` in: {text}");
        assert!(!root.path().join("output").exists());
    }
}
