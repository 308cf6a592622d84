//! A typed ONNX graph: the data ([`ir`]), its symbolic sizes ([`dim`]) and the builder.
//!
//! A wiring mistake fails while the graph is built, and names the node:
//!
//! ```
//! use pixart_exporter::graph::{GraphBuilder, dim::Dim, ir::DType};
//! use pixart_exporter::profile::Profile;
//!
//! let mut b = GraphBuilder::new("example", Profile::Portable);
//! let x = b.input("x", DType::F32, vec![Dim::symbol("batch_size"), Dim::from(8)])?;
//! let y = b.linear("proj_in", &x, 16, true)?;
//! let mistake = b.add(&x, &y).unwrap_err();
//! assert!(mistake.to_string().contains("x: f32[batch_size, 8]"));
//! # Ok::<(), pixart_exporter::graph::error::GraphError>(())
//! ```

mod builder;
pub mod dim;
pub mod error;
pub mod ir;
mod ops;
#[cfg(test)]
pub(crate) mod run;
pub(crate) mod slice;
#[cfg(test)]
mod tests;
mod value;

pub use builder::{GraphBuilder, MICROSOFT};
pub use error::{GraphError, GraphErrorKind};
pub use ops::{LORA_SCALE, Window};
pub use value::Value;
