//! For tests: gradients against finite differences, in double precision.

use std::collections::HashMap;

use ndarray::ArrayD;
use pixart_exporter::graph::{
    GraphBuilder, GraphError, Value,
    dim::Dim,
    ir::{DType, Graph},
};
use pixart_exporter::profile::Profile;

use super::evaluate::evaluate;
use super::{GradientError, differentiate, name_outputs};

/// The distance of a finite difference; its error is of the order of the square, 1e-10.
const STEP: f64 = 1e-5;

/// Relative to the largest gradient. Constants of a graph are rounded to single precision.
const TOLERANCE: f64 = 2e-7;

/// What a rule is tried with: operands of some shapes, filled at random.
#[derive(Clone)]
pub(super) struct Case {
    shapes: Vec<Vec<Dim>>,
    sizes: HashMap<String, i64>,
    maps: HashMap<usize, fn(f64) -> f64>,
    only: Option<usize>,
    profile: Profile,
}

/// A number of the same sign structure as any that a logarithm, a root or a divisor may have.
pub(super) fn positive(x: f64) -> f64 {
    0.5 + x.abs()
}

impl Case {
    /// Operands of these shapes: `"n 3 h%2"` is a symbol, a constant, and a symbol that is always even.
    pub fn new(shapes: &[&str]) -> Self {
        let dim = |text: &str| match (text.parse::<i64>(), text.split_once('%')) {
            (Ok(size), _) => Dim::from(size),
            (_, Some((name, by))) => Dim::symbol_multiple_of(name, by.parse().expect("a number")),
            (_, None) => Dim::symbol(text),
        };
        Self {
            shapes: shapes.iter().map(|s| s.split_whitespace().map(dim).collect()).collect(),
            sizes: HashMap::new(),
            maps: HashMap::new(),
            only: None,
            profile: Profile::Ort,
        }
    }

    /// The value of a symbol.
    pub fn size(mut self, name: &str, size: i64) -> Self {
        self.sizes.insert(name.to_owned(), size);
        self
    }

    /// Changes the elements of an operand.
    pub fn map(mut self, operand: usize, map: fn(f64) -> f64) -> Self {
        self.maps.insert(operand, map);
        self
    }

    /// The gradient of one operand, instead of all operands and weights.
    pub fn only(mut self, operand: usize) -> Self {
        self.only = Some(operand);
        self
    }

    /// Another profile than ONNX Runtime's.
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// The graph of `build`'s function and its gradients, named `d <variable>`.
    fn graph(
        &self,
        build: impl FnOnce(&mut GraphBuilder, &[Value]) -> Result<Value, GraphError>,
    ) -> Result<(Graph, Vec<String>), GradientError> {
        let mut b = GraphBuilder::new("check", self.profile).weights_as_inputs();
        let mut operands = Vec::new();
        for (index, shape) in self.shapes.iter().enumerate() {
            operands.push(b.input(&format!("x{index}"), DType::F32, shape.clone())?);
        }
        let y = build(&mut b, &operands)?;
        let names: Vec<String> = match self.only {
            Some(index) => vec![format!("x{index}")],
            None => b.inputs().iter().map(|input| input.name.clone()).collect(),
        };
        let dy = b.input("dy", DType::F32, y.shape().to_vec())?;
        let variables: Vec<Value> = names.iter().filter_map(|name| b.value(name)).collect();
        let variables: Vec<&Value> = variables.iter().collect();
        let gradients = differentiate(&mut b, &[(&y, &dy)], &variables)?;
        let mut outputs = vec![("y".to_owned(), y)];
        for ((name, gradient), variable) in names.iter().zip(gradients).zip(variables) {
            assert_eq!(gradient.shape(), variable.shape(), "shape of the gradient of {name}");
            outputs.push((format!("d {name}"), gradient));
        }
        name_outputs(&mut b, outputs)?;
        let mut graph = b.finish();
        graph.prune();
        Ok((graph, names))
    }

    /// Compares the gradients of `build`'s function with finite differences.
    pub fn check(
        &self,
        build: impl FnOnce(&mut GraphBuilder, &[Value]) -> Result<Value, GraphError>,
    ) {
        let (graph, names) = self.graph(build).expect("a gradient");
        let mut values = HashMap::new();
        for (seed, input) in graph.inputs.iter().enumerate() {
            let size = |dim: &Dim| dim.evaluate(|name| self.sizes.get(name).copied());
            let shape: Vec<usize> =
                input.shape.iter().map(|dim| size(dim).expect("a size") as usize).collect();
            let mut array = noise(seed as u64 + 1, &shape);
            let operand = input.name.strip_prefix('x').and_then(|index| index.parse().ok());
            if let Some(map) = operand.and_then(|index: usize| self.maps.get(&index)) {
                array.mapv_inplace(map);
            }
            values.insert(input.name.clone(), array);
        }
        let results = evaluate(&graph, &values, &self.sizes);
        let total = |values: &HashMap<String, ArrayD<f64>>| {
            (&evaluate(&graph, values, &self.sizes)["y"] * &values["dy"]).sum()
        };
        for name in names {
            let found = &results[&format!("d {name}")];
            let mut expected = ArrayD::zeros(found.shape());
            let elements = values[&name].len();
            for index in 0..elements {
                let mut moved = |by: f64| {
                    let array = values.get_mut(&name).expect("an input");
                    array.as_slice_mut().expect("contiguous")[index] += by;
                    let result = total(&values);
                    values.get_mut(&name).expect("an input").as_slice_mut().expect("contiguous")
                        [index] -= by;
                    result
                };
                let slope = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                expected.as_slice_mut().expect("contiguous")[index] = slope;
            }
            let largest = expected.iter().fold(1.0, |a: f64, x: &f64| a.max(x.abs()));
            let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
            let worst = worst.fold(0.0, f64::max) / largest;
            let of = &self.shapes;
            assert!(worst < TOLERANCE, "{name} of {of:?}: {worst:e}\n{found}\n{expected}");
        }
    }

    /// The message with which the gradient of `build`'s function is refused.
    pub fn refused(
        &self,
        build: impl FnOnce(&mut GraphBuilder, &[Value]) -> Result<Value, GraphError>,
    ) -> String {
        self.graph(build).map(drop).expect_err("a refusal").to_string()
    }
}

/// Reproducible numbers of both signs, up to 1.5.
pub(super) fn noise(seed: u64, shape: &[usize]) -> ArrayD<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 11) as f64 / (1u64 << 53) as f64 - 0.5) * 3.0
    };
    for _ in 0..8 {
        next();
    }
    ArrayD::from_shape_simple_fn(shape, next)
}
