//! Activations and softmax.

use std::f64::consts::PI;

use pixart_exporter::graph::{GraphBuilder, Value, ir::Attribute};

use super::{GradientError, Gradients, Step, only, scaled};

/// y = σ(x): dy · y · (1 − y).
pub(super) fn sigmoid(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let slope = sigmoid_slope(b, step.output()?)?;
    only(b.mul(step.cotangent()?, &slope)?)
}

/// y · (1 − y)
fn sigmoid_slope(b: &mut GraphBuilder, y: &Value) -> Result<Value, GradientError> {
    let one = b.scalar_f32(1.0);
    let rest = b.sub(&one, y)?;
    Ok(b.mul(y, &rest)?)
}

/// y = tanh x: dy · (1 − y²).
pub(super) fn tanh(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let y = step.output()?;
    let (one, square) = (b.scalar_f32(1.0), b.mul(y, y)?);
    let slope = b.sub(&one, &square)?;
    only(b.mul(step.cotangent()?, &slope)?)
}

/// y = erf x: dy · 2/√π · exp(−x²).
pub(super) fn erf(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let x = step.input(0)?;
    let square = b.mul(x, x)?;
    let exponent = b.neg(&square)?;
    let bell = b.exp(&exponent)?;
    let product = b.mul(step.cotangent()?, &bell)?;
    only(scaled(b, &product, 2.0 / PI.sqrt())?)
}

/// GELU in its tanh form, y = x · σ(u) with u = 2√(2/π) · (x + 0.044715 x³): its slope is
/// σ(u) + x · σ(u) · (1 − σ(u)) · u'.
pub(super) fn gelu(b: &mut GraphBuilder, step: &Step) -> Gradients {
    match step.attribute("approximate") {
        Some(Attribute::String(form)) if form == "tanh" => {}
        _ => return step.unsupported("the exact form of GELU", "the tanh form"),
    }
    let x = step.input(0)?;
    let linear = 2.0 * (2.0 / PI).sqrt();
    let cubic = linear * 0.044715;
    let square = b.mul(x, x)?;
    // u = x · (linear + cubic·x²), u' = linear + 3·cubic·x²
    let number = b.scalar_f32(linear as f32);
    let scaled_square = scaled(b, &square, cubic)?;
    let factor = b.add(&scaled_square, &number)?;
    let u = b.mul(x, &factor)?;
    let scaled_square = scaled(b, &square, 3.0 * cubic)?;
    let inner_slope = b.add(&scaled_square, &number)?;
    let gate = b.sigmoid(&u)?;
    let gate_slope = sigmoid_slope(b, &gate)?;
    let product = b.mul(x, &inner_slope)?;
    let product = b.mul(&product, &gate_slope)?;
    let slope = b.add(&gate, &product)?;
    only(b.mul(step.cotangent()?, &slope)?)
}

/// Softmax over the last axis: y · (dy − Σ dy·y).
pub(super) fn softmax(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let (y, dy) = (step.output()?, step.cotangent()?);
    let last = y.rank() - 1;
    if step.axis(y, -1)? != last {
        return step.unsupported("softmax over another axis", "the last axis");
    }
    let product = b.mul(dy, y)?;
    let sum = b.reduce_sum(&product, &[last])?;
    let difference = b.sub(dy, &sum)?;
    only(b.mul(y, &difference)?)
}

#[cfg(test)]
mod tests {
    use pixart_exporter::profile::Profile;

    use crate::gradient::check::Case;

    #[test]
    fn activations() {
        for profile in [Profile::Ort, Profile::Cann] {
            let case = Case::new(&["n 5"]).size("n", 3).profile(profile);
            case.check(|b, x| b.sigmoid(&x[0]));
            case.check(|b, x| b.silu(&x[0]));
            case.check(|b, x| b.tanh(&x[0]));
            case.check(|b, x| b.erf(&x[0]));
            case.check(|b, x| b.gelu_tanh(&x[0]));
            // Where the gate is nearly shut and nearly open.
            case.clone().map(0, |x| 4.0 * x).check(|b, x| b.gelu_tanh(&x[0]));
        }
    }

    #[test]
    fn softmax_over_the_last_axis() {
        let case = Case::new(&["n m"]).size("n", 3).size("m", 4);
        case.check(|b, x| b.softmax(&x[0]));
        case.size("m", 1).check(|b, x| b.softmax(&x[0]));
    }
}
