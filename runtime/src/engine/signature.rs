//! The inputs that a graph declares, and whether the values given fit them.
//!
//! Checked before either engine sees a value, so that both report a mistake in the same words.

use std::{collections::HashMap, path::Path};

use tract_onnx::pb::{
    GraphProto, ValueInfoProto, tensor_proto::DataType, tensor_shape_proto::dimension, type_proto,
};

use super::EngineError;
use crate::tensor::Tensor;

/// Inputs and outputs of a graph, in its order.
#[derive(Clone, Debug)]
pub(crate) struct Signature {
    pub inputs: Vec<Input>,
    pub outputs: Vec<String>,
    /// Sizes that an output divides, as `height/8` says: engines may round such a size down.
    multiples: Vec<(String, usize)>,
}

/// One declared input.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub name: String,
    pub dtype: DataType,
    /// `None` where the graph does not say.
    pub dims: Option<Vec<Dim>>,
}

/// One declared size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dim {
    Fixed(usize),
    Symbol(String),
    Any,
}

/// What has a type and a shape.
pub(crate) trait Described {
    /// The name of the element type, as messages spell it.
    fn dtype(&self) -> &'static str;

    /// The size of every dimension, outermost first.
    fn shape(&self) -> &[usize];
}

impl Described for Tensor {
    fn dtype(&self) -> &'static str {
        self.dtype()
    }

    fn shape(&self) -> &[usize] {
        self.shape()
    }
}

/// An input that does not fit.
#[derive(Debug)]
pub(crate) struct Mismatch {
    pub input: String,
    pub reason: String,
}

impl Mismatch {
    /// The error of a run of `model`.
    pub fn in_model(self, model: &Path) -> EngineError {
        EngineError::Input { model: model.to_path_buf(), input: self.input, reason: self.reason }
    }
}

impl Signature {
    pub fn of(graph: &GraphProto) -> Result<Self, String> {
        let inputs = graph
            .input
            .iter()
            // Old files list the weights among the inputs.
            .filter(|input| !graph.initializer.iter().any(|tensor| tensor.name == input.name))
            .map(Input::of)
            .collect::<Result<_, _>>()?;
        let outputs = graph.output.iter().map(|output| output.name.clone()).collect();
        let multiples = graph.output.iter().flat_map(symbols).filter_map(quotient).collect();
        Ok(Self { inputs, outputs, multiples })
    }

    /// The given values in the graph's order.
    pub fn sort<'a, T: Described>(&self, given: &[(&str, &'a T)]) -> Result<Vec<&'a T>, Mismatch> {
        for (index, (name, _)) in given.iter().enumerate() {
            let mismatch = |reason: String| Mismatch { input: (*name).to_owned(), reason };
            if !self.inputs.iter().any(|input| input.name == *name) {
                let names: Vec<String> =
                    self.inputs.iter().map(|input| input.name.escape_debug().to_string()).collect();
                return Err(mismatch(format!(
                    "the model has no such input; it has {}",
                    names.join(", ")
                )));
            }
            if given[..index].iter().any(|(earlier, _)| earlier == name) {
                return Err(mismatch("it is given twice".to_owned()));
            }
        }
        let mut symbols = HashMap::new();
        let mut sorted = Vec::with_capacity(self.inputs.len());
        for input in &self.inputs {
            let value = given.iter().find(|(name, _)| *name == input.name);
            let fits = match value {
                None => Err(format!("it is missing; expected {}", input.expected())),
                Some((_, value)) => input.fits(*value, &mut symbols).map(|()| *value),
            };
            let value = fits.map_err(|reason| Mismatch { input: input.name.clone(), reason })?;
            sorted.push(value);
        }
        for (symbol, factor) in &self.multiples {
            if let Some((size, input)) = symbols.get(symbol.as_str())
                && size % factor != 0
            {
                let reason = format!(
                    "found {} = {size}, expected a multiple of {factor}",
                    symbol.escape_debug()
                );
                return Err(Mismatch { input: (*input).to_owned(), reason });
            }
        }
        Ok(sorted)
    }

    /// The sizes that the graph leaves open, each by its name, as these inputs in the graph's order have them.
    pub fn sizes<T: Described>(&self, sorted: &[&T]) -> Vec<(String, usize)> {
        let mut sizes: Vec<(String, usize)> = Vec::new();
        for (input, value) in self.inputs.iter().zip(sorted) {
            for (dim, &size) in input.dims.iter().flatten().zip(value.shape()) {
                if let Dim::Symbol(name) = dim
                    && !sizes.iter().any(|(known, _)| known == name)
                {
                    sizes.push((name.clone(), size));
                }
            }
        }
        sizes
    }
}

