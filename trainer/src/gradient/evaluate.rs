//! For tests: a graph in double precision, node by node, written to be read rather than to be fast.

use std::collections::HashMap;

use ndarray::{ArrayD, ArrayView2, Axis, Ix2, IxDyn, Slice, SliceInfoElem, Zip, concatenate};
use pixart_exporter::graph::{
    dim::Dim,
    ir::{Attribute, DType, Graph, Node, WeightData},
};

/// Elements of any type; integers and booleans are whole numbers.
type Array = ArrayD<f64>;

/// Every value of the graph. The outputs must have the shapes that the graph says.
pub(super) fn evaluate(
    graph: &Graph,
    inputs: &HashMap<String, Array>,
    sizes: &HashMap<String, i64>,
) -> HashMap<String, Array> {
    let mut values = inputs.clone();
    let mut integers = HashMap::new();
    for initializer in &graph.initializers {
        let WeightData::Inline(bytes) = &initializer.data else { panic!("a checkpoint's weight") };
        let elements: Vec<f64> = match initializer.dtype {
            DType::F32 => {
                bytes.as_chunks().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))).collect()
            }
            DType::I64 => {
                bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as f64).collect()
            }
            other => panic!("a constant of type {other}"),
        };
        let array = Array::from_shape_vec(initializer.shape.clone(), elements).expect("a constant");
        integers.insert(initializer.name.clone(), initializer.dtype == DType::I64);
        values.insert(initializer.name.clone(), array);
    }
    for node in &graph.nodes {
        let operands: Vec<&Array> = node.inputs.iter().map(|name| &values[name]).collect();
        let of_integers = node.inputs.first().is_some_and(|x| integers.get(x) == Some(&true));
        let (results, integer) = match node.op_type.as_str() {
            "Shape" | "Range" => (compute(node, &operands), true),
            "Cast" => (compute(node, &operands), int(node, "to") == Some(7)),
            "Div" if of_integers => {
                (vec![binary(operands[0], operands[1], |a, b| (a / b).trunc())], true)
            }
            _ => (compute(node, &operands), of_integers),
        };
        assert_eq!(results.len(), node.outputs.len(), "{}", node.name);
        for (name, array) in node.outputs.iter().zip(results) {
            integers.insert(name.clone(), integer);
            values.insert(name.clone(), array);
        }
    }
    for output in &graph.outputs {
        let size = |dim: &Dim| dim.evaluate(|name| sizes.get(name).copied());
        let declared: Option<Vec<i64>> = output.shape.iter().map(size).collect();
        let found: Vec<i64> = values[&output.name].shape().iter().map(|&n| n as i64).collect();
        // Sizes that the graph itself computes have no value here.
        assert!(declared.is_none_or(|declared| declared == found), "shape of {}", output.name);
    }
    values
}

