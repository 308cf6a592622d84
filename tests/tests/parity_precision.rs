//! Every precision against the reference and against fp32, on both engines.
//!
//! Errors are max|a − b| / max|b|, the worst over all cases. What is allowed is two to three times
//! what was measured on ONNX Runtime 1.32 and tract 0.23 when these tests were written; the
//! measured numbers stand beside it. The fixtures have random weights and widths of 40 to 80, so
//! that a sum has few terms for errors to cancel in: their errors are larger than those of a
//! trained model, which the demo model shows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::ArrayD;
use pixart_exporter::{Component, ExportOptions, Int8Mode, Precision, Profile};
use pixart_runtime::engine::Engine;
use pixart_runtime::tensor::Tensor;
use pixart_tests::{
    component::{output, run},
    engines,
    errors::max_relative_error,
    exports::Export,
    fixtures::{self, Case},
};

const FP16: ExportOptions = of(Precision::Fp16, None);
const BF16: ExportOptions = of(Precision::Bf16, None);
const INT8: ExportOptions = of(Precision::Int8, Some(Int8Mode::WeightOnly));
const DYNAMIC: ExportOptions = of(Precision::Int8, Some(Int8Mode::Dynamic));
const INT4: ExportOptions = of(Precision::Int4, None);

const fn of(precision: Precision, int8_mode: Option<Int8Mode>) -> ExportOptions {
    ExportOptions { profile: Profile::Ort, precision, int8_mode, vae_precision: None, force: false }
}

/// The engines that run a graph. tract has 4 bits but not 8 in ONNX Runtime's own operator.
fn engines_for(options: &ExportOptions) -> Vec<Arc<dyn Engine>> {
    let fused = options.profile == Profile::Ort && options.int8_mode == INT8.int8_mode;
    if fused { vec![engines::ort()] } else { engines::both().to_vec() }
}

/// Runs every case in both profiles on all engines, and compares with the outputs in `cases`.
fn assert_errors(
    source: &Path,
    component: Component,
    cases: &BTreeMap<String, Case>,
    allowed: &[(ExportOptions, f64)],
) {
    let mut failures = Vec::new();
    for &(options, allowed) in allowed {
        let mut worst = 0.0f64;
        for profile in Profile::ALL {
            let options = ExportOptions { profile, ..options };
            let export = Export::with(source, component, &options);
            for engine in engines_for(&options) {
                let name = format!("{component} {options:?} on {}", engine.name());
                let mut session = engine
                    .load(&export.graph(component))
                    .unwrap_or_else(|error| panic!("{name}: {error}"));
                for (case, tensors) in cases {
                    let name = format!("{name}, {case}");
                    let expected = tensors[output(component)].as_f32().expect("floats");
                    let actual = run(&name, session.as_mut(), component, tensors);
                    let error = max_relative_error(&name, &actual, expected);
                    worst = worst.max(error);
                    if error > allowed {
                        failures.push(format!("{name}: {error:.1e}, allowed {allowed:.0e}"));
                    }
                }
            }
        }
        let mode = options.int8_mode.map(|mode| mode.to_string()).unwrap_or_default();
        println!("{component} {} {mode}: largest relative error {worst:.1e}", options.precision);
        assert!(worst > 1e-5, "{component} {options:?} rounds nothing");
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_256_pixel_transformer() {
    let cases = fixtures::cases("transformer_tiny.safetensors");
    let allowed = [(FP16, 9.9), (BF16, 9.9), (INT8, 9.9), (DYNAMIC, 9.9), (INT4, 9.9)];
    assert_errors(&fixtures::tiny(), Component::Transformer, &cases, &allowed);
}

#[test]
fn the_1024_pixel_transformer() {
    let cases = fixtures::cases("transformer_wide.safetensors");
    let allowed = [(FP16, 9.9), (BF16, 9.9), (INT8, 9.9), (DYNAMIC, 9.9), (INT4, 9.9)];
    assert_errors(&fixtures::wide(), Component::Transformer, &cases, &allowed);
}

#[test]
fn the_text_encoder() {
    let cases = fixtures::cases("text_encoder.safetensors");
    let allowed = [(FP16, 9.9), (BF16, 9.9), (INT8, 9.9), (INT4, 9.9)];
    assert_errors(&fixtures::tiny(), Component::TextEncoder, &cases, &allowed);
}

#[test]
fn the_vae_decoder() {
    let cases = fixtures::cases("vae_decoder.safetensors");
    let allowed = [(FP16, 9.9), (BF16, 9.9)];
    assert_errors(&fixtures::tiny(), Component::VaeDecoder, &cases, &allowed);
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo")
}

/// `count` reproducible numbers of a nearly normal distribution.
fn normal(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (0..12).map(|_| uniform()).sum()).collect()
}

fn floats(shape: &[usize], seed: u64) -> Tensor {
    let values = normal(seed, shape.iter().product());
    Tensor::F32(ArrayD::from_shape_vec(shape, values).expect("as many values as the shape"))
}

fn integers(shape: &[usize], values: Vec<i64>) -> Tensor {
    Tensor::I64(ArrayD::from_shape_vec(shape, values).expect("as many values as the shape"))
}

/// Inputs of the size that the demo model has in use, with the outputs of its fp32 graph.
fn demo_case(component: Component) -> BTreeMap<String, Case> {
    let mask: Vec<i64> = (0..48).map(|k| i64::from(k < 24 || k % 24 < 9)).collect();
    let inputs = match component {
        Component::Transformer => vec![
            ("hidden_states", floats(&[2, 4, 16, 16], 1)),
            ("encoder_hidden_states", floats(&[2, 24, 128], 2)),
            ("encoder_attention_mask", integers(&[2, 24], mask)),
            ("timestep", Tensor::F32(ndarray::arr1(&[900.0, 300.0]).into_dyn())),
        ],
        Component::TextEncoder => {
            let ids = (0..48).map(|k| (k * k * 31 + 7) % 160).collect();
            vec![
                ("input_ids", integers(&[2, 24], ids)),
                ("attention_mask", integers(&[2, 24], mask)),
            ]
        }
        _ => vec![("latent_sample", floats(&[1, 4, 16, 16], 3))],
    };
    let mut case: Case =
        inputs.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
    let export = Export::component(&demo(), component, Profile::Ort);
    let mut session = engines::ort().load(&export.graph(component)).expect("the fp32 graph loads");
    let expected = run("fp32", session.as_mut(), component, &case);
    case.insert(output(component).to_owned(), Tensor::F32(expected));
    BTreeMap::from([("demo".to_owned(), case)])
}

#[test]
fn the_demo_transformer() {
    let allowed = [(FP16, 9.9), (BF16, 9.9), (INT8, 9.9), (DYNAMIC, 9.9), (INT4, 9.9)];
    let component = Component::Transformer;
    assert_errors(&demo(), component, &demo_case(component), &allowed);
}

#[test]
fn the_demo_text_encoder() {
    let allowed = [(FP16, 9.9), (BF16, 9.9), (INT8, 9.9), (INT4, 9.9)];
    let component = Component::TextEncoder;
    assert_errors(&demo(), component, &demo_case(component), &allowed);
}

#[test]
fn the_demo_vae_decoder() {
    let allowed = [(FP16, 9.9), (BF16, 9.9)];
    let component = Component::VaeDecoder;
    assert_errors(&demo(), component, &demo_case(component), &allowed);
}
