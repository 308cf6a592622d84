//! Weights of a model that has not been trained yet.

use ndarray::{ArrayD, IxDyn};
use pixart_runtime::noise::TorchGenerator;

/// Standard deviation of the layers that embed time and caption.
const EMBEDDING_DEVIATION: f32 = 0.02;

/// A weight before training, under diffusers' names, as the official code begins: matrices uniform after Glorot
/// and Bengio (those that are one matrix there, queries with keys and values, get the bounds of that one);
/// normal values for the layers that embed time and caption and for the tables; zeros for biases, for what the
/// cross-attention adds and for the prediction; an average for the convolutions that compress keys.
pub(super) fn weight(name: &str, shape: &[usize], generator: &mut TorchGenerator) -> ArrayD<f32> {
    let count: usize = shape.iter().product();
    let filled = |value| vec![value; count];
    let mut normal = |deviation: f32| -> Vec<f32> {
        generator.randn(count).into_iter().map(|x| x * deviation).collect()
    };
    let layer = name.strip_suffix(".weight").unwrap_or_default();
    let values = if name.ends_with("scale_shift_table") {
        normal((shape.last().copied().unwrap_or(1) as f32).sqrt().recip())
    } else if name.ends_with(".bias") || layer == "proj_out" || layer.ends_with("attn2.to_out.0") {
        filled(0.0)
    } else if layer.ends_with("attn1.sr") {
        filled((shape[2..].iter().product::<usize>() as f32).recip())
    } else if layer.ends_with("norm") {
        filled(1.0)
    } else if layer.starts_with("adaln_single.") || layer.starts_with("caption_projection.") {
        normal(EMBEDDING_DEVIATION)
    } else {
        let inputs: usize = shape[1..].iter().product();
        let fused = fused(layer) * shape[0];
        let bound = (6.0 / (inputs + fused) as f64).sqrt() as f32;
        generator.rand(count, -bound, bound)
    };
    ArrayD::from_shape_vec(IxDyn(shape), values).expect("as many values as the shape")
}

/// How many matrices of this kind are one in the official code.
fn fused(layer: &str) -> usize {
    let is = |attention: &str, parts: &[&str]| {
        parts.iter().any(|part| layer.ends_with(&format!("{attention}.{part}")))
    };
    if is("attn1", &["to_q", "to_k", "to_v"]) {
        3
    } else if is("attn2", &["to_k", "to_v"]) {
        2
    } else {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Smallest, largest and root mean square of a weight.
    fn spread(name: &str, shape: &[usize]) -> (f32, f32, f32) {
        let values = weight(name, shape, &mut TorchGenerator::new(3));
        assert_eq!(values.shape(), shape);
        let least = values.iter().copied().fold(f32::INFINITY, f32::min);
        let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let square = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
        (least, most, square.sqrt())
    }

    #[test]
    fn every_kind_of_weight_begins_as_it_should() {
        let block = "transformer_blocks.3.";
        let of_block = |rest: &str, shape: &[usize]| spread(&format!("{block}{rest}"), shape);
        assert_eq!(spread("proj_out.weight", &[32, 64]), (0.0, 0.0, 0.0));
        assert_eq!(spread("caption_projection.linear_1.bias", &[64]), (0.0, 0.0, 0.0));
        assert_eq!(of_block("attn2.to_out.0.weight", &[64, 64]), (0.0, 0.0, 0.0));
        assert_eq!(of_block("attn1.sr.weight", &[64, 1, 2, 2]), (0.25, 0.25, 0.25));
        assert_eq!(of_block("attn1.q_norm.weight", &[64]), (1.0, 1.0, 1.0));
        let near = |(.., found): (f32, f32, f32), expected: f32| {
            assert!((found / expected - 1.0).abs() < 0.1, "{found}, expected {expected}");
        };
        near(of_block("scale_shift_table", &[6, 400]), 0.05);
        near(spread("adaln_single.emb.timestep_embedder.linear_1.weight", &[64, 64]), 0.02);
        near(spread("caption_projection.linear_2.weight", &[64, 64]), 0.02);
        // A uniform distribution has its bound over √3.
        let uniform = |found: (f32, f32, f32), bound: f32| {
            near(found, bound / 3f32.sqrt());
            assert!(found.1 <= bound && found.0 >= -bound && found.1 > 0.9 * bound, "{found:?}");
        };
        let bound = |inputs: usize, outputs: usize| (6.0 / (inputs + outputs) as f32).sqrt();
        uniform(of_block("attn1.to_k.weight", &[96, 96]), bound(96, 288));
        uniform(of_block("attn2.to_v.weight", &[96, 96]), bound(96, 192));
        uniform(of_block("attn2.to_q.weight", &[96, 96]), bound(96, 96));
        uniform(of_block("ff.net.0.proj.weight", &[96, 24]), bound(24, 96));
        uniform(spread("pos_embed.proj.weight", &[96, 4, 2, 2]), bound(16, 96));
    }
}
