//! The size of a gradient.

use pixart_exporter::graph::{GraphBuilder, GraphError, dim::Dim, ir::DType, ir::Graph};
use pixart_exporter::profile::Profile;

/// `gradient[count]` → `sum_of_squares[1]`.
pub(super) fn graph() -> Result<Graph, GraphError> {
    let mut b = GraphBuilder::new("gradient norm", Profile::Ort);
    let gradient = b.input("gradient", DType::F32, vec![Dim::symbol("count")])?;
    let sum = b.reduce_sum_square(&gradient, &[0])?;
    b.output("sum_of_squares", &sum, DType::F32, &[Dim::from(1)])?;
    Ok(b.finish())
}
