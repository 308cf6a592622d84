//! Values that ONNX Runtime has computed and keeps.

use std::{borrow::Cow, sync::Arc};

use ort::{
    session::SessionInputValue,
    value::{
        DynTensor, DynTensorValueType, DynValue, Shape, TensorElementType, TensorRef, TensorRefMut,
    },
};

use super::{
    EngineError,
    value::{Buffer, Elements, Value},
};
use crate::tensor::Tensor;

/// A tensor of ONNX Runtime.
#[derive(Debug)]
struct Held(DynTensor);

impl Held {
    fn shape(&self) -> Vec<usize> {
        self.0.shape().iter().map(|&size| usize::try_from(size).unwrap_or_default()).collect()
    }

    /// The tensor as an input, under a shape of as many elements.
    fn view(&self, shape: &[usize]) -> ort::Result<SessionInputValue<'_>> {
        if self.shape() == shape {
            return Ok((&self.0).into());
        }
        let memory = self.0.memory_info().to_owned();
        let start = self.0.data_ptr().cast_mut();
        let shape = Shape::new(shape.iter().map(|&size| size as i64));
        // SAFETY: the elements lie where the tensor says, as many as the shape has and of the type that
        // is looked at here; they live as long as `self`, which the view borrows. It is an input, so
        // ONNX Runtime only reads them.
        Ok(unsafe {
            match self.0.data_type() {
                TensorElementType::Int64 => {
                    TensorRefMut::<i64>::from_raw(memory, start, shape)?.into()
                }
                _ => TensorRefMut::<f32>::from_raw(memory, start, shape)?.into(),
            }
        })
    }
}

impl Buffer for Held {
    fn dtype(&self) -> &'static str {
        match self.0.data_type() {
            TensorElementType::Int64 => "int64",
            _ => "f32",
        }
    }

    fn elements(&self) -> Option<Elements<'_>> {
        if !self.0.memory_info().is_cpu_accessible() {
            return None;
        }
        match self.0.data_type() {
            TensorElementType::Int64 => {
                self.0.try_extract_tensor().ok().map(|(_, integers)| Elements::I64(integers))
            }
            _ => self.0.try_extract_tensor().ok().map(|(_, floats)| Elements::F32(floats)),
        }
    }

    fn floats_mut(&mut self) -> Option<&mut [f32]> {
        if !self.0.memory_info().is_cpu_accessible() {
            return None;
        }
        self.0.try_extract_tensor_mut().ok().map(|(_, floats)| floats)
    }

    fn to_tensor(&self, shape: &[usize]) -> Result<Tensor, EngineError> {
        self.elements().map(|elements| elements.to_tensor(shape)).ok_or_else(|| {
            let device = self.0.memory_info().allocation_device().as_str().to_owned();
            EngineError::Unreadable { device }
        })
    }
}

/// A result of a session, kept where it is.
pub(super) fn held(name: &str, value: DynValue) -> Result<Value, EngineError> {
    let kind = value.dtype().to_string();
    let wrong = |found: String| EngineError::OutputType {
        output: name.to_owned(),
        found,
        expected: "f32 or int64",
    };
    let Ok(tensor) = value.downcast::<DynTensorValueType>() else {
        return Err(wrong(kind));
    };
    match tensor.data_type() {
        TensorElementType::Float32 | TensorElementType::Int64 => {
            let held = Held(tensor);
            Ok(Value::new(held.shape(), Arc::new(held)))
        }
        other => Err(wrong(other.to_string())),
    }
}

/// The value itself if ONNX Runtime can read it where it lies, else a copy.
pub(super) fn readable(value: &Value) -> Result<Cow<'_, Value>, EngineError> {
    if value.elements().is_some() || value.buffer::<Held>().is_some() {
        return Ok(Cow::Borrowed(value));
    }
    Ok(Cow::Owned(value.to_tensor()?.into()))
}

/// A readable value as an input; nothing is copied.
pub(super) fn view(value: &Value) -> ort::Result<SessionInputValue<'_>> {
    let shape = value.shape();
    if let Some(held) = value.buffer::<Held>() {
        return held.view(shape);
    }
    Ok(match value.elements() {
        Some(Elements::F32(floats)) => TensorRef::from_array_view((shape, floats))?.into(),
        Some(Elements::I64(integers)) => TensorRef::from_array_view((shape, integers))?.into(),
        None => return Err(ort::Error::new("a value on another device")),
    })
}
