//! The keys of LoRA files: which layer a tensor belongs to, and what it is.

/// What a tensor of a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// `A`, `[r, in]`.
    Down,
    /// `B`, `[out, r]`.
    Up,
    /// The number that is divided by r.
    Alpha,
    /// The magnitudes of DoRA, one for each output.
    Magnitude,
    /// The magnitudes of DoRA as LyCORIS and OneTrainer store them, for outputs or inputs.
    DoraScale,
}

/// Which network a key says it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Network {
    Transformer,
    TextEncoder,
}

/// A layer as a file names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Module {
    /// The network, where the key says so.
    pub network: Option<Network>,
    /// The rest of the name, with dots or underscores.
    pub name: String,
    /// Whether the key has PEFT's prefix, so that the scale is in `adapter_config.json`.
    pub peft: bool,
}

impl Module {
    /// The network it is for: the one the key says, else the one whose layers have such names.
    pub fn network(&self) -> Network {
        let is_t5 = ["encoder.block.", "encoder_block_"].iter().any(|t5| self.name.starts_with(t5));
        self.network.unwrap_or(if is_t5 { Network::TextEncoder } else { Network::Transformer })
    }
}

/// What a key means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Part(Module, Role),
    /// A method that is not LoRA, by name.
    Other(&'static str),
    /// Nothing known.
    Unknown,
}

/// Prefixes with dots that say which network follows, or nothing.
const DOTTED: [(&str, Option<Network>); 12] = [
    ("text_encoders.t5xxl.transformer.", Some(Network::TextEncoder)),
    ("model.diffusion_model.", Some(Network::Transformer)),
    ("diffusion_model.", Some(Network::Transformer)),
    ("lora_transformer.", Some(Network::Transformer)),
    ("transformer.", Some(Network::Transformer)),
    ("unet.", Some(Network::Transformer)),
    ("lora_te.", Some(Network::TextEncoder)),
    ("text_encoder.", Some(Network::TextEncoder)),
    ("t5.", Some(Network::TextEncoder)),
    ("model.", None),
    ("base_model.", None),
    ("module.", None),
];

/// Prefixes of names in which every dot has become an underscore.
const UNDERSCORED: [(&str, Option<Network>); 6] = [
    ("lora_transformer_", Some(Network::Transformer)),
    ("lora_unet_", Some(Network::Transformer)),
    ("lycoris_", None),
    ("lora_te1_", Some(Network::TextEncoder)),
    ("lora_te_", Some(Network::TextEncoder)),
    ("lora_t5_", Some(Network::TextEncoder)),
];

const PEFT: &str = "base_model.model.";

/// The methods that can be told from a part of a key that begins like this.
const OTHER_METHODS: [(&str, &str); 16] = [
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("boft_", "BOFT"),
    ("oft_", "OFT"),
    ("ia3_", "IA3"),
    ("on_input", "IA3"),
    ("vera_lambda", "VeRA"),
    ("randlora_", "RandLoRA"),
    ("bone_", "Bone"),
    ("lora_embedding_", "LoRA on an embedding"),
    ("lora_mid", "LoRA of convolutions in three factors (Tucker)"),
    ("set_weight", "whole weights (set_weight)"),
    ("diff", "full differences"),
    ("w_norm", "differences of norms"),
    ("b_norm", "differences of norms"),
    ("modules_to_save", "whole layers (modules_to_save)"),
];

/// Reads a key.
pub(super) fn parse(key: &str) -> Key {
    let parts: Vec<&str> = key.split('.').collect();
    for (start, method) in OTHER_METHODS {
        // `diff` is a whole word or `diff_b`; layers may have names such as `diffusion`.
        let shows = |part: &&str| match start {
            "diff" => *part == "diff" || *part == "diff_b",
            _ => part.starts_with(start),
        };
        if parts.iter().any(shows) {
            return Key::Other(method);
        }
    }
    if let [.., "a1" | "a2" | "b1" | "b2", "weight"] = parts[..] {
        return Key::Other("GLoRA");
    }
    let part = |length: usize, role| match module(&parts[..length].join(".")) {
        Some(module) => Key::Part(module, role),
        None => Key::Unknown,
    };
    for (index, name) in parts.iter().enumerate() {
        let rest = &parts[index + 1..];
        let role = match *name {
            "lora_A" | "lora_down" => Some(Role::Down),
            "lora_B" | "lora_up" => Some(Role::Up),
            "lora_magnitude_vector" => Some(Role::Magnitude),
            "dora_scale" if rest.is_empty() => Some(Role::DoraScale),
            "alpha" if rest.is_empty() => Some(Role::Alpha),
            _ => None,
        };
        if let Some(role) = role {
            return match rest {
                // PEFT may have the adapter's name in between.
                [] | ["weight"] | [_, "weight"] => part(index, role),
                [.., "bias"] => Key::Other("biases (lora_bias)"),
                [_] if role == Role::Magnitude => part(index, role),
                _ => Key::Unknown,
            };
        }
        let role = match rest {
            ["down", "weight"] => Role::Down,
            ["up", "weight"] => Role::Up,
            ["alpha"] => Role::Alpha,
            _ => continue,
        };
        if matches!(*name, "lora" | "lora_linear_layer") {
            return part(index, role);
        }
        // The oldest files of diffusers: `attn1.processor.to_q_lora.down.weight`.
        if let (Some(layer), Some((&"processor", before))) =
            (name.strip_suffix("_lora"), parts[..index].split_last())
        {
            let layer = if layer == "to_out" { "to_out.0" } else { layer };
            let name = format!("{}.{layer}", before.join("."));
            return module(&name).map_or(Key::Unknown, |module| Key::Part(module, role));
        }
    }
    Key::Unknown
}

