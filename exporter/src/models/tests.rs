//! The whole graphs: what they ask of a checkpoint, and that all profiles compute the same.

use super::{
    position::position_table, text_encoder, timestep::timestep_sinusoid, transformer, vae,
};
use crate::graph::dim::{Dim, display_shape};
use crate::graph::ir::{DType, Graph, ValueInfo, WeightRef};
use crate::graph::run::{floats, integers, noise, run};
use crate::graph::slice::{self, Blocks, Ends};
use crate::graph::{GraphBuilder, GraphErrorKind};
use crate::naming::{KvCompression, KvSampling, TextEncoderConfig, TransformerConfig, VaeConfig};
use crate::profile::Profile;

pub(crate) fn transformer_config() -> TransformerConfig {
    TransformerConfig {
        sample_size: 32,
        interpolation_scale: 0.5,
        num_layers: 2,
        num_attention_heads: 2,
        attention_head_dim: 6,
        in_channels: 4,
        out_channels: 8,
        patch_size: 2,
        caption_channels: 10,
        norm_eps: 1e-6,
        use_additional_conditions: false,
        qk_norm: false,
        kv_compression: None,
    }
}

pub(crate) fn text_encoder_config() -> TextEncoderConfig {
    TextEncoderConfig {
        d_model: 8,
        num_layers: 2,
        num_heads: 2,
        d_kv: 3,
        d_ff: 12,
        vocab_size: 20,
        relative_attention_num_buckets: 32,
        relative_attention_max_distance: 128,
        layer_norm_epsilon: 1e-6,
    }
}

/// T5 v1.1 XXL.
pub(crate) fn released_text_encoder_config() -> TextEncoderConfig {
    TextEncoderConfig {
        d_model: 4096,
        num_layers: 24,
        num_heads: 64,
        d_kv: 64,
        d_ff: 10240,
        vocab_size: 32128,
        ..text_encoder_config()
    }
}

pub(crate) fn vae_config() -> VaeConfig {
    VaeConfig {
        latent_channels: 4,
        in_channels: 3,
        out_channels: 3,
        block_out_channels: vec![4, 8, 8, 8],
        layers_per_block: 2,
        norm_num_groups: 2,
        scaling_factor: 0.13025,
        use_quant_conv: true,
        use_post_quant_conv: true,
        mid_block_add_attention: true,
    }
}

/// Reproducible weights for a graph, by the name of the tensor.
pub(crate) fn weights(graph: &Graph) -> impl Fn(&str) -> Vec<f32> + '_ {
    // Profiles differ in how many initializers they make of a tensor.
    let mut tensors: Vec<&WeightRef> = graph.weights().collect();
    tensors.dedup_by_key(|weight| &weight.tensor);
    move |name| {
        let index = tensors.iter().position(|weight| weight.tensor == name).unwrap();
        noise(index as u32 + 1, tensors[index].shape.iter().product())
    }
}

fn names(graph: &Graph) -> Vec<&str> {
    graph.weights().map(|weight| weight.tensor.as_str()).collect()
}

pub(crate) fn max_relative_error(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().chain(b).all(|x| x.is_finite()));
    let scale = b.iter().fold(0f32, |max, x| max.max(x.abs()));
    a.iter().zip(b).fold(0f32, |max, (x, y)| max.max((x - y).abs())) / scale
}

#[test]
fn the_released_transformer_has_603_tensors() {
    let config = TransformerConfig {
        num_layers: 28,
        num_attention_heads: 16,
        attention_head_dim: 72,
        caption_channels: 4096,
        ..transformer_config()
    };
    let graph = transformer::build(&config, Profile::Ort).unwrap();
    assert_eq!(graph.weights().count(), 603);
    let numbers: usize = graph.weights().map(|w| w.shape.iter().product::<usize>()).sum();
    assert_eq!(numbers, 610_856_096);
    let find = |name: &str| graph.weights().find(|w| w.tensor == name).unwrap().shape.clone();
    assert_eq!(find("transformer_blocks.27.ff.net.2.weight"), [1152, 4608]);
    assert_eq!(find("adaln_single.linear.weight"), [6912, 1152]);
    assert_eq!(find("proj_out.weight"), [32, 1152]);
}

