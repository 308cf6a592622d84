//! The rewritten graphs: what they consist of, and that they compute what the fp32 graph does.

use std::collections::{BTreeSet, HashMap};

use super::{Scheme, apply, summary};
use crate::Component;
use crate::graph::GraphBuilder;
use crate::graph::dim::Dim;
use crate::graph::ir::{Attribute, DType, Graph, Node};
use crate::graph::run::{floats, integers, noise, run};
use crate::models::tests::{
    max_relative_error, released_text_encoder_config, text_encoder_config, transformer_config,
    vae_config, weights,
};
use crate::models::{text_encoder, transformer, vae};
use crate::naming::TransformerConfig;
use crate::profile::Profile;
use tract_onnx::prelude::Tensor;

const SCHEMES: [Scheme; 5] =
    [Scheme::Fp16, Scheme::Bf16, Scheme::Int8WeightOnly, Scheme::Int8Dynamic, Scheme::Int4];

/// The graphs of the small test models.
fn graphs(profile: Profile) -> [(Component, Graph); 4] {
    [
        (Component::Transformer, transformer::build(&transformer_config(), profile).unwrap()),
        (Component::TextEncoder, text_encoder::build(&text_encoder_config(), profile).unwrap()),
        (Component::VaeDecoder, vae::build_decoder(&vae_config(), profile).unwrap()),
        (Component::VaeEncoder, vae::build_encoder(&vae_config(), profile).unwrap()),
    ]
}

fn inputs(component: Component) -> Vec<Tensor> {
    match component {
        Component::Transformer => vec![
            floats(&[2, 4, 8, 6], &noise(1, 2 * 4 * 48)),
            floats(&[2, 5, 10], &noise(2, 100)),
            integers(&[2, 5], &[1, 1, 1, 1, 1, 1, 1, 0, 0, 0]),
            floats(&[2], &[949.05, 20.0]),
        ],
        Component::TextEncoder => {
            vec![integers(&[1, 6], &[5, 7, 19, 3, 1, 0]), integers(&[1, 6], &[1, 1, 1, 1, 1, 0])]
        }
        Component::VaeDecoder => vec![floats(&[1, 4, 4, 6], &noise(1, 96))],
        Component::VaeEncoder => vec![floats(&[1, 3, 16, 24], &noise(1, 3 * 16 * 24))],
    }
}

fn all_nodes(graph: &Graph) -> Vec<&Node> {
    let mut all = Vec::new();
    for node in &graph.nodes {
        all.push(node);
        for (_, value) in &node.attributes {
            if let Attribute::Graph(body) = value {
                all.extend(all_nodes(body));
            }
        }
    }
    all
}

#[test]
fn inputs_and_outputs_keep_their_types_and_portable_graphs_their_operators() {
    for profile in Profile::ALL {
        for (component, graph) in graphs(profile) {
            // Never portable: `choose` refuses it.
            for scheme in SCHEMES
                .into_iter()
                .filter(|&scheme| scheme != Scheme::Int4 || profile == Profile::Ort)
            {
                let found = apply(graph.clone(), component, profile, scheme).unwrap();
                let name = format!("{component} {scheme:?} {profile}");
                assert_eq!((&found.inputs, &found.outputs), (&graph.inputs, &graph.outputs));
                let foreign = all_nodes(&found).iter().any(|node| !node.domain.is_empty());
                assert!(!(foreign && profile == Profile::Portable), "{name}");
                let declared = found.opset_imports.iter().any(|set| !set.domain.is_empty());
                assert_eq!(declared, foreign || (graph.opset_imports.len() > 1), "{name}");
            }
        }
    }
}

