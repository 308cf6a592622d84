//! ONNX Runtime's multi-head attention.

use pixart_exporter::graph::{GraphBuilder, Value, dim::Dim};

use super::{GradientError, Gradients, Step, scaled};

/// y = softmax(s · q·kᵀ) · v in each head, with `q[batch, queries, width]` and
/// `k, v[batch, keys, width]`.
///
/// The probabilities p are computed again, in a graph that may have run a kernel which never holds
/// them all. With o the heads of y and δ their gradients: dv = pᵀ·δ, dp = δ·vᵀ, and the scores get
/// p · (dp − Σ δ·o), because Σ over the keys of p·dp is Σ over the width of δ·o.
pub(super) fn multi_head_attention(b: &mut GraphBuilder, step: &Step) -> Gradients {
    if step.inputs.iter().skip(3).any(Option::is_some) || step.inputs.len() < 3 {
        return step.unsupported("other operands than queries, keys and values", "just these");
    }
    let [query, key, value] = [step.input(0)?, step.input(1)?, step.input(2)?];
    let heads = step.int("num_heads").unwrap_or(1);
    let head_dim = query.shape().last().and_then(|width| width.exact_div(&Dim::from(heads)));
    let (3, Some(head_dim)) = (query.rank(), head_dim) else {
        return step.unsupported("these operands", "three axes, the last one shared by the heads");
    };
    let scale = match (step.float("scale"), head_dim.as_const()) {
        (Some(scale), _) => f64::from(scale),
        (None, Some(head_dim)) => 1.0 / (head_dim as f64).sqrt(),
        (None, None) => return step.unsupported("no scale", "a scale, or heads of constant width"),
    };
    let split = |b: &mut GraphBuilder, x: &Value, order: [usize; 4]| {
        let [batch, length] = [0, 1].map(|axis| x.shape()[axis].clone());
        let x = b.reshape(x, &[batch, length, heads.into(), head_dim.clone()])?;
        b.transpose(&x, &order)
    };
    let merge = |b: &mut GraphBuilder, x: &Value, like: &Value| {
        let x = b.transpose(x, &[0, 2, 1, 3])?;
        b.reshape(&x, like.shape())
    };
    let (by_row, by_column) = ([0, 2, 1, 3], [0, 2, 3, 1]);

    let q = split(b, query, by_row)?;
    let q = scaled(b, &q, scale)?;
    let k_columns = split(b, key, by_column)?;
    let scores = b.matmul(&q, &k_columns)?;
    let p = b.softmax(&scores)?;
    let dy = step.cotangent()?;
    let d = split(b, dy, by_row)?;

    let mut gradients = vec![None, None, None];
    if step.wants(2) {
        let p_columns = b.transpose(&p, &[0, 1, 3, 2])?;
        let dv = b.matmul(&p_columns, &d)?;
        gradients[2] = Some(merge(b, &dv, value)?);
    }
    if !step.wants(0) && !step.wants(1) {
        return Ok(gradients);
    }
    let v_columns = split(b, value, by_column)?;
    let dp = b.matmul(&d, &v_columns)?;
    let o = split(b, step.output()?, by_row)?;
    let share = b.mul(&d, &o)?;
    let share = b.reduce_sum(&share, &[3])?;
    let difference = b.sub(&dp, &share)?;
    let ds = b.mul(&p, &difference)?;
    if step.wants(0) {
        let k = split(b, key, by_row)?;
        let dq = b.matmul(&ds, &k)?;
        let dq = scaled(b, &dq, scale)?;
        gradients[0] = Some(merge(b, &dq, query)?);
    }
    if step.wants(1) {
        // The queries carry the scale already.
        let ds_columns = b.transpose(&ds, &[0, 1, 3, 2])?;
        let dk = b.matmul(&ds_columns, &q)?;
        gradients[1] = Some(merge(b, &dk, key)?);
    }
    Ok::<_, GradientError>(gradients)
}

#[cfg(test)]
mod tests {
    use pixart_exporter::profile::{Attention, Profile};

    use crate::gradient::check::Case;

    fn attention(heads: usize, scale: Option<f64>) -> Attention<'static> {
        Attention { heads, scale, bias: None }
    }

    #[test]
    fn fused_attention_has_the_gradient_of_the_operators_it_stands_for() {
        for profile in [Profile::Ort, Profile::Cann] {
            let case = Case::new(&["n q 6", "n k 6", "n k 6"]).profile(profile);
            let case = case.size("n", 2).size("q", 3).size("k", 4);
            case.check(|b, x| b.attention(&x[0], &x[1], &x[2], &attention(2, None)));
            case.check(|b, x| b.attention(&x[0], &x[1], &x[2], &attention(1, Some(1.5))));
        }
    }

    #[test]
    fn attention_with_a_mask() {
        let case = Case::new(&["n q 6", "n k 6", "n k 6", "n 1 1 k"]);
        let case = case.size("n", 2).size("q", 3).size("k", 4);
        case.check(|b, x| {
            let attention = Attention { heads: 3, scale: None, bias: Some(&x[3]) };
            b.attention(&x[0], &x[1], &x[2], &attention)
        });
    }

    #[test]
    fn of_one_operand_alone() {
        for operand in 0..3 {
            let case = Case::new(&["n q 4", "n k 4", "n k 4"]).only(operand);
            let case = case.size("n", 2).size("q", 3).size("k", 2);
            case.check(|b, x| b.attention(&x[0], &x[1], &x[2], &attention(2, None)));
        }
    }
}
