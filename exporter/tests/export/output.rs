//! What is written: every weight with its right value, aligned, and described by the manifest.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use pixart_exporter::{
    Component, ExportOptions, PipelineSource, Profile, Progress, export_component, export_pipeline,
};
use prost::Message;
use safetensors::Dtype;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tract_onnx::pb::{ModelProto, TensorProto};

use super::model::{Part, Stored, export, files, write_pipeline, write_tensors};

fn read_model(folder: &Path) -> ModelProto {
    ModelProto::decode(fs::read(folder.join("model.onnx")).unwrap().as_slice()).unwrap()
}

/// Offset and length of an external tensor.
fn external(tensor: &TensorProto) -> Option<(usize, usize)> {
    let entry = |key: &str| tensor.external_data.iter().find(|e| e.key == key).map(|e| &e.value);
    assert!(entry("location").is_none_or(|file| file == "model.onnx_data"));
    Some((entry("offset")?.parse().unwrap(), entry("length")?.parse().unwrap()))
}

/// The elements of every float initializer, by name.
fn weights(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let data = fs::read(folder.join("model.onnx_data")).unwrap();
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    let graph = read_model(folder).graph.unwrap();
    let float = graph.initializer.iter().filter(|tensor| tensor.data_type == 1);
    float
        .map(|tensor| {
            let values = match external(tensor) {
                Some((offset, length)) => floats(&data[offset..offset + length]),
                None => floats(&tensor.raw_data),
            };
            let shape = tensor.dims.iter().map(|&dim| dim as usize).collect();
            (tensor.name.clone(), (shape, values))
        })
        .collect()
}

fn decoded(stored: &Stored) -> Vec<f32> {
    stored.bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|i| values[i % rows * columns + i / rows]).collect()
}

/// The taps of a 3×3 kernel that fall on each of the 2×2 pixels under it where every pixel is doubled, for the
/// four places of its middle.
const PHASES: [[&[usize]; 4]; 4] = [
    [&[0], &[1, 2], &[3, 6], &[4, 5, 7, 8]],
    [&[0, 1], &[2], &[3, 4, 6, 7], &[5, 8]],
    [&[0, 3], &[1, 2, 4, 5], &[6], &[7, 8]],
    [&[0, 1, 3, 4], &[2, 5], &[6, 7], &[8]],
];

fn summed(kernels: &[f32], taps: &[&[usize]; 4]) -> Vec<f32> {
    let sum = |kernel: &[f32], taps: &[usize]| {
        taps.iter().map(|&tap| f64::from(kernel[tap])).sum::<f64>() as f32
    };
    kernels.chunks(9).flat_map(|kernel| taps.map(|taps| sum(kernel, taps))).collect()
}

#[test]
fn every_tensor_arrives_with_its_values() {
    for component in Component::ALL {
        let part = Part::new(component, Dtype::F32);
        let (_root, exported) = part.export();
        let written: Vec<_> = weights(&exported.unwrap().folder).into_values().collect();
        for (name, stored) in &part.tensors {
            let values = decoded(stored);
            let same = written.iter().any(|(_, found)| *found == values);
            let turned = match *stored.shape.as_slice() {
                [rows, columns] => {
                    let expected = (vec![columns, rows], transposed(&values, rows, columns));
                    written.contains(&expected)
                }
                [outputs, inputs, 3, 3] if name.contains("upsamplers") => {
                    PHASES.iter().all(|taps| {
                        let expected = (vec![outputs, inputs, 2, 2], summed(&values, taps));
                        written.contains(&expected)
                    })
                }
                _ => false,
            };
            assert!(same || turned, "{component}: {name}");
        }
    }
}

#[test]
fn half_precision_gives_the_same_weights_as_single() {
    for component in Component::ALL {
        let (_root, single) = Part::new(component, Dtype::F32).export();
        let expected = weights(&single.unwrap().folder);
        for dtype in [Dtype::F16, Dtype::BF16] {
            let (_root, half) = Part::new(component, dtype).export();
            assert!(weights(&half.unwrap().folder) == expected, "{component} {dtype}");
        }
    }
}

