//! Operators that move elements without computing.

use crate::graph::dim::{Dim, display_shape, product};
use crate::graph::error::{GraphError, GraphErrorKind};
use crate::graph::ir::{Attribute, DType};
use crate::graph::{GraphBuilder, Value};

impl GraphBuilder {
    /// The same elements under another shape, which may have any number of symbolic sizes.
    pub fn reshape(&mut self, x: &Value, shape: &[Dim]) -> Result<Value, GraphError> {
        let op = "Reshape";
        if product(x.shape()) != product(shape) {
            let expected = format!(
                "as many elements as {} has: {}, not {}",
                display_shape(shape),
                product(shape),
                product(x.shape())
            );
            return self.fail(GraphErrorKind::ElementCount, op, &[x], expected);
        }
        let target = self.reshape_target(x, shape)?;
        Ok(self.push(op, &[x, &target], vec![], x.dtype(), shape.to_vec()))
    }

    /// The second operand of `Reshape`: constant where one size at most has to be worked out (0
    /// keeps a size, -1 is the rest), otherwise computed from the sizes of the graph's inputs.
    fn reshape_target(&mut self, x: &Value, shape: &[Dim]) -> Result<Value, GraphError> {
        let mut target = Vec::with_capacity(shape.len());
        for (axis, dim) in shape.iter().enumerate() {
            target.push(match dim.as_const() {
                Some(size) => size,
                None if x.shape().get(axis) == Some(dim) => 0,
                None => -1,
            });
        }
        if target.iter().filter(|&&size| size == -1).count() <= 1 {
            return Ok(self.constant_i64(&target));
        }
        self.sizes(shape)
    }

    /// The axes of `x` in another order.
    pub fn transpose(&mut self, x: &Value, order: &[usize]) -> Result<Value, GraphError> {
        let op = "Transpose";
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        if sorted != (0..x.rank()).collect::<Vec<_>>() {
            let expected = format!("an operand whose axes {order:?} reorders");
            return self.fail(GraphErrorKind::Axis, op, &[x], expected);
        }
        let shape = order.iter().map(|&axis| x.shape()[axis].clone()).collect();
        let order = Attribute::Ints(order.iter().map(|&axis| axis as i64).collect());
        Ok(self.push(op, &[x], vec![("perm", order)], x.dtype(), shape))
    }

    /// `x` with an axis of size 1 before each position in `axes` (positions in the result).
    pub fn unsqueeze(&mut self, x: &Value, axes: &[usize]) -> Result<Value, GraphError> {
        let op = "Unsqueeze";
        let mut shape = x.shape().to_vec();
        for &axis in axes {
            if axis > shape.len() {
                let expected = format!("an operand that can have axis {axis}");
                return self.fail(GraphErrorKind::Axis, op, &[x], expected);
            }
            shape.insert(axis, Dim::from(1));
        }
        let axes: Vec<i64> = axes.iter().map(|&axis| axis as i64).collect();
        let axes = self.constant_i64(&axes);
        Ok(self.push(op, &[x, &axes], vec![], x.dtype(), shape))
    }

    /// `x` repeated along its axes of size 1 until it has `shape`.
    pub fn expand(&mut self, x: &Value, shape: &[Dim]) -> Result<Value, GraphError> {
        let op = "Expand";
        let result = self.broadcast(op, &[x], x.shape(), shape)?;
        if result != shape {
            let expected = format!("a shape that broadcasts to {}", display_shape(shape));
            return self.fail(GraphErrorKind::Broadcast, op, &[x], expected);
        }
        let target = self.sizes(shape)?;
        Ok(self.push(op, &[x, &target], vec![], x.dtype(), result))
    }

    /// Tensors one after the other along `axis` (negative: from the end).
    pub fn concat(&mut self, parts: &[&Value], axis: i64) -> Result<Value, GraphError> {
        let op = "Concat";
        let Some((first, rest)) = parts.split_first() else {
            return self.fail(GraphErrorKind::Rank, op, &[], "at least one operand");
        };
        let index = self.axis(op, first, axis)?;
        let mut shape = first.shape().to_vec();
        for part in rest {
            self.expect_dtype(op, part, first.dtype())?;
            let same = part.rank() == first.rank()
                && (0..first.rank()).all(|i| i == index || part.shape()[i] == first.shape()[i]);
            if !same {
                let expected = format!("shapes that differ only in axis {axis}");
                return self.fail(GraphErrorKind::Size, op, parts, expected);
            }
            shape[index] = &shape[index] + &part.shape()[index];
        }
        Ok(self.push(op, parts, vec![("axis", Attribute::Int(axis))], first.dtype(), shape))
    }

