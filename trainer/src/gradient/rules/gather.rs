//! Entries at indices.

use pixart_exporter::graph::{
    GraphBuilder,
    dim::{Dim, product},
    ir::DType,
};

use super::{Gradients, Step, only};

/// y = entries of x at indices along an axis: every entry of x gets the sum of dy over the places that it
/// went to.
///
/// That is a product with the matrix that has a 1 where a place has an index. Scattering with a sum would
/// take fewer operations, but few engines have it; and the rule is for a few hundred indices.
pub(super) fn gather(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let (x, indices, dy) = (step.input(0)?, step.input(1)?, step.cotangent()?);
    let axis = step.axis(x, 0)?;
    let (before, behind) = (&x.shape()[..axis], &x.shape()[axis + 1..]);
    let (count, places) = (x.shape()[axis].clone(), product(indices.shape()));
    let (outer, inner) = (product(before), product(behind));

    let flat = [outer.clone(), places.clone(), inner.clone()];
    let dy = b.reshape(dy, &flat)?;
    let indices = b.reshape(indices, &[Dim::from(1), places])?;
    let entries = b.range(&count)?;
    let entries = b.reshape(&entries, &[count.clone(), Dim::from(1)])?;
    let same = b.equal(&entries, &indices)?;
    let matrix = b.cast(&same, DType::F32)?;
    let sums = b.matmul(&matrix, &dy)?;
    only(b.reshape(&sums, x.shape())?)
}

#[cfg(test)]
mod tests {
    use pixart_exporter::graph::dim::Dim;

    use crate::gradient::check::Case;

    #[test]
    fn entries_along_any_axis_also_one_twice() {
        let case = Case::new(&["n m 3"]).size("n", 2).size("m", 4);
        case.check(|b, x| {
            let indices = b.constant_i64(&[1, 0, 1]);
            b.gather_along(&x[0], 1, &indices)
        });
        case.check(|b, x| {
            let indices = b.constant_i64(&[2, 2]);
            b.gather_along(&x[0], 2, &indices)
        });
        case.check(|b, x| {
            let indices = b.constant_i64(&[1, 1, 0, 1]);
            let indices = b.reshape(&indices, &[Dim::from(2), Dim::from(2)])?;
            b.gather(&x[0], &indices)
        });
    }
}
