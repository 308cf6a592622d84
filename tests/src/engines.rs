//! The engines under test.

use std::{
    env,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use pixart_exporter::Profile;
use pixart_runtime::engine::{
    self, Engine, EngineChoice, EngineOptions,
    provider::{Device, DeviceOptions},
};

/// Threads of each engine: tests run side by side.
const THREADS: usize = 2;

/// ONNX Runtime: the library that `PIXART_TEST_ORT_LIBRARY` names, else the one that `pixart`
/// itself would use; on the device that `PIXART_TEST_DEVICE` names, else on the processor.
///
/// # Panics
/// When there is none. The comparison of engines is not optional, so nothing is skipped.
pub fn ort() -> Arc<dyn Engine> {
    static ENGINE: OnceLock<Arc<dyn Engine>> = OnceLock::new();
    let open = || {
        let library = test_library();
        open(EngineChoice::Ort, library).unwrap_or_else(|error| {
            panic!(
                "these tests need ONNX Runtime: run them through `scripts/test`, which installs \
                 it for them, or name a library in PIXART_TEST_ORT_LIBRARY\n{error}"
            )
        })
    };
    ENGINE.get_or_init(open).clone()
}

/// tract.
///
/// # Panics
/// When it cannot be opened.
pub fn tract() -> Arc<dyn Engine> {
    static ENGINE: OnceLock<Arc<dyn Engine>> = OnceLock::new();
    let open = || open(EngineChoice::Tract, None).unwrap_or_else(|error| panic!("tract: {error}"));
    ENGINE.get_or_init(open).clone()
}

/// Both engines.
///
/// # Panics
/// As [`ort`].
pub fn both() -> [Arc<dyn Engine>; 2] {
    [ort(), tract()]
}

/// The device named for tests, if any.
///
/// # Panics
/// When there is no such device.
pub fn test_device() -> Option<Device> {
    let name = env::var("PIXART_TEST_DEVICE").ok().filter(|name| !name.is_empty())?;
    Some(name.parse().unwrap_or_else(|error| panic!("PIXART_TEST_DEVICE: {error}")))
}

/// The export profiles under test: all, or the one that suits the device named for tests.
///
/// # Panics
/// As [`test_device`].
pub fn profiles() -> Vec<Profile> {
    match test_device() {
        None => Profile::ALL.to_vec(),
        Some(device) => vec![device.provider.profile.parse().expect("a profile")],
    }
}

/// The library named for tests, if any.
pub fn test_library() -> Option<PathBuf> {
    env::var_os("PIXART_TEST_ORT_LIBRARY").filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn open(
    choice: EngineChoice,
    library: Option<PathBuf>,
) -> Result<Arc<dyn Engine>, engine::EngineError> {
    let device = test_device().filter(|_| choice == EngineChoice::Ort).unwrap_or_default();
    let device = DeviceOptions { device, ..DeviceOptions::default() };
    let options = EngineOptions { library, threads: Some(THREADS), device };
    Ok(engine::open(choice, &options)?.engine)
}
