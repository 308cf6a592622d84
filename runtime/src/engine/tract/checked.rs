//! Activations that let NaN and infinity through.
//!
//! tract's kernels for these functions cut their input off to the range their polynomials are for, and so
//! make a number of NaN: a VAE whose values overflow would give an even grey picture instead of an
//! error. So what is not finite is looked for before, and makes all of the result NaN; anybody who
//! gets it will look for that. The look is one more pass over the input.

use tract_onnx::tract_hir::{
    internal::*,
    tract_core::ops::{
        element_wise::ElementWiseOp,
        math::Tanh,
        nn::{GeluApproximate, Sigmoid, Silu},
    },
};

/// Puts the look in front of every such function of an optimised model.
pub(super) fn let_nan_through(model: &mut TypedModel) {
    for node in &mut model.nodes {
        let Some(function) = node.op_as::<ElementWiseOp>() else { continue };
        let inner = &function.0;
        let cuts = inner.is::<Silu>() || inner.is::<Sigmoid>();
        if cuts || inner.is::<Tanh>() || inner.is::<GeluApproximate>() {
            node.op = Box::new(Checked(function.clone()));
        }
    }
}

/// A function of each value, NaN throughout where one of them is not finite.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Checked(ElementWiseOp);

impl Op for Checked {
    fn name(&self) -> StaticName {
        format!("{} checked", self.0.name()).into()
    }

    op_as_typed_op!();
}

impl EvalOp for Checked {
    op_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let sound = finite(&inputs[0])?;
        let mut outputs = self.0.eval(context, inputs)?;
        if !sound {
            let mut output = outputs.remove(0).into_tensor();
            match output.datum_type() {
                DatumType::F16 => output.fill_t(f16::NAN)?,
                DatumType::F32 => output.fill_t(f32::NAN)?,
                other => bail!("{} gave {other:?}, expected floats", self.0.name()),
            }
            outputs.push(output.into_tvalue());
        }
        Ok(outputs)
    }
}

impl TypedOp for Checked {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.0.output_facts(inputs)
    }

    as_op!();
}

fn finite(tensor: &Tensor) -> TractResult<bool> {
    // In parts, so that the loop within has no branch.
    Ok(match tensor.datum_type() {
        DatumType::F32 => {
            let parts = tensor.try_as_plain_ram()?.as_slice::<f32>()?.chunks(1024);
            parts.into_iter().all(|part| part.iter().fold(true, |sound, x| sound & x.is_finite()))
        }
        DatumType::F16 => {
            tensor.try_as_plain_ram()?.as_slice::<f16>()?.iter().all(|x| x.is_finite())
        }
        _ => true,
    })
}