#[test]
fn the_released_text_encoder_has_219_tensors() {
    let config = released_text_encoder_config();
    let graph = text_encoder::build(&config, Profile::Portable).unwrap();
    assert_eq!(graph.weights().count(), 219);
    let numbers: usize = graph.weights().map(|w| w.shape.iter().product::<usize>()).sum();
    assert_eq!(numbers, 4_762_310_656);

    assert!(Profile::Portable.notes(&graph).is_empty());
    let notes = Profile::Cann.notes(&text_encoder::build(&config, Profile::Cann).unwrap());
    assert!(notes[0].contains("CANN provider compiles at most 2147483647"), "{notes:?}");
    let small = text_encoder::build(&text_encoder_config(), Profile::Cann).unwrap();
    assert!(Profile::Cann.notes(&small).is_empty());
}

#[test]
fn the_decoder_asks_for_its_half_of_the_auto_encoder() {
    let config = VaeConfig {
        block_out_channels: vec![128, 256, 512, 512],
        norm_num_groups: 32,
        ..vae_config()
    };
    let graph = vae::build_decoder(&config, Profile::Ort).unwrap();
    let mut names = names(&graph);
    // Four initializers are made of each kernel that goes over an enlarged picture.
    assert_eq!(names.len(), 140 + 3 * 3);
    names.dedup();
    assert!(names.iter().all(|n| n.starts_with("decoder.") || n.starts_with("post_quant_conv.")));
    // 248 in the file; 106 of the encoder and 4 of the quant convolutions, two of which are read.
    assert_eq!(names.len(), 140);
    assert!(names.contains(&"decoder.up_blocks.2.resnets.0.conv_shortcut.weight"));
    assert!(names.contains(&"decoder.mid_block.attentions.0.to_out.0.bias"));
    assert_eq!(graph.outputs[0].shape[2].to_string(), "8*height");
}

#[test]
fn the_encoder_asks_for_the_other_half() {
    let config = VaeConfig {
        block_out_channels: vec![128, 256, 512, 512],
        norm_num_groups: 32,
        ..vae_config()
    };
    let graph = vae::build_encoder(&config, Profile::Ort).unwrap();
    let found = names(&graph);
    assert!(found.iter().all(|n| n.starts_with("encoder.") || n.starts_with("quant_conv.")));
    assert_eq!(found.len(), 108);
    assert!(found.contains(&"encoder.down_blocks.1.resnets.0.conv_shortcut.weight"));
    assert!(found.contains(&"encoder.down_blocks.2.downsamplers.0.conv.bias"));
    let shape = |info: &ValueInfo| display_shape(&info.shape);
    assert_eq!(shape(&graph.inputs[0]), "[batch_size, 3, height, width]");
    assert_eq!(shape(&graph.outputs[0]), "[batch_size, 8, height/8, width/8]");
    let bare = VaeConfig { use_quant_conv: false, ..config };
    let graph = vae::build_encoder(&bare, Profile::Ort).unwrap();
    assert_eq!(names(&graph).len(), 106);
    assert_eq!(shape(&graph.outputs[0]), "[batch_size, 8, height/8, width/8]");
}

#[test]
fn only_the_ort_profile_leaves_the_standard_set() {
    for profile in Profile::ALL {
        let graphs = [
            transformer::build(&transformer_config(), profile).unwrap(),
            text_encoder::build(&text_encoder_config(), profile).unwrap(),
            vae::build_decoder(&vae_config(), profile).unwrap(),
            vae::build_encoder(&vae_config(), profile).unwrap(),
        ];
        for graph in graphs {
            let foreign: Vec<&str> =
                graph.opset_imports.iter().map(|set| set.domain.as_str()).skip(1).collect();
            let text = graph.name == "text_encoder";
            let expected: &[&str] =
                if profile == Profile::Ort && !text { &["com.microsoft"] } else { &[] };
            assert_eq!(foreign, expected, "{} {profile}", graph.name);
        }
    }
}

