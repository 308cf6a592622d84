//! The layer names of the original PixArt code, beside diffusers'.

/// Layers outside the blocks: original, diffusers.
const GLOBAL: [(&str, &str); 11] = [
    ("x_embedder.proj", "pos_embed.proj"),
    ("y_embedder.y_proj.fc1", "caption_projection.linear_1"),
    ("y_embedder.y_proj.fc2", "caption_projection.linear_2"),
    ("t_embedder.mlp.0", "adaln_single.emb.timestep_embedder.linear_1"),
    ("t_embedder.mlp.2", "adaln_single.emb.timestep_embedder.linear_2"),
    ("t_block.1", "adaln_single.linear"),
    ("csize_embedder.mlp.0", "adaln_single.emb.resolution_embedder.linear_1"),
    ("csize_embedder.mlp.2", "adaln_single.emb.resolution_embedder.linear_2"),
    ("ar_embedder.mlp.0", "adaln_single.emb.aspect_ratio_embedder.linear_1"),
    ("ar_embedder.mlp.2", "adaln_single.emb.aspect_ratio_embedder.linear_2"),
    ("final_layer.linear", "proj_out"),
];

/// Layers of a block. The original keeps several projections in one matrix, whose rows are shared
/// evenly, in this order.
const BLOCK: [(&str, &[&str]); 7] = [
    ("attn.qkv", &["attn1.to_q", "attn1.to_k", "attn1.to_v"]),
    ("attn.proj", &["attn1.to_out.0"]),
    ("cross_attn.q_linear", &["attn2.to_q"]),
    ("cross_attn.kv_linear", &["attn2.to_k", "attn2.to_v"]),
    ("cross_attn.proj", &["attn2.to_out.0"]),
    ("mlp.fc1", &["ff.net.0.proj"]),
    ("mlp.fc2", &["ff.net.2"]),
];

/// A further name of a layer, for all of a file's matrix or for one part of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Alias {
    pub name: String,
    /// Which part of the rows of the named matrix the layer is.
    pub part: usize,
    /// Of how many.
    pub parts: usize,
}

/// The other names that files use for a layer of the transformer.
pub(super) fn aliases(diffusers: &str) -> Vec<Alias> {
    let whole = |name: String| Alias { name, part: 0, parts: 1 };
    let mut found = Vec::new();
    if let Some((original, _)) = GLOBAL.iter().find(|(_, name)| *name == diffusers) {
        found.push(whole((*original).to_owned()));
    }
    let block = diffusers.strip_prefix("transformer_blocks.").and_then(|rest| rest.split_once('.'));
    if let Some((index, layer)) = block {
        for (original, layers) in BLOCK {
            let Some(part) = layers.iter().position(|name| *name == layer) else { continue };
            let name = format!("blocks.{index}.{original}");
            let parts = layers.len();
            if parts > 1 {
                // OneTrainer trains the parts by themselves and numbers them.
                found.push(whole(format!("{name}.{part}")));
            }
            found.push(Alias { name, part, parts });
        }
    }
    // Old files name the list of which the layer is the first entry.
    if let Some(list) = diffusers.strip_suffix(".to_out.0") {
        found.push(whole(format!("{list}.to_out")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(diffusers: &str) -> Vec<(String, usize, usize)> {
        aliases(diffusers).into_iter().map(|a| (a.name, a.part, a.parts)).collect()
    }

    #[test]
    fn fused_layers_are_parts_of_rows() {
        let value = named("transformer_blocks.3.attn1.to_v");
        let expected =
            [("blocks.3.attn.qkv.2".to_owned(), 0, 1), ("blocks.3.attn.qkv".to_owned(), 2, 3)];
        assert_eq!(value, expected);
        let key = named("transformer_blocks.0.attn2.to_k");
        assert!(key.contains(&("blocks.0.cross_attn.kv_linear".to_owned(), 0, 2)), "{key:?}");
    }

    #[test]
    fn layers_outside_the_blocks_have_one_other_name() {
        assert_eq!(named("proj_out"), [("final_layer.linear".to_owned(), 0, 1)]);
        assert_eq!(named("adaln_single.linear"), [("t_block.1".to_owned(), 0, 1)]);
        assert_eq!(named("encoder.block.0.layer.0.SelfAttention.q"), []);
    }
}
