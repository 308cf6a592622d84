//! Runs whose results stay in the memory of a device.
//!
//! A plain run brings every result into the processor's memory; a binding says where it is to lie. Inputs need
//! none: ONNX Runtime copies those that lie elsewhere, and no others.

use std::{ffi::CString, ptr};

use ort::{
    AsPointer as _,
    memory::MemoryInfo,
    session::{Session, SessionInputValue},
    sys,
    value::DynValue,
};

/// Where a session leaves its results by itself, in its order. What is pointed to belongs to the session.
fn places(session: &Session) -> ort::Result<Vec<*const sys::OrtMemoryInfo>> {
    let mut places = vec![ptr::null(); session.outputs().len()];
    // SAFETY: the session is alive, and there is room for as many as it has outputs.
    unsafe {
        ort::Error::result_from_status((ort::api().SessionGetMemoryInfoForOutputs)(
            session.ptr(),
            places.as_mut_ptr(),
            places.len(),
        ))?;
    }
    match places.iter().any(|place| place.is_null()) {
        true => Err(ort::Error::new("ONNX Runtime does not say where a result lies")),
        false => Ok(places),
    }
}

/// Whether a session leaves a result where the processor cannot read it.
pub(super) fn leaves_elsewhere(session: &Session) -> bool {
    places(session).is_ok_and(|places| {
        places.into_iter().any(|place| {
            let mut kind = sys::OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_CPU;
            // SAFETY: the session, which the places belong to, is alive.
            let memory = unsafe {
                (ort::api().MemoryInfoGetDeviceType)(place, &mut kind);
                (ort::api().MemoryInfoGetDeviceMemType)(place)
            };
            kind != sys::OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_CPU
                && memory != sys::OrtDeviceMemoryType::OrtDeviceMemoryType_HOST_ACCESSIBLE
        })
    })
}

/// Runs a session and leaves each result where it is made.
pub(super) fn run(
    session: &mut Session,
    inputs: &[(&str, SessionInputValue<'_>)],
) -> ort::Result<Vec<(String, DynValue)>> {
    let places = places(session)?;
    let names: Vec<String> =
        session.outputs().iter().map(|output| output.name().to_owned()).collect();
    let terminated =
        |name: &str| CString::new(name).map_err(|error| ort::Error::new(error.to_string()));
    let mut binding = session.create_binding()?;
    for (name, value) in inputs {
        let name = terminated(name)?;
        // SAFETY: binding and value are alive; `inputs` outlives the run, which is over before this returns.
        unsafe {
            ort::Error::result_from_status((ort::api().BindInput)(
                binding.ptr().cast_mut(),
                name.as_ptr(),
                value.ptr(),
            ))?;
        }
    }
    binding.synchronize_inputs()?;
    let host = MemoryInfo::default();
    for (name, place) in names.iter().zip(places) {
        // First by way of `ort`, which keeps a list of names; then to the place, which it can not name for
        // every device.
        binding.bind_output_to_device(name.as_str(), &host)?;
        let name = terminated(name)?;
        // SAFETY: binding and session are alive, and the place belongs to the session.
        unsafe {
            ort::Error::result_from_status((ort::api().BindOutputToDevice)(
                binding.ptr().cast_mut(),
                name.as_ptr(),
                place,
            ))?;
        }
    }
    let mut outputs = session.run_binding(&binding)?;
    let taken = names.into_iter().filter_map(|name| {
        let value = outputs.remove(&name)?;
        Some((name, value))
    });
    Ok(taken.collect())
}