/// Every operator is claimed by ONNX Runtime's CANN provider, and none is a constant: it leaves
/// nodes that read initializers only to the processor.
#[test]
fn the_cann_profile_has_nothing_that_the_provider_leaves_to_the_processor() {
    let graphs = |profile| {
        [
            transformer::build(&transformer_config(), profile).unwrap(),
            text_encoder::build(&text_encoder_config(), profile).unwrap(),
            vae::build_decoder(&vae_config(), profile).unwrap(),
            vae::build_encoder(&vae_config(), profile).unwrap(),
        ]
    };
    for graph in graphs(Profile::Cann) {
        Profile::Cann.check(&graph).unwrap_or_else(|error| panic!("{}: {error}", graph.name));
        assert_eq!(graph.opset_imports.len(), 1);
        assert_eq!((graph.opset_imports[0].version, graph.ir_version), (13, 7));
        let constants: Vec<&str> = graph.initializers.iter().map(|i| i.name.as_str()).collect();
        for node in &graph.nodes {
            let variable = node.inputs.iter().any(|input| !constants.contains(&input.as_str()));
            assert!(variable, "{}: {} reads constants only", graph.name, node.name);
        }
    }
    for graph in graphs(Profile::Portable) {
        let error = Profile::Cann.check(&graph).unwrap_err();
        assert_eq!(error.kind, GraphErrorKind::Operator, "{error}");
    }
    let [transformer, text_encoder, ..] = graphs(Profile::Ort);
    let error = Profile::Cann.check(&transformer).unwrap_err().to_string();
    assert!(error.contains("caption_projection/Gelu"), "{error}");
    assert!(Profile::Cann.check(&text_encoder).is_err());
}

#[test]
fn a_configuration_that_does_not_fit_names_the_node() {
    let odd = TransformerConfig { attention_head_dim: 7, ..transformer_config() };
    let error = transformer::build(&odd, Profile::Ort).unwrap_err();
    assert_eq!(error.kind, GraphErrorKind::Divisibility);
    assert!(error.node.starts_with("pos_embed"), "{error}");

    let groups = VaeConfig { norm_num_groups: 3, ..vae_config() };
    let error = vae::build_decoder(&groups, Profile::Ort).unwrap_err();
    assert!(error.node.starts_with("decoder.mid_block.resnets.0.norm1"), "{error}");

    let distance =
        TextEncoderConfig { relative_attention_max_distance: usize::MAX, ..text_encoder_config() };
    let error = text_encoder::build(&distance, Profile::Ort).unwrap_err();
    assert!(error.to_string().contains("relative_attention_bias"), "{error}");
}

#[test]
fn the_transformer_is_the_same_in_all_profiles() {
    // Batch, height, width, caption tokens. The largest takes several portions of queries.
    for (batch, height, width, length) in [(1, 8, 8, 3), (2, 6, 10, 5), (1, 88, 94, 2)] {
        let mut mask = vec![1; batch * length];
        mask[length - 1] = 0;
        let inputs = [
            floats(&[batch, 4, height, width], &noise(1, batch * 4 * height * width)),
            floats(&[batch, length, 10], &noise(2, batch * length * 10)),
            integers(&[batch, length], &mask),
            floats(
                &[batch],
                &noise(3, batch).iter().map(|x| 500.0 + 499.0 * x).collect::<Vec<_>>(),
            ),
        ];
        let outputs = Profile::ALL.map(|profile| {
            let graph = transformer::build(&transformer_config(), profile).unwrap();
            run(&graph, &weights(&graph), &inputs)
        });
        assert_eq!(outputs[0].0, [batch, 8, height, width]);
        for (profile, other) in Profile::ALL.iter().zip(&outputs).skip(1) {
            assert!(max_relative_error(&outputs[0].1, &other.1) < 1e-4, "{profile}");
        }
    }
}

