//! What [`differentiate`] refuses, and what it does with graphs of several nodes.

use pixart_exporter::graph::{GraphBuilder, GraphError, Value, Window, dim::Dim, ir::DType};
use pixart_exporter::profile::{Attention, Profile};

use super::check::Case;
use super::*;

fn builder() -> GraphBuilder {
    GraphBuilder::new("test", Profile::Ort)
}

fn input(b: &mut GraphBuilder, name: &str, size: i64) -> Value {
    b.input(name, DType::F32, vec![Dim::from(size)]).expect("an input")
}

#[test]
fn a_value_used_by_several_nodes_gets_the_sum() {
    let case = Case::new(&["n m", "m"]).size("n", 3).size("m", 4);
    case.check(|b, x| {
        let y = b.mul(&x[0], &x[1])?;
        let weights = b.softmax(&y)?;
        let mixed = b.mul(&weights, &y)?;
        let sum = b.reduce_sum(&mixed, &[1])?;
        let root = b.exp(&sum)?;
        b.add(&root, &y)
    });
}

#[test]
fn a_variable_in_between_gets_what_comes_from_behind_it() {
    let mut b = builder();
    let x = input(&mut b, "x", 3);
    let y = b.exp(&x).unwrap();
    let z = b.mul(&y, &y).unwrap();
    let dz = input(&mut b, "dz", 3);
    let before = b.nodes().len();
    let gradients = differentiate(&mut b, &[(&z, &dz)], &[&y]).unwrap();
    assert_eq!(gradients.len(), 1);
    // Nothing of the exponential function is differentiated.
    assert!(b.nodes()[before..].iter().all(|node| node.op_type != "Exp"));
    assert!(b.nodes()[before..].iter().all(|node| node.name.starts_with("gradient/")));
}

#[test]
fn several_outputs_are_summed() {
    let mut b = builder();
    let x = input(&mut b, "x", 3);
    let (y, z) = (b.exp(&x).unwrap(), b.neg(&x).unwrap());
    let (dy, dz) = (input(&mut b, "dy", 3), input(&mut b, "dz", 3));
    let gradient = differentiate(&mut b, &[(&y, &dy), (&z, &dz), (&z, &dz)], &[&x]).unwrap();
    name_outputs(&mut b, vec![("dx".to_owned(), gradient[0].clone())]).unwrap();
    let graph = b.finish();
    let values = ["x", "dy", "dz"].into_iter().zip([1.0, 2.0, 3.0]);
    let array = |value| ndarray::ArrayD::from_elem(vec![3], value);
    let inputs = values.map(|(name, value)| (name.to_owned(), array(value))).collect();
    let found = &evaluate::evaluate(&graph, &inputs, &HashMap::new())["dx"];
    assert!((found[[0]] - (2.0 * 1f64.exp() - 6.0)).abs() < 1e-12, "{found}");
}

#[test]
fn operators_without_a_rule_are_named_with_their_nodes() {
    let case = Case::new(&["n 4 h w"]).size("n", 1).size("h", 2).size("w", 2);
    let error = case.refused(|b, x| b.scoped("up", |b| b.upsample_nearest(&x[0], 2)));
    assert!(error.contains("up/Resize (Resize)") && error.contains("no rule"), "{error}");
    let case = Case::new(&["n q 4"]).profile(Profile::Portable).size("n", 1).size("q", 2);
    let error = case.refused(|b, x| {
        let attention = Attention { heads: 2, scale: None, bias: None };
        b.scoped("attn1", |b| b.attention(&x[0], &x[0], &x[0], &attention))
    });
    assert!(error.contains("attn1") && error.contains("(Scan)"), "{error}");
    assert!(error.contains("profile `ort` or `cann`"), "{error}");
}

#[test]
fn an_operator_without_a_rule_may_stand_where_nothing_depends_on_the_variables() {
    let mut b = builder().weights_as_inputs();
    let picture = [1, 3, 4, 4].map(Dim::from).to_vec();
    let x = b.input("x", DType::F32, picture).unwrap();
    let large = b.upsample_nearest(&x, 2).unwrap();
    let y = b.conv2d("proj", &large, 5, Window::patches(2)).unwrap();
    let dy = b.input("dy", DType::F32, y.shape().to_vec()).unwrap();
    let weight = b.value("proj.weight").unwrap();
    assert!(differentiate(&mut b, &[(&y, &dy)], &[&weight]).is_ok());
    assert!(differentiate(&mut b, &[(&y, &dy)], &[&x]).is_err());
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut b = builder();
    let (x, other) = (input(&mut b, "x", 3), input(&mut b, "other", 3));
    let y = b.exp(&x).unwrap();
    let dy = input(&mut b, "dy", 3);
    let wrong = input(&mut b, "wrong", 4);
    let count = b.input("count", DType::I64, vec![]).unwrap();
    let mut message = |outputs: &[(&Value, &Value)], variables: &[&Value]| {
        differentiate(&mut b, outputs, variables).expect_err("a refusal").to_string()
    };
    let error = message(&[(&y, &wrong)], &[&x]);
    assert!(error.contains("wrong: f32[4]") && error.contains("expected f32[3]"), "{error}");
    let error = message(&[(&y, &dy)], &[&x, &other]);
    assert!(error.contains("variable other") && error.contains("no output"), "{error}");
    let error = message(&[(&y, &dy)], &[&count]);
    assert!(error.contains("count: i64[]"), "{error}");
}

#[test]
fn weights_as_inputs_keep_the_checkpoint_s_names_and_shapes() -> Result<(), GraphError> {
    let mut b = builder().weights_as_inputs();
    let x = b.input("x", DType::F32, vec![Dim::symbol("n"), Dim::from(3)])?;
    let y = b.linear("proj", &x, 5, true)?;
    name_outputs(&mut b, vec![("y".to_owned(), y)])?;
    let graph = b.finish();
    let shapes: Vec<(&str, &[Dim])> =
        graph.inputs.iter().map(|input| (input.name.as_str(), input.shape.as_slice())).collect();
    let [out, width] = [5, 3].map(Dim::from);
    assert_eq!(shapes[1..], [("proj.weight", &[out.clone(), width][..]), ("proj.bias", &[out])]);
    assert_eq!(graph.weights().count(), 0);
    assert!(pixart_exporter::write::to_bytes(&graph).is_ok());
    Ok(())
}
