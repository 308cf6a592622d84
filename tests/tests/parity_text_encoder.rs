//! The exported T5 encoder against transformers, on both engines.

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

const COMPONENT: Component = Component::TextEncoder;
const FILE: &str = "text_encoder.safetensors";

#[test]
fn every_case_equals_transformers() {
    assert_parity(&fixtures::tiny(), COMPONENT, FILE);
}

#[test]
fn a_batch_of_two_equals_two_batches_of_one() {
    assert_rows_are_independent(&fixtures::tiny(), COMPONENT, FILE);
}

#[test]
fn a_trimmed_caption_has_the_states_of_the_padded_one() {
    const TRIMMED: usize = 24;
    let mut padded = fixtures::cases(FILE).remove("padded_to_300").expect("the case");
    let whole = padded.remove("last_hidden_state").and_then(|t| t.into_f32("states").ok());
    let whole = whole.expect("states");
    let kept = Slice::from(..TRIMMED);
    for tensor in padded.values_mut() {
        let ids = tensor.as_i64().expect("ids and masks are integers");
        *tensor = Tensor::I64(ids.slice_axis(Axis(1), kept).to_owned());
    }
    // States of padded positions count too: mindone's unconditional half reads them.
    let expected = whole.slice_axis(Axis(1), kept).to_owned();
    for profile in engines::profiles() {
        let export = Export::component(&fixtures::tiny(), COMPONENT, profile);
        for engine in engines::both() {
            let name = format!("trimmed to {TRIMMED}, {profile} on {}", engine.name());
            let mut session = engine.load(&export.graph(COMPONENT)).expect("the graph loads");
            let actual = run(&name, session.as_mut(), COMPONENT, &padded);
            assert_close(&name, &actual, &expected, 1e-4);
        }
    }
}
