//! The graphs of the transformer's parts: forward, and forward with backward.

use std::collections::HashSet;
use std::sync::Arc;

use pixart_exporter::graph::{
    GraphBuilder, Value,
    dim::Dim,
    ir::{DType, Graph, ValueInfo},
};
use pixart_exporter::models::transformer::parts::{Part, block, embedding, final_part};
use pixart_exporter::naming::TransformerConfig;
use pixart_exporter::profile::Profile;
use pixart_runtime::engine::Engine;

use super::{Arithmetic, GradientError, Precision, differentiate, in_precision, name_outputs};

/// One of the graphs that a transformer is trained with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartKind {
    /// What comes before the blocks: patches, time and caption projection.
    Embedding,
    /// A block; all blocks of one kind share a session.
    Block {
        /// Whether its keys and values are compressed.
        compressed: bool,
    },
    /// What comes after the blocks.
    Final,
}

impl PartKind {
    /// The name in files and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Block { compressed: false } => "block",
            Self::Block { compressed: true } => "compressed_block",
            Self::Final => "final",
        }
    }
}

/// What is trained.
#[derive(Clone)]
pub struct Training {
    trained: Targets,
    adapted: Option<Targets>,
    precision: Precision,
    arithmetic: Arithmetic,
}

type Targets = Arc<dyn Fn(&str) -> bool>;

impl Training {
    /// Every weight.
    pub fn full() -> Self {
        Self::weights(|_| true)
    }

    /// The weights for which `trained` is true. It is asked with the checkpoint's names, those of the
    /// blocks without `transformer_blocks.<index>.`, since all blocks share a graph.
    pub fn weights(trained: impl Fn(&str) -> bool + 'static) -> Self {
        Self {
            trained: Arc::new(trained),
            adapted: None,
            precision: Precision::default(),
            arithmetic: Arithmetic::default(),
        }
    }

    /// Low-rank adapters of the linear layers for which `adapted` is true, and nothing else; see
    /// [`GraphBuilder::linear`] for what they compute and how their tensors are named. It is asked with the
    /// layers' names, for example `attn1.to_q` or `caption_projection.linear_1`; those in blocks lack
    /// `transformer_blocks.<index>.`.
    pub fn lora(adapted: impl Fn(&str) -> bool + 'static) -> Self {
        let is_adapter =
            |name: &str| name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight");
        Self { adapted: Some(Arc::new(adapted)), ..Self::weights(is_adapter) }
    }

    /// The same with the products of matrices in `precision`, forward and backward; weights and gradients
    /// stay in 32 bits, and so does everything between the parts.
    pub fn in_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The precision.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The same in the arithmetic that the engine has.
    pub(super) fn on(&self, engine: &dyn Engine) -> Self {
        let arithmetic = match engine.multiplies(&self.precision.weight_type()) {
            true => Arithmetic::Kernels,
            false => Arithmetic::Rounded,
        };
        Self { arithmetic, ..self.clone() }
    }

    fn apply(&self, graph: Graph) -> Graph {
        in_precision(graph, self.precision, self.arithmetic)
    }
}

/// Before the name of a value: the gradient of the loss with respect to it.
pub const GRADIENT: &str = "gradient.";

/// The graphs of one part. An input that a graph does not need, it does not have.
#[derive(Clone, Debug)]
pub struct PartGraphs {
    /// From what [`embedding`], [`block`] or [`final_part`] say and the weights, which are inputs, to the
    /// part's results.
    pub forward: Graph,
    /// From the same and [`GRADIENT`]`<result>` for each result to [`GRADIENT`]`<name>` for each input
    /// that comes from another part and each weight that is trained. What lies in between is computed
    /// again. `None` if there is nothing to give.
    pub backward: Option<Graph>,
    /// The weights, and those of adapters, that the part reads: names, types and shapes. The rank of the
    /// adapters is an open size.
    pub weights: Vec<ValueInfo>,
}

