//! Operators that move elements.

use pixart_exporter::graph::{GraphBuilder, Value, dim::Dim};

use super::{GradientError, Gradients, Step, matmul, only, reduce_to};

/// The same elements under another shape: back to the operand's.
pub(super) fn reshape(b: &mut GraphBuilder, step: &Step) -> Gradients {
    only(b.reshape(step.cotangent()?, step.input(0)?.shape())?)
}

/// y = x
pub(super) fn identity(_: &mut GraphBuilder, step: &Step) -> Gradients {
    only(step.cotangent()?.clone())
}

/// The axes in another order: back to the operand's.
pub(super) fn transpose(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let dy = step.cotangent()?;
    let Some(order) = step.ints("perm") else {
        return step.unsupported("no order of the axes", "the attribute perm");
    };
    let mut back = vec![0; order.len()];
    for (to, &from) in order.iter().enumerate() {
        back[from as usize] = to;
    }
    // The gradient of a transposed matrix is often a transpose itself.
    if back == [1, 0]
        && let Some(origin) = matmul::origin_of_swapped(b, dy)
    {
        return only(origin);
    }
    only(b.transpose(dy, &back)?)
}

/// Repetition along axes: the sum over them.
pub(super) fn expand(b: &mut GraphBuilder, step: &Step) -> Gradients {
    only(reduce_to(b, step.cotangent()?, step.input(0)?.shape())?)
}

/// Tensors one after the other: each gets its part.
pub(super) fn concat(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let dy = step.cotangent()?;
    let axis = step.axis(dy, 0)?;
    let mut start = Dim::from(0);
    let mut gradients = Vec::with_capacity(step.inputs.len());
    for index in 0..step.inputs.len() {
        let size = step.input(index)?.shape()[axis].clone();
        gradients.push(match step.wants(index) {
            true => Some(b.slice(dy, axis, &start, &size)?),
            false => None,
        });
        start = &start + &size;
    }
    Ok(gradients)
}

/// Parts of a tensor: their gradients one after the other, zeros for those that nothing depends on.
pub(super) fn split(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let axis = step.axis(step.input(0)?, 0)?;
    let mut parts = Vec::with_capacity(step.outputs.len());
    for (output, cotangent) in step.outputs.iter().zip(&step.cotangents) {
        parts.push(match (cotangent, output) {
            (Some(cotangent), _) => cotangent.clone(),
            (None, Some(output)) => zeros(b, output.shape())?,
            (None, None) => return step.unsupported("a result without a name", "named results"),
        });
    }
    only(b.concat(&parts.iter().collect::<Vec<_>>(), axis as i64)?)
}

fn zeros(b: &mut GraphBuilder, shape: &[Dim]) -> Result<Value, GradientError> {
    let zero = b.scalar_f32(0.0);
    Ok(b.expand(&zero, shape)?)
}

/// Some entries along an axis: zeros before and behind them.
pub(super) fn slice(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let (x, dy) = (step.input(0)?, step.cotangent()?);
    let constant = |index: usize| {
        let operand = step.inputs.get(index)?.as_ref()?;
        b.constant_i64s(operand.name())
    };
    let steps = step.inputs.get(4).is_none_or(|_| constant(4).as_deref() == Some(&[1]));
    let (Some(&[start]), Some(&[axis]), true) =
        (constant(1).as_deref(), constant(3).as_deref(), steps)
    else {
        return step.unsupported("this slice", "a constant start along one axis, without steps");
    };
    let Some(axis) = super::index(axis, x.rank()).filter(|_| start >= 0) else {
        return step.unsupported("a start counted from the end", "a start counted from 0");
    };
    let start = Dim::from(start);
    let end = &start + &dy.shape()[axis];
    let behind = &x.shape()[axis] + &(&Dim::from(-1) * &end);
    if start.is(0) && behind.is(0) {
        return only(dy.clone());
    }
    only(b.pad(dy, axis, &start, &behind)?)
}

#[cfg(test)]
mod tests {
    use pixart_exporter::graph::dim::Dim;
    use pixart_exporter::profile::Profile;

    use crate::gradient::check::Case;

    fn case(shapes: &[&str]) -> Case {
        Case::new(shapes).size("n", 2).size("m", 4)
    }

    #[test]
    fn another_shape() {
        let (n, m) = (Dim::symbol("n"), Dim::symbol("m"));
        case(&["n m 6"]).check(|b, x| b.reshape(&x[0], &[&n * &m, 6.into()]));
        case(&["n m 6"])
            .check(|b, x| b.reshape(&x[0], &[m.clone(), 3.into(), n.clone(), 2.into()]));
        case(&["n m"]).check(|b, x| b.unsqueeze(&x[0], &[0, 2]));
        case(&["n m"]).check(|b, x| {
            let same = b.identity(&x[0]);
            b.mul(&same, &x[0])
        });
    }

    #[test]
    fn another_order_of_axes() {
        case(&["n m 3"]).check(|b, x| b.transpose(&x[0], &[2, 0, 1]));
        case(&["n m 3"]).check(|b, x| b.transpose(&x[0], &[0, 2, 1]));
        case(&["n m"]).check(|b, x| {
            let y = b.transpose(&x[0], &[1, 0])?;
            let z = b.mul(&y, &y)?;
            b.transpose(&z, &[1, 0])
        });
    }

    #[test]
    fn repetition() {
        let (n, m) = (Dim::symbol("n"), Dim::symbol("m"));
        case(&["1 3", "n m 3"]).check(|b, x| {
            let y = b.expand(&x[0], &[n.clone(), m.clone(), 3.into()])?;
            b.mul(&y, &x[1])
        });
    }

    #[test]
    fn parts_and_wholes() {
        case(&["n 3", "m 3", "n 3"]).check(|b, x| b.concat(&[&x[0], &x[1], &x[2]], 0));
        case(&["n 3", "n 2"]).check(|b, x| b.concat(&[&x[0], &x[1], &x[0]], -1));
        case(&["n 3", "n 2"]).only(1).check(|b, x| b.concat(&[&x[0], &x[1]], -1));
        for profile in [Profile::Ort, Profile::Cann] {
            case(&["n 6 m"]).profile(profile).check(|b, x| {
                let parts = b.split(&x[0], 3, 1)?;
                b.mul(&parts[0], &parts[2])
            });
        }
        case(&["n m%2"]).check(|b, x| {
            let parts = b.split(&x[0], 2, -1)?;
            b.mul(&parts[0], &parts[1])
        });
    }

    #[test]
    fn some_entries_along_an_axis() {
        let m = Dim::symbol_multiple_of("m", 2);
        let half = m.exact_div(&Dim::from(2)).unwrap();
        case(&["n 6"]).check(|b, x| b.slice(&x[0], 1, &Dim::from(2), &Dim::from(3)));
        case(&["n 6"]).check(|b, x| b.take(&x[0], 1, &Dim::from(6)));
        case(&["n m%2"]).check(|b, x| b.take(&x[0], 1, &half));
        case(&["n m%2"]).check(|b, x| b.slice(&x[0], 1, &Dim::from(1), &half));
    }
}
