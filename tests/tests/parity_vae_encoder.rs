//! The exported VAE encoder against diffusers, on both engines.

use pixart_exporter::Component;
use pixart_tests::{
    component::{assert_parity, assert_rows_are_independent},
    engines,
    exports::Export,
    fixtures,
};

const COMPONENT: Component = Component::VaeEncoder;
const FILE: &str = "vae_encoder_tiny.safetensors";

#[test]
fn every_case_equals_diffusers() {
    assert_parity(&fixtures::tiny(), COMPONENT, FILE);
}

#[test]
fn three_levels_without_quant_conv_equal_diffusers_and_nothing_is_clamped() {
    let file = "vae_encoder_wide.safetensors";
    assert_parity(&fixtures::wide(), COMPONENT, file);
    // Otherwise the comparison would say nothing about the clamp of the log-variance.
    for (case, tensors) in fixtures::cases(file) {
        let parameters = tensors["latent_parameters"].as_f32().expect("floats");
        let beyond = |past: &dyn Fn(&f32) -> bool| parameters.iter().any(past);
        assert!(beyond(&|x| *x > 20.0) && beyond(&|x| *x < -30.0), "{case}");
    }
}

#[test]
fn a_batch_of_two_equals_two_batches_of_one() {
    assert_rows_are_independent(&fixtures::tiny(), COMPONENT, FILE);
}

#[test]
fn the_old_names_of_the_attention_weights_are_read() {
    assert_parity(fixtures::tiny_with_old_vae_names().path(), COMPONENT, FILE);
}

#[test]
fn a_picture_whose_sides_do_not_fit_is_an_error() {
    let export = Export::component(&fixtures::tiny(), COMPONENT, engines::profiles()[0]);
    for engine in engines::both() {
        let mut session = engine.load(&export.graph(COMPONENT)).expect("loads");
        let picture = ndarray::Array4::<f32>::zeros((1, 3, 20, 20)).into();
        let error = session.run(&[("sample", &picture)]).expect_err("20 is no multiple of 8");
        assert!(error.to_string().contains("model.onnx"), "{error}");
    }
}
