//! Every variant of the transformer, from files with the original names, against diffusers or, for what
//! diffusers lacks, against a reference in torch.

use std::path::PathBuf;

use pixart_exporter::{Component, ExportOptions, KvSampling, Profile, VariantFlags};
use pixart_tests::{component::assert_parity_with, engines, exports::Export, fixtures};

const COMPONENT: Component = Component::Transformer;

fn file(name: &str) -> PathBuf {
    fixtures::root().join("variants").join(name)
}

/// The fixtures' heads are not 72 wide.
fn flags(sample_size: usize) -> VariantFlags {
    VariantFlags {
        sample_size: Some(sample_size),
        num_attention_heads: Some(2),
        ..VariantFlags::default()
    }
}

fn assert_variant(source: &str, cases: &str, variant: VariantFlags) {
    let options = ExportOptions { variant, ..ExportOptions::default() };
    let cases = format!("variants/{cases}_cases.safetensors");
    assert_parity_with(&file(source), COMPONENT, &cases, &options);
}

#[test]
fn alpha_with_its_size_conditions_equals_diffusers() {
    assert_variant("alpha.safetensors", "alpha", flags(128));
}

#[test]
fn alpha_in_the_diffusers_layout_needs_no_options() {
    assert_variant("alpha", "alpha", VariantFlags::default());
}

#[test]
fn compression_by_convolution_is_seen_from_the_tensors() {
    assert_variant("kv_conv.safetensors", "kv_conv", flags(64));
}

#[test]
fn normalised_queries_and_a_stored_position_table_are_seen_from_the_tensors() {
    let variant = VariantFlags { sample_size: None, ..flags(32) };
    assert_variant("qk_norm.safetensors", "qk_norm", variant);
}

#[test]
fn compression_without_tensors_comes_from_the_options() {
    for (sampling, factor, layers) in [
        (KvSampling::Ave, 2, vec![0, 1]),
        (KvSampling::Uniform, 3, vec![0]),
        (KvSampling::UniformEvery, 2, vec![1]),
    ] {
        let variant = VariantFlags {
            kv_compress_sampling: Some(sampling),
            kv_compress_scale_factor: Some(factor),
            kv_compress_layer: Some(layers),
            ..flags(32)
        };
        assert_variant("qk_norm.safetensors", &format!("qk_norm_{sampling}"), variant);
    }
}

#[test]
fn any_depth_is_seen_from_the_names() {
    assert_variant("depth_42.safetensors", "depth_42", flags(64));
}

#[test]
fn an_export_can_be_made_again_from_its_own_config() {
    // What the options said stands in the config that is written beside the graph.
    let variant = VariantFlags {
        kv_compress_sampling: Some(KvSampling::Uniform),
        kv_compress_scale_factor: Some(3),
        kv_compress_layer: Some(vec![0]),
        ..flags(32)
    };
    let options = ExportOptions { variant, ..ExportOptions::default() };
    let first = Export::component_with(&file("qk_norm.safetensors"), COMPONENT, &options);
    let folder = tempfile::tempdir().expect("a folder");
    let copy =
        |from: PathBuf, to: &str| std::fs::copy(from, folder.path().join(to)).expect("a copy");
    copy(first.path().join("transformer/config.json"), "config.json");
    copy(file("qk_norm.safetensors"), "diffusion_pytorch_model.safetensors");
    let second = Export::component(folder.path(), COMPONENT, Profile::default());
    let read = |export: &Export| std::fs::read(export.graph(COMPONENT)).expect("the graph");
    assert!(read(&first) == read(&second));
}

#[test]
fn all_layouts_of_the_same_weights_give_the_same_bytes() {
    for profile in engines::profiles() {
        let data = |source: &str, variant| {
            let options = ExportOptions { profile, variant, ..ExportOptions::default() };
            let export = Export::component_with(&file(source), COMPONENT, &options);
            ["model.onnx", "model.onnx_data"].map(|name| {
                std::fs::read(export.path().join("transformer").join(name)).expect("a file")
            })
        };
        let diffusers = data("alpha", VariantFlags::default());
        assert!(diffusers[1].len() > 100_000);
        for official in ["alpha.safetensors", "alpha.pth"] {
            assert!(data(official, flags(128)) == diffusers, "{official}, {profile}");
        }
        let written_by_torch = data("kv_conv.pth", flags(64));
        assert!(written_by_torch == data("kv_conv.safetensors", flags(64)), "{profile}");
    }
}