#[test]
fn compressed_keys_are_the_same_in_every_profile() {
    // Odd grids, and one whose queries take several portions.
    for (sampling, scale_factor) in [
        (KvSampling::Conv, 2),
        (KvSampling::Ave, 2),
        (KvSampling::Uniform, 3),
        (KvSampling::UniformEvery, 2),
    ] {
        let kv = KvCompression { sampling, scale_factor, layers: [1].into() };
        let config =
            TransformerConfig { kv_compression: Some(kv), qk_norm: true, ..transformer_config() };
        for (batch, height, width) in [(2, 6, 10), (1, 58, 124)] {
            let inputs = [
                floats(&[batch, 4, height, width], &noise(1, batch * 4 * height * width)),
                floats(&[batch, 2, 10], &noise(2, batch * 2 * 10)),
                integers(&[batch, 2], &vec![1; batch * 2]),
                floats(&[batch], &vec![500.0; batch]),
            ];
            let outputs = Profile::ALL.map(|profile| {
                let graph = transformer::build(&config, profile).unwrap();
                run(&graph, &weights(&graph), &inputs)
            });
            for output in &outputs {
                assert_eq!(output.0, [batch, 8, height, width]);
                let error = max_relative_error(&output.1, &outputs[0].1);
                assert!(error < 1e-4, "{sampling} {batch} {height} {width}: {error}");
            }
        }
    }
}

#[test]
fn variants_ask_for_their_own_tensors_and_inputs() {
    let kv = KvCompression { sampling: KvSampling::Conv, scale_factor: 4, layers: [1].into() };
    let config = TransformerConfig {
        kv_compression: Some(kv),
        qk_norm: true,
        use_additional_conditions: true,
        ..transformer_config()
    };
    let plain = transformer::build(&transformer_config(), Profile::Ort).unwrap();
    let graph = transformer::build(&config, Profile::Ort).unwrap();
    let own: Vec<String> = graph
        .weights()
        .filter(|weight| !names(&plain).contains(&weight.tensor.as_str()))
        .map(|weight| format!("{} {:?}", weight.tensor, weight.shape))
        .collect();
    assert_eq!(own.len(), 8 + 2 * 4 + 4, "{own:?}");
    assert!(own.contains(&"transformer_blocks.1.attn1.sr.weight [12, 1, 4, 4]".to_owned()));
    assert!(!own.iter().any(|tensor| tensor.starts_with("transformer_blocks.0.attn1.sr")));
    let third = "adaln_single.emb.resolution_embedder.linear_2.weight [4, 4]";
    assert!(own.contains(&third.to_owned()), "{own:?}");
    let inputs: Vec<&str> = graph.inputs.iter().map(|input| input.name.as_str()).collect();
    assert_eq!(inputs[4..], ["resolution", "aspect_ratio"]);
    assert_eq!(plain.inputs.len(), 4);
}

#[test]
fn padding_changes_nothing_and_nothing_but_padding_is_finite() {
    let graph = transformer::build(&transformer_config(), Profile::Portable).unwrap();
    let caption = noise(2, 3 * 10);
    let of = |caption: &[f32], mask: &[i64]| {
        let length = mask.len();
        let inputs = [
            floats(&[1, 4, 4, 4], &noise(1, 64)),
            floats(&[1, length, 10], caption),
            integers(&[1, length], mask),
            floats(&[1], &[949.05]),
        ];
        run(&graph, &weights(&graph), &inputs).1
    };
    let padded = of(&[&caption[..], &noise(9, 50)].concat(), &[1, 1, 1, 0, 0, 0, 0, 0]);
    assert!(max_relative_error(&padded, &of(&caption, &[1, 1, 1])) < 1e-6);
    assert!(of(&caption, &[0, 0, 0]).iter().all(|x| x.is_finite()));
}