fn compute(node: &Node, x: &[&Array]) -> Vec<Array> {
    let one = |array: Array| vec![array];
    match node.op_type.as_str() {
        "Add" => one(binary(x[0], x[1], |a, b| a + b)),
        "Sub" => one(binary(x[0], x[1], |a, b| a - b)),
        "Mul" => one(binary(x[0], x[1], |a, b| a * b)),
        "Div" => one(binary(x[0], x[1], |a, b| a / b)),
        "Pow" => one(binary(x[0], x[1], f64::powf)),
        "Min" => one(binary(x[0], x[1], f64::min)),
        "Max" => one(binary(x[0], x[1], f64::max)),
        "Equal" => one(binary(x[0], x[1], |a, b| f64::from(a == b))),
        "Neg" => one(x[0].mapv(|x| -x)),
        "Exp" => one(x[0].mapv(f64::exp)),
        "Log" => one(x[0].mapv(f64::ln)),
        "Sin" => one(x[0].mapv(f64::sin)),
        "Cos" => one(x[0].mapv(f64::cos)),
        "Sqrt" => one(x[0].mapv(f64::sqrt)),
        "Tanh" => one(x[0].mapv(f64::tanh)),
        "Sigmoid" => one(x[0].mapv(sigmoid)),
        "Erf" => one(x[0].mapv(erf)),
        "Gelu" => one(x[0].mapv(gelu_tanh)),
        "Cast" | "Identity" => one(x[0].clone()),
        "Where" => one(choose(x[0], x[1], x[2])),
        "Reshape" => one(reshape(x[0], x[1])),
        "Unsqueeze" => one(unsqueeze(x[0], x[1])),
        "Squeeze" => {
            let kept = x[0].shape().iter().enumerate();
            let kept = kept.filter(|(axis, _)| !x[1].iter().any(|&a| a as usize == *axis));
            one(with_shape(x[0], kept.map(|(_, &size)| size).collect()))
        }
        "Transpose" => {
            let order: Vec<usize> = ints(node, "perm").iter().map(|&axis| axis as usize).collect();
            one(x[0].clone().permuted_axes(IxDyn(&order)).as_standard_layout().into_owned())
        }
        "Expand" => {
            let shape: Vec<usize> = x[1].iter().map(|&n| n as usize).collect();
            let shape = broadcast_shape(x[0].shape(), &shape);
            one(x[0].broadcast(shape).expect("an operand that can be repeated").to_owned())
        }
        "Concat" => {
            let views: Vec<_> = x.iter().map(|x| x.view()).collect();
            one(concatenate(Axis(axis(node, x[0])), &views).expect("parts that fit"))
        }
        "Split" => {
            let (axis, count) = (Axis(axis(node, x[0])), node.outputs.len());
            let part = x[0].len_of(axis) / count;
            let part = |i| x[0].slice_axis(axis, Slice::from(i * part..(i + 1) * part)).to_owned();
            (0..count).map(part).collect()
        }
        "Slice" => {
            let [start, end, axis] =
                [1, 2, 3].map(|i| x[i].first().copied().expect("one") as usize);
            one(x[0].slice_axis(Axis(axis), Slice::from(start..end)).to_owned())
        }
        "Pad" => one(pad(x[0], x[1])),
        "Gather" => one(gather(x[0], x[1], axis(node, x[0]))),
        "ReduceSum" => one(reduce(x[0], &axes(node, x), |_| 1.0)),
        "ReduceSumSquare" => one(reduce(&x[0].mapv(|x| x * x), &axes(node, x), |_| 1.0)),
        "ReduceMean" => one(reduce(x[0], &axes(node, x), |count| count as f64)),
        "Softmax" => one(softmax(x[0])),
        "LayerNormalization" => one(layer_norm(x, float(node, "epsilon"))),
        "MatMul" => one(matmul(x[0], x[1])),
        "Conv" => one(conv(node, x[0], x[1], x[2])),
        "MultiHeadAttention" => one(attention(node, x[0], x[1], x[2])),
        "Shape" => {
            let all = x[0].shape();
            let start = int(node, "start").unwrap_or(0) as usize;
            let end = int(node, "end").map_or(all.len(), |end| end as usize);
            one(all[start..end]
                .iter()
                .map(|&n| n as f64)
                .collect::<ndarray::Array1<_>>()
                .into_dyn())
        }
        "Range" => {
            let limit = x[1].first().copied().expect("a limit") as usize;
            one((0..limit).map(|n| n as f64).collect::<ndarray::Array1<_>>().into_dyn())
        }
        other => panic!("{}: no evaluation of {other}", node.name),
    }
}

fn attribute<'a>(node: &'a Node, name: &str) -> Option<&'a Attribute> {
    node.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value)
}

fn int(node: &Node, name: &str) -> Option<i64> {
    match attribute(node, name)? {
        Attribute::Int(value) => Some(*value),
        _ => None,
    }
}

fn ints(node: &Node, name: &str) -> Vec<i64> {
    match attribute(node, name) {
        Some(Attribute::Ints(values)) => values.clone(),
        _ => panic!("{}: no {name}", node.name),
    }
}

fn float(node: &Node, name: &str) -> f64 {
    match attribute(node, name) {
        Some(Attribute::Float(value)) => f64::from(*value),
        _ => panic!("{}: no {name}", node.name),
    }
}

fn axis(node: &Node, x: &Array) -> usize {
    int(node, "axis").unwrap_or(0).rem_euclid(x.ndim() as i64) as usize
}