    /// `x` cut into `count` equal parts along `axis` (negative: from the end).
    pub fn split(&mut self, x: &Value, count: usize, axis: i64) -> Result<Vec<Value>, GraphError> {
        let op = "Split";
        let index = self.axis(op, x, axis)?;
        let Some(part) = x.shape()[index].exact_div(&Dim::from(count)) else {
            let expected = format!("a multiple of {count} in axis {axis}");
            return self.fail(GraphErrorKind::Divisibility, op, &[x], expected);
        };
        let mut shape = x.shape().to_vec();
        shape[index] = part.clone();
        let mut attributes = vec![("axis", Attribute::Int(axis))];
        // The number of parts became an attribute with version 18; before, their sizes are named.
        if self.profile().opset() < 18 {
            let sizes = self.sizes(&vec![part; count])?;
            let outputs = vec![(x.dtype(), shape); count];
            return Ok(self.push_many("", op, &[x, &sizes], attributes, outputs));
        }
        attributes.push(("num_outputs", Attribute::Int(count as i64)));
        Ok(self.push_many("", op, &[x], attributes, vec![(x.dtype(), shape); count]))
    }

    /// `x` with zeros behind it along `axis`, so that its size there becomes `size`.
    ///
    /// `size` must be at least the present one; that is not checked here.
    pub fn pad_end(&mut self, x: &Value, axis: usize, size: &Dim) -> Result<Value, GraphError> {
        self.axis("Pad", x, axis as i64)?;
        let extra = size + &(&Dim::from(-1) * &x.shape()[axis]);
        self.pad(x, axis, &Dim::from(0), &extra)
    }

    /// `x` with so many zeros before and after it along `axis`; that these are not negative is not
    /// checked here.
    pub fn pad(
        &mut self,
        x: &Value,
        axis: usize,
        before: &Dim,
        after: &Dim,
    ) -> Result<Value, GraphError> {
        let op = "Pad";
        self.axis(op, x, axis as i64)?;
        let mut pads = vec![Dim::from(0); 2 * x.rank()];
        pads[axis] = before.clone();
        pads[x.rank() + axis] = after.clone();
        let pads = self.sizes(&pads)?;
        let mut shape = x.shape().to_vec();
        shape[axis] = &(before + &shape[axis]) + after;
        Ok(self.push(op, &[x, &pads], vec![], x.dtype(), shape))
    }

    /// The first `size` entries of `x` along `axis`; `size` must not be larger than that axis.
    pub fn take(&mut self, x: &Value, axis: usize, size: &Dim) -> Result<Value, GraphError> {
        self.slice(x, axis, &Dim::from(0), size)
    }

    /// `size` entries of `x` along `axis`, from the entry `start` on. That the axis has them is not
    /// checked here.
    pub fn slice(
        &mut self,
        x: &Value,
        axis: usize,
        start: &Dim,
        size: &Dim,
    ) -> Result<Value, GraphError> {
        let op = "Slice";
        self.axis(op, x, axis as i64)?;
        let end = self.size(&(start + size))?;
        let start = self.size(start)?;
        let axes = self.constant_i64(&[axis as i64]);
        let mut shape = x.shape().to_vec();
        shape[axis] = size.clone();
        Ok(self.push(op, &[x, &start, &end, &axes], vec![], x.dtype(), shape))
    }

    /// `x` under another name. Two outputs of a graph cannot be one value, nor an output an input.
    pub fn identity(&mut self, x: &Value) -> Value {
        self.push("Identity", &[x], vec![], x.dtype(), x.shape().to_vec())
    }

    /// Rows of `table` (along its first axis) at the given indices.
    pub fn gather(&mut self, table: &Value, indices: &Value) -> Result<Value, GraphError> {
        self.gather_along(table, 0, indices)
    }

    /// The entries of `x` along `axis` at the given indices, whose axes replace that axis.
    pub fn gather_along(
        &mut self,
        x: &Value,
        axis: usize,
        indices: &Value,
    ) -> Result<Value, GraphError> {
        let op = "Gather";
        self.expect_dtype(op, indices, DType::I64)?;
        self.axis(op, x, axis as i64)?;
        let shape = [&x.shape()[..axis], indices.shape(), &x.shape()[axis + 1..]].concat();
        let attributes = vec![("axis", Attribute::Int(axis as i64))];
        Ok(self.push(op, &[x, indices], attributes, x.dtype(), shape))
    }
}