impl Input {
    fn of(info: &ValueInfoProto) -> Result<Self, String> {
        let unusable = |what: &str| format!("input \"{}\" {what}", info.name.escape_debug());
        let Some(type_proto::Value::TensorType(tensor)) =
            info.r#type.as_ref().and_then(|kind| kind.value.as_ref())
        else {
            return Err(unusable("is no tensor"));
        };
        let dtype = DataType::try_from(tensor.elem_type)
            .map_err(|_| unusable("has an unknown element type"))?;
        let dims = tensor.shape.as_ref().map(|shape| {
            let dims = shape.dim.iter().map(|dim| match &dim.value {
                Some(dimension::Value::DimValue(size)) => {
                    usize::try_from(*size).map_or(Dim::Any, Dim::Fixed)
                }
                Some(dimension::Value::DimParam(symbol)) if !symbol.is_empty() => {
                    Dim::Symbol(symbol.clone())
                }
                _ => Dim::Any,
            });
            dims.collect()
        });
        Ok(Self { name: info.name.clone(), dtype, dims })
    }

    fn expected(&self) -> String {
        let Some(dims) = &self.dims else { return dtype_name(self.dtype) };
        let dims = dims.iter().map(|dim| match dim {
            Dim::Fixed(size) => size.to_string(),
            Dim::Symbol(symbol) => symbol.escape_debug().to_string(),
            Dim::Any => "?".to_owned(),
        });
        format!("{}[{}]", dtype_name(self.dtype), dims.collect::<Vec<_>>().join(", "))
    }

