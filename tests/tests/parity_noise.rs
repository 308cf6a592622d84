//! Noise against torch, bit for bit.

use pixart_runtime::noise::TorchGenerator;
use pixart_tests::fixtures;

#[test]
fn every_seed_and_size_equals_torch_bit_for_bit() {
    let cases = fixtures::cases("noise.safetensors");
    let mut compared = 0;
    for (seed, sizes) in cases.iter().filter(|(seed, _)| seed.parse::<u64>().is_ok()) {
        for (size, expected) in sizes {
            let count = size.parse().expect("tensors are named seed/size");
            let actual = TorchGenerator::new(seed.parse().expect("a seed")).randn(count);
            assert_bits(&format!("seed {seed}, {size} values"), &actual, expected);
            compared += 1;
        }
    }
    assert_eq!(compared, 60);
}

#[test]
fn draws_that_follow_one_another_equal_torch_bit_for_bit() {
    let cases = fixtures::cases("noise.safetensors");
    let mut generator = TorchGenerator::new(42);
    for (index, expected) in &cases["sequence of 42"] {
        let actual = generator.randn(expected.shape()[0]);
        assert_bits(&format!("draw {index} of seed 42"), &actual, expected);
    }
}

fn assert_bits(case: &str, actual: &[f32], expected: &pixart_runtime::tensor::Tensor) {
    let expected = expected.as_f32().expect("floats");
    assert_eq!(actual.len(), expected.len(), "{case}: number of values");
    for (k, (a, b)) in actual.iter().zip(expected).enumerate() {
        assert_eq!(a.to_bits(), b.to_bits(), "{case}: value {k} is {a:e}, torch has {b:e}");
    }
}
