//! An engine whose values cannot be read from outside, as those of a graphics card cannot, and which
//! counts what goes in and comes out.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use pixart_runtime::{
    engine::{Buffer, Elements, Engine, EngineError, Override, Session, Value, WeightType},
    tensor::Tensor,
};

/// Bytes that went in and came out.
#[derive(Debug, Default)]
pub struct Traffic {
    into: AtomicUsize,
    out: AtomicUsize,
}

impl Traffic {
    /// Bytes that went in and that came out since this was asked last.
    pub fn take(&self) -> [usize; 2] {
        [&self.into, &self.out].map(|bytes| bytes.swap(0, Ordering::Relaxed))
    }
}

/// Another engine, as a device with a memory of its own.
pub struct Device {
    inner: Arc<dyn Engine>,
    traffic: Arc<Traffic>,
    kernels: bool,
}

impl Device {
    /// Computes with `inner`.
    pub fn new(inner: Arc<dyn Engine>) -> Self {
        Self { inner, traffic: Arc::default(), kernels: false }
    }

    /// The same, but claiming to multiply matrices of every type.
    pub fn with_kernels(self) -> Self {
        Self { kernels: true, ..self }
    }

    /// What went in and came out.
    pub fn traffic(&self) -> Arc<Traffic> {
        self.traffic.clone()
    }
}

/// A value in the device's memory.
#[derive(Debug)]
struct Held {
    value: Value,
    traffic: Arc<Traffic>,
}

/// Both types of elements that there are, in bytes.
fn bytes(value: &Value) -> usize {
    value.size() * if value.dtype() == "f32" { 4 } else { 8 }
}

impl Buffer for Held {
    fn dtype(&self) -> &'static str {
        self.value.dtype()
    }

    fn elements(&self) -> Option<Elements<'_>> {
        None
    }

    fn floats_mut(&mut self) -> Option<&mut [f32]> {
        None
    }

    fn to_tensor(&self, shape: &[usize]) -> Result<Tensor, EngineError> {
        self.traffic.out.fetch_add(bytes(&self.value), Ordering::Relaxed);
        self.value.clone().reshaped(shape).to_tensor()
    }
}

/// The value as the engine inside has it; what is not on the device goes there.
fn inside(value: &Value, traffic: &Traffic) -> Value {
    match value.buffer::<Held>() {
        Some(held) => held.value.clone().reshaped(value.shape()),
        None => {
            traffic.into.fetch_add(bytes(value), Ordering::Relaxed);
            value.clone()
        }
    }
}

fn held(value: Value, traffic: &Arc<Traffic>) -> Value {
    let held = Held { value, traffic: traffic.clone() };
    Value::new(held.value.shape().to_vec(), Arc::new(held))
}

impl Engine for Device {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn describe(&self) -> String {
        format!("{} as a device", self.inner.describe())
    }

    fn load_with(
        &self,
        model: &Path,
        overrides: Vec<Override>,
    ) -> Result<Box<dyn Session>, EngineError> {
        let inner = self.inner.load_with(model, overrides)?;
        Ok(Box::new(DeviceSession { inner, traffic: self.traffic() }))
    }

    fn multiplies(&self, dtype: &WeightType) -> bool {
        self.kernels || self.inner.multiplies(dtype)
    }

    fn to_device(&self, tensor: Tensor) -> Result<Value, EngineError> {
        Ok(held(inside(&tensor.into(), &self.traffic), &self.traffic))
    }
}

struct DeviceSession {
    inner: Box<dyn Session>,
    traffic: Arc<Traffic>,
}

impl Session for DeviceSession {
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, EngineError> {
        let values = inputs.iter().map(|(name, tensor)| (*name, Value::from((*tensor).clone())));
        let values: Vec<_> = values.collect();
        let inputs: Vec<_> = values.iter().map(|(name, value)| (*name, value)).collect();
        let results = self.run_values(&inputs)?.into_iter();
        results.map(|(name, value)| Ok((name, value.into_tensor()?))).collect()
    }

    fn run_values(
        &mut self,
        inputs: &[(&str, &Value)],
    ) -> Result<Vec<(String, Value)>, EngineError> {
        let values = inputs.iter().map(|(name, value)| (*name, inside(value, &self.traffic)));
        let values: Vec<_> = values.collect();
        let inputs: Vec<_> = values.iter().map(|(name, value)| (*name, value)).collect();
        let results = self.inner.run_values(&inputs)?.into_iter();
        Ok(results.map(|(name, value)| (name, held(value, &self.traffic))).collect())
    }
}
