//! Single-precision logarithm, sine and cosine as torch's vectorised noise computes them.
//!
//! torch fills 16 or more normal values with an AVX2 routine (AVX-512 machines use it too) whose
//! elementary functions are the polynomials of the Cephes library, compiled so that a product and
//! the sum after it become one fused multiply-add. Their last bits differ from the exactly rounded
//! functions in about two values of five, so equal noise needs the same polynomials with the
//! same fusing, which `mul_add` gives on every machine.

use std::f32::consts::FRAC_1_SQRT_2;

/// Coefficients of (ln(1+x) − x + x²/2)/x³ for √½ ≤ 1+x ≤ √2, highest power first.
const LOG: [f32; 9] = [
    7.037_683_6e-2,
    -1.151_461e-1,
    1.167_699_87e-1,
    -1.242_014_1e-1,
    1.424_932_3e-1,
    -1.666_805_8e-1,
    2.000_071_4e-1,
    -2.499_999_4e-1,
    3.333_333e-1,
];
/// ln 2 as a short number plus a correction, so that the exponent's part is exact.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// −π/4 in three pieces of decreasing size.
const MINUS_QUARTER_PI: [f32; 3] = [-0.785_156_25, -2.418_756_5e-4, -3.774_895e-8];
const SIN: [f32; 3] = [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1];
const COS: [f32; 3] = [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2];

fn polynomial(coefficients: &[f32], x: f32) -> f32 {
    coefficients.iter().skip(1).fold(coefficients[0], |sum, &c| sum.mul_add(x, c))
}

/// ln `x` for a positive normal number.
pub(super) fn ln(x: f32) -> f32 {
    // x = mantissa · 2^exponent with the mantissa in [½, 1).
    let bits = x.to_bits();
    let mut exponent = (bits >> 23) as i32 - 126;
    let mut mantissa = f32::from_bits((bits & 0x007f_ffff) | 0.5f32.to_bits());
    if mantissa < FRAC_1_SQRT_2 {
        exponent -= 1;
        mantissa += mantissa;
    }
    let x = mantissa - 1.0;
    let e = exponent as f32;
    let square = x * x;
    let cubic = (polynomial(&LOG, x) * x).mul_add(square, e * LN_2[1]);
    let tail = square.mul_add(-0.5, cubic);
    e.mul_add(LN_2[0], x + tail)
}

/// Sine and cosine of `x` for 0 ≤ `x` < 8192.
pub(super) fn sin_cos(x: f32) -> (f32, f32) {
    // The octant, rounded up to an even number, leaves |x| ≤ π/4.
    let octant = ((x * std::f32::consts::FRAC_2_PI * 2.0) as i32 + 1) & !1;
    let j = octant as f32;
    let x = MINUS_QUARTER_PI.iter().fold(x, |x, &piece| j.mul_add(piece, x));
    let square = x * x;
    let cos = (polynomial(&COS, square) * square).mul_add(square, -0.5 * square) + 1.0;
    let sin = (polynomial(&SIN, square) * square).mul_add(x, x);
    let (sin, cos) = if octant & 2 == 0 { (sin, cos) } else { (cos, sin) };
    let sin = if octant & 4 == 0 { sin } else { -sin };
    let cos = if (octant - 2) & 4 == 0 { -cos } else { cos };
    (sin, cos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_polynomials_are_within_an_ulp_or_two_of_the_functions() {
        for i in 1..=10_000u32 {
            let x = i as f32 / 10_000.0;
            let exact = f64::from(x).ln();
            assert!((f64::from(ln(x)) - exact).abs() <= 2.5e-7 * exact.abs().max(0.01), "ln {x}");
            let angle = x * std::f32::consts::TAU;
            let (sin, cos) = sin_cos(angle);
            assert!((f64::from(sin) - f64::from(angle).sin()).abs() < 2e-7, "sin {angle}");
            assert!((f64::from(cos) - f64::from(angle).cos()).abs() < 2e-7, "cos {angle}");
        }
    }
}
