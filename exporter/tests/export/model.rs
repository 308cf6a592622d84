//! A small pipeline with made-up weights, written with the safetensors crate alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pixart_exporter::graph::GraphError;
use pixart_exporter::graph::ir::Graph;
use pixart_exporter::naming::{TextEncoderConfig, TransformerConfig, VaeConfig};
use pixart_exporter::{Component, ExportError, ExportOptions, Exported, Profile, models};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A tensor as it will be stored.
#[derive(Clone)]
pub struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Stored {
    /// Different values for different names, all exact in 16 bits.
    pub fn new(name: &str, dtype: Dtype, shape: &[usize]) -> Self {
        let seed = name.bytes().map(usize::from).sum::<usize>();
        let value = |i: usize| ((seed + i * 7) % 127) as f32 / 64.0 - 1.0;
        let encode = |i: usize| match dtype {
            Dtype::F16 => half::f16::from_f32(value(i)).to_le_bytes().to_vec(),
            Dtype::BF16 => half::bf16::from_f32(value(i)).to_le_bytes().to_vec(),
            Dtype::F32 => value(i).to_le_bytes().to_vec(),
            other => vec![0; other.bitsize() / 8],
        };
        let bytes = (0..shape.iter().product()).flat_map(encode).collect();
        Self { dtype, shape: shape.to_vec(), bytes }
    }
}

/// One component's folder, changed in memory and then written.
pub struct Part {
    pub component: Component,
    pub config: Value,
    pub tensors: BTreeMap<String, Stored>,
}

impl Part {
    pub fn new(component: Component, dtype: Dtype) -> Self {
        let (config, graph) = match component {
            Component::Transformer => transformer(),
            Component::TextEncoder => text_encoder(),
            Component::VaeDecoder => vae(models::vae::build_decoder),
            Component::VaeEncoder => vae(models::vae::build_encoder),
        };
        let mut part = Self { component, config, tensors: BTreeMap::new() };
        for weight in graph.weights() {
            part.add(&weight.tensor, dtype, &weight.shape);
        }
        part
    }

    pub fn transformer() -> Self {
        Self::new(Component::Transformer, Dtype::F32)
    }

    /// The complete auto-encoder.
    pub fn vae() -> Self {
        let mut part = Self::new(Component::VaeDecoder, Dtype::F32);
        part.tensors.append(&mut Self::new(Component::VaeEncoder, Dtype::F32).tensors);
        part
    }

    pub fn add(&mut self, name: &str, dtype: Dtype, shape: &[usize]) {
        self.tensors.insert(name.to_owned(), Stored::new(name, dtype, shape));
    }

    pub fn rename(&mut self, from: &str, to: &str) {
        let tensor = self.tensors.remove(from).expect("the tensor exists");
        self.tensors.insert(to.to_owned(), tensor);
    }

    /// Writes `config.json` and the weights into a folder.
    pub fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        write_tensors(&self.tensors, &folder.join(self.file()));
    }

    /// Name of the weights' file.
    pub fn file(&self) -> &'static str {
        match self.component {
            Component::TextEncoder => "model.safetensors",
            _ => "diffusion_pytorch_model.safetensors",
        }
    }

    /// Writes the part into a folder of its own, and tries to export it.
    pub fn export(&self) -> (TempDir, Result<Exported, ExportError>) {
        let root = tempfile::tempdir().unwrap();
        let source = root.path().join("source");
        self.write(&source);
        let exported = export(&source, self.component, &root.path().join("output"), false);
        (root, exported)
    }
}

pub fn write_tensors(tensors: &BTreeMap<String, Stored>, path: &Path) {
    let views = tensors.iter().map(|(name, tensor)| {
        (name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap())
    });
    serialize_to_file(views, None, path).unwrap();
}

/// Exports without looking at the progress.
pub fn export(
    source: &Path,
    component: Component,
    output: &Path,
    force: bool,
) -> Result<Exported, ExportError> {
    let options = ExportOptions { force, ..Default::default() };
    pixart_exporter::export_component(source, component, output, &options, &mut |_| ())
}

/// A complete pipeline folder.
pub fn write_pipeline(folder: &Path) {
    for part in [Part::transformer(), Part::new(Component::TextEncoder, Dtype::F32), Part::vae()] {
        part.write(&folder.join(part.component.source_folder()));
    }
    for (file, content) in [
        ("model_index.json", "{\"_class_name\": \"PixArtSigmaPipeline\"}"),
        ("scheduler/scheduler_config.json", "{\"lambda_min_clipped\": -Infinity}"),
        ("tokenizer/spiece.model", "pieces"),
        ("tokenizer/tokenizer_config.json", "{}"),
        ("tokenizer/.hidden", ""),
        ("tokenizer/inner/file", ""),
    ] {
        let path = folder.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// All files below a folder, as paths relative to it, sorted.
pub fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::from(folder)];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let relative = path.strip_prefix(folder).unwrap().to_str().unwrap();
                found.push(relative.replace('\\', "/"));
            }
        }
    }
    found.sort();
    found
}

fn transformer() -> (Value, Graph) {
    let config = TransformerConfig {
        sample_size: 16,
        interpolation_scale: 0.5,
        num_layers: 2,
        num_attention_heads: 3,
        attention_head_dim: 24,
        in_channels: 4,
        out_channels: 8,
        patch_size: 2,
        caption_channels: 40,
        norm_eps: 1e-6,
        use_additional_conditions: false,
        qk_norm: false,
        kv_compression: None,
    };
    let json = json!({
        "_class_name": "Transformer2DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": true,
        "attention_head_dim": 24,
        "caption_channels": 40,
        "in_channels": 4,
        "interpolation_scale": 0.5,
        "norm_type": "ada_norm_single",
        "num_attention_heads": 3,
        "num_layers": 2,
        "num_vector_embeds": null,
        "out_channels": 8,
        "patch_size": 2,
        "sample_size": 16,
        "a_key_from_the_future": true,
    });
    (json, models::transformer::build(&config, Profile::Ort).unwrap())
}

fn text_encoder() -> (Value, Graph) {
    let config = TextEncoderConfig {
        d_model: 48,
        num_layers: 2,
        num_heads: 3,
        d_kv: 8,
        d_ff: 80,
        vocab_size: 200,
        relative_attention_num_buckets: 32,
        relative_attention_max_distance: 128,
        layer_norm_epsilon: 1e-6,
    };
    let json = json!({
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "d_model": 48,
        "num_layers": 2,
        "num_heads": 3,
        "d_kv": 8,
        "d_ff": 80,
        "vocab_size": 200,
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 32,
    });
    (json, models::text_encoder::build(&config, Profile::Ort).unwrap())
}

fn vae(build: impl FnOnce(&VaeConfig, Profile) -> Result<Graph, GraphError>) -> (Value, Graph) {
    let config = VaeConfig {
        latent_channels: 4,
        in_channels: 3,
        out_channels: 3,
        block_out_channels: vec![8, 12],
        layers_per_block: 1,
        norm_num_groups: 4,
        scaling_factor: 0.13025,
        use_quant_conv: true,
        use_post_quant_conv: true,
        mid_block_add_attention: true,
    };
    let json = json!({
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [8, 12],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "force_upcast": true,
        "latent_channels": 4,
        "latents_mean": null,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "out_channels": 3,
        "scaling_factor": 0.13025,
        "shift_factor": null,
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    });
    (json, build(&config, Profile::Ort).unwrap())
}
