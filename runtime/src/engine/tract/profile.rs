//! How long each kind of operator of a plan takes.

use std::{collections::BTreeMap, time::Instant};

use tract_onnx::tract_hir::{
    internal::*,
    tract_core::{
        ops::scan::{InputMapping, OptScan, State},
        plan,
    },
};

/// Seconds by tract's names of operators.
type Times = BTreeMap<String, f64>;

/// Runs `plan` twice and says what the second run took. Loops tell the operators within them.
pub(super) fn seconds(plan: &Arc<TypedSimplePlan>, inputs: TVec<TValue>) -> TractResult<Times> {
    let mut state = plan.spawn()?;
    run(&mut state, inputs.clone(), &mut Times::new())?;
    let mut times = Times::new();
    run(&mut state, inputs, &mut times)?;
    Ok(times)
}

fn run(
    state: &mut TypedSimpleState,
    inputs: TVec<TValue>,
    times: &mut Times,
) -> TractResult<TVec<TValue>> {
    state.run_plan_with_eval(inputs, |context, mut state, node, inputs| {
        let start = Instant::now();
        let before: f64 = times.values().sum();
        let body = state.as_mut().and_then(|state| state.downcast_mut::<State>());
        let outputs = match node.op_as::<OptScan>().filter(|scan| joins_turns(scan)).zip(body) {
            Some((scan, body)) => turns(scan, body, &inputs, times)?,
            None => plan::eval(context, state, node, inputs)?,
        };
        let within = times.values().sum::<f64>() - before;
        let name = node.op.name().into_owned();
        *times.entry(name).or_default() += start.elapsed().as_secs_f64() - within;
        TractResult::Ok(outputs)
    })
}

/// Whether a loop does no more than [`turns`] does. Others tell their time as a whole.
fn joins_turns(scan: &OptScan) -> bool {
    let simple = |mapping: &InputMapping| match mapping {
        InputMapping::Full => true,
        InputMapping::Scan(info) => info.chunk == 1,
        InputMapping::State => false,
    };
    let joins = match &scan.output_mapping[..] {
        [output] => output.scan.is_some() && output.last_value_slot.is_none() && !output.state,
        _ => false,
    };
    joins && scan.skip == 0 && scan.input_mapping.iter().all(simple)
}

/// Runs a loop turn by turn, as tract does.
fn turns(
    scan: &OptScan,
    body: &mut State,
    inputs: &TVec<TValue>,
    times: &mut Times,
) -> TractResult<TVec<TValue>> {
    let axis = scan.output_mapping[0].scan.context("a loop without a result")?.1.axis;
    let mut parts = Vec::new();
    for turn in 0..body.iteration_count(inputs) {
        let of_turn =
            inputs.iter().zip(&scan.input_mapping).map(|(input, mapping)| match mapping {
                InputMapping::Scan(info) if input.shape()[info.axis] > 1 => {
                    Ok(input.slice(info.axis, turn, turn + 1)?.into_tvalue())
                }
                _ => Ok(input.clone()),
            });
        let of_turn = of_turn.collect::<TractResult<_>>()?;
        parts.push(run(&mut body.model_state, of_turn, times)?.remove(0));
    }
    let joined = match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::stack_tensors(axis, &parts)?.into_tvalue(),
    };
    Ok(tvec![joined])
}

#[cfg(test)]
mod tests {
    use super::{super::apart::tests::optimized, *};

    #[test]
    fn operators_within_loops_are_told_and_compute_the_same() {
        let (model, inputs) = optimized(true);
        let plan = TypedSimplePlan::new(model).unwrap();
        let times = seconds(&plan, inputs.clone()).unwrap();
        for operator in ["Scan", "Softmax", "OptMatMul"] {
            assert!(times.get(operator).is_some_and(|seconds| *seconds > 0.0), "{times:?}");
        }
        let found = run(&mut plan.spawn().unwrap(), inputs.clone(), &mut Times::new()).unwrap();
        assert_eq!(found, plan.run(inputs).unwrap());
    }
}
