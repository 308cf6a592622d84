//! Matrix products.

use pixart_exporter::graph::{
    GraphBuilder, Value,
    dim::{Dim, product},
    ir::Attribute,
};

use super::{GradientError, Gradients, Step, reduce_to};

/// y = a · b: da = dy · bᵀ, db = aᵀ · dy, each summed over the axes along which the operand was
/// repeated.
pub(super) fn matmul(b: &mut GraphBuilder, step: &Step) -> Gradients {
    let dy = step.cotangent()?;
    let (left, right) = (step.input(0)?, step.input(1)?);
    let mut gradients = vec![None, None];
    if step.wants(0) {
        let right = swapped(b, right)?;
        let da = b.matmul(dy, &right)?;
        gradients[0] = Some(reduce_to(b, &da, left.shape())?);
    }
    if step.wants(1) {
        gradients[1] = Some(match right.rank() {
            // A matrix that all rows share: one product over all rows, instead of one for each
            // member of the batch and their sum.
            2 => {
                let (rows, dy) = (rows(b, left)?, rows(b, dy)?);
                of_matrix(b, right, &rows, &dy)?
            }
            _ => {
                let left = swapped(b, left)?;
                let db = b.matmul(&left, dy)?;
                reduce_to(b, &db, right.shape())?
            }
        });
    }
    Ok(gradients)
}

/// `xᵀ · dy`, the gradient of a matrix. Of one that was transposed first, the product is computed in the
/// order in which the untransposed one has it, since the transpose of a transpose costs nothing.
fn of_matrix(
    b: &mut GraphBuilder,
    matrix: &Value,
    x: &Value,
    dy: &Value,
) -> Result<Value, GradientError> {
    if origin_of_swapped(b, matrix).is_some() {
        let dy = b.transpose(dy, &[1, 0])?;
        let gradient = b.matmul(&dy, x)?;
        return Ok(b.transpose(&gradient, &[1, 0])?);
    }
    let x = b.transpose(x, &[1, 0])?;
    Ok(b.matmul(&x, dy)?)
}

/// `x[…, width]` as `[rows, width]`.
fn rows(b: &mut GraphBuilder, x: &Value) -> Result<Value, GradientError> {
    if x.rank() == 2 {
        return Ok(x.clone());
    }
    let (width, lead) =
        x.shape().split_last().map_or((Dim::from(1), x.shape()), |(w, l)| (w.clone(), l));
    let shape = [product(lead), width];
    Ok(b.reshape(x, &shape)?)
}

/// `x` with its last two axes exchanged.
fn swapped(b: &mut GraphBuilder, x: &Value) -> Result<Value, GradientError> {
    if let Some(origin) = origin_of_swapped(b, x) {
        return Ok(origin);
    }
    Ok(b.transpose(x, &swap(x.rank()))?)
}

/// What `x` is the transpose of, if it is one that exchanges the last two axes and nothing else.
pub(super) fn origin_of_swapped(b: &GraphBuilder, x: &Value) -> Option<Value> {
    let node = b.nodes().iter().rev().find(|node| node.outputs.iter().any(|o| o == x.name()))?;
    let order: Vec<i64> = swap(x.rank()).into_iter().map(|axis| axis as i64).collect();
    let is_swap = |(name, value): &(String, Attribute)| {
        name == "perm" && matches!(value, Attribute::Ints(perm) if *perm == order)
    };
    (node.op_type == "Transpose" && node.attributes.iter().any(is_swap))
        .then(|| b.value(&node.inputs[0]))
        .flatten()
}

/// The order of axes in which the last two are exchanged.
fn swap(rank: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rank).collect();
    order.swap(rank - 2, rank - 1);
    order
}

#[cfg(test)]
mod tests {
    use crate::gradient::check::Case;

    #[test]
    fn products_of_matrices_and_batches() {
        for (a, b) in [
            ("n 3", "3 2"),
            ("n m 3", "3 2"),
            ("k n m 3", "3 2"),
            ("n m 3", "n 3 2"),
            ("n m 3", "1 3 2"),
            ("1 m 3", "n 3 2"),
            ("m 3", "n 3 2"),
            ("n 1 m 3", "k 3 2"),
            ("n k m 3", "k 3 m"),
        ] {
            let case = Case::new(&[a, b]).size("n", 2).size("m", 4).size("k", 3);
            case.check(|b, x| b.matmul(&x[0], &x[1]));
        }
    }

    #[test]
    fn transposed_operands() {
        let case = Case::new(&["n m 3", "2 3", "n k 3"]).size("n", 2).size("m", 4).size("k", 3);
        case.check(|b, x| {
            let matrix = b.transpose(&x[1], &[1, 0])?;
            let y = b.matmul(&x[0], &matrix)?;
            let z = b.matmul(&x[2], &matrix)?;
            let z = b.transpose(&z, &[0, 2, 1])?;
            b.matmul(&y, &z)
        });
    }

    #[test]
    fn linear_layers_with_their_weights_as_inputs() {
        let case = Case::new(&["n m 3"]).size("n", 2).size("m", 4);
        case.clone().check(|b, x| b.linear("proj", &x[0], 5, true));
        case.check(|b, x| b.linear("proj", &x[0], 2, false));
    }
}
