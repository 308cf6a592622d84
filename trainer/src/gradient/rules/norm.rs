//! Layer norm.

use pixart_exporter::graph::{GraphBuilder, Value};

use super::{GradientError, Gradients, Step, reduce_to};

/// y = n · scale + bias with n = (x − mean)/σ and σ = √(variance + ε) over the last axis. With
/// g = dy · scale: dx = (g − mean(g) − n · mean(g·n)) / σ, dscale = Σ dy·n, dbias = Σ dy.
pub(super) fn layer_normalization(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let (x, scale, dy) = (step.input(0)?, step.input(1)?, step.cotangent()?);
    if step.axis(x, -1)? != x.rank() - 1 {
        return step.unsupported("a norm over several axes", "a norm over the last axis");
    }
    if step.outputs.len() > 1 {
        return step.unsupported("mean and deviation as results", "the norm alone");
    }
    let mut gradients = vec![None, None, None];
    if step.wants(0) || step.wants(1) {
        // They are computed again: engines do not agree on whether the norm gives them.
        let mean = b.reduce_mean(x, -1)?;
        let centred = b.sub(x, &mean)?;
        let square = b.mul(&centred, &centred)?;
        let variance = b.reduce_mean(&square, -1)?;
        let epsilon = b.scalar_f32(step.float("epsilon").unwrap_or(1e-5));
        let variance = b.add(&variance, &epsilon)?;
        let deviation = b.sqrt(&variance)?;
        let normal = b.div(&centred, &deviation)?;
        if step.wants(0) {
            gradients[0] = Some(of_operand(b, scale, dy, &normal, &deviation)?);
        }
        if step.wants(1) {
            let product = b.mul(dy, &normal)?;
            gradients[1] = Some(reduce_to(b, &product, scale.shape())?);
        }
    }
    if step.wants(2) {
        gradients[2] = Some(reduce_to(b, dy, step.input(2)?.shape())?);
    }
    Ok(gradients)
}

fn of_operand(
    b: &mut GraphBuilder,
    scale: &Value,
    dy: &Value,
    normal: &Value,
    deviation: &Value,
) -> Result<Value, GradientError> {
    let ones = b.constant_f32s(scale.name()).is_some_and(|s| s.iter().all(|&x| x == 1.0));
    let g = if ones { dy.clone() } else { b.mul(dy, scale)? };
    let mean = b.reduce_mean(&g, -1)?;
    let product = b.mul(&g, normal)?;
    let share = b.reduce_mean(&product, -1)?;
    let along = b.mul(normal, &share)?;
    let rest = b.sub(&g, &mean)?;
    let rest = b.sub(&rest, &along)?;
    Ok(b.div(&rest, deviation)?)
}

#[cfg(test)]
mod tests {
    use pixart_exporter::profile::Profile;

    use crate::gradient::check::Case;

    #[test]
    fn layer_norm_with_and_without_parameters() {
        for profile in [Profile::Ort, Profile::Cann] {
            let case = Case::new(&["n m 5", "5", "5"]).size("n", 2).size("m", 3).profile(profile);
            case.check(|b, x| b.layer_norm(&x[0], &x[1], Some(&x[2]), 1e-5));
            case.clone().only(0).check(|b, x| b.layer_norm(&x[0], &x[1], None, 1e-2));
            case.clone().only(2).check(|b, x| b.layer_norm(&x[0], &x[1], Some(&x[2]), 1e-5));
            let case = Case::new(&["n m 5", "n 1 5", "n 1 5"]).profile(profile);
            let case = case.size("n", 2).size("m", 3);
            case.check(|b, x| b.modulated_layer_norm(&x[0], &x[1], &x[2], 1e-6));
        }
    }

    #[test]
    fn rms_norm_out_of_its_operators() {
        let case = Case::new(&["n m 5"]).size("n", 2).size("m", 3);
        case.check(|b, x| b.rms_norm("norm", &x[0], 1e-6));
    }
}
