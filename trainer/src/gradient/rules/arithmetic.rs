//! Arithmetic and elementary functions, element by element, with broadcasting.

use pixart_exporter::graph::{GraphBuilder, Value};

use super::{Gradients, Step, only, reduce_to, scaled};

/// y = a + b: both get dy.
pub(super) fn add(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let dy = step.cotangent()?;
    (0..2).map(|i| operand(b, step, i, |_| Ok(dy.clone()))).collect()
}

/// y = a − b: dy and −dy.
pub(super) fn sub(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let dy = step.cotangent()?;
    let da = operand(b, step, 0, |_| Ok(dy.clone()))?;
    let db = operand(b, step, 1, |_| Ok(dy.clone()))?;
    // The negative of the sum, which has fewer elements.
    let db = db.map(|db| b.neg(&db)).transpose()?;
    Ok(vec![da, db])
}

/// y = a · b: dy · b and dy · a.
pub(super) fn mul(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let dy = step.cotangent()?;
    let (left, right) = (step.input(0)?, step.input(1)?);
    Ok(vec![
        operand(b, step, 0, |b| Ok(b.mul(dy, right)?))?,
        operand(b, step, 1, |b| Ok(b.mul(dy, left)?))?,
    ])
}

/// y = a / b: dy / b and −dy · y / b.
pub(super) fn div(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let dy = step.cotangent()?;
    let divisor = step.input(1)?;
    let quotient = b.div(dy, divisor)?;
    let da = operand(b, step, 0, |_| Ok(quotient.clone()))?;
    let db = operand(b, step, 1, |b| Ok(b.mul(&quotient, step.output()?)?))?;
    let db = db.map(|db| b.neg(&db)).transpose()?;
    Ok(vec![da, db])
}

/// The gradient of an operand, if it is wanted, from that of the broadcast operand.
fn operand(
    b: &mut GraphBuilder,
    step: &Step,
    index: usize,
    gradient: impl FnOnce(&mut GraphBuilder) -> Result<Value, super::GradientError>,
) -> Result<Option<Value>, super::GradientError> {
    if !step.wants(index) {
        return Ok(None);
    }
    let gradient = gradient(b)?;
    reduce_to(b, &gradient, step.input(index)?.shape()).map(Some)
}

/// y = −x
pub(super) fn neg(b: &mut GraphBuilder, step: &Step) -> Gradients {
    only(b.neg(step.cotangent()?)?)
}

/// y = xᵖ for a constant p: p · xᵖ⁻¹ · dy.
pub(super) fn pow(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let (x, dy) = (step.input(0)?, step.cotangent()?);
    let exponent = b.constant_f32s(step.input(1)?.name());
    let Some(&[exponent]) = exponent.as_deref() else {
        return step.unsupported("this exponent", "one constant number");
    };
    // A power of 1 is x itself, and the most frequent exponent needs no power function.
    let power = match exponent {
        2.0 => x.clone(),
        _ => b.pow(x, exponent - 1.0)?,
    };
    let product = b.mul(dy, &power)?;
    only(scaled(b, &product, f64::from(exponent))?)
}

/// y = √x: dy / 2y.
pub(super) fn sqrt(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let half = scaled(b, step.cotangent()?, 0.5)?;
    only(b.div(&half, step.output()?)?)
}

/// y = eˣ: dy · y.
pub(super) fn exp(b: &mut GraphBuilder, step: &Step) -> Gradients {
    only(b.mul(step.cotangent()?, step.output()?)?)
}

/// y = ln x: dy / x.
pub(super) fn log(b: &mut GraphBuilder, step: &Step) -> Gradients {
    only(b.div(step.cotangent()?, step.input(0)?)?)
}

/// y = sin x: dy · cos x.
pub(super) fn sin(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let cos = b.cos(step.input(0)?)?;
    only(b.mul(step.cotangent()?, &cos)?)
}

/// y = cos x: −dy · sin x.
pub(super) fn cos(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let sin = b.sin(step.input(0)?)?;
    let product = b.mul(step.cotangent()?, &sin)?;
    only(b.neg(&product)?)
}

#[cfg(test)]
mod tests {
    use crate::gradient::check::{Case, positive};

    #[test]
    fn sums_and_products_with_every_kind_of_broadcasting() {
        for (a, b) in [
            ("n 3", "n 3"),
            ("n 3", "3"),
            ("3", "n 3"),
            ("n 1 3", "m 1"),
            ("1 m 3", "n 1 1"),
            ("", "n m"),
            ("n m", "1 1"),
        ] {
            let case = Case::new(&[a, b]).size("n", 4).size("m", 2).map(1, positive);
            case.check(|b, x| b.add(&x[0], &x[1]));
            case.check(|b, x| b.sub(&x[0], &x[1]));
            case.check(|b, x| b.mul(&x[0], &x[1]));
            case.check(|b, x| b.div(&x[0], &x[1]));
        }
    }

    #[test]
    fn an_operand_used_twice_gets_both_gradients() {
        let case = Case::new(&["n 3"]).size("n", 2);
        case.check(|b, x| b.mul(&x[0], &x[0]));
        case.check(|b, x| {
            let square = b.mul(&x[0], &x[0])?;
            let sum = b.add(&square, &x[0])?;
            b.mul(&sum, &square)
        });
    }

    #[test]
    fn elementary_functions() {
        let case = Case::new(&["n 3"]).size("n", 4);
        case.check(|b, x| b.neg(&x[0]));
        case.check(|b, x| b.exp(&x[0]));
        case.check(|b, x| b.sin(&x[0]));
        case.check(|b, x| b.cos(&x[0]));
        case.check(|b, x| b.pow(&x[0], 2.0));
        case.check(|b, x| b.pow(&x[0], 3.0));
        let case = case.map(0, positive);
        case.check(|b, x| b.sqrt(&x[0]));
        case.check(|b, x| b.log(&x[0]));
        case.check(|b, x| b.pow(&x[0], -0.5));
    }
}
