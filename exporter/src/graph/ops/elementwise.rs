//! Operators that work element by element, with ONNX (NumPy) broadcasting.

use crate::graph::dim::{Dim, display_shape};
use crate::graph::error::{GraphError, GraphErrorKind};
use crate::graph::ir::{Attribute, DType};
use crate::graph::{GraphBuilder, Value};

impl GraphBuilder {
    /// `a + b`
    pub fn add(&mut self, a: &Value, b: &Value) -> Result<Value, GraphError> {
        self.binary("Add", a, b)
    }

    /// `a - b`
    pub fn sub(&mut self, a: &Value, b: &Value) -> Result<Value, GraphError> {
        self.binary("Sub", a, b)
    }

    /// `a * b`
    pub fn mul(&mut self, a: &Value, b: &Value) -> Result<Value, GraphError> {
        self.binary("Mul", a, b)
    }

    /// `a / b`; integers are truncated.
    pub fn div(&mut self, a: &Value, b: &Value) -> Result<Value, GraphError> {
        self.binary("Div", a, b)
    }

    /// The smaller of both.
    pub fn min(&mut self, a: &Value, b: &Value) -> Result<Value, GraphError> {
        self.binary("Min", a, b)
    }

    /// The larger of both.
    pub fn max(&mut self, a: &Value, b: &Value) -> Result<Value, GraphError> {
        self.binary("Max", a, b)
    }

    fn binary(&mut self, op: &str, a: &Value, b: &Value) -> Result<Value, GraphError> {
        if a.dtype() != b.dtype() {
            let expected = "two operands of one element type";
            return self.fail(GraphErrorKind::DType, op, &[a, b], expected);
        }
        self.expect_numeric(op, a)?;
        let shape = self.broadcast(op, &[a, b], a.shape(), b.shape())?;
        Ok(self.push(op, &[a, b], vec![], a.dtype(), shape))
    }

    /// `value` for integers and floats, an error for booleans.
    fn expect_numeric(&self, op: &str, x: &Value) -> Result<(), GraphError> {
        match x.dtype() {
            DType::Bool => self.fail(GraphErrorKind::DType, op, &[x], "numbers"),
            _ => Ok(()),
        }
    }

    /// An error unless `x` has the element type `dtype`.
    pub(crate) fn expect_dtype(&self, op: &str, x: &Value, dtype: DType) -> Result<(), GraphError> {
        if x.dtype() == dtype {
            return Ok(());
        }
        self.fail(GraphErrorKind::DType, op, &[x], format!("elements of type {dtype}"))
    }

    /// An error unless `x` has `rank` axes.
    pub(crate) fn expect_rank(&self, op: &str, x: &Value, rank: usize) -> Result<(), GraphError> {
        if x.rank() == rank {
            return Ok(());
        }
        self.fail(GraphErrorKind::Rank, op, &[x], format!("{rank} axes"))
    }

    /// The shape that two shapes broadcast to.
    pub(crate) fn broadcast(
        &self,
        op: &str,
        operands: &[&Value],
        a: &[Dim],
        b: &[Dim],
    ) -> Result<Vec<Dim>, GraphError> {
        let rank = a.len().max(b.len());
        let at = |shape: &[Dim], axis: usize| -> Dim {
            // Shapes are aligned at their last axis.
            (axis + shape.len()).checked_sub(rank).map_or(Dim::from(1), |i| shape[i].clone())
        };
        let mut shape = Vec::with_capacity(rank);
        for axis in 0..rank {
            let (x, y) = (at(a, axis), at(b, axis));
            shape.push(if x == y || y.is(1) {
                x
            } else if x.is(1) {
                y
            } else {
                return self.fail(
                    GraphErrorKind::Broadcast,
                    op,
                    operands,
                    format!(
                        "shapes that broadcast, but {} and {} differ in {x} and {y}",
                        display_shape(a),
                        display_shape(b)
                    ),
                );
            });
        }
        Ok(shape)
    }

    fn unary(&mut self, op: &str, x: &Value) -> Result<Value, GraphError> {
        self.expect_dtype(op, x, DType::F32)?;
        Ok(self.push(op, &[x], vec![], DType::F32, x.shape().to_vec()))
    }

