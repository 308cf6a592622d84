//! The gradient of every operator against PyTorch's autograd, on both engines.

use std::collections::BTreeMap;

use ndarray::ArrayD;
use pixart_exporter::graph::{GraphBuilder, GraphError, Value, Window, dim::Dim, ir::DType};
use pixart_exporter::profile::{Attention, Profile};
use pixart_exporter::write::to_bytes;
use pixart_runtime::{engine::Engine, tensor::Tensor};
use pixart_tests::engines;
use pixart_tests::errors::assert_close;
use pixart_tests::fixtures::{self, Case};
use pixart_trainer::gradient::differentiate;

const TOLERANCE: f64 = 1e-4;

type Build = fn(&mut GraphBuilder, &[Value]) -> Result<Value, GraphError>;

/// What the fixture's cases are in the exporter's graphs.
const CASES: [(&str, Build); 37] = [
    ("add", |b, x| b.add(&x[0], &x[1])),
    ("sub", |b, x| b.sub(&x[0], &x[1])),
    ("mul", |b, x| b.mul(&x[0], &x[1])),
    ("div", |b, x| {
        let square = b.mul(&x[1], &x[1])?;
        let divisor = more_by_one(b, &square)?;
        b.div(&x[0], &divisor)
    }),
    ("neg", |b, x| b.neg(&x[0])),
    ("pow", |b, x| b.pow(&x[0], 3.0)),
    ("sqrt", |b, x| {
        let square = b.pow(&x[0], 2.0)?;
        let sum = more_by_one(b, &square)?;
        b.sqrt(&sum)
    }),
    ("exp_log", |b, x| {
        let power = b.exp(&x[0])?;
        let sum = more_by_one(b, &power)?;
        b.log(&sum)
    }),
    ("sin_cos", |b, x| {
        let (sin, cos) = (b.sin(&x[0])?, b.cos(&x[0])?);
        b.mul(&sin, &cos)
    }),
    ("sigmoid", |b, x| b.sigmoid(&x[0])),
    ("silu", |b, x| b.silu(&x[0])),
    ("tanh", |b, x| b.tanh(&x[0])),
    ("erf", |b, x| b.erf(&x[0])),
    ("gelu_tanh", |b, x| {
        let three = b.scalar_f32(3.0);
        let x = b.mul(&x[0], &three)?;
        b.gelu_tanh(&x)
    }),
    ("softmax", |b, x| b.softmax(&x[0])),
    ("matmul_shared", |b, x| b.matmul(&x[0], &x[1])),
    ("matmul_batched", |b, x| b.matmul(&x[0], &x[1])),
    ("linear", |b, x| {
        let matrix = b.transpose(&x[1], &[1, 0])?;
        let y = b.matmul(&x[0], &matrix)?;
        b.add(&y, &x[2])
    }),
    ("layer_norm", |b, x| b.layer_norm(&x[0], &x[1], Some(&x[2]), 1e-5)),
    ("modulated_layer_norm", |b, x| b.modulated_layer_norm(&x[0], &x[1], &x[2], 1e-6)),
    ("reduce_sum", |b, x| b.reduce_sum(&x[0], &[0, 2])),
    ("reduce_sum_square", |b, x| b.reduce_sum_square(&x[0], &[0, 2])),
    ("reduce_mean", |b, x| b.reduce_mean(&x[0], 1)),
    ("reshape", |b, x| b.reshape(&x[0], &[4, 3, 2].map(Dim::from))),
    ("unsqueeze", |b, x| b.unsqueeze(&x[0], &[1])),
    ("transpose", |b, x| b.transpose(&x[0], &[2, 0, 1])),
    ("expand", |b, x| b.expand(&x[0], &[2, 3, 4].map(Dim::from))),
    ("concat", |b, x| b.concat(&[&x[0], &x[1], &x[0]], 1)),
    ("split", |b, x| {
        let parts = b.split(&x[0], 3, 1)?;
        b.mul(&parts[0], &parts[2])
    }),
    ("slice", |b, x| b.slice(&x[0], 1, &Dim::from(1), &Dim::from(2))),
    ("gather", |b, x| {
        let indices = b.constant_i64(&[1, 0, 1]);
        b.gather_along(&x[0], 1, &indices)
    }),
    ("where", |b, x| {
        let (column, one) = (b.constant_i64(&[0, 1, 2]), b.constant_i64(&[1]));
        let condition = b.equal(&column, &one)?;
        b.select(&condition, &x[0], &x[1])
    }),
    ("cast", |b, x| {
        let same = b.cast(&x[0], DType::F32)?;
        b.mul(&same, &x[0])
    }),
    ("patches", |b, x| {
        // The weights of the layer are inputs of these names.
        b.conv2d("proj", &x[0], 5, Window::patches(2))
    }),
    ("depthwise", |b, x| {
        let size = [Dim::from(2), Dim::from(3)];
        b.depthwise_patches(&x[0], &x[1], &x[2], 2, &size)
    }),
    ("attention", |b, x| {
        let attention = Attention { heads: 2, scale: None, bias: None };
        b.attention(&x[0], &x[1], &x[2], &attention)
    }),
    ("masked_attention", |b, x| {
        let attention = Attention { heads: 2, scale: None, bias: Some(&x[3]) };
        b.attention(&x[0], &x[1], &x[2], &attention)
    }),
];