    fn fits<'a>(
        &'a self,
        value: &impl Described,
        symbols: &mut HashMap<&'a str, (usize, &'a str)>,
    ) -> Result<(), String> {
        let found = describe(value);
        let wrong = || format!("found {found}, expected {}", self.expected());
        if value.dtype() != dtype_name(self.dtype) {
            return Err(wrong());
        }
        if value.shape().contains(&0) {
            return Err(format!("found {found}, which is empty"));
        }
        let Some(dims) = &self.dims else { return Ok(()) };
        if dims.len() != value.shape().len() {
            return Err(wrong());
        }
        for (dim, &size) in dims.iter().zip(value.shape()) {
            match dim {
                Dim::Fixed(fixed) if *fixed != size => return Err(wrong()),
                Dim::Fixed(_) | Dim::Any => {}
                Dim::Symbol(symbol) => {
                    let (first, owner) = symbols.entry(symbol).or_insert((size, &self.name));
                    if *first != size {
                        return Err(format!(
                            "found {found}, expected {}, where {} is {first} in \"{}\"",
                            self.expected(),
                            symbol.escape_debug(),
                            owner.escape_debug()
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The sizes of a value that have names or are made of some.
fn symbols(info: &ValueInfoProto) -> Vec<&str> {
    let Some(type_proto::Value::TensorType(tensor)) =
        info.r#type.as_ref().and_then(|kind| kind.value.as_ref())
    else {
        return Vec::new();
    };
    let dims = tensor.shape.iter().flat_map(|shape| &shape.dim);
    dims.filter_map(|dim| match &dim.value {
        Some(dimension::Value::DimParam(symbol)) => Some(symbol.as_str()),
        _ => None,
    })
    .collect()
}

/// Name and divisor of a size such as `height/8`.
fn quotient(symbol: &str) -> Option<(String, usize)> {
    let (name, divisor) = symbol.split_once('/')?;
    let plain = name.chars().all(|c| c.is_alphanumeric() || c == '_');
    let divisor = divisor.trim().parse().ok().filter(|divisor| *divisor > 0)?;
    plain.then(|| (name.to_owned(), divisor))
}

/// Type and shape of a value, as messages spell them: `f32[2, 4, 16, 16]`.
pub(super) fn describe(value: &impl Described) -> String {
    let dims: Vec<String> = value.shape().iter().map(usize::to_string).collect();
    format!("{}[{}]", value.dtype(), dims.join(", "))
}

/// All given values, for a message.
pub(super) fn describe_all(given: &[(&str, &impl Described)]) -> String {
    let each = given.iter().map(|(name, value)| format!("{name} {}", describe(*value)));
    each.collect::<Vec<_>>().join(", ")
}

fn dtype_name(dtype: DataType) -> String {
    match dtype {
        DataType::Float => "f32".to_owned(),
        other => other.as_str_name().to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, Array2, ArrayD};

    use super::*;

    fn signature() -> Signature {
        let symbol = |name: &str| Dim::Symbol(name.to_owned());
        Signature {
            inputs: vec![
                Input {
                    name: "input_ids".to_owned(),
                    dtype: DataType::Int64,
                    dims: Some(vec![symbol("batch_size"), symbol("sequence_length")]),
                },
                Input {
                    name: "scale".to_owned(),
                    dtype: DataType::Float,
                    dims: Some(vec![symbol("batch_size")]),
                },
            ],
            outputs: vec!["last_hidden_state".to_owned()],
            multiples: Vec::new(),
        }
    }

    fn ids(batch: usize) -> Tensor {
        Array2::<i64>::zeros((batch, 7)).into()
    }

    fn scale(batch: usize) -> Tensor {
        Array1::<f32>::zeros(batch).into()
    }

    #[test]
    fn values_are_sorted_into_the_order_of_the_graph() {
        let (ids, scale) = (ids(2), scale(2));
        let sorted = signature().sort(&[("scale", &scale), ("input_ids", &ids)]).expect("fits");
        assert_eq!(sorted, [&ids, &scale]);
    }

    #[test]
    fn each_mismatch_is_told_with_what_was_expected() {
        let (two, three, scale) = (ids(2), ids(3), scale(2));
        let empty = Tensor::from(Array2::<i64>::zeros((2, 0)));
        let floats = Tensor::from(Array2::<f32>::zeros((2, 7)));
        let flat = Tensor::I64(ArrayD::zeros(vec![14]));
        let both = |ids| vec![("input_ids", ids), ("scale", &scale)];
        let cases = [
            (vec![("input_ids", &two)], "it is missing; expected f32[batch_size]"),
            (vec![("ids", &two)], "it has input_ids, scale"),
            (vec![("input_ids", &two), ("input_ids", &two)], "given twice"),
            (both(&three), "found f32[2], expected f32[batch_size], where batch_size is 3"),
            (both(&empty), "found int64[2, 0], which is empty"),
            (both(&floats), "found f32[2, 7], expected int64[batch_size, sequence_length]"),
            (both(&flat), "found int64[14], expected int64[batch_size, sequence_length]"),
        ];
        for (given, expected) in cases {
            let mismatch = signature().sort(&given).expect_err(expected);
            assert!(mismatch.reason.contains(expected), "{}", mismatch.reason);
        }
    }

    #[test]
    fn a_size_that_an_output_divides_must_be_a_multiple() {
        assert_eq!(quotient("height/8"), Some(("height".to_owned(), 8)));
        for other in ["height", "8*height", "(height + 1)/8", "height/width", "height/0"] {
            assert_eq!(quotient(other), None, "{other}");
        }
        let mut signature = signature();
        signature.multiples = vec![quotient("sequence_length/2").expect("a quotient")];
        let (ids, scale) = (ids(2), scale(2));
        let mismatch = signature.sort(&[("scale", &scale), ("input_ids", &ids)]).expect_err("7");
        assert_eq!(mismatch.input, "input_ids");
        assert_eq!(mismatch.reason, "found sequence_length = 7, expected a multiple of 2");
    }
}