#[test]
fn large_tensors_are_external_and_aligned_and_small_ones_inline() {
    for component in Component::ALL {
        let (_root, exported) = Part::new(component, Dtype::F32).export();
        let folder = exported.unwrap().folder;
        let size = fs::metadata(folder.join("model.onnx_data")).unwrap().len() as usize;
        let mut ranges = Vec::new();
        let mut inline = 0;
        for tensor in read_model(&folder).graph.unwrap().initializer {
            let width = if tensor.data_type == 1 { 4 } else { 8 };
            let bytes = tensor.dims.iter().product::<i64>() as usize * width;
            match external(&tensor) {
                Some((offset, length)) => {
                    assert_eq!(offset % 4096, 0, "{}", tensor.name);
                    assert!(bytes >= 1024 && length == bytes, "{}", tensor.name);
                    assert!(tensor.raw_data.is_empty());
                    ranges.push((offset, offset + length));
                }
                None => {
                    assert!(bytes < 1024 && tensor.raw_data.len() <= bytes, "{}", tensor.name);
                    inline += 1;
                }
            }
        }
        ranges.sort_unstable();
        assert!(ranges.is_sorted_by(|(_, end), (start, _)| end <= start));
        assert_eq!(ranges.last().unwrap().1, size);
        assert!(inline > 0);
    }
}

#[test]
fn the_graph_says_who_made_it_and_what_it_takes() {
    for profile in Profile::ALL {
        let root = tempfile::tempdir().unwrap();
        let source = root.path().join("source");
        Part::transformer().write(&source);
        let options = ExportOptions { profile, ..Default::default() };
        let component = Component::Transformer;
        let folder = export_component(&source, component, root.path(), &options, &mut |_| ())
            .unwrap()
            .folder;
        let model = read_model(&folder);
        let (ir_version, opset) = if profile == Profile::Cann { (7, 13) } else { (10, 21) };
        assert_eq!(
            (model.ir_version, model.producer_name.as_str()),
            (ir_version, "pixart-exporter")
        );
        let sets: Vec<_> =
            model.opset_import.iter().map(|set| (set.domain.as_str(), set.version)).collect();
        assert!(sets.contains(&("", opset)));
        assert_eq!(sets.contains(&("com.microsoft", 1)), profile == Profile::Ort);
        let graph = model.graph.unwrap();
        let inputs: Vec<_> = graph.input.iter().map(|input| input.name.as_str()).collect();
        assert_eq!(
            inputs,
            ["hidden_states", "encoder_hidden_states", "encoder_attention_mask", "timestep"]
        );
        assert_eq!(graph.output[0].name, "out_hidden_states");
    }
}

