//! Existing targets: refused, replaced as a whole, or protected.

use std::fs;

use pixart_exporter::write::WriteError;
use pixart_exporter::{Component, ExportError, ExportOptions, PipelineSource, export_pipeline};

use super::model::{Part, export, files, write_pipeline};

const FOUR: [&str; 4] = ["config.json", "manifest.json", "model.onnx", "model.onnx_data"];

#[test]
fn an_export_is_replaced_only_with_force() {
    let root = tempfile::tempdir().unwrap();
    let (source, output) = (root.path().join("source"), root.path().join("output"));
    let mut part = Part::transformer();
    part.write(&source);
    let target = export(&source, Component::Transformer, &output, false).unwrap().folder;
    let before = fs::read(target.join("model.onnx_data")).unwrap();

    part.tensors.get_mut("proj_out.weight").unwrap().bytes[3] ^= 0x80;
    part.write(&source);
    let error = export(&source, Component::Transformer, &output, false).unwrap_err();
    assert!(matches!(error, ExportError::Write(WriteError::Exists { .. })), "{error}");
    assert_eq!(fs::read(target.join("model.onnx_data")).unwrap(), before);

    export(&source, Component::Transformer, &output, true).unwrap();
    assert_ne!(fs::read(target.join("model.onnx_data")).unwrap(), before);
    assert_eq!(files(&target), FOUR);
    assert_eq!(fs::read_dir(&output).unwrap().count(), 1);
}

#[test]
fn a_failed_replacement_keeps_the_old_export() {
    let root = tempfile::tempdir().unwrap();
    let (source, output) = (root.path().join("source"), root.path().join("output"));
    let mut part = Part::transformer();
    part.write(&source);
    let target = export(&source, Component::Transformer, &output, false).unwrap().folder;
    let before = fs::read(target.join("manifest.json")).unwrap();

    // Found only while the weights are streamed, that is, with half of the new export written.
    let bytes = &mut part.tensors.get_mut("proj_out.weight").unwrap().bytes;
    bytes[..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    part.write(&source);
    let error = export(&source, Component::Transformer, &output, true).unwrap_err();
    assert!(matches!(error, ExportError::Write(WriteError::NotFinite { .. })), "{error}");
    assert_eq!(fs::read(target.join("manifest.json")).unwrap(), before);
    assert_eq!(files(&output).len(), 4);
}

#[test]
fn the_source_survives_even_force() {
    let root = tempfile::tempdir().unwrap();
    let models = root.path().join("models");
    Part::transformer().write(&models.join("transformer"));
    let before = files(root.path());
    let error = export(&models, Component::Transformer, &models, true).unwrap_err();
    assert!(matches!(error, ExportError::Write(WriteError::WouldReplaceSource { .. })), "{error}");
    assert_eq!(files(root.path()), before);
}

#[test]
fn a_folder_with_other_things_survives_force() {
    let root = tempfile::tempdir().unwrap();
    let (source, output) = (root.path().join("source"), root.path().join("output"));
    write_pipeline(&source);
    fs::create_dir(&output).unwrap();
    fs::write(output.join("thesis.tex"), "").unwrap();
    let pipeline = PipelineSource::from_folder(&source).unwrap();
    let options = ExportOptions { force: true, ..Default::default() };
    let error = export_pipeline(&pipeline, &output, &options, &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("thesis.tex"), "{error}");
    assert_eq!(files(&output), ["thesis.tex"]);
}

#[test]
fn a_pipeline_is_replaced_as_a_whole() {
    let root = tempfile::tempdir().unwrap();
    let (source, output) = (root.path().join("source"), root.path().join("output"));
    write_pipeline(&source);
    let pipeline = PipelineSource::from_folder(&source).unwrap();
    let run = |force| {
        let options = ExportOptions { force, ..Default::default() };
        export_pipeline(&pipeline, &output, &options, &mut |_| ())
    };
    fs::create_dir(&output).unwrap();
    run(false).unwrap();
    let error = run(false).unwrap_err();
    assert!(matches!(error, ExportError::Write(WriteError::Exists { .. })), "{error}");
    fs::write(output.join("tokenizer/old.json"), "").unwrap();
    run(true).unwrap();
    assert!(!output.join("tokenizer/old.json").exists());
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
}
