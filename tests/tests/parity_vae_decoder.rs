//! The exported VAE decoder against diffusers, on both engines.

use pixart_exporter::Component;
use pixart_tests::{
    component::{assert_parity, assert_rows_are_independent},
    fixtures,
};

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
    assert_parity(fixtures::tiny_with_old_vae_names().path(), COMPONENT, FILE);
}
