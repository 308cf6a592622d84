//! The exported VAE decoder against diffusers, on both engines.

use std::fs;

use pixart_exporter::Component;
use pixart_tests::{
    binary::copy_folder,
    component::{assert_parity, assert_rows_are_independent},
    fixtures,
};
use safetensors::{SafeTensors, tensor::TensorView};

const COMPONENT: Component = Component::VaeDecoder;
const FILE: &str = "vae_decoder.safetensors";

#[test]
fn every_case_equals_diffusers() {
    assert_parity(&fixtures::tiny(), COMPONENT, FILE);
}

#[test]
fn a_batch_of_two_equals_two_batches_of_one() {
    assert_rows_are_independent(&fixtures::tiny(), COMPONENT, FILE);
}

#[test]
fn the_old_names_of_the_attention_weights_are_read() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let vae = folder.path().join("vae");
    copy_folder(&fixtures::tiny().join("vae"), &vae);
    let file = vae.join("diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&file).expect("the weights");
    let parsed = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let mut renamed = 0;
    let tensors: Vec<(String, TensorView)> = parsed
        .iter()
        .map(|(name, view)| {
            let old = ["to_q", "to_k", "to_v", "to_out.0"]
                .into_iter()
                .zip(["query", "key", "value", "proj_attn"])
                .fold(name.to_owned(), |name, (new, old)| name.replace(new, old));
            renamed += usize::from(old != name);
            (old, view)
        })
        .collect();
    assert_eq!(renamed, 16, "four matrices with bias in the encoder and in the decoder");
    fs::write(&file, safetensors::serialize(tensors, None).expect("bytes")).expect("written");
    assert_parity(folder.path(), COMPONENT, FILE);
}
