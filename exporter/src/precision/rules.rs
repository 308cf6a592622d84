//! What is converted and what is spared, by component and layer.

use super::Scheme;
use crate::Component;
use crate::graph::ir::{DType, Node};
use crate::profile::Profile;

/// The rules of one component under one scheme. Names are those of the graph's nodes, `scope/Op`,
/// and of the checkpoint's tensors.
pub(super) struct Rules {
    pub component: Component,
    pub scheme: Scheme,
    pub profile: Profile,
}

/// How the matrices of linear layers are quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quantisation {
    /// Codes of so many bits in blocks.
    Blocks { bits: u8 },
    /// Bytes in columns; activations stay floats.
    Columns,
    /// Bytes in columns; activations are quantised on the way.
    DynamicColumns,
}

/// The float type in which an operator computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    /// 32 bits.
    Full,
    /// 16 bits.
    Half,
    /// The widest of its operands, constants and weights aside.
    Widest,
}

impl Rules {
    /// How a matrix of the checkpoint is quantised, if it is.
    ///
    /// The big matrices of the blocks hold nearly all of the weights. Everything outside the blocks
    /// is left alone: patch, caption and timestep embeddings, the modulation, `proj_out` and the
    /// token table are a few percent of the file, and errors there reach every block or the
    /// picture itself.
    pub fn quantisation(&self, tensor: &str) -> Option<Quantisation> {
        let in_block = match self.component {
            Component::Transformer => tensor.starts_with("transformer_blocks."),
            Component::TextEncoder => tensor.starts_with("encoder.block."),
            // Convolutions, and four small matrices.
            _ => false,
        };
        match self.scheme {
            _ if !in_block => None,
            // Blocks need an operator of ONNX Runtime. With standard ones, engines would unpack the
            // matrices while they load, in so many steps that ONNX Runtime was killed for memory
            // by XL/2 in 4 bits on a machine of 23 GB.
            Scheme::Int8WeightOnly if self.profile != Profile::Ort => Some(Quantisation::Columns),
            Scheme::Int8WeightOnly => Some(Quantisation::Blocks { bits: 8 }),
            Scheme::Int4 => Some(Quantisation::Blocks { bits: 4 }),
            Scheme::Int8Dynamic => Some(Quantisation::DynamicColumns),
            Scheme::Fp32 | Scheme::Fp16 | Scheme::Bf16 => None,
        }
    }

    /// The type in which a weight that is not quantised is stored; `None` is the type that its use
    /// computes in.
    ///
    /// Matrices, convolutions and tables make up the file. Vectors (biases, norms) are next to
    /// nothing, and where 32-bit arithmetic is needed, so are they.
    pub fn storage(&self, tensor: &str, rank: usize) -> Option<DType> {
        let matrix = rank >= 2 && !is_small_table(tensor);
        match self.scheme {
            Scheme::Fp16 if matrix => Some(DType::F16),
            Scheme::Bf16 if matrix => Some(DType::BF16),
            // Rounding the embedding of a token changes less than one quantised matrix does, and
            // the table of T5 XXL is half a gigabyte.
            Scheme::Int8WeightOnly | Scheme::Int8Dynamic | Scheme::Int4
                if tensor == "shared.weight" || tensor == "encoder.embed_tokens.weight" =>
            {
                Some(DType::F16)
            }
            _ => None,
        }
    }

    /// How an operator computes.
    pub fn arithmetic(&self, node: &Node) -> Arithmetic {
        if self.scheme != Scheme::Fp16 {
            return Arithmetic::Full;
        }
        let scope = node.name.rsplit_once('/').map_or("", |(scope, _)| scope);
        match node.op_type.as_str() {
            // T5's gated product and what `wo` makes of it exceed 65504 in places.
            "MatMul" if scope.ends_with("DenseReluDense.wo") => Arithmetic::Full,
            "Mul" if scope.ends_with("DenseReluDense") => Arithmetic::Full,
            "MatMul" | "Conv" | "MultiHeadAttention" => Arithmetic::Half,
            // The stream that every block adds to, and with it the modulation of the transformer's
            // blocks: T5's exceeds 65504, and all lose digits with every addition.
            "Add" if is_block(scope) => Arithmetic::Full,
            // Sums over many elements, and quotients of them.
            "Softmax"
            | "LayerNormalization"
            | "InstanceNormalization"
            | "GroupNormalization"
            | "ReduceMean"
            | "ReduceSum"
            | "ReduceMax"
            | "Pow"
            | "Sqrt"
            | "Exp" => Arithmetic::Full,
            _ => Arithmetic::Widest,
        }
    }
}

/// Tables of a few rows, which are added to something.
fn is_small_table(tensor: &str) -> bool {
    tensor.ends_with("scale_shift_table") || tensor.ends_with("relative_attention_bias.weight")
}

/// Whether a scope is that of a whole block, not of a layer in it.
fn is_block(scope: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if let Some(rest) = scope.strip_prefix("transformer_blocks.") {
        return number(rest);
    }
    let layer = scope.strip_prefix("encoder.block.").and_then(|rest| rest.split_once(".layer."));
    layer.is_some_and(|(block, layer)| number(block) && number(layer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> Node {
        let op_type = name.rsplit_once('/').unwrap().1.to_owned();
        let name = name.to_owned();
        Node {
            name,
            op_type,
            domain: String::new(),
            inputs: vec![],
            outputs: vec![],
            attributes: vec![],
        }
    }

    #[test]
    fn the_hazards_of_t5_stay_in_full_precision() {
        let rules = Rules {
            component: Component::TextEncoder,
            scheme: Scheme::Fp16,
            profile: Profile::Ort,
        };
        let of = |name: &str| rules.arithmetic(&node(name));
        let layer = "encoder.block.3.layer.1";
        assert_eq!(of(&format!("{layer}/Add")), Arithmetic::Full);
        assert_eq!(of(&format!("{layer}.DenseReluDense.wo/MatMul")), Arithmetic::Full);
        assert_eq!(of(&format!("{layer}.DenseReluDense.wi_0/MatMul")), Arithmetic::Half);
        assert_eq!(of(&format!("{layer}.DenseReluDense/Mul")), Arithmetic::Full);
        assert_eq!(of(&format!("{layer}.layer_norm/ReduceMean")), Arithmetic::Full);
        let wo = format!("{layer}.DenseReluDense.wo.weight");
        assert_eq!(rules.storage(&wo, 2), Some(DType::F16));
    }

    #[test]
    fn only_matrices_of_blocks_are_quantised() {
        let rules = Rules {
            component: Component::Transformer,
            scheme: Scheme::Int4,
            profile: Profile::Ort,
        };
        for spared in [
            "proj_out.weight",
            "pos_embed.proj.weight",
            "caption_projection.linear_1.weight",
            "adaln_single.linear.weight",
            "adaln_single.emb.timestep_embedder.linear_1.weight",
        ] {
            assert_eq!(rules.quantisation(spared), None, "{spared}");
            assert_eq!(rules.storage(spared, 2), None, "{spared}");
        }
        let blocks = Some(Quantisation::Blocks { bits: 4 });
        assert_eq!(rules.quantisation("transformer_blocks.0.attn2.to_k.weight"), blocks);
        let rules = Rules {
            component: Component::TextEncoder,
            scheme: Scheme::Int4,
            profile: Profile::Ort,
        };
        assert_eq!(rules.quantisation("shared.weight"), None);
        assert_eq!(rules.storage("shared.weight", 2), Some(DType::F16));
    }
}
