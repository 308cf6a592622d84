//! The exported transformer against diffusers, on both engines.

use ndarray::{Axis, Slice};
use pixart_exporter::Component;
use pixart_runtime::tensor::Tensor;
use pixart_tests::{
    component::{assert_parity, assert_rows_are_independent, run},
    engines,
    errors::assert_close,
    exports::Export,
    fixtures,
};

const COMPONENT: Component = Component::Transformer;
const TINY: &str = "transformer_tiny.safetensors";

#[test]
fn the_256_pixel_family_equals_diffusers() {
    assert_parity(&fixtures::tiny(), COMPONENT, TINY);
}

#[test]
fn the_1024_pixel_family_equals_diffusers() {
    assert_parity(&fixtures::wide(), COMPONENT, "transformer_wide.safetensors");
}

#[test]
fn a_batch_of_two_equals_two_batches_of_one() {
    assert_rows_are_independent(&fixtures::tiny(), COMPONENT, TINY);
}

#[test]
fn a_trimmed_caption_gives_the_noise_of_the_padded_one() {
    const TRIMMED: usize = 24;
    let mut case = fixtures::cases(TINY).remove("padded_to_300").expect("the case");
    let expected = case.remove("out_hidden_states").and_then(|t| t.into_f32("noise").ok());
    let expected = expected.expect("noise");
    let kept = Slice::from(..TRIMMED);
    for name in ["encoder_hidden_states", "encoder_attention_mask"] {
        let trimmed = match &case[name] {
            Tensor::F32(array) => Tensor::F32(array.slice_axis(Axis(1), kept).to_owned()),
            Tensor::I64(array) => Tensor::I64(array.slice_axis(Axis(1), kept).to_owned()),
        };
        case.insert(name.to_owned(), trimmed);
    }
    for profile in engines::profiles() {
        let export = Export::component(&fixtures::tiny(), COMPONENT, profile);
        for engine in engines::both() {
            let name = format!("trimmed to {TRIMMED}, {profile} on {}", engine.name());
            let mut session = engine.load(&export.graph(COMPONENT)).expect("the graph loads");
            let actual = run(&name, session.as_mut(), COMPONENT, &case);
            assert_close(&name, &actual, &expected, 1e-4);
        }
    }
}