/// Names are unique, everything that is read exists, and nothing is stored that nobody reads.
#[test]
fn the_graphs_hold_together() {
    for profile in Profile::ALL {
        for (component, graph) in graphs(profile) {
            // Never portable: `choose` refuses it.
            for scheme in SCHEMES
                .into_iter()
                .filter(|&scheme| scheme != Scheme::Int4 || profile == Profile::Ort)
            {
                let graph = apply(graph.clone(), component, profile, scheme).unwrap();
                let name = format!("{component} {scheme:?} {profile}");
                let nodes = all_nodes(&graph);
                let mut names = BTreeSet::new();
                assert!(nodes.iter().all(|node| names.insert(&node.name)), "{name}");
                let mut values: BTreeSet<&str> =
                    graph.inputs.iter().map(|input| input.name.as_str()).collect();
                for initializer in &graph.initializers {
                    assert!(values.insert(&initializer.name), "{name}: {}", initializer.name);
                }
                for node in &nodes {
                    for (_, value) in &node.attributes {
                        if let Attribute::Graph(body) = value {
                            values.extend(body.inputs.iter().map(|input| input.name.as_str()));
                        }
                    }
                }
                let mut read = BTreeSet::new();
                for node in &nodes {
                    for output in &node.outputs {
                        assert!(values.insert(output), "{name}: {output} is made twice");
                    }
                }
                for node in &nodes {
                    read.extend(node.inputs.iter().map(String::as_str));
                }
                read.remove("");
                assert!(read.is_subset(&values), "{name}");
                for initializer in &graph.initializers {
                    assert!(read.contains(initializer.name.as_str()), "{}", initializer.name);
                }
            }
        }
    }
}

/// Numbers that share a scale, rounded to 4 bits by the definition.
fn rounded_to_4_bits(block: &[f32]) -> Vec<f32> {
    let larger = |a: f32, b: f32| b.abs() > a.abs() || b.abs() == a.abs() && b > a;
    let largest = block.iter().fold(0f32, |a, &b| if larger(a, b) { b } else { a });
    let scale = largest / -8.0;
    block.iter().map(|x| (x / scale).round_ties_even().clamp(-8.0, 7.0) * scale).collect()
}

/// Numbers that share a scale, rounded to 8 bits by the definition.
fn rounded_to_8_bits(row: &[f32]) -> Vec<f32> {
    let scale = row.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
    row.iter().map(|x| (x / scale).round_ties_even() * scale).collect()
}

/// Weight-only quantisation is nothing but other weights.
#[test]
fn quantised_weights_compute_what_their_rounded_values_do() {
    for (component, graph) in graphs(Profile::Portable) {
        let values = weights(&graph);
        let shapes: HashMap<&str, &[usize]> =
            graph.weights().map(|w| (w.tensor.as_str(), w.shape.as_slice())).collect();
        let rounded = |name: &str| -> Vec<f32> {
            let values = values(name);
            let block = name.starts_with("transformer_blocks.") || name.starts_with("encoder.b");
            match shapes[name] {
                _ if name == "shared.weight" => {
                    values.iter().map(|x| half::f16::from_f32(*x).to_f32()).collect()
                }
                _ if name.contains("table") || name.contains("relative") => values,
                [_, columns] if block => {
                    values.chunks(*columns).flat_map(rounded_to_8_bits).collect()
                }
                _ => values,
            }
        };
        let inputs = inputs(component);
        let (_, expected) = run(&graph, &rounded, &inputs);
        let scheme = Scheme::Int8WeightOnly;
        let rewritten = apply(graph.clone(), component, Profile::Portable, scheme).unwrap();
        let (_, found) = run(&rewritten, &values, &inputs);
        let error = max_relative_error(&found, &expected);
        assert!(error < 1e-5, "{component}: {error:.1e}");

        let (_, unrounded) = run(&graph, &values, &inputs);
        let spared = component.source_folder() == "vae";
        assert_eq!(max_relative_error(&found, &unrounded) == 0.0, spared, "{component}");
    }
}

