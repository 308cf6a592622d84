//! Values that tract has computed and keeps.

use std::sync::Arc;

use tract_onnx::tract_hir::internal::{DatumType, IntoTValue as _, TValue, Tensor as TractTensor};

use super::{
    super::value::{Buffer, Elements, Value},
    EngineError, copy_in, take_out,
};
use crate::tensor::Tensor;

/// A tensor of tract: floats or 64-bit integers, in row-major order.
#[derive(Debug)]
struct Held(Arc<TractTensor>);

impl Buffer for Held {
    fn dtype(&self) -> &'static str {
        match self.0.datum_type() {
            DatumType::I64 => "int64",
            _ => "f32",
        }
    }

    fn elements(&self) -> Option<Elements<'_>> {
        let plain = self.0.as_plain_ram()?;
        match self.0.datum_type() {
            DatumType::I64 => plain.as_slice().ok().map(Elements::I64),
            _ => plain.as_slice().ok().map(Elements::F32),
        }
    }

    fn floats_mut(&mut self) -> Option<&mut [f32]> {
        let mut plain = Arc::get_mut(&mut self.0)?.as_plain_ram_mut()?;
        let (start, count) = (plain.as_ptr_mut::<f32>().ok()?, plain.len());
        // SAFETY: a plain tensor has as many elements of its type, which is that of the pointer, in one
        // piece of memory. Nothing else sees them while `self`, which is borrowed as long as the slice
        // lives, is the only owner.
        Some(unsafe { std::slice::from_raw_parts_mut(start, count) })
    }

    fn to_tensor(&self, shape: &[usize]) -> Result<Tensor, EngineError> {
        let elements =
            self.elements().ok_or(EngineError::Unreadable { device: "tract".to_owned() })?;
        Ok(elements.to_tensor(shape))
    }
}

/// A value as an input: as it is if tract made it, else a copy.
pub(super) fn read(value: &Value) -> Result<TValue, EngineError> {
    if let Some(Held(tensor)) = value.buffer()
        && tensor.shape() == value.shape()
    {
        return Ok(tensor.clone().into_tvalue());
    }
    let copied = match value.elements() {
        Some(Elements::F32(floats)) => TractTensor::from_shape(value.shape(), floats).ok(),
        Some(Elements::I64(integers)) => TractTensor::from_shape(value.shape(), integers).ok(),
        None => None,
    };
    match copied {
        Some(tensor) => Ok(tensor.into_tvalue()),
        None => Ok(copy_in(&value.to_tensor()?)),
    }
}

/// A result, kept where it is.
pub(super) fn held(name: &str, tensor: Arc<TractTensor>) -> Result<Value, EngineError> {
    match tensor.datum_type() {
        DatumType::F32 | DatumType::I64 if tensor.as_plain_ram().is_some() => {
            Ok(Value::new(tensor.shape().to_vec(), Arc::new(Held(tensor))))
        }
        _ => Ok(take_out(name, tensor.into_tvalue())?.into()),
    }
}
