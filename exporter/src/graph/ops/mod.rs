//! The operators, one file a family. Every method checks its operands before it adds a node.

mod conv;
mod elementwise;
mod matmul;
mod norm;
mod reduce;
mod shape;
mod size;

pub use conv::Window;
pub use matmul::LORA_SCALE;
