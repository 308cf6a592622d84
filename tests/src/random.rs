//! Checkpoints of any size with random weights, for tests in which only size matters.

use std::{fs, path::Path};

use pixart_exporter::{Profile, models, naming::TextEncoderConfig};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;

/// Writes a T5 encoder of `layers` blocks, `width` wide, as a folder that `pixart export` reads;
/// returns the bytes of its weights.
///
/// # Panics
/// When it cannot be written.
pub fn text_encoder(folder: &Path, layers: usize, width: usize) -> u64 {
    const HEADS: usize = 4;
    let config = TextEncoderConfig {
        d_model: width,
        num_layers: layers,
        num_heads: HEADS,
        d_kv: width / HEADS,
        d_ff: 2 * width,
        vocab_size: 300,
        relative_attention_num_buckets: 32,
        relative_attention_max_distance: 128,
        layer_norm_epsilon: 1e-6,
    };
    let json = json!({
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "d_model": config.d_model,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "d_kv": config.d_kv,
        "d_ff": config.d_ff,
        "vocab_size": config.vocab_size,
        "feed_forward_proj": "gated-gelu",
    });
    fs::create_dir_all(folder).expect("a folder");
    fs::write(folder.join("config.json"), json.to_string()).expect("written");

    let graph = models::text_encoder::build(&config, Profile::Portable).expect("a graph");
    let mut state = 1u32;
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = graph
        .weights()
        .map(|weight| {
            let count = weight.shape.iter().product();
            // As a trained model, roughly: what goes through a layer keeps its size.
            let scale = (*weight.shape.last().unwrap_or(&1) as f32).sqrt().recip() * 1.7;
            let mut bytes = Vec::with_capacity(4 * count);
            for _ in 0..count {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let value = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
                let value = if weight.shape.len() == 1 { 1.0 + 0.1 * value } else { scale * value };
                bytes.extend(value.to_le_bytes());
            }
            (weight.tensor.clone(), weight.shape.clone(), bytes)
        })
        .collect();
    let size = tensors.iter().map(|(_, _, bytes)| bytes.len() as u64).sum();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("the shape fits"))
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors"))
        .expect("written");
    size
}
