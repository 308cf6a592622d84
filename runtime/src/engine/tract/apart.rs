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

#[cfg(test)]
pub(super) mod tests {
    use prost::Message;
    use tract_onnx::{
        pb::{
            AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
            TensorShapeProto, TypeProto, ValueInfoProto,
            attribute_proto::AttributeType,
            tensor_shape_proto::{Dimension, dimension},
            type_proto,
        },
        prelude::Framework,
    };

    use super::*;

    const TURNS: usize = 8;
    const ROWS: usize = 16;
    const WIDTH: usize = 4;
    const KEYS: usize = 32;

    fn value(name: &str, shape: &[usize]) -> ValueInfoProto {
        let size = |&n: &usize| Dimension {
            value: Some(dimension::Value::DimValue(n as i64)),
            ..Default::default()
        };
        let shape = TensorShapeProto { dim: shape.iter().map(size).collect() };
        let tensor = type_proto::Tensor { elem_type: 1, shape: Some(shape) };
        let value = Some(type_proto::Value::TensorType(tensor));
        ValueInfoProto {
            name: name.to_owned(),
            r#type: Some(TypeProto { value, ..Default::default() }),
            ..Default::default()
        }
    }

    fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
        NodeProto {
            op_type: op.to_owned(),
            name: output.to_owned(),
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.to_owned()],
            ..Default::default()
        }
    }

    /// In each turn, rows of `x` times `k`, softmax, times `v`: attention in portions.
    fn portions() -> Vec<u8> {
        let body = GraphProto {
            name: "portion".to_owned(),
            node: vec![
                node("MatMul", &["part", "k"], "scores"),
                node("Softmax", &["scores"], "weights"),
                node("MatMul", &["weights", "v"], "mixed"),
            ],
            input: vec![value("part", &[ROWS, WIDTH])],
            output: vec![value("mixed", &[ROWS, WIDTH])],
            ..Default::default()
        };
        let mut scan = node("Scan", &["x"], "y");
        scan.attribute = vec![
            AttributeProto {
                name: "num_scan_inputs".to_owned(),
                r#type: AttributeType::Int as i32,
                i: 1,
                ..Default::default()
            },
            AttributeProto {
                name: "body".to_owned(),
                r#type: AttributeType::Graph as i32,
                g: Some(body),
                ..Default::default()
            },
        ];
        let graph = GraphProto {
            name: "portions".to_owned(),
            node: vec![scan],
            input: vec![
                value("x", &[TURNS, ROWS, WIDTH]),
                value("k", &[WIDTH, KEYS]),
                value("v", &[KEYS, WIDTH]),
            ],
            output: vec![value("y", &[TURNS, ROWS, WIDTH])],
            ..Default::default()
        };
        let model = ModelProto {
            ir_version: 10,
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 21 }],
            graph: Some(graph),
            ..Default::default()
        };
        model.encode_to_vec()
    }

    /// Attention in portions, optimised, and its inputs.
    pub fn optimized(kept: bool) -> (TypedModel, TVec<TValue>) {
        let mut bytes = &portions()[..];
        let mut model =
            tract_onnx::onnx().model_for_read(&mut bytes).unwrap().into_typed().unwrap();
        if kept {
            keep_loops(&mut model);
        }
        let wave = |shape: &[usize]| {
            let numbers: Vec<f32> =
                (0..shape.iter().product()).map(|i: usize| (i as f32 * 0.7).sin()).collect();
            Tensor::from_shape(shape, &numbers).unwrap().into_tvalue()
        };
        let shapes: [&[usize]; 3] = [&[TURNS, ROWS, WIDTH], &[WIDTH, KEYS], &[KEYS, WIDTH]];
        (model.into_optimized().unwrap(), shapes.into_iter().map(wave).collect())
    }

    /// The largest number of elements between two operators, and the result.
    fn largest_and_result(kept: bool) -> (usize, Tensor) {
        let (model, inputs) = optimized(kept);
        let sizes = model
            .nodes
            .iter()
            .flat_map(|node| &node.outputs)
            .map(|output| output.fact.shape.as_concrete().unwrap().iter().product());
        let largest = sizes.max().unwrap();
        let result = model.into_runnable().unwrap().run(inputs).unwrap().remove(0);
        (largest, result.into_tensor())
    }

    #[test]
    fn a_loop_holds_the_scores_of_one_turn_and_computes_the_same() {
        let (apart, result) = largest_and_result(true);
        assert_eq!(apart, TURNS * ROWS * WIDTH);
        // If tract leaves such loops alone by itself one day, this file can go.
        let (together, expected) = largest_and_result(false);
        assert!(together >= TURNS * ROWS * KEYS, "{together}");
        result.close_enough(&expected, true).unwrap();
    }
}
