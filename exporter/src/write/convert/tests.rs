use half::{bf16, f16};

use super::quantise::{BLOCK, block_bytes};
use super::*;
use crate::checkpoint::Dtype;
use crate::graph::ir::Phase;

/// More elements than a chunk has.
const LONG: usize = chunks::CHUNK + 1500;

fn bytes_of(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let encode = |value: &f32| match dtype {
        Dtype::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    };
    values.iter().flat_map(encode).collect()
}

/// Every value is exact in all three widths.
fn ramp(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i % 255) as f32 - 127.0).collect()
}

/// Values with nothing regular about them, of the size that weights have.
fn noise(count: usize) -> Vec<f32> {
    crate::graph::run::noise(7, count).iter().map(|x| x * x * x * 0.1).collect()
}

fn converted(
    (dtype, shape, bytes): (Dtype, &[usize], &[u8]),
    transform: Transform,
    to: DType,
) -> Result<Vec<u8>, Stop<std::convert::Infallible>> {
    let view = TensorView { dtype, shape: shape.into(), bytes: bytes.into() };
    let mut all = Vec::new();
    convert(&view, transform, to, &mut all).map(|()| all)
}

fn of_floats(shape: &[usize], values: &[f32], transform: Transform, to: DType) -> Vec<u8> {
    converted((Dtype::F32, shape, &bytes_of(Dtype::F32, values)), transform, to).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn halves(bytes: &[u8]) -> Vec<u16> {
    bytes.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect()
}

#[test]
fn widening_is_exact_across_chunks() {
    let values = ramp(LONG);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let bytes = bytes_of(dtype, &values);
        let found =
            converted((dtype, &[values.len()], &bytes), Transform::None, DType::F32).unwrap();
        assert!(floats(&found) == values, "{dtype}");
    }
}

#[test]
fn transposes_match_the_definition() {
    // The last shape has more rows than a chunk has elements for 16 columns.
    for (rows, columns) in [(1, 7), (7, 1), (5, 3), (16, 16), (300, 1000), (40_000, 19)] {
        let values = ramp(rows * columns);
        let expected: Vec<f32> = (0..columns)
            .flat_map(|column| (0..rows).map(move |row| (row, column)))
            .map(|(row, column)| values[row * columns + column])
            .collect();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let bytes = bytes_of(dtype, &values);
            let tensor = (dtype, &[rows, columns][..], &bytes[..]);
            let found = converted(tensor, Transform::Transpose2d, DType::F32).unwrap();
            assert!(floats(&found) == expected, "{rows}x{columns} {dtype}");
            let found = converted(tensor, Transform::Transpose2d, DType::F16).unwrap();
            assert!(found == bytes_of(Dtype::F16, &expected), "{rows}x{columns} {dtype} to f16");
        }
    }
}

#[test]
fn phases_of_a_kernel_are_sums_of_its_taps() {
    // Every tap is another power of two, so a sum tells what is in it.
    let kernel: Vec<f32> = (0..9).map(|tap| (1 << tap) as f32).collect();
    let taps = |taps: &[i32]| taps.iter().map(|tap| 1 << tap).sum::<i32>() as f32;
    let cases = [
        [taps(&[0]), taps(&[1, 2]), taps(&[3, 6]), taps(&[4, 5, 7, 8])],
        [taps(&[0, 1]), taps(&[2]), taps(&[3, 4, 6, 7]), taps(&[5, 8])],
        [taps(&[0, 3]), taps(&[1, 2, 4, 5]), taps(&[6]), taps(&[7, 8])],
        [taps(&[0, 1, 3, 4]), taps(&[2, 5]), taps(&[6, 7]), taps(&[8])],
    ];
    // More kernels than a chunk has.
    let (out, inner) = (300, 301);
    let values: Vec<f32> = (0..out * inner)
        .flat_map(|k| kernel.iter().map(move |tap| tap * (1 << (k % 3)) as f32))
        .collect();
    for (phase, case) in Phase::ALL.into_iter().zip(cases) {
        let expected: Vec<f32> =
            (0..out * inner).flat_map(|k| case.map(|sum| sum * (1 << (k % 3)) as f32)).collect();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let bytes = bytes_of(dtype, &values);
            let tensor = (dtype, &[out, inner, 3, 3][..], &bytes[..]);
            let found = converted(tensor, Transform::Phase(phase), DType::F32).unwrap();
            assert!(floats(&found) == expected, "{phase:?} {dtype}");
            let found = converted(tensor, Transform::Phase(phase), DType::F16).unwrap();
            assert!(found == bytes_of(Dtype::F16, &expected), "{phase:?} {dtype} to f16");
        }
    }
}

