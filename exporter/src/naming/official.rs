//! The tensor names of the original PixArt files and those of diffusers, both ways.
//!
//! Nearly all of it is renaming. The original keeps the projections of an attention layer in one
//! matrix, whose rows are cut into equal parts: queries, keys, values, or keys, values.

/// Tensors outside the blocks: original prefix, diffusers prefix, each followed by `weight` or
/// `bias`.
const GLOBAL: [(&str, &str); 11] = [
    ("x_embedder.proj.", "pos_embed.proj."),
    ("y_embedder.y_proj.fc1.", "caption_projection.linear_1."),
    ("y_embedder.y_proj.fc2.", "caption_projection.linear_2."),
    ("t_embedder.mlp.0.", "adaln_single.emb.timestep_embedder.linear_1."),
    ("t_embedder.mlp.2.", "adaln_single.emb.timestep_embedder.linear_2."),
    ("t_block.1.", "adaln_single.linear."),
    ("csize_embedder.mlp.0.", "adaln_single.emb.resolution_embedder.linear_1."),
    ("csize_embedder.mlp.2.", "adaln_single.emb.resolution_embedder.linear_2."),
    ("ar_embedder.mlp.0.", "adaln_single.emb.aspect_ratio_embedder.linear_1."),
    ("ar_embedder.mlp.2.", "adaln_single.emb.aspect_ratio_embedder.linear_2."),
    ("final_layer.linear.", "proj_out."),
];

/// A tensor outside the blocks that has no weight and bias.
const FINAL_TABLE: (&str, &str) = ("final_layer.scale_shift_table", "scale_shift_table");

/// The blocks.
const BLOCKS: (&str, &str) = ("blocks.", "transformer_blocks.");

/// The same name on both sides, in a block.
const TABLE: &str = "scale_shift_table";

/// Tensors of a block; several diffusers prefixes share the rows evenly, in this order.
const BLOCK: [(&str, &[&str]); 11] = [
    ("attn.qkv.", &["attn1.to_q.", "attn1.to_k.", "attn1.to_v."]),
    ("attn.proj.", &["attn1.to_out.0."]),
    // diffusers' class has no place for the next four. The names follow its other ones.
    ("attn.q_norm.", &["attn1.q_norm."]),
    ("attn.k_norm.", &["attn1.k_norm."]),
    ("attn.sr.", &["attn1.sr."]),
    ("attn.norm.", &["attn1.norm."]),
    ("cross_attn.q_linear.", &["attn2.to_q."]),
    ("cross_attn.kv_linear.", &["attn2.to_k.", "attn2.to_v."]),
    ("cross_attn.proj.", &["attn2.to_out.0."]),
    ("mlp.fc1.", &["ff.net.0.proj."]),
    ("mlp.fc2.", &["ff.net.2."]),
];

/// The stored position table, which every implementation computes anew: original, diffusers.
pub(crate) const POSITION_TABLE: (&str, &str) = ("pos_embed", "pos_embed.pos_embed");

/// The null caption of training, which no implementation reads when sampling. diffusers has no
/// place for it.
pub(crate) const NULL_CAPTION: &str = "y_embedder.y_embedding";

/// What wrappers around a model put before the names of its tensors.
const WRAPPERS: [&str; 3] = ["model.", "base_model.", "module."];

/// A tensor's name without what wrappers have put before it.
pub(crate) fn unwrapped(name: &str) -> &str {
    match WRAPPERS.iter().find_map(|wrapper| name.strip_prefix(wrapper)) {
        Some(rest) if !rest.is_empty() => unwrapped(rest),
        _ => name,
    }
}

/// The diffusers names of an original tensor, which share its rows evenly; `None` if the original
/// models have no such tensor or diffusers has no use for it.
pub(crate) fn to_diffusers(name: &str) -> Option<Vec<String>> {
    if name == FINAL_TABLE.0 {
        return Some(vec![FINAL_TABLE.1.to_owned()]);
    }
    let in_block = name.strip_prefix(BLOCKS.0).and_then(split_index);
    if let Some((index, rest)) = in_block {
        let block = format!("{}{index}.", BLOCKS.1);
        if rest == TABLE {
            return Some(vec![block + TABLE]);
        }
        let (kind, parts) = BLOCK.iter().find_map(|(original, parts)| {
            Some((parameter(rest.strip_prefix(original)?)?, parts))
        })?;
        return Some(parts.iter().map(|part| format!("{block}{part}{kind}")).collect());
    }
    GLOBAL.iter().find_map(|(original, diffusers)| {
        let kind = parameter(name.strip_prefix(original)?)?;
        Some(vec![format!("{diffusers}{kind}")])
    })
}

