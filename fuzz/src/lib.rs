//! What the fuzz targets run: each function takes any bytes, and must come back without a panic, an
//! endless loop or much memory, and with tensors only where their bytes really are.
//!
//! The readers are included by their paths rather than through the crates they belong to, because
//! those need an inference engine, which would take many minutes to build with instrumentation.

pub mod checkpoints;
pub use engine::models;

#[allow(dead_code, unreachable_pub, reason = "the targets use a part of the module")]
#[path = "../../runtime/src/engine"]
mod engine {
    mod error;
    mod external_data;
    mod model_file;
    // Here, because the checks are private to the engine.
    #[path = "../../../fuzz/src/models.rs"]
    pub mod models;
    mod signature;
    mod wiring;

    pub use error::EngineError;
}

#[allow(dead_code, reason = "the targets use a part of the module")]
#[path = "../../runtime/src/tensor.rs"]
mod tensor;
