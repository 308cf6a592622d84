//! What the tests of the engines share.

use std::path::PathBuf;

use pixart_runtime::engine::library;

pub mod graph;

/// The ONNX Runtime that tests use: `PIXART_TEST_ORT_LIBRARY`, else what the program itself finds.
///
/// Without one these tests fail, on purpose: a test that is left out tests nothing.
pub fn onnx_runtime() -> PathBuf {
    if let Some(path) = std::env::var_os("PIXART_TEST_ORT_LIBRARY") {
        return PathBuf::from(path);
    }
    match library::find(None) {
        Ok(library) => library.path,
        Err(error) => panic!(
            "this test needs ONNX Runtime: run `pixart engine install cpu`, or set \
             PIXART_TEST_ORT_LIBRARY to its library ({error})"
        ),
    }
}