/// 1 + 2⁻²⁴ + 2⁻²⁴ is 1 in floats, one after the other.
#[test]
fn phases_are_rounded_once() {
    let mut values = vec![0.0; 9];
    (values[4], values[5], values[7]) = (1.0, 2f32.powi(-24), 2f32.powi(-24));
    let upper_left = Transform::Phase(Phase::ALL[0]);
    let found = floats(&of_floats(&[1, 1, 3, 3], &values, upper_left, DType::F32));
    assert_eq!(found, [0.0, 0.0, 0.0, 1.0 + 2f32.powi(-23)]);

    // A sum can be too large where no tap is; told is where its kernel begins.
    let values = vec![40_000.0; 27];
    let bytes = bytes_of(Dtype::F32, &values);
    let tensor = (Dtype::F32, &[3, 1, 3, 3][..], &bytes[..]);
    match converted(tensor, upper_left, DType::F16) {
        Err(Stop::Value { element: 0, value: 80_000.0 }) => {}
        other => panic!("{other:?}"),
    }
    assert!(converted(tensor, upper_left, DType::BF16).is_ok());
}

/// Ties to even, subnormals, the largest number and the signs, as IEEE 754 has them.
#[test]
fn rounding_to_16_bits_is_to_nearest_even() {
    let cases = [
        (0.0, 0x0000),
        (-0.0, 0x8000),
        (1.0, 0x3c00),
        (1.0 + 1.0 / 2048.0, 0x3c00),
        (1.0 + 3.0 / 2048.0, 0x3c02),
        (1.0 + 1.1 / 2048.0, 0x3c01),
        (-2.0, 0xc000),
        (65504.0, 0x7bff),
        (65519.99, 0x7bff),
        (2f32.powi(-14), 0x0400),
        (2f32.powi(-24), 0x0001),
        (2f32.powi(-25), 0x0000),
        (3.0 * 2f32.powi(-25), 0x0002),
        (1e-30, 0x0000),
    ];
    let values: Vec<f32> = cases.iter().map(|case| case.0).collect();
    let expected: Vec<u16> = cases.iter().map(|case| case.1).collect();
    let found = of_floats(&[values.len()], &values, Transform::None, DType::F16);
    assert_eq!(halves(&found), expected);

    let cases = [
        (1.0, 0x3f80),
        (f32::from_bits(0x3f80_8000), 0x3f80),
        (f32::from_bits(0x3f80_8001), 0x3f81),
        (f32::from_bits(0x3f81_8000), 0x3f82),
        (-3e38, 0xff62),
        (f32::from_bits(0x7f7f_7fff), 0x7f7f),
        (f32::from_bits(0x0000_8000), 0x0000),
        (f32::from_bits(0x0001_8000), 0x0002),
    ];
    let values: Vec<f32> = cases.iter().map(|case| case.0).collect();
    let expected: Vec<u16> = cases.iter().map(|case| case.1).collect();
    let found = of_floats(&[values.len()], &values, Transform::None, DType::BF16);
    assert_eq!(halves(&found), expected);
}

