//! Values that ONNX Runtime has computed and keeps.

use std::{borrow::Cow, ptr, sync::Arc};

use ort::{
    AsPointer as _,
    memory::Allocator,
    session::{SessionInputValue, SharedSessionInner},
    sys,
    value::{DynTensor, DynTensorValueType, DynValue, TensorElementType, TensorRef},
};

use super::{
    EngineError,
    ort::Transfer,
    value::{Buffer, Elements, Value},
};
use crate::tensor::Tensor;

/// What brings a value back from a device, and the session that it comes from: the device's memory may belong
/// to it.
pub(super) type Home = (Arc<Transfer>, Arc<SharedSessionInner>);

/// A tensor of ONNX Runtime.
#[derive(Debug)]
struct Held {
    tensor: DynTensor,
    /// Where it lies, if that is no memory of the processor. Goes after the tensor.
    home: Option<Home>,
}

impl Held {
    fn shape(&self) -> Vec<usize> {
        let sizes = self.tensor.shape().iter();
        sizes.map(|&size| usize::try_from(size).unwrap_or_default()).collect()
    }

    fn is_readable(&self) -> bool {
        self.tensor.memory_info().is_cpu_accessible()
    }

    /// The tensor as an input, under a shape of as many elements.
    fn view(&self, shape: &[usize]) -> ort::Result<SessionInputValue<'_>> {
        if self.shape() == shape {
            return Ok((&self.tensor).into());
        }
        let bytes = match self.tensor.data_type() {
            TensorElementType::Int64 => 8,
            _ => 4,
        } * shape.iter().product::<usize>();
        let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        let mut view = ptr::null_mut();
        // SAFETY: the elements lie where the tensor says, as many as the shape has and of the tensor's type;
        // they live as long as `self`, which the view borrows. It is an input, so ONNX Runtime only reads them.
        unsafe {
            ort::Error::result_from_status((ort::api().CreateTensorWithDataAsOrtValue)(
                self.tensor.memory_info().ptr(),
                self.tensor.data_ptr().cast_mut(),
                bytes,
                shape.as_ptr(),
                shape.len(),
                sys::ONNXTensorElementDataType::from(*self.tensor.data_type()),
                &mut view,
            ))?;
        }
        let view = ptr::NonNull::new(view).ok_or_else(|| ort::Error::new("no view was made"))?;
        // SAFETY: it was made above and belongs to nobody else. Its elements are not the allocator's, which
        // is asked for because values in general are.
        Ok(unsafe { DynValue::from_ptr(view, Some(&Allocator::default())) }.into())
    }
}

impl Buffer for Held {
    fn dtype(&self) -> &'static str {
        match self.tensor.data_type() {
            TensorElementType::Int64 => "int64",
            _ => "f32",
        }
    }

    fn elements(&self) -> Option<Elements<'_>> {
        if !self.is_readable() {
            return None;
        }
        match self.tensor.data_type() {
            TensorElementType::Int64 => {
                self.tensor.try_extract_tensor().ok().map(|(_, integers)| Elements::I64(integers))
            }
            _ => self.tensor.try_extract_tensor().ok().map(|(_, floats)| Elements::F32(floats)),
        }
    }

    fn floats_mut(&mut self) -> Option<&mut [f32]> {
        if !self.is_readable() {
            return None;
        }
        self.tensor.try_extract_tensor_mut().ok().map(|(_, floats)| floats)
    }

    fn to_tensor(&self, shape: &[usize]) -> Result<Tensor, EngineError> {
        if let Some(elements) = self.elements() {
            return Ok(elements.to_tensor(shape));
        }
        let device = self.tensor.memory_info().allocation_device().as_str().to_owned();
        let Some((transfer, _)) = &self.home else {
            return Err(EngineError::Unreadable { device });
        };
        let flat = self.view(&[shape.iter().product()]);
        let flat =
            flat.map_err(|error| EngineError::Transfer { device, reason: error.to_string() })?;
        transfer.fetch(self.dtype(), &flat, shape)
    }
}

/// A result of a session, kept where it is. `home` brings it back if that is no memory of the processor.
pub(super) fn held(name: &str, value: DynValue, home: Option<Home>) -> Result<Value, EngineError> {
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
            let mut held = Held { tensor, home: None };
            if !held.is_readable() {
                held.home = home;
            }
            Ok(Value::new(held.shape(), Arc::new(held)))
        }
        other => Err(wrong(other.to_string())),
    }
}

/// The value itself if a session on the device of `transfer` can read it where it lies, else a copy.
pub(super) fn readable<'a>(
    value: &'a Value,
    transfer: Option<&Arc<Transfer>>,
) -> Result<Cow<'a, Value>, EngineError> {
    let home = value.buffer::<Held>().and_then(|held| held.home.as_ref());
    let is_here = match (home, transfer) {
        (Some((home, _)), Some(transfer)) => Arc::ptr_eq(home, transfer),
        _ => false,
    };
    if is_here || value.elements().is_some() {
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