fn axes(node: &Node, x: &[&Array]) -> Vec<usize> {
    let axes = match x.get(1) {
        Some(axes) => axes.iter().map(|&axis| axis as i64).collect(),
        None => ints(node, "axes"),
    };
    axes.iter().map(|axis| axis.rem_euclid(x[0].ndim() as i64) as usize).collect()
}

fn broadcast_shape(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let at = |shape: &[usize], axis: usize| {
        (axis + shape.len()).checked_sub(rank).map_or(1, |axis| shape[axis])
    };
    (0..rank).map(|axis| at(a, axis).max(at(b, axis))).collect()
}

fn binary(a: &Array, b: &Array, f: impl Fn(f64, f64) -> f64) -> Array {
    let shape = broadcast_shape(a.shape(), b.shape());
    let (a, b) = (a.broadcast(shape.clone()), b.broadcast(shape));
    let (a, b) = (a.expect("operands that fit"), b.expect("operands that fit"));
    Zip::from(a).and(b).map_collect(|&a, &b| f(a, b))
}

fn choose(condition: &Array, a: &Array, b: &Array) -> Array {
    let kept = binary(condition, a, |c, a| if c != 0.0 { a } else { 0.0 });
    let other = binary(condition, b, |c, b| if c != 0.0 { 0.0 } else { b });
    binary(&kept, &other, |a, b| a + b)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn gelu_tanh(x: f64) -> f64 {
    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + u.tanh())
}

/// By its power series.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..60 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn with_shape(x: &Array, shape: Vec<usize>) -> Array {
    let elements = x.iter().copied().collect();
    Array::from_shape_vec(shape, elements).expect("as many elements")
}

fn reshape(x: &Array, target: &Array) -> Array {
    let mut shape: Vec<i64> = target.iter().map(|&n| n as i64).collect();
    for (axis, size) in shape.iter_mut().enumerate() {
        if *size == 0 {
            *size = x.shape()[axis] as i64;
        }
    }
    let known: i64 = shape.iter().filter(|&&size| size != -1).product();
    let rest = x.len() as i64 / known.max(1);
    let whole = |size: i64| if size == -1 { rest as usize } else { size as usize };
    with_shape(x, shape.into_iter().map(whole).collect())
}

fn unsqueeze(x: &Array, axes: &Array) -> Array {
    let mut shape = x.shape().to_vec();
    for &axis in axes {
        shape.insert(axis as usize, 1);
    }
    with_shape(x, shape)
}

fn pad(x: &Array, pads: &Array) -> Array {
    let rank = x.ndim();
    let pads: Vec<usize> = pads.iter().map(|&n| n as usize).collect();
    let shape: Vec<usize> = (0..rank).map(|i| pads[i] + x.shape()[i] + pads[rank + i]).collect();
    let mut result = Array::zeros(shape);
    let inner: Vec<SliceInfoElem> = (0..rank)
        .map(|i| SliceInfoElem::from(pads[i] as isize..(pads[i] + x.shape()[i]) as isize))
        .collect();
    result.slice_mut(inner.as_slice()).assign(x);
    result
}

fn gather(x: &Array, indices: &Array, axis: usize) -> Array {
    let flat: Vec<usize> = indices.iter().map(|&index| index as usize).collect();
    let chosen = x.select(Axis(axis), &flat);
    let shape = [&x.shape()[..axis], indices.shape(), &x.shape()[axis + 1..]].concat();
    with_shape(&chosen, shape)
}

fn reduce(x: &Array, axes: &[usize], divisor: impl Fn(usize) -> f64) -> Array {
    let mut result = x.clone();
    for &axis in axes {
        result = result.sum_axis(Axis(axis)).insert_axis(Axis(axis));
    }
    let count = axes.iter().map(|&axis| x.shape()[axis]).product();
    result / divisor(count)
}

fn softmax(x: &Array) -> Array {
    let mut result = x.clone();
    for mut row in result.rows_mut() {
        let most = row.fold(f64::NEG_INFINITY, |a, &b| a.max(b));
        row.mapv_inplace(|x| (x - most).exp());
        let sum = row.sum();
        row.mapv_inplace(|x| x / sum);
    }
    result
}