/// The same of one layer in blocks of 4 bits, which tract's operator can show (its scales are
/// rounded to 16 bits; the whole models are compared on ONNX Runtime elsewhere).
#[test]
fn a_layer_in_4_bits_computes_what_its_rounded_values_do() {
    let (rows, width, outputs) = (7, 96, 40);
    let linear = |scheme| {
        let mut b = GraphBuilder::new("test", Profile::Ort);
        let shape = vec![Dim::from(rows), Dim::from(width)];
        let x = b.input("x", DType::F32, shape).unwrap();
        let y = b.scoped("transformer_blocks.0.ff", |b| b.linear("net.2", &x, outputs, true));
        let shape = [Dim::from(rows), Dim::from(outputs)];
        b.output("y", &y.unwrap(), DType::F32, &shape).unwrap();
        apply(b.finish(), Component::Transformer, Profile::Ort, scheme).unwrap()
    };
    let weight = noise(3, outputs * width);
    let rounded: Vec<f32> = weight.chunks(32).flat_map(rounded_to_4_bits).collect();
    let of = |matrix: &[f32]| {
        let matrix = matrix.to_vec();
        move |name: &str| if name.ends_with("bias") { noise(5, outputs) } else { matrix.clone() }
    };
    let x = [floats(&[rows, width], &noise(4, rows * width))];
    let (_, expected) = run(&linear(Scheme::Fp32), &of(&rounded), &x);
    let (_, found) = run(&linear(Scheme::Int4), &of(&weight), &x);
    let error = max_relative_error(&found, &expected);
    assert!(error < 1e-3, "{error:.1e}");
}

/// Measured: 4.5e-3 in fp16, 6.4e-2 with 8-bit activations. These weights are far larger than
/// trained ones, and widths of 8 to 24 give few numbers to average over.
#[test]
fn rounded_arithmetic_computes_nearly_what_fp32_does() {
    for (scheme, allowed) in [(Scheme::Fp16, 1e-2), (Scheme::Int8Dynamic, 1.5e-1)] {
        for (component, graph) in graphs(Profile::Portable) {
            let inputs = inputs(component);
            let values = weights(&graph);
            let (shape, expected) = run(&graph, &values, &inputs);
            let rewritten = apply(graph.clone(), component, Profile::Portable, scheme).unwrap();
            let (found_shape, found) = run(&rewritten, &values, &inputs);
            assert_eq!(found_shape, shape);
            let error = max_relative_error(&found, &expected);
            assert!(error <= allowed, "{component} {scheme:?}: {error:.1e}");
            let spared = component.source_folder() == "vae" && scheme != Scheme::Fp16;
            assert_eq!(error == 0.0, spared, "{component} {scheme:?}");
        }
    }
}

/// The stream of a T5 XXL block and the products in it exceed what 16 bits hold.
#[test]
fn t5_with_numbers_above_65504_stays_finite_in_fp16() {
    let graph = text_encoder::build(&text_encoder_config(), Profile::Portable).unwrap();
    let values = weights(&graph);
    let large = |name: &str| -> Vec<f32> {
        let factor = match name {
            "shared.weight" => 1e4,
            _ if name.contains("wi_") => 1e3,
            _ if name.ends_with("wo.weight") => 1e3,
            _ => 1.0,
        };
        values(name).iter().map(|x| x * factor).collect()
    };
    let inputs = inputs(Component::TextEncoder);
    let (_, expected) = run(&graph, &large, &inputs);
    let fp16 =
        apply(graph.clone(), Component::TextEncoder, Profile::Portable, Scheme::Fp16).unwrap();
    let (_, found) = run(&fp16, &large, &inputs);
    let error = max_relative_error(&found, &expected);
    assert!(error < 5e-3, "{error:.1e}");

    // The gated product alone is beyond the largest number of 16 bits.
    let gate: Vec<f32> = large("encoder.block.0.layer.1.DenseReluDense.wi_0.weight");
    assert!(gate.iter().fold(0f32, |most, x| most.max(x.abs())).powi(2) > 65504.0);
}

/// The type of every value of a graph that has no bodies, by the casts in it.
fn types(graph: &Graph) -> HashMap<&str, DType> {
    let mut types: HashMap<&str, DType> = HashMap::new();
    types.extend(graph.inputs.iter().map(|input| (input.name.as_str(), input.dtype)));
    types.extend(graph.initializers.iter().map(|entry| (entry.name.as_str(), entry.dtype)));
    for node in &graph.nodes {
        let cast = node.attributes.iter().find_map(|(name, value)| match value {
            Attribute::Int(10) if name == "to" => Some(DType::F16),
            Attribute::Int(1) if name == "to" => Some(DType::F32),
            _ => None,
        });
        let dtype = cast.unwrap_or_else(|| types[node.inputs[0].as_str()]);
        types.extend(node.outputs.iter().map(|output| (output.as_str(), dtype)));
    }
    types
}