/// Builds the graphs of a part for `profile`, with the gradients of what is trained.
///
/// With `to_embedding`, the block and the final part also give the gradients of what they read from the
/// embedding directly (modulation, captions, time embedding); that is only needed where something in the
/// embedding is trained. In a precision of 16 bits, products are operators of 16 bits.
///
/// # Errors
/// [`GradientError::NoRule`] for [`Profile::Portable`], whose attention in portions has no gradient;
/// [`GradientError::Graph`] for a configuration that does not fit together.
pub fn part_graphs(
    config: &TransformerConfig,
    profile: Profile,
    kind: PartKind,
    training: &Training,
    to_embedding: bool,
) -> Result<PartGraphs, GradientError> {
    let (mut b, part) = start(config, profile, kind, training)?;
    let outputs = part.outputs.into_iter().map(|(name, value)| (name.to_owned(), value));
    name_outputs(&mut b, outputs.collect())?;
    let forward = training.apply(finish(b));

    let (mut b, part) = start(config, profile, kind, training)?;
    let names: HashSet<String> = b.weights().map(|value| value.name().to_owned()).collect();
    let all = b.inputs().iter();
    let weights: Vec<ValueInfo> = all.filter(|i| names.contains(&i.name)).cloned().collect();
    let inputs = b.inputs().iter().map(|input| input.name.clone());
    let variables: Vec<Value> = inputs
        .filter(|name| match names.contains(name) {
            true => (training.trained)(name),
            false => {
                let carried = part.carried.iter().any(|value| value.name() == name);
                carried && (to_embedding || name == "tokens")
            }
        })
        .filter_map(|name| b.value(&name))
        .collect();
    if variables.is_empty() {
        return Ok(PartGraphs { forward, backward: None, weights });
    }
    let mut cotangents = Vec::with_capacity(part.outputs.len());
    for (name, value) in &part.outputs {
        let name = format!("{GRADIENT}{name}");
        cotangents.push(b.input(&name, DType::F32, value.shape().to_vec())?);
    }
    let pairs: Vec<(&Value, &Value)> =
        part.outputs.iter().map(|(_, value)| value).zip(&cotangents).collect();
    let gradients = differentiate(&mut b, &pairs, &variables.iter().collect::<Vec<_>>())?;
    let name = |variable: &Value| format!("{GRADIENT}{}", variable.name());
    name_outputs(&mut b, variables.iter().map(name).zip(gradients).collect())?;
    Ok(PartGraphs { forward, backward: Some(training.apply(finish(b))), weights })
}

/// `sum[size]` of `a[size]` and `b[size]`.
pub(super) fn sum_graph() -> Result<Graph, GradientError> {
    let mut b = GraphBuilder::new("sum", Profile::Ort);
    let shape = vec![Dim::symbol("size")];
    let terms =
        [b.input("a", DType::F32, shape.clone())?, b.input("b", DType::F32, shape.clone())?];
    let sum = b.add(&terms[0], &terms[1])?;
    b.output("sum", &sum, DType::F32, &shape)?;
    Ok(b.finish())
}

fn start(
    config: &TransformerConfig,
    profile: Profile,
    kind: PartKind,
    training: &Training,
) -> Result<(GraphBuilder, Part), GradientError> {
    let mut b = GraphBuilder::new(kind.as_str(), profile).weights_as_inputs();
    if let Some(adapted) = training.adapted.clone() {
        b = b.adapters(move |layer| adapted(layer));
    }
    let part = match kind {
        PartKind::Embedding => embedding(&mut b, config)?,
        PartKind::Block { compressed } => block(&mut b, config, compressed)?,
        PartKind::Final => final_part(&mut b, config)?,
    };
    Ok((b, part))
}

/// The graph without anything that its outputs do not depend on.
fn finish(b: GraphBuilder) -> Graph {
    let mut graph = b.finish();
    graph.prune();
    let read: HashSet<&String> = graph.nodes.iter().flat_map(|node| &node.inputs).collect();
    graph.inputs.retain(|input| read.contains(&input.name));
    graph
}

#[cfg(test)]
mod tests {
    use pixart_exporter::KvSampling;
    use pixart_exporter::naming::KvCompression;

    use super::*;

    const KINDS: [PartKind; 4] = [
        PartKind::Embedding,
        PartKind::Block { compressed: false },
        PartKind::Block { compressed: true },
        PartKind::Final,
    ];

    fn config() -> TransformerConfig {
        TransformerConfig {
            sample_size: 32,
            interpolation_scale: 0.5,
            num_layers: 2,
            num_attention_heads: 2,
            attention_head_dim: 12,
            in_channels: 4,
            out_channels: 8,
            patch_size: 2,
            caption_channels: 16,
            norm_eps: 1e-6,
            use_additional_conditions: false,
            qk_norm: true,
            kv_compression: Some(KvCompression {
                sampling: KvSampling::Conv,
                scale_factor: 2,
                layers: [1].into(),
            }),
        }
    }

    /// The shape of every input or output, by name.
    fn shapes(values: &[ValueInfo]) -> Vec<(&str, String)> {
        let shape = |dims| pixart_exporter::graph::dim::display_shape(dims);
        values.iter().map(|value| (value.name.as_str(), shape(&value.shape))).collect()
    }