fn layer_norm(x: &[&Array], epsilon: f64) -> Array {
    let mut normal = x[0].clone();
    for mut row in normal.rows_mut() {
        let mean = row.mean().expect("elements");
        let variance = row.mapv(|x| (x - mean).powi(2)).mean().expect("elements");
        row.mapv_inplace(|x| (x - mean) / (variance + epsilon).sqrt());
    }
    let scaled = binary(&normal, x[1], |a, b| a * b);
    match x.get(2) {
        Some(bias) => binary(&scaled, bias, |a, b| a + b),
        None => scaled,
    }
}

fn matmul(a: &Array, b: &Array) -> Array {
    let lead = |x: &Array| x.shape()[..x.ndim() - 2].to_vec();
    let ends = |x: &Array| [x.shape()[x.ndim() - 2], x.shape()[x.ndim() - 1]];
    let batch = broadcast_shape(&lead(a), &lead(b));
    let ([rows, inner], [_, columns]) = (ends(a), ends(b));
    let whole = |x: &Array, matrix: [usize; 2]| {
        let shape = [batch.as_slice(), &matrix].concat();
        let all = x.broadcast(shape).expect("operands that fit").to_owned();
        with_shape(&all, vec![batch.iter().product(), matrix[0], matrix[1]])
    };
    let (a, b) = (whole(a, [rows, inner]), whole(b, [inner, columns]));
    let mut elements = Vec::new();
    for (a, b) in a.outer_iter().zip(b.outer_iter()) {
        let matrix = |x: ndarray::ArrayViewD<f64>| {
            x.into_dimensionality::<Ix2>().expect("two axes").to_owned()
        };
        let (a, b) = (matrix(a), matrix(b));
        let product = ArrayView2::from(&a).dot(&b);
        elements.extend(product.iter().copied());
    }
    Array::from_shape_vec([batch.as_slice(), &[rows, columns]].concat(), elements).expect("all")
}

fn conv(node: &Node, x: &Array, weight: &Array, bias: &Array) -> Array {
    let (strides, pads) = (ints(node, "strides"), ints(node, "pads"));
    let group = int(node, "group").unwrap_or(1) as usize;
    let widths = |i: usize| (pads[i] as usize, pads[i + 2] as usize);
    let padded = {
        let ((top, bottom), (left, right)) = (widths(0), widths(1));
        let pads = [0, 0, top, left, 0, 0, bottom, right].map(|n| n as f64);
        pad(x, &Array::from_shape_vec(vec![8], pads.to_vec()).expect("eight"))
    };
    let [outputs, inputs, height, width] = [0, 1, 2, 3].map(|i| weight.shape()[i]);
    let [down, right] = [0, 1].map(|i| strides[i] as usize);
    let rows = (padded.shape()[2] - height) / down + 1;
    let columns = (padded.shape()[3] - width) / right + 1;
    Array::from_shape_fn(vec![x.shape()[0], outputs, rows, columns], |index| {
        let [n, o, row, column] = [0, 1, 2, 3].map(|i| index[i]);
        let first = o / (outputs / group) * inputs;
        let mut sum = bias[[o]];
        for c in 0..inputs {
            for i in 0..height {
                for j in 0..width {
                    let at = [n, first + c, row * down + i, column * right + j];
                    sum += padded[at.as_slice()] * weight[[o, c, i, j].as_slice()];
                }
            }
        }
        sum
    })
}

fn attention(node: &Node, query: &Array, key: &Array, value: &Array) -> Array {
    let heads = int(node, "num_heads").expect("heads") as usize;
    let scale = float(node, "scale");
    let split = |x: &Array, order: [usize; 4]| {
        let [batch, length, width] = [0, 1, 2].map(|i| x.shape()[i]);
        let x = with_shape(x, vec![batch, length, heads, width / heads]);
        x.permuted_axes(order.as_slice()).as_standard_layout().into_owned()
    };
    let scores = matmul(&split(query, [0, 2, 1, 3]), &split(key, [0, 2, 3, 1])) * scale;
    let mixed = matmul(&softmax(&scores), &split(value, [0, 2, 1, 3]));
    let mixed = mixed.permuted_axes([0, 2, 1, 3].as_slice()).as_standard_layout().into_owned();
    with_shape(&mixed, query.shape().to_vec())
}
