//! The engines under test.

use std::{
    env,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use pixart_runtime::engine::{self, Engine, EngineChoice, EngineOptions};

/// Threads of each engine: tests run side by side.
const THREADS: usize = 2;

/// ONNX Runtime: the library that `PIXART_TEST_ORT_LIBRARY` names, else the one that `pixart`
/// itself would use.
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

/// The library named for tests, if any.
pub fn test_library() -> Option<PathBuf> {
    env::var_os("PIXART_TEST_ORT_LIBRARY").filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn open(
    choice: EngineChoice,
    library: Option<PathBuf>,
) -> Result<Arc<dyn Engine>, engine::EngineError> {
    let options = EngineOptions { library, threads: Some(THREADS), ..EngineOptions::default() };
    Ok(engine::open(choice, &options)?.engine)
}
