//! Sums and products in which one operand is the same for many rows of the other.
//!
//! tract computes them number by number, on one thread, unless the smaller operand is repeated over
//! all leading axes or over all trailing ones. Scales and shifts that differ within the batch,
//! `[batch, 1, width]`, are neither.

use tract_linalg::multithread::par_chunks_mut;
use tract_onnx::tract_hir::{
    internal::*,
    tract_core::ops::{binary::TypedBinOp, math},
};

/// Computes all such sums and products of an optimised model row by row, on all threads.
pub(super) fn by_rows(model: &mut TypedModel) -> TractResult<()> {
    for id in 0..model.nodes.len() {
        let node = &model.nodes[id];
        let Some(TypedBinOp(function, None)) = node.op_as::<TypedBinOp>() else { continue };
        let kind = match () {
            () if function.is::<math::Add>() => Kind::Add,
            () if function.is::<math::Mul>() => Kind::Mul,
            () => continue,
        };
        let shape = |fact: &TypedFact| match fact.datum_type {
            DatumType::F32 => fact.shape.as_concrete().map(TVec::from_slice),
            _ => None,
        };
        let facts = model.node_input_facts(id)?.into_iter();
        let Some(shapes) = facts.map(shape).collect::<Option<TVec<_>>>() else { continue };
        let whole = if repeats(&shapes[0], &shapes[1]) { 0 } else { 1 };
        if repeats(&shapes[whole], &shapes[1 - whole]) {
            let shape = shapes[whole].clone();
            model.nodes[id].op = Box::new(Rows { kind, whole, shape });
        }
    }
    Ok(())
}

/// Whether a tensor of shape `part` broadcasts to one of shape `whole`.
fn repeats(whole: &[usize], part: &[usize]) -> bool {
    whole.len() == part.len()
        && !whole.is_empty()
        && whole.iter().zip(part).all(|(whole, part)| whole == part || *part == 1)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Add,
    Mul,
}

/// A sum or product of a tensor of `shape`, the input `whole`, and one that broadcasts to it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rows {
    kind: Kind,
    whole: usize,
    shape: TVec<usize>,
}

impl Op for Rows {
    fn name(&self) -> StaticName {
        format!("{:?} by rows", self.kind).into()
    }

    op_as_typed_op!();
}

impl EvalOp for Rows {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, mut inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let part = inputs.remove(1 - self.whole);
        let mut whole = inputs.remove(0).into_tensor();
        ensure!(
            *whole.shape() == *self.shape && repeats(&self.shape, part.shape()),
            "{:?} and {:?} instead of {:?}",
            whole.shape(),
            part.shape(),
            self.shape
        );
        // A row is along the last axis that has one.
        let row_axis = self.shape.iter().rposition(|&size| size != 1).unwrap_or(0);
        let (width, part_width) = (self.shape[row_axis], part.shape()[row_axis]);
        let outer = || self.shape[..row_axis].iter().zip(&part.shape()[..row_axis]).rev();
        // Which row of the part belongs to a row of the whole.
        let row_of_part = |mut row: usize| {
            let (mut index, mut stride) = (0, 1);
            for (size, &part_size) in outer() {
                if part_size != 1 {
                    index += row % size * stride;
                    stride *= part_size;
                }
                row /= size;
            }
            index
        };
        let plain = part.try_as_plain_ram()?;
        let factors = plain.as_slice::<f32>()?;
        let total = whole.len();
        if total > 0 {
            let mut plain = whole.try_as_plain_ram_mut()?;
            par_chunks_mut(plain.as_slice_mut::<f32>()?, width, total, |first, rows| {
                for (row, x) in rows.chunks_exact_mut(width).enumerate() {
                    let y = &factors[row_of_part(first + row) * part_width..][..part_width];
                    match (self.kind, y) {
                        (Kind::Add, &[y]) => x.iter_mut().for_each(|x| *x += y),
                        (Kind::Mul, &[y]) => x.iter_mut().for_each(|x| *x *= y),
                        (Kind::Add, y) => x.iter_mut().zip(y).for_each(|(x, y)| *x += y),
                        (Kind::Mul, y) => x.iter_mut().zip(y).for_each(|(x, y)| *x *= y),
                    }
                }
                Ok(())
            })?;
        }
        Ok(tvec![whole.into_tvalue()])
    }
}

impl TypedOp for Rows {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec![f32::fact(&self.shape)])
    }

    as_op!();
}

#[cfg(test)]
mod tests {
    use tract_linalg::multithread::{Executor, multithread_tract_scope};

    use super::*;

    fn wave(shape: &[usize], speed: f32) -> TValue {
        let count = shape.iter().product();
        let numbers: Vec<f32> = (0..count).map(|i: usize| (i as f32 * speed).sin()).collect();
        Tensor::from_shape(shape, &numbers).unwrap().into_tvalue()
    }

    /// The operator that a sum or product of these shapes becomes; its result has to be tract's own.
    fn becomes(function: TypedBinOp, shapes: [&[usize]; 2]) -> String {
        let mut model = TypedModel::default();
        let [a, b] =
            shapes.map(|shape| model.add_source(format!("{shape:?}"), f32::fact(shape)).unwrap());
        let c = model.wire_node("c", function, &[a, b]).unwrap();
        model.select_output_outlets(&c).unwrap();
        let inputs = tvec![wave(shapes[0], 0.7), wave(shapes[1], 1.3)];
        let expected = model.clone().into_runnable().unwrap().run(inputs.clone()).unwrap();

        by_rows(&mut model).unwrap();
        let name = model.nodes[model.outputs[0].node].op.name().into_owned();
        let plan = model.into_runnable().unwrap();
        for executor in [Executor::SingleThread, Executor::multithread(3)] {
            let run = || plan.run(inputs.clone()).unwrap();
            let found = multithread_tract_scope(executor, run);
            assert_eq!(found[0], expected[0], "{shapes:?}");
        }
        name
    }

    #[test]
    fn repeated_operands_give_what_tract_gives() {
        let add = || TypedBinOp(Box::new(math::Add), None);
        let mul = || TypedBinOp(Box::new(math::Mul), None);
        let cases: [[&[usize]; 2]; 7] = [
            [&[2, 160, 128], &[2, 1, 128]],
            [&[2, 1, 128], &[2, 160, 128]],
            [&[2, 3, 4, 5], &[1, 3, 1, 5]],
            [&[2, 3, 4, 5], &[2, 1, 4, 1]],
            [&[3, 4, 1, 1], &[3, 1, 1, 1]],
            [&[1, 1], &[1, 1]],
            [&[3, 0, 2], &[3, 1, 2]],
        ];
        for shapes in cases {
            assert_eq!(becomes(add(), shapes), "Add by rows", "{shapes:?}");
            assert_eq!(becomes(mul(), shapes), "Mul by rows", "{shapes:?}");
        }
        // Neither is the whole.
        assert_eq!(becomes(add(), [&[3, 1], &[1, 4]]), "Add");
        // The order would count.
        assert_eq!(becomes(TypedBinOp(Box::new(math::Sub), None), cases[0]), "Sub");
    }
}
