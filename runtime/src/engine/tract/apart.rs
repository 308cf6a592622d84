//! Loops that stay loops.
//!
//! tract takes work out of a `Scan` when the turns do not depend on one another. The `portable`
//! attention goes through its queries in portions in order to hold few scores at a time, and its
//! turns are independent, so that tract would compute all scores at once: 7.3 GB instead of 0.9 GB for
//! two blocks of the transformer at 1024 px, and three times the time. So a loop is put into an
//! operator that the optimiser knows nothing about, until it becomes a plan of its own.

use tract_onnx::tract_hir::{internal::*, tract_core::ops::scan::Scan};

/// Hides every loop of the model from the optimiser.
pub(super) fn keep_loops(model: &mut TypedModel) {
    for node in &mut model.nodes {
        if let Some(scan) = node.op_as::<Scan>() {
            node.op = Box::new(Apart(scan.clone()));
        }
    }
}

/// A loop that is optimised by itself only.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Apart(Scan);

impl Op for Apart {
    fn name(&self) -> StaticName {
        "Scan apart".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        self.0.info()
    }

    op_as_typed_op!();
}

impl EvalOp for Apart {
    not_out_of_plan!();

    fn state(&self, context: &EvalContext) -> TractResult<Option<Box<dyn OpState>>> {
        self.0.state(context)
    }
}

impl TypedOp for Apart {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.0.output_facts(inputs)
    }

    fn codegen(
        &self,
        model: &TypedModel,
        node: &TypedNode,
    ) -> TractResult<Option<TypedModelPatch>> {
        self.0.codegen(model, node)
    }

    as_op!();
}