    #[test]
    fn every_trained_weight_has_a_gradient_of_its_own_shape() {
        for profile in [Profile::Ort, Profile::Cann] {
            for kind in KINDS {
                let graphs =
                    part_graphs(&config(), profile, kind, &Training::full(), true).expect("graphs");
                let backward = graphs.backward.expect("weights to train");
                let found = shapes(&backward.outputs);
                for (name, shape) in shapes(&graphs.forward.inputs) {
                    let given = ["hidden_states", "encoder_", "timestep"];
                    if given.iter().any(|start| name.starts_with(start)) {
                        continue;
                    }
                    let gradient = format!("{GRADIENT}{name}");
                    let at = found.iter().find(|(name, _)| **name == gradient);
                    assert_eq!(at, Some(&(gradient.as_str(), shape)), "{}", kind.as_str());
                }
                profile.check(&backward).expect("operators of the profile");
            }
        }
    }

    #[test]
    fn what_is_not_trained_has_no_gradient() {
        let chosen = &Training::weights(|name| name == "attn2.to_k.weight");
        let kind = PartKind::Block { compressed: false };
        let graphs = part_graphs(&config(), Profile::Ort, kind, chosen, true).expect("graphs");
        let backward = graphs.backward.expect("tokens to pass on");
        let mut names: Vec<&str> = backward.outputs.iter().map(|o| o.name.as_str()).collect();
        names.sort_unstable();
        let expected = ["attn2.to_k.weight", "captions", "modulation", "tokens"];
        assert_eq!(names, expected.map(|name| format!("{GRADIENT}{name}")));

        // A bias that is added at the end changes no gradient.
        let graphs = part_graphs(&config(), Profile::Ort, PartKind::Final, &Training::full(), true);
        let graphs = graphs.expect("graphs");
        let reads = |graph: &Graph| graph.inputs.iter().any(|i| i.name == "proj_out.bias");
        assert!(reads(&graphs.forward) && !reads(&graphs.backward.expect("weights")));

        let graphs = part_graphs(&config(), Profile::Ort, PartKind::Embedding, chosen, true);
        assert!(graphs.expect("graphs").backward.is_none());
    }

    #[test]
    fn adapters_are_trained_instead_of_weights_and_have_any_rank() {
        let training = Training::lora(|layer| layer == "attn1.to_q");
        let kind = PartKind::Block { compressed: false };
        let graphs = part_graphs(&config(), Profile::Ort, kind, &training, false).expect("graphs");
        let backward = graphs.backward.expect("adapters");
        let mut found = shapes(&backward.outputs);
        found.sort_unstable();
        let expected = [
            ("gradient.attn1.to_q.lora_A.weight", "[rank, 24]"),
            ("gradient.attn1.to_q.lora_B.weight", "[24, rank]"),
            ("gradient.tokens", "[batch_size, rows, columns, 24]"),
        ];
        assert_eq!(found, expected.map(|(name, shape)| (name, shape.to_owned())));
        for graph in [&graphs.forward, &backward] {
            assert!(graph.inputs.iter().any(|input| input.name == "lora_scale"));
        }
        let embedding = part_graphs(&config(), Profile::Ort, PartKind::Embedding, &training, true);
        assert!(embedding.expect("graphs").backward.is_none());

        let training = Training::lora(|layer| layer.ends_with("proj"));
        let error = part_graphs(&config(), Profile::Ort, PartKind::Embedding, &training, true);
        let error = error.map(drop).expect_err("a refusal").to_string();
        assert!(error.contains("pos_embed.proj/Conv") && error.contains("linear"), "{error}");
    }

    #[test]
    fn every_way_of_compression_has_a_gradient() {
        for sampling in KvSampling::ALL {
            let layers = [0].into();
            let compression = Some(KvCompression { sampling, scale_factor: 2, layers });
            let config = TransformerConfig { kv_compression: compression, ..config() };
            let kind = PartKind::Block { compressed: true };
            let graphs = part_graphs(&config, Profile::Ort, kind, &Training::full(), true);
            assert!(graphs.is_ok_and(|graphs| graphs.backward.is_some()), "{sampling}");
        }
    }

    #[test]
    fn a_profile_whose_attention_has_no_gradient_is_refused() {
        let kind = PartKind::Block { compressed: false };
        let error =
            part_graphs(&config(), Profile::Portable, kind, &Training::full(), true).map(drop);
        let error = error.expect_err("a refusal").to_string();
        assert!(error.contains("attn2/Scan (Scan)") && error.contains("`ort`"), "{error}");
    }

    #[test]
    fn a_compressed_block_of_a_model_without_compression_is_refused() {
        let config = TransformerConfig { kv_compression: None, ..config() };
        let kind = PartKind::Block { compressed: true };
        let error = part_graphs(&config, Profile::Ort, kind, &Training::full(), true).map(drop);
        let error = error.expect_err("a refusal").to_string();
        assert!(error.contains("compressed keys"), "{error}");
    }
}
