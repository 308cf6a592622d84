//! How fast a machine could be, and how much there is to do: what measured times are held against.

mod peak;
mod work;

pub use peak::{Peak, matmul_peak};
pub use work::{TextEncoderShape, TransformerShape, VaeDecoderShape};
