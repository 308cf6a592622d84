//! Sums and means over axes.

use pixart_exporter::graph::{
    GraphBuilder, Value,
    dim::{Dim, product},
    ir::DType,
};

use super::{GradientError, Gradients, Step, index, only, scaled};

/// y = Σ x: dy at every place.
pub(super) fn reduce_sum(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let (dy, _) = kept(b, step)?;
    only(b.expand(&dy, step.input(0)?.shape())?)
}

/// y = Σ x²: 2x · dy.
pub(super) fn reduce_sum_square(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let (dy, _) = kept(b, step)?;
    let double = scaled(b, &dy, 2.0)?;
    only(b.mul(&double, step.input(0)?)?)
}

/// y = mean of x: dy / count at every place.
pub(super) fn reduce_mean(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let (dy, count) = kept(b, step)?;
    // The size of one axis may be symbolic, and then the graph computes it.
    let count = match count.as_const() {
        Some(count) => b.scalar_f32(count as f32),
        None => {
            let count = b.size(&count)?;
            b.cast(&count, DType::F32)?
        }
    };
    let share = b.div(&dy, &count)?;
    only(b.expand(&share, step.input(0)?.shape())?)
}

/// The gradient of the result with axes of size 1 in place of those that were reduced, and how many
/// elements each of its elements came from.
fn kept(b: &mut GraphBuilder, step: &Step) -> Result<(Value, Dim), GradientError> {
    let (x, dy) = (step.input(0)?, step.cotangent()?);
    let axes = match (step.ints("axes"), step.inputs.get(1).and_then(Option::as_ref)) {
        (Some(axes), _) => Some(axes.to_vec()),
        (None, Some(operand)) => b.constant_i64s(operand.name()),
        (None, None) => None,
    };
    let axes = axes.map(|axes| axes.iter().map(|&axis| index(axis, x.rank())).collect());
    let Some(axes): Option<Vec<usize>> = axes.flatten() else {
        return step.unsupported("these axes", "constant axes of the operand");
    };
    let mut shape = x.shape().to_vec();
    let mut reduced = Vec::with_capacity(axes.len());
    for axis in axes {
        reduced.push(std::mem::replace(&mut shape[axis], Dim::from(1)));
    }
    let dy = if dy.shape() == shape { dy.clone() } else { b.reshape(dy, &shape)? };
    Ok((dy, product(&reduced)))
}

#[cfg(test)]
mod tests {
    use pixart_exporter::profile::Profile;

    use crate::gradient::check::Case;

    #[test]
    fn sums_and_means_over_any_axes() {
        for profile in [Profile::Ort, Profile::Cann] {
            let case = Case::new(&["n 3 m"]).size("n", 2).size("m", 4).profile(profile);
            for axes in [&[0][..], &[1], &[0, 2], &[0, 1, 2], &[]] {
                case.check(|b, x| {
                    let sum = b.reduce_sum(&x[0], axes)?;
                    b.mul(&sum, &x[0])
                });
            }
            for axes in [&[0][..], &[1], &[0, 2], &[0, 1, 2]] {
                case.check(|b, x| b.reduce_sum_square(&x[0], axes));
            }
            for axis in [-1, 0, 1] {
                case.check(|b, x| b.reduce_mean(&x[0], axis));
            }
        }
    }
}
