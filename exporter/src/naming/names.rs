//! Other names that a tensor may have, and tensors that an export may leave out.

use super::official::{NULL_CAPTION, POSITION_TABLE};
use crate::Component;

/// The old spelling of a layer of the auto-encoder's attention, now → then.
const OLD_ATTENTION: [(&str, &str); 4] = [
    (".to_q.", ".query."),
    (".to_k.", ".key."),
    (".to_v.", ".value."),
    (".to_out.0.", ".proj_attn."),
];

/// The table that T5 stores under one or both of two names.
const TOKEN_TABLE: [&str; 2] = ["shared.weight", "encoder.embed_tokens.weight"];

/// The other name under which older files hold a tensor, if there is one.
pub(super) fn alternative(component: Component, name: &str) -> Option<String> {
    match component {
        Component::Transformer => None,
        Component::TextEncoder => {
            let other = TOKEN_TABLE.iter().position(|known| *known == name)?;
            Some(TOKEN_TABLE[1 - other].to_owned())
        }
        Component::VaeDecoder | Component::VaeEncoder if name.contains(".attentions.") => {
            OLD_ATTENTION
                .iter()
                .find(|(now, _)| name.contains(now))
                .map(|(now, then)| name.replacen(now, then, 1))
        }
        Component::VaeDecoder | Component::VaeEncoder => None,
    }
}

/// Whether a tensor that the graph does not read is known to be of no use to it.
pub(crate) fn is_droppable(component: Component, name: &str) -> bool {
    match component {
        // The graph computes the position table for every size; the null caption is for training.
        Component::Transformer => name == POSITION_TABLE.1 || name == NULL_CAPTION,
        // The rest of a complete T5, and the duplicate of the token table.
        Component::TextEncoder => {
            TOKEN_TABLE.contains(&name)
                || name.starts_with("decoder.")
                || name.starts_with("lm_head.")
        }
        // Each half of the auto-encoder is exported without the other.
        Component::VaeDecoder => name.starts_with("encoder.") || name.starts_with("quant_conv."),
        Component::VaeEncoder => {
            name.starts_with("decoder.") || name.starts_with("post_quant_conv.")
        }
    }
}

/// Whether a matrix may be stored as a 1×1 convolution, `[out, in, 1, 1]`.
pub(super) fn may_be_convolution(component: Component, name: &str) -> bool {
    matches!(component, Component::VaeDecoder | Component::VaeEncoder)
        && name.contains(".attentions.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_names_of_the_auto_encoder() {
        let now = "decoder.mid_block.attentions.0.to_out.0.weight";
        let then = "decoder.mid_block.attentions.0.proj_attn.weight";
        assert_eq!(alternative(Component::VaeDecoder, now).as_deref(), Some(then));
        assert_eq!(alternative(Component::VaeDecoder, "decoder.conv_in.weight"), None);
        assert_eq!(
            alternative(Component::VaeDecoder, "decoder.mid_block.attentions.0.group_norm.bias"),
            None
        );
    }

    #[test]
    fn the_token_table_has_two_names() {
        let [first, second] = TOKEN_TABLE;
        assert_eq!(alternative(Component::TextEncoder, first).as_deref(), Some(second));
        assert_eq!(alternative(Component::TextEncoder, second).as_deref(), Some(first));
        assert!(is_droppable(Component::TextEncoder, second));
        assert!(!is_droppable(Component::TextEncoder, "encoder.final_layer_norm.weight"));
    }
}
