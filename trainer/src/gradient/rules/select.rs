//! Choices, and changes of the element type.

use pixart_exporter::graph::GraphBuilder;

use super::{Gradients, Step, only, reduce_to};

/// y = a where a condition holds, else b: dy goes to the one that was chosen.
pub(super) fn select(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let (condition, dy) = (step.input(0)?, step.cotangent()?);
    let zero = b.scalar_f32(0.0);
    let mut gradients = vec![None, None, None];
    for (operand, gradient) in gradients.iter_mut().enumerate().skip(1) {
        if step.wants(operand) {
            let chosen = match operand {
                1 => b.select(condition, dy, &zero)?,
                _ => b.select(condition, &zero, dy)?,
            };
            *gradient = Some(reduce_to(b, &chosen, step.input(operand)?.shape())?);
        }
    }
    Ok(gradients)
}

/// The same numbers in another type of floats.
pub(super) fn cast(b: &mut GraphBuilder, step: &Step) -> Gradients {
    only(b.cast(step.cotangent()?, step.input(0)?.dtype())?)
}

#[cfg(test)]
mod tests {
    use pixart_exporter::graph::ir::DType;

    use crate::gradient::check::Case;

    #[test]
    fn the_chosen_branch_gets_the_gradient() {
        for (a, b) in [("n 4", "n 4"), ("n 4", ""), ("4", "n 1")] {
            let case = Case::new(&[a, b, "n 4"]).size("n", 3);
            case.check(|b, x| {
                // Where the index of the column is 1.
                let column = b.constant_i64(&[0, 1, 1, 3]);
                let one = b.constant_i64(&[1]);
                let condition = b.equal(&column, &one)?;
                let chosen = b.select(&condition, &x[0], &x[1])?;
                b.mul(&chosen, &x[2])
            });
        }
    }

    #[test]
    fn a_cast_to_floats_of_another_width_and_back() {
        let case = Case::new(&["n 4"]).size("n", 3);
        case.check(|b, x| {
            let wide = b.cast(&x[0], DType::F32)?;
            b.mul(&wide, &x[0])
        });
    }
}