/// The original tensor that holds a diffusers tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Original {
    /// Its name.
    pub name: String,
    /// Which part of its rows.
    pub part: usize,
    /// Of how many equal parts.
    pub parts: usize,
}

/// Where a tensor of diffusers is in an original file; `None` if diffusers has no such tensor.
pub(crate) fn from_diffusers(name: &str) -> Option<Original> {
    let whole = |name: String| Original { name, part: 0, parts: 1 };
    if name == FINAL_TABLE.1 {
        return Some(whole(FINAL_TABLE.0.to_owned()));
    }
    let in_block = name.strip_prefix(BLOCKS.1).and_then(split_index);
    if let Some((index, rest)) = in_block {
        let block = format!("{}{index}.", BLOCKS.0);
        if rest == TABLE {
            return Some(whole(block + TABLE));
        }
        return BLOCK.iter().find_map(|(original, parts)| {
            let (part, kind) = parts
                .iter()
                .enumerate()
                .find_map(|(part, prefix)| Some((part, parameter(rest.strip_prefix(prefix)?)?)))?;
            Some(Original { name: format!("{block}{original}{kind}"), part, parts: parts.len() })
        });
    }
    GLOBAL.iter().find_map(|(original, diffusers)| {
        let kind = parameter(name.strip_prefix(diffusers)?)?;
        Some(whole(format!("{original}{kind}")))
    })
}

/// `<index>.<rest>`
fn split_index(name: &str) -> Option<(usize, &str)> {
    let (index, rest) = name.split_once('.')?;
    // Not "+1", not "01": two spellings of one index would be two names of one tensor.
    let number: usize = index.parse().ok()?;
    (number.to_string() == index).then_some((number, rest))
}

fn parameter(kind: &str) -> Option<&str> {
    matches!(kind, "weight" | "bias").then_some(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The 16 tensors outside the blocks of a model with size conditions, and the 15 of a block
    /// with everything.
    fn originals() -> Vec<String> {
        let both = |prefix: &str| ["weight", "bias"].map(|kind| format!("{prefix}{kind}"));
        let mut names: Vec<String> =
            GLOBAL.iter().flat_map(|(original, _)| both(original)).collect();
        names.push(FINAL_TABLE.0.to_owned());
        names.push("blocks.27.scale_shift_table".to_owned());
        names.extend(BLOCK.iter().flat_map(|(o, _)| both(&format!("blocks.27.{o}"))));
        names
    }

    #[test]
    fn both_directions_agree() {
        let mut seen = std::collections::BTreeSet::new();
        for name in originals() {
            let parts = to_diffusers(&name).unwrap_or_else(|| panic!("{name}"));
            for (part, diffusers) in parts.iter().enumerate() {
                let expected = Original { name: name.clone(), part, parts: parts.len() };
                assert_eq!(from_diffusers(diffusers), Some(expected), "{diffusers}");
                assert!(seen.insert(diffusers.clone()), "{diffusers} twice");
            }
        }
    }

    #[test]
    fn fused_rows_are_in_the_order_of_the_original() {
        let qkv = ["q", "k", "v"].map(|x| format!("transformer_blocks.3.attn1.to_{x}.bias"));
        assert_eq!(to_diffusers("blocks.3.attn.qkv.bias").as_deref(), Some(&qkv[..]));
        let value = from_diffusers("transformer_blocks.3.attn2.to_v.weight").unwrap();
        let name = "blocks.3.cross_attn.kv_linear.weight".to_owned();
        assert_eq!(value, Original { name, part: 1, parts: 2 });
    }

    #[test]
    fn other_names_are_not_guessed() {
        for name in [
            "blocks.0.attn.qkv",
            "blocks.0.attn.qkv.scale",
            "blocks.01.attn.qkv.weight",
            "blocks.+1.attn.qkv.weight",
            "blocks.attn.qkv.weight",
            "pos_embed",
            "y_embedder.y_embedding",
            "final_layer.scale_shift_table.weight",
        ] {
            assert_eq!(to_diffusers(name), None, "{name}");
        }
        assert_eq!(from_diffusers("transformer_blocks.0.attn1.to_q.lora_A.weight"), None);
    }

    #[test]
    fn wrappers_come_off_in_any_order() {
        assert_eq!(unwrapped("module.model.blocks.0.x"), "blocks.0.x");
        assert_eq!(unwrapped("base_model.model.pos_embed"), "pos_embed");
        assert_eq!(unwrapped("base_model.pos_embed"), "pos_embed");
        assert_eq!(unwrapped("model."), "model.");
        assert_eq!(unwrapped("transformer_blocks.0.x"), "transformer_blocks.0.x");
    }
}
