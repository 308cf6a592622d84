//! What the fuzz targets run: each function takes any bytes, and must come back without a panic, an
//! endless loop or much memory, and with tensors only where their bytes really are.
//!
//! The readers are included by their paths rather than through the crates they belong to, because
//! those need an inference engine, which would take many minutes to build with instrumentation.

pub mod checkpoints;
