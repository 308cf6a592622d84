//! Copies between the processor's memory and that of a device.
//!
//! ONNX Runtime has no call for that which every provider knows, but it copies the inputs and results of sessions.
//! So the copies are those of a graph that does nothing.

use std::sync::{Arc, Mutex, PoisonError};

use ort::session::{Session, SessionInputValue};
use prost::Message as _;
use tract_onnx::pb::{
    GraphProto, NodeProto, TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_proto::DataType,
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};

use super::binding;
use crate::engine::{EngineError, model_file::small_model, ort_value, value::Value};
use crate::tensor::Tensor;

/// Sessions that copy, one for each type of elements.
#[derive(Debug)]
pub(in crate::engine) struct Transfer {
    floats: Mutex<Session>,
    integers: Mutex<Session>,
    /// The device, for messages.
    device: String,
}

impl Transfer {
    /// Makes the sessions with `make`; `None` where the device works in the processor's memory, so that there
    /// is nothing to copy.
    ///
    /// # Errors
    /// When a session cannot be made.
    pub fn start(
        device: String,
        make: impl Fn(&[u8]) -> ort::Result<Session>,
    ) -> ort::Result<Option<Self>> {
        let floats = make(&graph(DataType::Float))?;
        if !binding::leaves_elsewhere(&floats) {
            return Ok(None);
        }
        let integers = make(&graph(DataType::Int64))?;
        Ok(Some(Self { floats: Mutex::new(floats), integers: Mutex::new(integers), device }))
    }

    /// A copy in the device's memory.
    ///
    /// # Errors
    /// When there is no room, or the device fails.
    pub fn send(self: &Arc<Self>, tensor: Tensor) -> Result<Value, EngineError> {
        let shape = tensor.shape().to_vec();
        let value = Value::from(tensor);
        let size = [value.size()];
        let flat = value.reshaped(&size);
        let run = |session: &mut Session| {
            let mut made = binding::run(session, &[("x", ort_value::view(&flat)?)])?;
            let (_, made) = made.pop().ok_or_else(|| ort::Error::new("no copy came back"))?;
            Ok((made, session.inner()))
        };
        let (made, session) =
            self.with(flat.dtype(), run).map_err(|error| self.failed(error.to_string()))?;
        let held = ort_value::held("y", made, Some((self.clone(), session)))?;
        Ok(held.reshaped(&shape))
    }

    /// A copy in the processor's memory of `size` elements.
    ///
    /// # Errors
    /// When the device fails.
    pub fn fetch(
        &self,
        dtype: &'static str,
        flat: &SessionInputValue<'_>,
        shape: &[usize],
    ) -> Result<Tensor, EngineError> {
        let fetched = self.with(dtype, |session| {
            let mut outputs = session.run(vec![("x", SessionInputValue::from(&**flat))])?;
            outputs.remove("y").ok_or_else(|| ort::Error::new("no copy came back"))
        });
        let fetched = fetched.map_err(|error| self.failed(error.to_string()))?;
        ort_value::held("y", fetched, None)?.reshaped(shape).to_tensor()
    }

    fn with<T>(
        &self,
        dtype: &str,
        run: impl FnOnce(&mut Session) -> ort::Result<T>,
    ) -> ort::Result<T> {
        let session = if dtype == "f32" { &self.floats } else { &self.integers };
        run(&mut session.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn failed(&self, reason: String) -> EngineError {
        EngineError::Transfer { device: self.device.clone(), reason }
    }
}

/// `y = x` for a list of any length.
fn graph(data_type: DataType) -> Vec<u8> {
    let value = |name: &str| ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            denotation: String::new(),
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: data_type as i32,
                shape: Some(TensorShapeProto {
                    dim: vec![Dimension {
                        denotation: String::new(),
                        value: Some(dimension::Value::DimParam("count".to_owned())),
                    }],
                }),
            })),
        }),
        ..ValueInfoProto::default()
    };
    let node = NodeProto {
        name: "copy".to_owned(),
        op_type: "Identity".to_owned(),
        input: vec!["x".to_owned()],
        output: vec!["y".to_owned()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: "transfer".to_owned(),
        node: vec![node],
        input: vec![value("x")],
        output: vec![value("y")],
        ..GraphProto::default()
    };
    small_model(graph).encode_to_vec()
}