#[test]
fn fp16_computes_matrices_in_16_bits_and_streams_and_statistics_in_32() {
    let graph = transformer::build(&transformer_config(), Profile::Ort).unwrap();
    let graph = apply(graph, Component::Transformer, Profile::Ort, Scheme::Fp16).unwrap();
    let types = types(&graph);
    let of = |name: &str| types[name];
    assert_eq!(of("transformer_blocks.0.attn1.to_q/MatMul"), DType::F16);
    assert_eq!(of("transformer_blocks.0.attn1/MultiHeadAttention"), DType::F16);
    assert_eq!(of("transformer_blocks.1.ff.net.2/MatMul"), DType::F16);
    assert_eq!(of("proj_out/MatMul"), DType::F16);
    assert_eq!(of("transformer_blocks.0.norm1/LayerNormalization"), DType::F32);
    assert_eq!(of("transformer_blocks.0/Add_1"), DType::F32);
    assert_eq!(of("transformer_blocks.1.attn2/Softmax"), DType::F32);
    assert_eq!(of("pos_embed/Add"), DType::F32);
    for node in graph.nodes.iter().filter(|n| matches!(n.op_type.as_str(), "Sin" | "Cos")) {
        assert_eq!(of(&node.outputs[0]), DType::F32, "{}", node.name);
    }
    for entry in graph.initializers.iter().filter(|entry| entry.shape.len() == 2) {
        let table = entry.name.ends_with("scale_shift_table");
        let constant = entry.name.starts_with("constants.");
        assert!(table || constant || entry.dtype == DType::F16, "{}", entry.name);
    }
}

#[test]
fn the_released_models_have_their_blocks_quantised() {
    let config = TransformerConfig {
        num_layers: 28,
        num_attention_heads: 16,
        attention_head_dim: 72,
        caption_channels: 4096,
        ..transformer_config()
    };
    let count = |graph: &Graph, op: &str| graph.nodes.iter().filter(|n| n.op_type == op).count();
    let graph = transformer::build(&config, Profile::Ort).unwrap();
    let component = Component::Transformer;
    let int4 = apply(graph.clone(), component, Profile::Ort, Scheme::Int4).unwrap();
    assert_eq!(count(&int4, "MatMulNBits"), 280);
    let classes = summary(&int4);
    let codes = classes.iter().find(|class| class.stored_as.starts_with("4-bit")).unwrap();
    // Two attentions of four matrices and the feed-forward layer's two: 16 · 1152² a block.
    let numbers = 28 * 16 * 1152 * 1152;
    assert_eq!((codes.tensors, codes.parameters), (280, numbers));
    assert_eq!(codes.bytes, numbers / 2 + numbers / 32 * 4);
    assert_eq!(classes.iter().map(|class| class.parameters).sum::<u64>(), 610_856_096);

    let dynamic = apply(graph, component, Profile::Ort, Scheme::Int8Dynamic).unwrap();
    assert_eq!(count(&dynamic, "MatMulInteger"), 280);
    // Queries, keys and values of the self-attention share one; keys and values of the captions
    // share one for all blocks.
    assert_eq!(count(&dynamic, "DynamicQuantizeLinear"), 28 * 6 + 1);

    let graph = text_encoder::build(&released_text_encoder_config(), Profile::Ort).unwrap();
    let int8 = apply(graph, Component::TextEncoder, Profile::Ort, Scheme::Int8WeightOnly).unwrap();
    assert_eq!(count(&int8, "MatMulNBits"), 24 * 7);
    let table = int8.initializers.iter().find(|entry| entry.name == "shared.weight").unwrap();
    assert_eq!(table.dtype, DType::F16);
}
