//! What must be refused, with an error that names the culprit and nothing left on the disk.

use std::fs;

use pixart_exporter::naming::{ConfigError, WeightProblem};
use pixart_exporter::{Component, ExportError, PipelineSource, export_pipeline};
use safetensors::Dtype;
use serde_json::{Value, json};

use super::model::{Part, export, files, write_pipeline};

/// The problems that stop an export; checks that no file but the source's is there.
fn problems(part: &Part) -> Vec<WeightProblem> {
    let (root, result) = part.export();
    assert!(!root.path().join("output").exists(), "something was written");
    match result {
        Err(ExportError::Weights(error)) => error.problems,
        other => panic!("{other:?}"),
    }
}

fn config_error(part: &Part) -> ConfigError {
    let (root, result) = part.export();
    assert!(!root.path().join("output").exists(), "something was written");
    match result {
        Err(ExportError::Config(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_unfit_tensor_is_listed_at_once() {
    let mut part = Part::transformer();
    let name = |rest: &str| format!("transformer_blocks.1.{rest}");
    part.tensors.remove(&name("attn1.to_q.weight"));
    part.add(&name("attn1.to_k.bias"), Dtype::F32, &[71]);
    part.add(&name("attn1.to_v.bias"), Dtype::I32, &[72]);
    part.add("something.else", Dtype::F32, &[1, 2]);
    let found = problems(&part);
    assert_eq!(found.len(), 4, "{found:?}");
    for expected in [
        WeightProblem::Missing { tensor: name("attn1.to_q.weight"), expected: vec![72, 72] },
        WeightProblem::Shape {
            tensor: name("attn1.to_k.bias"),
            found: vec![71],
            expected: vec![72],
        },
        WeightProblem::Dtype { tensor: name("attn1.to_v.bias"), found: "I32".to_owned() },
        WeightProblem::Unexpected { tensor: "something.else".to_owned(), found: vec![1, 2] },
    ] {
        assert!(found.contains(&expected), "{expected} not in {found:?}");
    }
}

#[test]
fn a_missing_tensor_that_shows_a_width_is_listed_too() {
    for tensor in ["pos_embed.proj.weight", "proj_out.weight", "caption_projection.linear_1.weight"]
    {
        let mut part = Part::transformer();
        part.tensors.remove(tensor);
        match problems(&part).as_slice() {
            [WeightProblem::Missing { tensor: missing, .. }] => assert_eq!(missing, tensor),
            other => panic!("{tensor}: {other:?}"),
        }
    }
}

#[test]
fn the_other_half_of_the_auto_encoder_may_be_there() {
    for (component, extra) in [
        (Component::VaeDecoder, "decoder.conv_in.extra"),
        (Component::VaeEncoder, "encoder.conv_in.extra"),
    ] {
        let mut part = Part { component, ..Part::vae() };
        part.export().1.unwrap();
        part.add(extra, Dtype::F32, &[8]);
        assert_eq!(problems(&part).len(), 1);
    }
}

#[test]
fn the_outer_convolutions_of_the_auto_encoder_are_as_the_config_says() {
    let weight = "quant_conv.weight";
    let encoder = || Part { component: Component::VaeEncoder, ..Part::vae() };
    let missing = |found: Vec<WeightProblem>| {
        found.iter().all(|problem| {
            matches!(problem, WeightProblem::Missing { tensor, .. } if tensor.starts_with("quant_"))
        })
    };
    let mut part = encoder();
    part.tensors.retain(|name, _| !name.starts_with("quant_conv."));
    // A file that says nothing means what it shows.
    part.export().1.unwrap();
    part.config["use_quant_conv"] = json!(true);
    assert!(missing(problems(&part)));
    part.config["use_quant_conv"] = json!(false);
    part.export().1.unwrap();

    let mut part = encoder();
    part.config["use_quant_conv"] = json!(false);
    let found = problems(&part);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(matches!(&found[1], WeightProblem::Unexpected { tensor, .. } if tensor == weight));
    part.config["use_quant_conv"] = json!("no");
    assert!(config_error(&part).to_string().contains("use_quant_conv"));
}

#[test]
fn variants_that_are_not_supported_are_named() {
    let tensor = "transformer_blocks.1.attn1.to_q.lora_A.weight";
    let mut part = Part::transformer();
    part.add(tensor, Dtype::F32, &[24]);
    let error = config_error(&part);
    assert!(matches!(&error, ConfigError::Unsupported { tensor: t, .. } if t == tensor));
    assert!(error.to_string().contains("a LoRA"), "{error}");

    let mut part = Part::new(Component::TextEncoder, Dtype::F32);
    part.add("encoder.block.0.layer.1.DenseReluDense.wi.weight", Dtype::F32, &[80, 48]);
    assert!(config_error(&part).to_string().contains("T5 v1.0"));
}

#[test]
fn a_config_that_contradicts_the_tensors_is_refused() {
    let cases = [
        (Component::Transformer, "num_layers", json!(3)),
        (Component::Transformer, "caption_channels", json!(41)),
        (Component::Transformer, "out_channels", json!(4)),
        (Component::Transformer, "num_attention_heads", json!(4)),
        (Component::TextEncoder, "num_layers", json!(1)),
        (Component::TextEncoder, "vocab_size", json!(32128)),
        (Component::TextEncoder, "d_kv", json!(16)),
        (Component::VaeDecoder, "block_out_channels", json!([8, 16])),
        (Component::VaeDecoder, "layers_per_block", json!(2)),
        (Component::VaeEncoder, "block_out_channels", json!([8, 16])),
        (Component::VaeEncoder, "layers_per_block", json!(2)),
        (Component::VaeEncoder, "latent_channels", json!(8)),
        (Component::VaeEncoder, "in_channels", json!(4)),
    ];
    for (component, key, value) in cases {
        let mut part = Part::new(component, Dtype::F32);
        part.config[key] = value;
        let error = config_error(&part);
        assert!(matches!(error, ConfigError::Conflict { .. }), "{key}: {error}");
    }
}

#[test]
fn values_that_cannot_be_used_are_refused() {
    let cases = [
        (Component::Transformer, "num_layers", json!(0)),
        (Component::Transformer, "num_layers", json!(100_000)),
        (Component::Transformer, "num_layers", json!("many")),
        (Component::Transformer, "sample_size", json!(-16)),
        (Component::Transformer, "interpolation_scale", json!(0)),
        (Component::Transformer, "norm_type", json!("layer_norm")),
        (Component::Transformer, "_class_name", json!("UNet2DConditionModel")),
        (Component::TextEncoder, "feed_forward_proj", json!("relu")),
        (Component::TextEncoder, "model_type", json!("umt5")),
        (Component::VaeDecoder, "block_out_channels", json!([])),
        (Component::VaeDecoder, "norm_num_groups", json!(5)),
        (Component::VaeDecoder, "shift_factor", json!(0.1)),
        (Component::VaeDecoder, "up_block_types", json!(["AttnUpDecoderBlock2D"])),
        (Component::VaeEncoder, "down_block_types", json!(["AttnDownEncoderBlock2D"])),
    ];
    for (component, key, value) in cases {
        let mut part = Part::new(component, Dtype::F32);
        part.config[key] = value.clone();
        match config_error(&part) {
            ConfigError::Invalid { field, .. } => assert_eq!(field, key),
            error => panic!("{key}: {value}: {error}"),
        }
    }
}

#[test]
fn values_that_no_tensor_shows_must_be_in_the_config() {
    for key in ["num_attention_heads", "sample_size"] {
        let mut part = Part::transformer();
        part.config[key] = Value::Null;
        match config_error(&part) {
            ConfigError::Missing { field, .. } => assert_eq!(field, key),
            error => panic!("{key}: {error}"),
        }
    }
}

#[test]
fn what_the_tensors_show_need_not_be_in_the_config() {
    let kept = ["num_attention_heads", "sample_size", "num_heads", "block_out_channels"];
    for component in Component::ALL {
        let mut part = Part::new(component, Dtype::F32);
        let fields = part.config.as_object_mut().unwrap();
        fields.retain(|key, _| kept.contains(&key.as_str()));
        if component.source_folder() == "vae" {
            part.config["norm_num_groups"] = json!(4);
        }
        part.export().1.unwrap();
    }
}

#[test]
fn weights_that_are_no_numbers_are_refused_and_nothing_is_left() {
    let mut part = Part::transformer();
    let name = "transformer_blocks.1.ff.net.2.weight";
    let tensor = part.tensors.get_mut(name).unwrap();
    tensor.bytes[400..404].copy_from_slice(&f32::NAN.to_le_bytes());
    let (root, result) = part.export();
    let message = result.unwrap_err().to_string();
    assert!(message.contains(name) && message.contains("NaN at element 100"), "{message}");
    assert!(!root.path().join("output").exists());
    assert_eq!(files(root.path()).len(), 2);
}

#[test]
fn a_truncated_file_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("source");
    let part = Part::transformer();
    part.write(&source);
    let path = source.join(part.file());
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let output = root.path().join("output");
    let error = export(&source, Component::Transformer, &output, false).unwrap_err();
    assert!(error.to_string().contains("truncated"), "{error}");
    assert!(!output.exists());
}

#[test]
fn sources_that_are_not_there_are_named() {
    let root = tempfile::tempdir().unwrap();
    let output = root.path().join("output");
    let source = root.path().join("source");
    let refuse = |expected: &str| {
        let error = export(&source, Component::VaeDecoder, &output, false).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    };
    refuse("source: not found");
    fs::create_dir(&source).unwrap();
    refuse("vae: not found");
    fs::create_dir(source.join("vae")).unwrap();
    refuse("config.json: not found");
    fs::write(source.join("vae/config.json"), "[1]").unwrap();
    refuse("found no weights");
    fs::write(source.join("vae/diffusion_pytorch_model.bin"), "").unwrap();
    refuse("diffusion_pytorch_model.bin: found an empty file");
    Part::new(Component::VaeDecoder, Dtype::F32).write(&source.join("vae"));
    fs::write(source.join("vae/config.json"), "[1]").unwrap();
    refuse("expected a JSON object");
    fs::remove_dir_all(&source).unwrap();
    fs::write(&source, "").unwrap();
    refuse("is a file");
    assert!(!output.exists());
}

#[test]
fn a_pipeline_with_one_bad_part_is_not_begun() {
    let root = tempfile::tempdir().unwrap();
    let (source, output) = (root.path().join("source"), root.path().join("output"));
    write_pipeline(&source);
    let mut vae = Part::vae();
    vae.tensors.remove("encoder.conv_out.bias");
    vae.write(&source.join("vae"));
    let pipeline = PipelineSource::from_folder(&source).unwrap();
    let mut called = false;
    let result = export_pipeline(&pipeline, &output, &Default::default(), &mut |_| called = true);
    assert!(matches!(result, Err(ExportError::Weights(_))));
    assert!(!called && !output.exists());

    fs::remove_dir_all(source.join("tokenizer")).unwrap();
    let error = PipelineSource::from_folder(&source).unwrap_err().to_string();
    assert!(error.contains("tokenizer: not found"), "{error}");
}

#[test]
fn outputs_that_cannot_be_made_are_named() {
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("source");
    Part::transformer().write(&source);
    let blocked = root.path().join("file");
    fs::write(&blocked, "").unwrap();
    let error =
        export(&source, Component::Transformer, &blocked.join("output"), false).unwrap_err();
    assert!(error.to_string().contains("output: cannot create"), "{error}");
    assert_eq!(files(root.path()).len(), 3);
}