#[test]
fn the_text_encoder_ignores_padding() {
    for profile in Profile::ALL {
        let graph = text_encoder::build(&text_encoder_config(), profile).unwrap();
        let of = |ids: &[i64], mask: &[i64]| {
            let shape = [1, ids.len()];
            run(&graph, &weights(&graph), &[integers(&shape, ids), integers(&shape, mask)])
        };
        let (shape, short) = of(&[5, 7, 1], &[1, 1, 1]);
        assert_eq!(shape, [1, 3, 8]);
        let (_, long) = of(&[5, 7, 1, 0, 9], &[1, 1, 1, 0, 0]);
        assert!(max_relative_error(&long[..24], &short) < 1e-5);
        let (_, other) = of(&[5, 7, 1, 0, 9], &[1, 1, 1, 0, 1]);
        assert!(max_relative_error(&other[..24], &short) > 1e-3);
    }
}

#[test]
fn the_decoder_is_the_same_in_all_profiles() {
    for (batch, height, width) in [(1, 4, 4), (2, 3, 5), (1, 54, 55)] {
        let input = floats(&[batch, 4, height, width], &noise(1, batch * 4 * height * width));
        let outputs = Profile::ALL.map(|profile| {
            let graph = vae::build_decoder(&vae_config(), profile).unwrap();
            run(&graph, &weights(&graph), std::slice::from_ref(&input))
        });
        assert_eq!(outputs[0].0, [batch, 3, 8 * height, 8 * width]);
        for (profile, other) in Profile::ALL.iter().zip(&outputs).skip(1) {
            assert!(max_relative_error(&outputs[0].1, &other.1) < 1e-4, "{profile}");
        }
    }
}

#[test]
fn the_encoder_is_the_same_in_both_profiles() {
    for (batch, height, width) in [(1, 32, 32), (2, 24, 40), (1, 264, 256)] {
        let input = floats(&[batch, 3, height, width], &noise(1, batch * 3 * height * width));
        let outputs = Profile::ALL.map(|profile| {
            let graph = vae::build_encoder(&vae_config(), profile).unwrap();
            run(&graph, &weights(&graph), std::slice::from_ref(&input))
        });
        assert_eq!(outputs[0].0, [batch, 8, height / 8, width / 8]);
        assert!(max_relative_error(&outputs[0].1, &outputs[1].1) < 1e-4);
    }
}

/// The weights of the blocks at the ends of a model of `count`, under the names of a model that has
/// only these.
fn ends_of<'a>(
    weights: impl Fn(&str) -> Vec<f32> + 'a,
    prefix: &'a str,
    kept: Ends,
    count: usize,
) -> impl Fn(&str) -> Vec<f32> + 'a {
    move |name| {
        let inner = name.strip_prefix(prefix).and_then(|rest| rest.split_once('.'));
        match inner.map(|(index, rest)| (index.parse::<usize>().unwrap(), rest)) {
            Some((index, rest)) if index >= kept.first => {
                let index = count - kept.last - kept.first + index;
                weights(&format!("{prefix}{index}.{rest}"))
            }
            _ => weights(name),
        }
    }
}