    /// Sine.
    pub fn sin(&mut self, x: &Value) -> Result<Value, GraphError> {
        self.unary("Sin", x)
    }

    /// Cosine.
    pub fn cos(&mut self, x: &Value) -> Result<Value, GraphError> {
        self.unary("Cos", x)
    }

    /// Square root.
    pub fn sqrt(&mut self, x: &Value) -> Result<Value, GraphError> {
        self.unary("Sqrt", x)
    }

    /// `−x`
    pub fn neg(&mut self, x: &Value) -> Result<Value, GraphError> {
        self.unary("Neg", x)
    }

    /// Exponential function.
    pub fn exp(&mut self, x: &Value) -> Result<Value, GraphError> {
        self.unary("Exp", x)
    }

    /// Natural logarithm.
    pub fn log(&mut self, x: &Value) -> Result<Value, GraphError> {
        self.unary("Log", x)
    }

    /// Hyperbolic tangent.
    pub fn tanh(&mut self, x: &Value) -> Result<Value, GraphError> {
        self.unary("Tanh", x)
    }

    /// Error function.
    pub fn erf(&mut self, x: &Value) -> Result<Value, GraphError> {
        self.unary("Erf", x)
    }

    /// `1 / (1 + exp(−x))`
    pub fn sigmoid(&mut self, x: &Value) -> Result<Value, GraphError> {
        self.unary("Sigmoid", x)
    }

    /// `x · sigmoid(x)`
    pub fn silu(&mut self, x: &Value) -> Result<Value, GraphError> {
        let gate = self.sigmoid(x)?;
        self.mul(x, &gate)
    }

    /// GELU in its tanh form (`gelu_new`, `gelu-approximate`).
    pub fn gelu_tanh(&mut self, x: &Value) -> Result<Value, GraphError> {
        self.expect_dtype("Gelu", x, DType::F32)?;
        if self.profile().opset() < 20 {
            return self.gelu_tanh_of_primitives(x);
        }
        let attributes = vec![("approximate", Attribute::String("tanh".to_owned()))];
        Ok(self.push("Gelu", &[x], attributes, DType::F32, x.shape().to_vec()))
    }

    /// `x` raised to a constant power.
    pub fn pow(&mut self, x: &Value, exponent: f32) -> Result<Value, GraphError> {
        self.expect_dtype("Pow", x, DType::F32)?;
        let exponent = self.scalar_f32(exponent);
        Ok(self.push("Pow", &[x, &exponent], vec![], DType::F32, x.shape().to_vec()))
    }

    /// Conversion to another element type.
    pub fn cast(&mut self, x: &Value, dtype: DType) -> Result<Value, GraphError> {
        let to = i64::from(dtype.onnx());
        Ok(self.push("Cast", &[x], vec![("to", Attribute::Int(to))], dtype, x.shape().to_vec()))
    }

    /// Whether `a` and `b` are the same, element by element.
    pub fn equal(&mut self, a: &Value, b: &Value) -> Result<Value, GraphError> {
        let op = "Equal";
        if a.dtype() != b.dtype() {
            let expected = "two operands of one element type";
            return self.fail(GraphErrorKind::DType, op, &[a, b], expected);
        }
        let shape = self.broadcast(op, &[a, b], a.shape(), b.shape())?;
        Ok(self.push(op, &[a, b], vec![], DType::Bool, shape))
    }

    /// `a` where `condition` holds, else `b`.
    pub fn select(&mut self, condition: &Value, a: &Value, b: &Value) -> Result<Value, GraphError> {
        let operands = [condition, a, b];
        self.expect_dtype("Where", condition, DType::Bool)?;
        if a.dtype() != b.dtype() {
            let expected = "two branches of one element type";
            return self.fail(GraphErrorKind::DType, "Where", &operands, expected);
        }
        let shape = self.broadcast("Where", &operands, a.shape(), b.shape())?;
        let shape = self.broadcast("Where", &operands, condition.shape(), &shape)?;
        Ok(self.push("Where", &operands, vec![], a.dtype(), shape))
    }
}