fn sha256(path: &Path) -> String {
    Sha256::digest(fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares the manifest's records with the files they name.
fn check_records(records: &Value, folder: &Path) {
    for record in records.as_array().unwrap() {
        let path = folder.join(record["name"].as_str().unwrap());
        assert_eq!(record["bytes"], fs::metadata(&path).unwrap().len(), "{path:?}");
        assert_eq!(record["sha256"], sha256(&path), "{path:?}");
    }
}

#[test]
fn the_manifest_describes_the_export_and_its_source() {
    for component in Component::ALL {
        let mut part = Part::new(component, Dtype::F32);
        if component.source_folder() == "vae" {
            // The other half is not read, but part of the source file and of its hash.
            part.tensors = Part::vae().tensors;
        }
        let (root, exported) = part.export();
        let exported = exported.unwrap();
        assert_eq!(
            files(&exported.folder),
            ["config.json", "manifest.json", "model.onnx", "model.onnx_data"]
        );
        let text = fs::read(exported.folder.join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(manifest["format"], 1);
        assert_eq!(manifest["component"], component.as_str());
        assert_eq!((&manifest["profile"], &manifest["precision"]), (&"ort".into(), &"fp32".into()));
        assert_eq!(manifest["files"].as_array().unwrap().len(), 2);
        assert_eq!(manifest["files"], serde_json::to_value(&exported.files).unwrap());
        check_records(&manifest["files"], &exported.folder);
        check_records(&manifest["source"]["files"], &root.path().join("source"));
        let config = fs::read(exported.folder.join("config.json")).unwrap();
        assert_eq!(config, part.config.to_string().into_bytes());
        let architecture = &manifest["architecture"];
        match component {
            Component::Transformer => {
                assert_eq!(architecture["variant"], "sigma");
                assert_eq!(architecture["interpolation_scale"], 0.5);
                assert_eq!(architecture["caption_channels"], 40);
            }
            Component::TextEncoder => {
                assert_eq!(architecture["d_kv"], 8);
                assert_eq!(architecture["relative_attention_max_distance"], 128);
            }
            Component::VaeDecoder | Component::VaeEncoder => {
                assert_eq!(architecture["scale_factor"], 2);
                assert_eq!(architecture["scaling_factor"], 0.13025);
            }
        }
    }
}

#[test]
fn shards_and_a_single_file_give_the_same_bytes() {
    let part = Part::new(Component::TextEncoder, Dtype::F32);
    let (_root, single) = part.export();
    let single = single.unwrap();

    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("text_encoder");
    part.write(&source);
    fs::remove_file(source.join(part.file())).unwrap();
    let mut map = BTreeMap::new();
    let mut shards = [BTreeMap::new(), BTreeMap::new()];
    for (i, (name, tensor)) in part.tensors.iter().enumerate() {
        shards[i % 2].insert(name.clone(), tensor.clone());
        map.insert(name, format!("model-0000{}-of-00002.safetensors", i % 2 + 1));
    }
    for (i, shard) in shards.iter().enumerate() {
        write_tensors(shard, &source.join(format!("model-0000{}-of-00002.safetensors", i + 1)));
    }
    let index = serde_json::json!({ "weight_map": map });
    fs::write(source.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let sharded = export(root.path(), Component::TextEncoder, &root.path().join("out"), false);
    let sharded = sharded.unwrap();
    for file in ["model.onnx", "model.onnx_data"] {
        let read = |folder: &Path| fs::read(folder.join(file)).unwrap();
        assert!(read(&sharded.folder) == read(&single.folder), "{file}");
    }
    let text = fs::read(sharded.folder.join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(manifest["source"]["files"].as_array().unwrap().len(), 2);
    check_records(&manifest["source"]["files"], &source);
}

#[test]
fn older_names_and_shapes_give_the_same_weights() {
    for (component, half) in
        [(Component::VaeDecoder, "decoder"), (Component::VaeEncoder, "encoder")]
    {
        let mut vae = Part::new(component, Dtype::F32);
        let (_root, expected) = vae.export();
        let expected = weights(&expected.unwrap().folder);
        let attention = format!("{half}.mid_block.attentions.0");
        for (now, then) in
            [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]
        {
            for kind in ["weight", "bias"] {
                let then = format!("{attention}.{then}.{kind}");
                vae.rename(&format!("{attention}.{now}.{kind}"), &then);
                if kind == "weight" {
                    vae.tensors.get_mut(&then).unwrap().shape.extend([1, 1]);
                }
            }
        }
        let (_root, found) = vae.export();
        assert!(weights(&found.unwrap().folder) == expected);
    }

    let mut text = Part::new(Component::TextEncoder, Dtype::F32);
    let (_root, expected) = text.export();
    let expected = weights(&expected.unwrap().folder);
    let table = text.tensors["shared.weight"].clone();
    text.tensors.insert("encoder.embed_tokens.weight".to_owned(), table);
    let (_root, both) = text.export();
    assert!(weights(&both.unwrap().folder) == expected);
    text.tensors.remove("shared.weight");
    let (_root, other) = text.export();
    assert!(weights(&other.unwrap().folder) == expected);
}

#[test]
fn a_pipeline_is_complete_and_progress_reaches_the_end() {
    let root = tempfile::tempdir().unwrap();
    let (source, output) = (root.path().join("source"), root.path().join("a/b/output"));
    write_pipeline(&source);
    let pipeline = PipelineSource::from_folder(&source).unwrap();
    let mut last: BTreeMap<Component, Progress> = BTreeMap::new();
    let exported = export_pipeline(&pipeline, &output, &Default::default(), &mut |now| {
        let before = last.insert(now.component, now);
        assert!(before.is_none_or(|before| before.bytes_done <= now.bytes_done));
    })
    .unwrap();
    assert_eq!(exported.len(), 4);
    for part in &exported {
        let bytes = fs::metadata(part.folder.join("model.onnx_data")).unwrap().len();
        assert_eq!(
            (last[&part.component].bytes_done, last[&part.component].bytes_total),
            (bytes, bytes)
        );
    }
    let copied: Vec<_> =
        files(&output).into_iter().filter(|file| !file.contains("manifest.json")).collect();
    assert_eq!(
        copied,
        [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.onnx",
            "text_encoder/model.onnx_data",
            "tokenizer/spiece.model",
            "tokenizer/tokenizer_config.json",
            "transformer/config.json",
            "transformer/model.onnx",
            "transformer/model.onnx_data",
            "vae_decoder/config.json",
            "vae_decoder/model.onnx",
            "vae_decoder/model.onnx_data",
            "vae_encoder/config.json",
            "vae_encoder/model.onnx",
            "vae_encoder/model.onnx_data",
        ]
    );
}

#[test]
fn parts_from_different_places_get_an_index() {
    let root = tempfile::tempdir().unwrap();
    write_pipeline(&root.path().join("bundle"));
    let mut pipeline = PipelineSource::from_folder(&root.path().join("bundle")).unwrap();
    pipeline.transformer = root.path().join("other/transformer");
    Part::transformer().write(&pipeline.transformer);
    pipeline.model_index = None;
    let output = root.path().join("output");
    export_pipeline(&pipeline, &output, &Default::default(), &mut |_| ()).unwrap();
    let index: Value =
        serde_json::from_slice(&fs::read(output.join("model_index.json")).unwrap()).unwrap();
    assert_eq!(index["_class_name"], "PixArtSigmaPipeline");
}