#[test]
fn a_model_without_its_middle_is_the_model_with_fewer_blocks() {
    let transformer_inputs = [
        floats(&[1, 4, 4, 6], &noise(1, 96)),
        floats(&[1, 3, 10], &noise(2, 30)),
        integers(&[1, 3], &[1, 1, 0]),
        floats(&[1], &[321.5]),
    ];
    let text_inputs = [integers(&[1, 4], &[5, 7, 1, 0]), integers(&[1, 4], &[1, 1, 1, 0])];
    type Build = Box<dyn Fn(usize, Profile) -> Graph>;
    let transformer: Build = Box::new(|num_layers, profile| {
        let config = TransformerConfig { num_layers, ..transformer_config() };
        transformer::build(&config, profile).unwrap()
    });
    let text: Build = Box::new(|num_layers, profile| {
        let config = TextEncoderConfig { num_layers, ..text_encoder_config() };
        text_encoder::build(&config, profile).unwrap()
    });
    let cases: [(Build, &str, &[_]); 2] = [
        (transformer, "transformer_blocks.", &transformer_inputs),
        (text, "encoder.block.", &text_inputs),
    ];
    for (build, prefix, inputs) in cases {
        for profile in Profile::ALL {
            let whole = build(7, profile);
            let blocks = Blocks::of(&whole).unwrap();
            assert_eq!(blocks.count, 7);
            let (_, complete) = run(&whole, &weights(&whole), inputs);
            for (first, last) in [(1, 1), (2, 2), (3, 3), (1, 0), (2, 1)] {
                let kept = Ends { first, last };
                let part = slice::ends(&whole, &blocks, kept).unwrap();
                let short = build(first + last, profile);
                assert_eq!(part.nodes.len(), short.nodes.len(), "{prefix} {kept:?} {profile}");
                assert_eq!(names(&part).len(), names(&short).len());
                let (_, found) = run(&part, &weights(&whole), inputs);
                let renamed = ends_of(weights(&whole), prefix, kept, 7);
                assert_eq!(found, run(&short, &renamed, inputs).1, "{prefix} {kept:?} {profile}");
                assert_ne!(found, complete);
            }
            for (first, last) in [(4, 3), (4, 4), (0, 2), (7, 0)] {
                assert_eq!(slice::ends(&whole, &blocks, Ends { first, last }), None);
            }
        }
    }
    let vae = vae::build_decoder(&vae_config(), Profile::Ort).unwrap();
    assert_eq!(Blocks::of(&vae), None);
}

/// Numbers of the released models, computed by the reference.
#[test]
fn positions_and_times_are_those_of_the_reference() {
    let mut b = GraphBuilder::new("test", Profile::Portable);
    let (h, w) = (Dim::symbol("h"), Dim::symbol("w"));
    let _ = b.input("grid", DType::F32, vec![h.clone(), w.clone()]).unwrap();
    let table = position_table(&mut b, &h, &w, 1152, 64, 2.0).unwrap();
    b.output("table", &table, DType::F32, &[&h * &w, 1152.into()]).unwrap();
    let none = |_: &str| Vec::new();
    let (shape, table) = run(&b.finish(), &none, &[floats(&[3, 5], &[0.0; 15])]);
    assert_eq!(shape, [15, 1152]);
    let entries = [0, 1, 288, 576, 577, 864];
    let expected = [
        (1, [0.116549, -0.08452, 0.993185, 0.0, 0.0, 1.0]),
        (5, [0.0, 0.0, 1.0, -0.946396, -0.787143, -0.323009]),
    ];
    for (token, values) in expected {
        for (entry, value) in entries.iter().zip(values) {
            let found: f32 = table[token * 1152 + entry];
            assert!((found - value).abs() < 2e-6, "{token} {entry}: {found}, expected {value}");
        }
    }

    let mut b = GraphBuilder::new("test", Profile::Portable);
    let time = b.input("timestep", DType::F32, vec![Dim::symbol("batch_size")]).unwrap();
    let x = timestep_sinusoid(&mut b, &time).unwrap();
    b.output("x", &x, DType::F32, &[Dim::symbol("batch_size"), 256.into()]).unwrap();
    let (_, x) = run(&b.finish(), &none, &[floats(&[1], &[999.0])]);
    let expected = [
        (0, 0.99965f32),
        (1, 0.963785),
        (2, -0.399021),
        (127, 0.994243),
        (128, -0.026461),
        (129, -0.266679),
        (255, 0.107147),
    ];
    for (entry, value) in expected {
        assert!((x[entry] - value).abs() < 2e-6, "{entry}: {}, expected {value}", x[entry]);
    }
}
