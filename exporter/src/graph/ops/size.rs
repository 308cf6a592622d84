//! Symbolic sizes as values: what `Reshape`, `Expand` and `Range` need when the graph runs.

use crate::graph::dim::{Dim, Term};
use crate::graph::error::{GraphError, GraphErrorKind};
use crate::graph::ir::{Attribute, DType};
use crate::graph::{GraphBuilder, Value};

impl GraphBuilder {
    /// The size as an i64 tensor of shape `[1]`, computed once from the shapes of the inputs.
    pub fn size(&mut self, dim: &Dim) -> Result<Value, GraphError> {
        if let Some(value) = dim.as_const() {
            return Ok(self.constant_i64(&[value]));
        }
        if let Some(value) = self.sizes.get(dim) {
            return Ok(value.clone());
        }
        // The name does not depend on who asks first.
        let value = self.at_root("sizes", |b| b.compute_size(dim))?;
        self.sizes.insert(dim.clone(), value.clone());
        Ok(value)
    }

    /// Sizes side by side: an i64 tensor of shape `[dims.len()]`.
    pub fn sizes(&mut self, dims: &[Dim]) -> Result<Value, GraphError> {
        let constants: Option<Vec<i64>> = dims.iter().map(Dim::as_const).collect();
        if let Some(constants) = constants {
            return Ok(self.constant_i64(&constants));
        }
        let parts = dims.iter().map(|dim| self.size(dim)).collect::<Result<Vec<_>, _>>()?;
        self.concat(&parts.iter().collect::<Vec<_>>(), 0)
    }

    /// `0, 1, … size-1` as i64.
    pub fn range(&mut self, size: &Dim) -> Result<Value, GraphError> {
        let limit = self.size(size)?;
        let axes = self.constant_i64(&[0]);
        let limit = self.push("Squeeze", &[&limit, &axes], vec![], DType::I64, vec![]);
        let (zero, one) = (self.scalar_i64(0), self.scalar_i64(1));
        Ok(self.push("Range", &[&zero, &limit, &one], vec![], DType::I64, vec![size.clone()]))
    }

    /// Declares that a computed i64 value of shape `[1]` is the size named `name`.
    pub fn name_size(&mut self, name: &str, value: &Value) -> Result<Dim, GraphError> {
        self.expect_dtype("size", value, DType::I64)?;
        if value.shape() != [Dim::from(1)] {
            return self.fail(GraphErrorKind::Rank, "size", &[value], "shape [1]");
        }
        let dim = Dim::symbol(name);
        self.sizes.insert(dim.clone(), value.clone());
        Ok(dim)
    }

    /// `⌊size / divisor⌋`: an exact quotient where there is one, else a size named `name` that the
    /// graph computes.
    pub fn floor_div(&mut self, name: &str, size: &Dim, divisor: usize) -> Result<Dim, GraphError> {
        let by = Dim::from(divisor);
        if let Some(quotient) = size.exact_div(&by) {
            return Ok(quotient);
        }
        self.at_root("sizes", |b| {
            let dividend = b.size(size)?;
            let divisor = b.constant_i64(&[divisor as i64]);
            // Both are positive, so that truncation is the floor.
            let quotient = b.div(&dividend, &divisor)?;
            b.name_size(name, &quotient)
        })
    }

    /// `Σ coefficient · Π symbols`, one term after the other.
    fn compute_size(&mut self, dim: &Dim) -> Result<Value, GraphError> {
        let mut sum: Option<Value> = None;
        for term in dim.terms() {
            let value = self.compute_term(&term)?;
            sum = Some(match sum {
                None => value,
                Some(sum) => self.add(&sum, &value)?,
            });
        }
        Ok(match sum {
            Some(sum) => sum,
            None => self.constant_i64(&[0]),
        })
    }

    fn compute_term(&mut self, term: &Term) -> Result<Value, GraphError> {
        let mut product: Option<Value> = None;
        for symbol in &term.symbols {
            let factor = self.symbol_size(symbol)?;
            product = Some(match product {
                None => factor,
                Some(product) => self.mul(&product, &factor)?,
            });
        }
        let Some(mut value) = product else {
            return Ok(self.constant_i64(&[term.numerator]));
        };
        if term.numerator != 1 {
            let factor = self.constant_i64(&[term.numerator]);
            value = self.mul(&value, &factor)?;
        }
        if term.denominator != 1 {
            let divisor = self.constant_i64(&[term.denominator]);
            value = self.div(&value, &divisor)?;
        }
        Ok(value)
    }

    /// The size of an input's axis that is exactly this symbol.
    fn symbol_size(&mut self, symbol: &Dim) -> Result<Value, GraphError> {
        if let Some(value) = self.sizes.get(symbol) {
            return Ok(value.clone());
        }
        let place = self.inputs.iter().find_map(|input| {
            let axis = input.shape.iter().position(|dim| dim == symbol)?;
            Some((input.clone(), axis as i64))
        });
        let Some((input, axis)) = place else {
            let expected = format!("an input that has the size {symbol}");
            return self.fail(GraphErrorKind::UnknownSize, "Shape", &[], expected);
        };
        let input = Value { name: input.name, dtype: input.dtype, shape: input.shape };
        let value = self.axis_size(&input, axis)?;
        self.sizes.insert(symbol.clone(), value.clone());
        Ok(value)
    }

    /// The size of one axis, of shape `[1]`.
    fn axis_size(&mut self, x: &Value, axis: i64) -> Result<Value, GraphError> {
        let one = vec![Dim::from(1)];
        // `Shape` can take a part of the shape since version 15.
        if self.profile().opset() < 15 {
            let all = self.push("Shape", &[x], vec![], DType::I64, vec![Dim::from(x.rank())]);
            let axis = self.constant_i64(&[axis]);
            return self.gather(&all, &axis);
        }
        let attributes = vec![("start", Attribute::Int(axis)), ("end", Attribute::Int(axis + 1))];
        Ok(self.push("Shape", &[x], attributes, DType::I64, one))
    }
}