/// The name without the prefixes of writers and wrappers.
fn module(name: &str) -> Option<Module> {
    let (peft, mut rest) = match name.strip_prefix(PEFT) {
        Some(rest) => (true, rest),
        None => (false, name),
    };
    let mut network = None;
    if !rest.contains('.') {
        let known = UNDERSCORED
            .iter()
            .find_map(|(prefix, network)| Some((rest.strip_prefix(prefix)?, network)));
        if let Some((after, found)) = known {
            (rest, network) = (after, *found);
        }
    }
    while let Some((after, found)) =
        DOTTED.iter().find_map(|(prefix, found)| Some((rest.strip_prefix(prefix)?, *found)))
    {
        rest = after;
        network = network.or(found);
        if found.is_some() {
            break;
        }
    }
    (!rest.is_empty()).then(|| Module { network, name: rest.to_owned(), peft })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(key: &str) -> (Option<Network>, String, bool, Role) {
        match parse(key) {
            Key::Part(module, role) => (module.network, module.name, module.peft, role),
            other => panic!("{key}: {other:?}"),
        }
    }

    #[test]
    fn every_writer_s_keys_are_read() {
        use Network::{TextEncoder, Transformer};
        let q = "transformer_blocks.3.attn1.to_q";
        let flat = "transformer_blocks_3_attn1_to_q";
        for (key, network, name, role) in [
            (format!("base_model.model.{q}.lora_A.weight"), None, q, Role::Down),
            (format!("base_model.model.{q}.lora_B.default.weight"), None, q, Role::Up),
            (format!("base_model.model.{q}.lora_magnitude_vector"), None, q, Role::Magnitude),
            (format!("{q}.lora_magnitude_vector.default.weight"), None, q, Role::Magnitude),
            (format!("transformer.{q}.lora_A.weight"), Some(Transformer), q, Role::Down),
            (format!("transformer.{q}.lora.up.weight"), Some(Transformer), q, Role::Up),
            (format!("{q}.lora_linear_layer.down.weight"), None, q, Role::Down),
            (format!("unet.{q}.lora_down.weight"), Some(Transformer), q, Role::Down),
            (format!("lora_transformer.{q}.alpha"), Some(Transformer), q, Role::Alpha),
            (
                format!("lora_transformer_{flat}.dora_scale"),
                Some(Transformer),
                flat,
                Role::DoraScale,
            ),
            (format!("lora_unet_{flat}.lora_up.weight"), Some(Transformer), flat, Role::Up),
            (format!("diffusion_model.{q}.lora_up.weight"), Some(Transformer), q, Role::Up),
            (
                "t5.encoder.block.0.layer.0.SelfAttention.q.lora_down.weight".to_owned(),
                Some(TextEncoder),
                "encoder.block.0.layer.0.SelfAttention.q",
                Role::Down,
            ),
            (
                "lora_te_encoder_block_0_layer_0_SelfAttention_q.alpha".to_owned(),
                Some(TextEncoder),
                "encoder_block_0_layer_0_SelfAttention_q",
                Role::Alpha,
            ),
            (
                "transformer.blocks.1.attn.qkv.0.lora_up.weight".to_owned(),
                Some(Transformer),
                "blocks.1.attn.qkv.0",
                Role::Up,
            ),
            (
                "transformer_blocks.0.attn1.processor.to_out_lora.down.weight".to_owned(),
                None,
                "transformer_blocks.0.attn1.to_out.0",
                Role::Down,
            ),
        ] {
            let (found_network, found_name, peft, found_role) = part(&key);
            assert_eq!(
                (found_network, found_name.as_str(), found_role),
                (network, name, role),
                "{key}"
            );
            assert_eq!(peft, key.starts_with(PEFT), "{key}");
        }
    }

    #[test]
    fn other_methods_are_known_by_name() {
        for (key, method) in [
            ("lora_unet_x.hada_w1_a", "LoHa"),
            ("lora_unet_x.lokr_w1", "LoKr"),
            ("lora_unet_x.lokr_w2_b", "LoKr"),
            ("lora_unet_x.oft_blocks", "OFT"),
            ("lora_unet_x.lora_mid.weight", "LoRA of convolutions in three factors (Tucker)"),
            ("lora_unet_x.diff", "full differences"),
            ("diffusion_model.x.diff_b", "full differences"),
            ("base_model.model.shared.lora_embedding_A", "LoRA on an embedding"),
            ("base_model.model.x.lora_B.bias", "biases (lora_bias)"),
            ("base_model.model.modules_to_save.x.weight", "whole layers (modules_to_save)"),
            ("lora_unet_x.a1.weight", "GLoRA"),
        ] {
            assert_eq!(parse(key), Key::Other(method), "{key}");
        }
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        for key in [
            "bundle_emb.token.t5_out",
            "transformer_blocks.0.attn1.to_q.weight",
            "lora_A.weight",
            "x.lora_A.a.b.weight",
            "alpha",
            "",
        ] {
            assert_eq!(parse(key), Key::Unknown, "{key}");
        }
    }
}