fn more_by_one(b: &mut GraphBuilder, x: &Value) -> Result<Value, GraphError> {
    let one = b.scalar_f32(1.0);
    b.add(x, &one)
}

/// The names of the operands in the graph: those of a layer's weights are its own.
fn operands(case: &str, tensors: &Case) -> Vec<(String, ArrayD<f32>)> {
    let count = (0..).take_while(|i| tensors.contains_key(&format!("x{i}"))).count();
    let name = |index: usize| match (case, index) {
        ("patches", 1) => "proj.weight".to_owned(),
        ("patches", 2) => "proj.bias".to_owned(),
        _ => format!("x{index}"),
    };
    (0..count).map(|index| (name(index), floats(tensors, &format!("x{index}")))).collect()
}

fn floats(tensors: &Case, name: &str) -> ArrayD<f32> {
    let tensor = tensors.get(name).unwrap_or_else(|| panic!("no {name}"));
    tensor.as_f32().expect("floats").clone()
}

fn shape(array: &ArrayD<f32>) -> Vec<Dim> {
    array.shape().iter().map(|&size| Dim::from(size)).collect()
}

fn assert_case(engine: &dyn Engine, profile: Profile, case: &str, build: Build, tensors: &Case) {
    let operands = operands(case, tensors);
    let dy = floats(tensors, "dy");
    let mut b = GraphBuilder::new(case, profile).weights_as_inputs();
    let mut values = Vec::new();
    for (name, array) in &operands {
        if name.starts_with('x') {
            values.push(b.input(name, DType::F32, shape(array)).expect("an input"));
        }
    }
    let y = build(&mut b, &values).unwrap_or_else(|error| panic!("{case}: {error}"));
    let cotangent = b.input("dy", DType::F32, shape(&dy)).expect("an input");
    let variables: Vec<Value> =
        operands.iter().map(|(name, _)| b.value(name).expect("an input")).collect();
    let variables: Vec<&Value> = variables.iter().collect();
    let gradients = differentiate(&mut b, &[(&y, &cotangent)], &variables)
        .unwrap_or_else(|error| panic!("{case}: {error}"));
    for (index, value) in [y].iter().chain(&gradients).enumerate() {
        // Two outputs can be one value.
        let value = b.identity(value);
        b.output(&format!("out{index}"), &value, DType::F32, value.shape()).expect("an output");
    }
    let mut graph = b.finish();
    graph.prune();
    profile.check(&graph).expect("operators of the profile");

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, to_bytes(&graph).expect("bytes")).expect("a file");
    let mut session = engine.load(&path).unwrap_or_else(|error| panic!("{case}: {error}"));
    let inputs: BTreeMap<&str, Tensor> = operands
        .iter()
        .map(|(name, array)| (name.as_str(), Tensor::F32(array.clone())))
        .chain([("dy", Tensor::F32(dy.clone()))])
        .filter(|(name, _)| graph.inputs.iter().any(|input| input.name == *name))
        .collect();
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, value)| (*name, value)).collect();
    let results = session.run(&inputs).unwrap_or_else(|error| panic!("{case}: {error}"));
    for (index, (name, value)) in results.into_iter().enumerate() {
        let expected = match index {
            0 => "y".to_owned(),
            _ => format!("dx{}", index - 1),
        };
        let found = value.into_f32(&name).expect("floats");
        let message = format!("{expected} of {case}, {profile} on {}", engine.name());
        assert_close(&message, &found, &floats(tensors, &expected), TOLERANCE);
    }
}

#[test]
fn the_gradient_of_every_operator_equals_autograd() {
    let cases = fixtures::cases("gradients/operators.safetensors");
    let names: Vec<&String> = cases.keys().collect();
    let mut known: Vec<&str> = CASES.iter().map(|(name, _)| *name).collect();
    known.sort_unstable();
    assert_eq!(names, known, "every case of the fixture is tried");
    for engine in [engines::ort(), engines::tract()] {
        for profile in [Profile::Ort, Profile::Cann] {
            for (name, build) in CASES {
                assert_case(engine.as_ref(), profile, name, build, &cases[name]);
            }
        }
    }
}
