//! A graph loaded by ONNX Runtime.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    sync::Arc,
};

use ndarray::{ArrayD, IxDyn};
use ort::{
    session::SessionInputValue,
    value::{TensorElementType, TensorRef},
};

use super::{NAME, Transfer, binding};
use crate::{
    engine::{
        EngineError, Session, ort_value,
        signature::{Described, Signature, describe_all},
        value::Value,
    },
    tensor::Tensor,
};

/// A session and what is known of it.
pub(super) struct OrtSession {
    pub model: PathBuf,
    pub signature: Signature,
    pub session: ort::session::Session,
    /// Copies to and from the device, where it has a memory of its own.
    pub transfer: Option<Arc<Transfer>>,
}

/// A run of `model` that failed.
pub(super) fn run_failed<T: Described>(
    model: &Path,
    inputs: &[(&str, &T)],
    reason: impl ToString,
) -> EngineError {
    EngineError::Run {
        engine: NAME,
        model: model.to_path_buf(),
        inputs: describe_all(inputs),
        reason: reason.to_string(),
    }
}

impl Session for OrtSession {
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, EngineError> {
        let values =
            self.signature.sort(inputs).map_err(|mismatch| mismatch.in_model(&self.model))?;
        let failed = |error: ort::Error| run_failed(&self.model, inputs, error);
        // ONNX Runtime reads a value where it lies if its elements lie in order.
        let ordered: Vec<Ordered> = values.into_iter().map(Ordered::of).collect();
        let named = self.signature.inputs.iter().zip(&ordered);
        let named = named.map(|(input, value)| Ok((input.name.as_str(), value.view()?)));
        let named = named.collect::<ort::Result<Vec<_>>>().map_err(failed)?;
        let outputs = self.session.run(named).map_err(failed)?;
        outputs.iter().map(|(name, value)| Ok((name.to_owned(), copy_out(name, &value)?))).collect()
    }

    fn run_values(
        &mut self,
        inputs: &[(&str, &Value)],
    ) -> Result<Vec<(String, Value)>, EngineError> {
        let values = self.readable(inputs)?;
        let failed = |error: ort::Error| run_failed(&self.model, inputs, error);
        let here = self.transfer.as_ref();
        let named = named(&self.signature, &values).map_err(failed)?;
        let mut made = match here {
            Some(_) => binding::run(&mut self.session, &named).map_err(failed)?,
            None => {
                let mut outputs = self.session.run(named).map_err(failed)?;
                let names = self.signature.outputs.iter();
                names.filter_map(|name| Some((name.clone(), outputs.remove(name)?))).collect()
            }
        };
        let home = || Some((here?.clone(), self.session.inner()));
        let results = made.drain(..).map(|(name, value)| {
            let held = ort_value::held(&name, value, home())?;
            Ok((name, held))
        });
        results.collect()
    }

    fn run_to_tensors(
        &mut self,
        inputs: &[(&str, &Value)],
    ) -> Result<Vec<(String, Tensor)>, EngineError> {
        let values = self.readable(inputs)?;
        let failed = |error: ort::Error| run_failed(&self.model, inputs, error);
        let named = named(&self.signature, &values).map_err(failed)?;
        // A plain run leaves inputs where they are and brings results back.
        let outputs = self.session.run(named).map_err(failed)?;
        outputs.iter().map(|(name, value)| Ok((name.to_owned(), copy_out(name, &value)?))).collect()
    }
}

impl OrtSession {
    /// The inputs in the graph's order, copied where this session could not read them.
    fn readable<'v>(
        &self,
        inputs: &[(&str, &'v Value)],
    ) -> Result<Vec<Cow<'v, Value>>, EngineError> {
        let values =
            self.signature.sort(inputs).map_err(|mismatch| mismatch.in_model(&self.model))?;
        let here = self.transfer.as_ref();
        values.into_iter().map(|value| ort_value::readable(value, here)).collect()
    }
}

/// Inputs under their names, as ONNX Runtime takes them.
fn named<'v>(
    signature: &'v Signature,
    values: &'v [Cow<'v, Value>],
) -> ort::Result<Vec<(&'v str, SessionInputValue<'v>)>> {
    let named = signature.inputs.iter().zip(values);
    named.map(|(input, value)| Ok((&*input.name, ort_value::view(value)?))).collect()
}

/// An input whose elements lie in order; borrowed where they already did.
enum Ordered<'a> {
    F32(ndarray::CowArray<'a, f32, IxDyn>),
    I64(ndarray::CowArray<'a, i64, IxDyn>),
}

impl<'a> Ordered<'a> {
    fn of(tensor: &'a Tensor) -> Self {
        match tensor {
            Tensor::F32(array) => Self::F32(array.as_standard_layout()),
            Tensor::I64(array) => Self::I64(array.as_standard_layout()),
        }
    }

    fn view(&self) -> ort::Result<SessionInputValue<'_>> {
        Ok(match self {
            Self::F32(array) => TensorRef::from_array_view(array.view())?.into(),
            Self::I64(array) => TensorRef::from_array_view(array.view())?.into(),
        })
    }
}

fn copy_out(name: &str, value: &ort::value::DynValue) -> Result<Tensor, EngineError> {
    let wrong = |found: String| EngineError::OutputType {
        output: name.to_owned(),
        found,
        expected: "f32 or int64",
    };
    match value.dtype().tensor_type() {
        Some(TensorElementType::Float32) => value
            .try_extract_array::<f32>()
            .map(|array| Tensor::F32(own(array)))
            .map_err(|error| wrong(error.to_string())),
        Some(TensorElementType::Int64) => value
            .try_extract_array::<i64>()
            .map(|array| Tensor::I64(own(array)))
            .map_err(|error| wrong(error.to_string())),
        Some(other) => Err(wrong(other.to_string())),
        None => Err(wrong(value.dtype().to_string())),
    }
}

fn own<T: Clone>(array: ndarray::ArrayViewD<'_, T>) -> ArrayD<T> {
    array.to_owned()
}
