//! Settings and states that are refused; the numbers are compared with PyTorch's in the tests package.

use pixart_runtime::engine::{EngineChoice, EngineOptions, open};

use super::*;

fn optimizer(rule: Rule) -> Result<Optimizer, OptimizerError> {
    let options = EngineOptions { library: None, threads: Some(1) };
    let engine = open(EngineChoice::Tract, &options).expect("tract").engine;
    Optimizer::load(engine.as_ref(), rule)
}

fn tensor(shape: &[usize], value: f32) -> ArrayD<f32> {
    ArrayD::from_elem(shape, value)
}

fn one(name: &str, array: ArrayD<f32>) -> Gradients {
    Gradients::from([(name.to_owned(), array)])
}

#[test]
fn a_gradient_that_does_not_fit_changes_nothing() {
    let mut optimizer = optimizer(Rule::Came(Came::default())).expect("loads");
    let weights = Weights::from([("a".to_owned(), Tensor::F32(tensor(&[2, 3], 1.0)))]);
    let mut changed = weights.clone();
    let mut step = |gradients: Gradients, rate, most| {
        optimizer.step(&mut changed, gradients, rate, most).expect_err("a refusal").to_string()
    };
    let error = step(one("a", tensor(&[3, 2], 1.0)), 1e-3, None);
    assert!(
        error.contains("`a`") && error.contains("[3, 2]") && error.contains("[2, 3]"),
        "{error}"
    );
    let error = step(one("b", tensor(&[2, 3], 1.0)), 1e-3, None);
    assert!(error.contains("`b`") && error.contains("one of the weights"), "{error}");
    let error = step(one("a", tensor(&[2, 3], f32::NAN)), 1e-3, None);
    assert!(error.contains("`a`") && error.contains("NaN"), "{error}");
    let good = one("a", tensor(&[2, 3], 1.0));
    let error = step(good.clone(), -1.0, None);
    assert!(error.contains("learning rate is -1"), "{error}");
    let error = step(good, 1e-3, Some(0.0));
    assert!(error.contains("largest norm"), "{error}");
    assert_eq!(changed, weights);
    assert_eq!(optimizer.steps(), 0);
    assert!(optimizer.state().is_empty());
}

#[test]
fn settings_out_of_range_are_refused() {
    let refused = |rule| optimizer(rule).err().expect("a refusal").to_string();
    let error = refused(Rule::AdamW(AdamW { betas: [0.9, 1.0], ..AdamW::default() }));
    assert!(error.contains("β₂ of AdamW is 1"), "{error}");
    let error = refused(Rule::Came(Came { clip_threshold: f64::NAN, ..Came::default() }));
    assert!(error.contains("clip threshold of CAME is NaN"), "{error}");
    let error = refused(Rule::Came(Came { weight_decay: -0.1, ..Came::default() }));
    assert!(error.contains("weight decay is -0.1"), "{error}");
}

#[test]
fn going_on_from_a_state_equals_not_having_stopped() {
    for rule in [Rule::AdamW(AdamW::default()), Rule::Came(Came::default())] {
        let start = Weights::from([
            ("matrix".to_owned(), Tensor::F32(tensor(&[2, 3], 1.0))),
            ("layer.vector".to_owned(), Tensor::F32(tensor(&[4], -1.0))),
        ]);
        let gradients = |step: f32| {
            let mut all = one("matrix", tensor(&[2, 3], 0.1 * step));
            all.extend(one("layer.vector", tensor(&[4], 0.3 - 0.1 * step)));
            all
        };
        let mut first = optimizer(rule).expect("loads");
        let mut through = start.clone();
        first.step(&mut through, gradients(1.0), 1e-2, None).expect("a step");
        let (state, steps, mut resumed) = (first.state().clone(), first.steps(), through.clone());
        first.step(&mut through, gradients(2.0), 1e-2, None).expect("a step");

        let mut second = optimizer(rule).expect("loads");
        second.restore(state.clone(), steps, &start).expect("its own state");
        second.step(&mut resumed, gradients(2.0), 1e-2, None).expect("a step");
        assert_eq!(resumed, through);
        assert_eq!((second.state(), second.steps()), (first.state(), 2));

        let mut other = state.clone();
        other.insert("exp_avg.matrix".to_owned(), Tensor::F32(tensor(&[7], 0.0)));
        let error = second.restore(other, 1, &start).expect_err("another shape").to_string();
        assert!(error.contains("`exp_avg.matrix`") && error.contains("f32 [7]"), "{error}");
        let mut other = state;
        other.insert("momentum.matrix".to_owned(), Tensor::F32(tensor(&[6], 0.0)));
        let error = second.restore(other, 1, &start).expect_err("unknown").to_string();
        assert!(error.contains("`momentum.matrix`"), "{error}");
        assert_eq!(second.steps(), 2);
    }
}