#[test]
fn numbers_that_would_become_infinite_are_found() {
    for (dtype, fits, too_large) in [
        (DType::F16, 65519.996f32, 65520.0f32),
        (DType::BF16, f32::from_bits(0x7f7f_7fff), f32::from_bits(0x7f7f_8000)),
    ] {
        for sign in [1.0, -1.0] {
            let mut values = ramp(3000);
            values[2001] = sign * fits;
            let shape = [30, 100];
            let all = of_floats(&shape, &values, Transform::None, dtype);
            let widened = |bits: u16| match dtype {
                DType::F16 => f16::from_bits(bits).is_finite(),
                _ => bf16::from_bits(bits).is_finite(),
            };
            assert!(halves(&all).into_iter().all(widened));

            values[2001] = sign * too_large;
            let bytes = bytes_of(Dtype::F32, &values);
            for transform in [Transform::None, Transform::Transpose2d] {
                match converted((Dtype::F32, &shape, &bytes), transform, dtype) {
                    Err(Stop::Value { element: 2001, value }) => {
                        assert_eq!(value, sign * too_large);
                    }
                    other => panic!("{dtype}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn elements_that_are_no_numbers_are_found_by_every_conversion() {
    let conversions = [
        (Transform::None, DType::F32),
        (Transform::Transpose2d, DType::F32),
        (Transform::None, DType::F16),
        (Transform::Transpose2d, DType::BF16),
        (Transform::QuantisedBlocks { bits: 8 }, DType::U8),
        (Transform::QuantisedBlocks { bits: 4 }, DType::U8),
        (Transform::BlockScales { bits: 8 }, DType::F32),
        (Transform::QuantisedColumns, DType::I8),
        (Transform::ColumnScales, DType::F32),
        (Transform::Phase(Phase::ALL[1]), DType::F32),
        (Transform::Phase(Phase::ALL[2]), DType::BF16),
    ];
    let mut values = ramp(3600);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        values[2001] = bad;
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let bytes = bytes_of(dtype, &values);
            for (transform, to) in conversions {
                let shape: &[usize] = match transform {
                    Transform::Phase(_) => &[40, 10, 3, 3],
                    _ => &[36, 100],
                };
                match converted((dtype, shape, &bytes), transform, to) {
                    Err(Stop::Value { element: 2001, value }) => {
                        assert_eq!(value.is_nan(), bad.is_nan());
                    }
                    other => panic!("{dtype} {bad} {transform:?}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn byte_counts_shapes_and_types_are_checked() {
    let bytes = [0u8; 12];
    let malformed = |dtype, shape: &[usize], transform, to| {
        matches!(converted((dtype, shape, &bytes), transform, to), Err(Stop::Malformed))
    };
    for (dtype, shape) in [
        (Dtype::F32, vec![4]),
        (Dtype::F16, vec![4]),
        (Dtype::I32, vec![3]),
        (Dtype::F32, vec![usize::MAX, 2]),
    ] {
        assert!(malformed(dtype, &shape, Transform::None, DType::F32), "{dtype} {shape:?}");
    }
    let phase = Transform::Phase(Phase::ALL[0]);
    for transform in [Transform::Transpose2d, Transform::QuantisedColumns, phase] {
        assert!(malformed(Dtype::F32, &[3], transform, DType::F32), "{transform:?}");
    }
    assert!(malformed(Dtype::F32, &[1, 3], Transform::QuantisedBlocks { bits: 5 }, DType::U8));
    assert!(malformed(Dtype::F32, &[1, 3], Transform::QuantisedBlocks { bits: 8 }, DType::F32));
    assert!(malformed(Dtype::F32, &[1, 3], Transform::None, DType::I64));
}

/// Scale and codes of a block by the definition, one number after the other, in double precision.
fn block_by_definition(block: &[f32], bits: u8) -> (f32, Vec<u8>) {
    let zero = f64::from(1u32 << (bits - 1));
    let mut largest = 0f32;
    for &x in block {
        if x.abs() > largest.abs() || x == -largest && x > 0.0 {
            largest = x;
        }
    }
    let scale = (f64::from(largest) / -zero) as f32;
    let code = |x: f32| match scale {
        0.0 => zero,
        _ => (f64::from(x / scale).round_ties_even() + zero).clamp(0.0, 2.0 * zero - 1.0),
    };
    let filled = block.iter().copied().chain(std::iter::repeat(0.0)).take(BLOCK);
    (scale, filled.map(|x| code(x) as u8).collect())
}

#[test]
fn blocks_match_their_definition() {
    // Widths below, at, between and above multiples of a block; the last takes several chunks.
    for (rows, columns) in [(3, 5), (2, 32), (4, 80), (5, 256), (700, 1152)] {
        let mut values = noise(rows * columns);
        values[..columns.min(BLOCK)].fill(0.0);
        values[columns] = 1e-45;
        for bits in [8, 4] {
            let mut codes = Vec::new();
            let mut scales = Vec::new();
            for block in values.chunks(columns).flat_map(|row| row.chunks(BLOCK)) {
                let (scale, numbers) = block_by_definition(block, bits);
                scales.push(scale);
                match bits {
                    8 => codes.extend(numbers),
                    _ => codes.extend(numbers.chunks(2).map(|pair| pair[0] + 16 * pair[1])),
                }
            }
            let shape = [rows, columns];
            let found = of_floats(&shape, &values, Transform::QuantisedBlocks { bits }, DType::U8);
            assert_eq!(found.len(), rows * columns.div_ceil(BLOCK) * block_bytes(bits));
            assert!(found == codes, "{rows}x{columns}, {bits} bits");
            let found = of_floats(&shape, &values, Transform::BlockScales { bits }, DType::F32);
            assert!(floats(&found) == scales, "{rows}x{columns}, {bits} bits");
        }
    }
}

#[test]
fn a_block_is_off_by_half_a_step_at_most_but_for_the_far_end() {
    let values = noise(64 * BLOCK);
    for bits in [8, 4] {
        let zero = f32::from(1u8 << (bits - 1));
        for block in values.chunks(BLOCK) {
            let shape = [1, BLOCK];
            let scales = of_floats(&shape, block, Transform::BlockScales { bits }, DType::F32);
            let scale = floats(&scales)[0];
            let bytes = of_floats(&shape, block, Transform::QuantisedBlocks { bits }, DType::U8);
            let code = |i: usize| match bits {
                8 => bytes[i],
                _ => bytes[i / 2] >> (4 * (i % 2)) & 15,
            };
            for (i, x) in block.iter().enumerate() {
                let back = (f32::from(code(i)) - zero) * scale;
                // The end opposite to the largest number lacks one code.
                let far = x / scale > zero - 1.0;
                let step = if far { 1.0 } else { 0.5 };
                assert!((back - x).abs() <= step * scale.abs() * 1.0001, "{x} {back} {scale}");
            }
        }
    }
}

#[test]
fn columns_match_their_definition() {
    for (rows, columns) in [(3, 5), (16, 32), (700, 1152)] {
        let mut values = noise(rows * columns);
        values[..columns].fill(0.0);
        values[columns..2 * columns].fill(1e-45);
        let mut scales = Vec::new();
        let mut codes = vec![0i8; rows * columns];
        for (row, line) in values.chunks(columns).enumerate() {
            let scale = line.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
            scales.push(scale);
            for (column, x) in line.iter().enumerate() {
                let code = if scale == 0.0 { 0.0 } else { (x / scale).round_ties_even() };
                codes[column * rows + row] = code.clamp(-127.0, 127.0) as i8;
            }
        }
        let shape = [rows, columns];
        let found = of_floats(&shape, &values, Transform::QuantisedColumns, DType::I8);
        assert!(found.iter().map(|&byte| byte as i8).eq(codes), "{rows}x{columns}");
        let found = of_floats(&shape, &values, Transform::ColumnScales, DType::F32);
        assert!(floats(&found) == scales, "{rows}x{columns}");
    }
}
