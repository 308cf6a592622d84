//! Every kind of mistake is found, and named; what is not a mistake computes the right numbers.

use super::dim::Dim;
use super::ir::{DType, Graph, Transform};
use super::run::{floats, integers, noise, run};
use super::{GraphBuilder, GraphError, GraphErrorKind, Value, Window};
use crate::profile::{Attention, Profile};

fn builder() -> GraphBuilder {
    GraphBuilder::new("test", Profile::Portable)
}

fn sym(name: &str) -> Dim {
    Dim::symbol(name)
}

fn close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0f32, |max, x| max.max(x.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance * scale, "element {i}: {a}, expected {b}");
    }
}

/// A graph with the float inputs `x0`, `x1`… of these shapes and the output `y`.
fn graph(
    shapes: &[&[Dim]],
    body: impl FnOnce(&mut GraphBuilder, &[Value]) -> Result<Value, GraphError>,
) -> Graph {
    let mut b = builder();
    let inputs: Vec<Value> = shapes
        .iter()
        .enumerate()
        .map(|(i, shape)| b.input(&format!("x{i}"), DType::F32, shape.to_vec()).unwrap())
        .collect();
    let y = body(&mut b, &inputs).unwrap();
    b.output("y", &y, y.dtype(), y.shape()).unwrap();
    b.finish()
}

/// A mistake: its inputs, then what is done with them.
type Mistake = fn(&mut GraphBuilder, &[Value]) -> Result<Value, GraphError>;

#[test]
fn mistakes_are_found_and_named() {
    use GraphErrorKind::*;
    // x: f32[batch_size, 6, width], i: i64[batch_size, 6], m: f32[5, 7]
    let cases: Vec<(&str, GraphErrorKind, Mistake)> = vec![
        ("Add", DType, |b, v| b.add(&v[0], &v[1])),
        ("Add", Broadcast, |b, v| b.add(&v[0], &v[2])),
        ("Where", DType, |b, v| b.select(&v[0], &v[0], &v[0])),
        ("Sin", DType, |b, v| b.sin(&v[1])),
        ("Gelu", DType, |b, v| b.gelu_tanh(&v[1])),
        ("MatMul", Size, |b, v| b.matmul(&v[0], &v[2])),
        ("MatMul", DType, |b, v| b.matmul(&v[1], &v[2])),
        ("MatMul", Size, |b, v| b.linear("l", &v[0], 3, true)),
        ("Softmax", DType, |b, v| b.softmax(&v[1])),
        ("ReduceMean", Axis, |b, v| b.reduce_mean(&v[0], 3)),
        ("Reshape", ElementCount, |b, v| b.reshape(&v[0], &[sym("batch_size"), sym("width")])),
        ("Transpose", Axis, |b, v| b.transpose(&v[0], &[0, 1])),
        ("Unsqueeze", Axis, |b, v| b.unsqueeze(&v[0], &[5])),
        ("Expand", Broadcast, |b, v| b.expand(&v[2], &[5.into(), 8.into()])),
        ("Concat", Size, |b, v| b.concat(&[&v[0], &v[2]], 0)),
        ("Concat", DType, |b, v| b.concat(&[&v[0], &v[1]], 0)),
        ("Split", Divisibility, |b, v| Ok(b.split(&v[0], 4, 1)?.remove(0))),
        ("Split", Divisibility, |b, v| Ok(b.split(&v[0], 2, 2)?.remove(0))),
        ("Gather", DType, |b, v| b.gather(&v[0], &v[2])),
        ("Slice", Axis, |b, v| b.take(&v[0], 3, &sym("width"))),
        ("Pad", Axis, |b, v| b.pad_end(&v[0], 3, &sym("width"))),
        ("Conv", Rank, |b, v| b.conv2d("c", &v[0], 3, Window::same(3))),
        ("Resize", Rank, |b, v| b.upsample_nearest(&v[0], 2)),
        ("Conv", Rank, |b, v| b.upsampled_conv2d("c", &v[0], 3)),
        ("DepthToSpace", Rank, |b, v| b.depth_to_space(&v[0], 2)),
        ("DepthToSpace", Divisibility, |b, v| {
            let x = b.unsqueeze(&v[0], &[0])?;
            b.depth_to_space(&x, 4)
        }),
        ("LayerNormalization", Broadcast, |b, v| b.layer_norm(&v[2], &v[0], None, 1e-6)),
        ("InstanceNormalization", Size, |b, v| b.instance_norm(&v[0], &v[2], &v[2], 1e-6)),
        ("GroupNorm", Rank, |b, v| b.group_norm("n", &v[0], 2, 1e-6)),
        ("Range", UnknownSize, |b, _| b.range(&sym("nobody"))),
        ("Attention", Rank, |b, v| {
            let attention = Attention { heads: 2, scale: None, bias: None };
            b.attention(&v[2], &v[2], &v[2], &attention)
        }),
    ];
    for (op, kind, mistake) in cases {
        let mut b = builder();
        let x =
            b.input("x", super::ir::DType::F32, vec![sym("batch_size"), 6.into(), sym("width")]);
        let i = b.input("i", super::ir::DType::I64, vec![sym("batch_size"), 6.into()]);
        let m = b.input("m", super::ir::DType::F32, vec![5.into(), 7.into()]);
        let inputs = [x.unwrap(), i.unwrap(), m.unwrap()];
        let error = b.scoped("blocks.3.attn1", |b| mistake(b, &inputs)).expect_err(op);
        assert_eq!(error.kind, kind, "{op}: {error}");
        let op = if kind == UnknownSize { "Shape" } else { op };
        assert_eq!(error.op, op, "{error}");
        if kind != UnknownSize {
            assert!(error.node.starts_with("blocks.3.attn1"), "{error}");
            assert!(error.operands.iter().any(|o| o.contains('[')), "{error}");
        }
    }
}

#[test]
fn a_message_says_where_what_and_what_else() {
    let mut b = builder();
    let x = b.input("x", DType::F32, vec![sym("batch_size"), 8.into()]).unwrap();
    let error = b.scoped("blocks.0", |b| {
        let y = b.linear("to_q", &x, 6, false)?;
        b.scoped("to_out", |b| b.add(&x, &y))
    });
    assert_eq!(
        error.unwrap_err().to_string(),
        "node blocks.0.to_out/Add (Add): found x: f32[batch_size, 8], \
         blocks.0.to_q/MatMul: f32[batch_size, 6]: expected shapes that broadcast, \
         but [batch_size, 8] and [batch_size, 6] differ in 8 and 6"
    );
}

#[test]
fn names_are_used_once() {
    let mut b = builder();
    let x = b.input("x", DType::F32, vec![4.into()]).unwrap();
    let again = b.input("x", DType::F32, vec![4.into()]).unwrap_err();
    assert_eq!(again.kind, GraphErrorKind::DuplicateName);
    b.weight("w", &[4]).unwrap();
    assert_eq!(b.weight("w", &[4]).unwrap_err().kind, GraphErrorKind::DuplicateName);
    let y = b.add(&x, &x).unwrap();
    let z = b.add(&x, &y).unwrap();
    assert_ne!(y.name(), z.name());
    b.output("out", &y, DType::F32, &[4.into()]).unwrap();
    let again = b.output("out", &z, DType::F32, &[4.into()]).unwrap_err();
    assert_eq!(again.kind, GraphErrorKind::DuplicateName);
    let wrong = b.output("z", &z, DType::F32, &[5.into()]).unwrap_err();
    assert_eq!(wrong.kind, GraphErrorKind::Size);
    let input = b.output("echo", &x, DType::F32, &[4.into()]).unwrap_err();
    assert_eq!(input.kind, GraphErrorKind::UnknownSize);
}

#[test]
fn a_linear_layer_declares_the_checkpoint_layout() {
    let graph = graph(&[&[sym("batch_size"), 3.into()]], |b, x| b.linear("proj", &x[0], 2, true));
    let weights: Vec<_> = graph.weights().collect();
    assert_eq!(weights[0].tensor, "proj.weight");
    assert_eq!(weights[0].shape, [2, 3]);
    assert_eq!(weights[0].transform, Transform::Transpose2d);
    assert_eq!((weights[1].tensor.as_str(), weights[1].shape.as_slice()), ("proj.bias", &[2][..]));
    let of = |name: &str| match name {
        "proj.weight" => vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        _ => vec![10.0, 20.0],
    };
    let (shape, y) = run(&graph, &of, &[floats(&[1, 3], &[1.0, 0.0, -1.0])]);
    assert_eq!((shape, y), (vec![1, 2], vec![8.0, 18.0]));
}

fn no_weights(name: &str) -> Vec<f32> {
    panic!("no weight {name} in this test")
}

#[test]
fn elementwise_operators_compute() {
    let shape: &[Dim] = &[sym("n"), 2.into()];
    let graph = graph(&[shape], |b, x| {
        let row = b.constant_f32(&[2.0, -0.5], &[2]);
        let product = b.mul(&x[0], &row)?;
        let low = b.scalar_f32(-1.0);
        let clipped = b.max(&product, &low)?;
        let gate = b.silu(&clipped)?;
        let power = b.pow(&x[0], 2.0)?;
        let root = b.sqrt(&power)?;
        let (sin, cos) = (b.sin(&x[0])?, b.cos(&x[0])?);
        let wave = b.sub(&sin, &cos)?;
        let sum = b.add(&gate, &root)?;
        let sum = b.add(&sum, &wave)?;
        let gelu = b.gelu_tanh(&x[0])?;
        b.div(&sum, &gelu)
    });
    let x = [0.5f32, -1.5, 2.0, 3.0];
    let expected: Vec<f32> = x
        .iter()
        .zip([2.0, -0.5, 2.0, -0.5])
        .map(|(&x, factor)| {
            let clipped = (x * factor).max(-1.0);
            let gate = clipped / (1.0 + (-clipped).exp());
            let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            (gate + x.abs() + x.sin() - x.cos()) / (0.5 * x * (1.0 + inner.tanh()))
        })
        .collect();
    let (shape, y) = run(&graph, &no_weights, &[floats(&[2, 2], &x)]);
    assert_eq!(shape, [2, 2]);
    close(&y, &expected, 1e-5);
}

#[test]
fn shape_operators_move_elements() {
    let (h, w) = (Dim::symbol_multiple_of("h", 2), Dim::symbol_multiple_of("w", 2));
    let two = Dim::from(2);
    let (h2, w2) = (h.exact_div(&two).unwrap(), w.exact_div(&two).unwrap());
    // Patches of 2×2 and back, through a reshape whose target has to be computed.
    let graph = graph(&[&[h.clone(), w.clone()]], |b, x| {
        let x = b.reshape(&x[0], &[h2.clone(), two.clone(), w2.clone(), two.clone()])?;
        let x = b.transpose(&x, &[0, 2, 1, 3])?;
        let x = b.reshape(&x, &[&h2 * &w2, 4.into()])?;
        let parts = b.split(&x, 2, -1)?;
        let x = b.concat(&[&parts[1], &parts[0]], -1)?;
        let x = b.pad_end(&x, 0, &(&h * &w))?;
        let x = b.take(&x, 0, &(&h2 * &w2))?;
        let index = b.range(&h2)?;
        let index = b.cast(&index, DType::F32)?;
        let index = b.unsqueeze(&index, &[0, 2, 3])?;
        let index = b.expand(&index, &[1.into(), h2.clone(), w2.clone(), 4.into()])?;
        let x = b.reshape(&x, &[1.into(), h2.clone(), w2.clone(), 4.into()])?;
        b.add(&x, &index)
    });
    let x: Vec<f32> = (0..16).map(|i| 10.0 * i as f32).collect();
    let (shape, y) = run(&graph, &no_weights, &[floats(&[4, 4], &x)]);
    assert_eq!(shape, [1, 2, 2, 4]);
    assert_eq!(&y[..4], [40.0, 50.0, 0.0, 10.0]);
    assert_eq!(&y[12..], [141.0, 151.0, 101.0, 111.0]);
}

#[test]
fn gather_and_select_follow_integers() {
    let mut b = builder();
    let ids = b.input("ids", DType::I64, vec![sym("n")]).unwrap();
    let table = b.constant_f32(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[3, 2]);
    let rows = b.gather(&table, &ids).unwrap();
    let keep = b.cast(&ids, DType::Bool).unwrap();
    let keep = b.unsqueeze(&keep, &[1]).unwrap();
    let low = b.scalar_f32(-9.0);
    let y = b.select(&keep, &rows, &low).unwrap();
    b.output("y", &y, DType::F32, &[sym("n"), 2.into()]).unwrap();
    let (_, y) = run(&b.finish(), &no_weights, &[integers(&[3], &[2, 0, 1])]);
    assert_eq!(y, [5.0, 6.0, -9.0, -9.0, 3.0, 4.0]);
}

#[test]
fn norms_compute() {
    let x = noise(1, 2 * 4 * 6);
    let weight = |name: &str| if name.ends_with("bias") { noise(3, 4) } else { noise(2, 4) };
    let normalise = |values: &[f32], centre: bool| -> Vec<f32> {
        let n = values.len() as f32;
        let mean = if centre { values.iter().sum::<f32>() / n } else { 0.0 };
        let variance = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / n;
        values.iter().map(|x| (x - mean) / (variance + 1e-6).sqrt()).collect()
    };

    let rms = graph(&[&[sym("n"), 4.into()]], |b, x| b.rms_norm("norm", &x[0], 1e-6));
    let expected: Vec<f32> = x
        .chunks(4)
        .flat_map(|row| normalise(row, false).into_iter().zip(noise(2, 4)).map(|(a, b)| a * b))
        .collect();
    close(&run(&rms, &weight, &[floats(&[12, 4], &x)]).1, &expected, 1e-5);

    let shapes: [&[Dim]; 2] = [&[sym("b"), sym("n"), 6.into()], &[sym("b"), 1.into(), 6.into()]];
    let layer = graph(&shapes, |b, x| b.modulated_layer_norm(&x[0], &x[1], &x[1], 1e-6));
    let modulation = noise(4, 12);
    let expected: Vec<f32> = x
        .chunks(6)
        .enumerate()
        .flat_map(|(row, values)| {
            let m = modulation[row / 4 * 6..][..6].to_vec();
            normalise(values, true).into_iter().zip(m).map(|(a, m)| a * (1.0 + m) + m)
        })
        .collect();
    let inputs = [floats(&[2, 4, 6], &x), floats(&[2, 1, 6], &modulation)];
    close(&run(&layer, &no_weights, &inputs).1, &expected, 1e-5);

    let shape: &[Dim] = &[sym("b"), 4.into(), sym("h"), sym("w")];
    let group = graph(&[shape], |b, x| b.group_norm("norm", &x[0], 2, 1e-6));
    let expected: Vec<f32> = x
        .chunks(12)
        .flat_map(|group| normalise(group, true))
        .enumerate()
        .map(|(i, x)| x * noise(2, 4)[i / 6 % 4] + noise(3, 4)[i / 6 % 4])
        .collect();
    close(&run(&group, &weight, &[floats(&[2, 4, 3, 2], &x)]).1, &expected, 1e-5);
}

#[test]
fn convolutions_compute() {
    let side = Dim::symbol_multiple_of("side", 2);
    let graph = graph(&[&[1.into(), 1.into(), side.clone(), side]], |b, x| {
        let x = b.conv2d("patch", &x[0], 1, Window::patches(2))?;
        let x = b.upsample_nearest(&x, 2)?;
        b.conv2d("smooth", &x, 1, Window::same(3))
    });
    let of = |name: &str| match name {
        "patch.weight" => vec![1.0, 0.0, 0.0, 1.0],
        "smooth.weight" => vec![0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0],
        _ => vec![0.5],
    };
    let x: Vec<f32> = (0..16).map(|i| i as f32).collect();
    let (shape, y) = run(&graph, &of, &[floats(&[1, 1, 4, 4], &x)]);
    assert_eq!(shape, [1, 1, 4, 4]);
    // Patches: 0+5, 2+7, 8+13, 10+15, each plus 0.5; then each pixel plus its left neighbour.
    assert_eq!(&y[..4], [6.0, 11.5, 15.5, 19.5]);
    assert_eq!(&y[12..], [22.0, 43.5, 47.5, 51.5]);
}

#[test]
fn an_enlarged_picture_is_convolved_as_if_its_pixels_were_repeated() {
    for (height, width) in [(1, 1), (1, 4), (3, 5), (8, 2)] {
        let shape: &[Dim] = &[sym("b"), 3.into(), sym("h"), sym("w")];
        let repeated = graph(&[shape], |b, x| {
            let x = b.upsample_nearest(&x[0], 2)?;
            b.conv2d("up", &x, 5, Window::same(3))
        });
        let phases = graph(&[shape], |b, x| b.upsampled_conv2d("up", &x[0], 5));
        assert!(!phases.nodes.iter().any(|node| node.op_type == "Resize"));
        let weight = |name: &str| match name {
            "up.weight" => noise(3, 5 * 3 * 9),
            _ => noise(4, 5),
        };
        let x = [floats(&[2, 3, height, width], &noise(1, 2 * 3 * height * width))];
        let (expected_shape, expected) = run(&repeated, &weight, &x);
        let (shape, found) = run(&phases, &weight, &x);
        assert_eq!(shape, expected_shape);
        close(&found, &expected, 1e-6);
    }
}

#[test]
fn a_kernel_that_is_stored_in_parts_is_one_tensor_and_read_once() {
    let mut b = builder();
    let shape = vec![1.into(), 3.into(), sym("h"), sym("w")];
    let x = b.input("x", DType::F32, shape.clone()).unwrap();
    b.upsampled_conv2d("up", &x, 3).unwrap();
    for again in [b.upsampled_conv2d("up", &x, 3), b.conv2d("up", &x, 3, Window::same(3))] {
        assert_eq!(again.unwrap_err().kind, GraphErrorKind::DuplicateName);
    }
    let mut b = builder().weights_as_inputs();
    let x = b.input("x", DType::F32, shape).unwrap();
    let error = b.upsampled_conv2d("up", &x, 3).unwrap_err();
    assert!(error.to_string().contains("expected weights that are constants"), "{error}");
}

/// Attention of one batch entry, written out.
fn expected_attention(q: &[f32], k: &[f32], v: &[f32], heads: usize, width: usize) -> Vec<f32> {
    let dim = width / heads;
    let mut out = Vec::with_capacity(q.len());
    for query in q.chunks(width) {
        for head in 0..heads {
            let part = |row: &[f32]| row[head * dim..][..dim].to_vec();
            let score = |key: &[f32]| -> f32 {
                let products = part(query).into_iter().zip(part(key)).map(|(a, b)| a * b);
                (products.sum::<f32>() / (dim as f32).sqrt()).exp()
            };
            let weights: Vec<f32> = k.chunks(width).map(score).collect();
            let total: f32 = weights.iter().sum();
            for column in head * dim..(head + 1) * dim {
                let values = v.chunks(width).map(|row| row[column]);
                out.push(weights.iter().zip(values).map(|(w, v)| w * v).sum::<f32>() / total);
            }
        }
    }
    out
}

#[test]
fn attention_in_one_portion_and_in_several() {
    let (heads, width) = (2, 4);
    // 2·2048² scores are computed at once; of 2100 queries, three portions a head are filled, and
    // the last of 2101 are filled up.
    for (queries, keys) in [(5, 3), (2048, 2048), (2100, 2050), (2101, 2050)] {
        let shapes = ["n", "l", "l"].map(|length| [sym("b"), sym(length), Dim::from(width)]);
        let graph = graph(&shapes.each_ref().map(|s| &s[..]), |b, x| {
            b.attention(&x[0], &x[1], &x[2], &Attention { heads, scale: None, bias: None })
        });
        assert!(graph.nodes.iter().any(|node| node.op_type == "Scan"));
        let q = noise(5, queries * width);
        let (k, v) = (noise(6, keys * width), noise(7, keys * width));
        let inputs = [
            floats(&[1, queries, width], &q),
            floats(&[1, keys, width], &k),
            floats(&[1, keys, width], &v),
        ];
        let (shape, y) = run(&graph, &no_weights, &inputs);
        assert_eq!(shape, [1, queries, width]);
        close(&y, &expected_attention(&q, &k, &v, heads, width), 1e-5);
    }
}

/// Two pictures whose captions have different lengths, in portions of one head.
#[test]
fn portions_keep_the_mask_of_their_picture() {
    let (heads, width, queries, keys) = (2, 4, 2100, 1000);
    let mut b = GraphBuilder::new("test", Profile::Portable);
    let shape = |length: &str| vec![sym("b"), sym(length), Dim::from(width)];
    let q = b.input("q", DType::F32, shape("n")).unwrap();
    let k = b.input("k", DType::F32, shape("l")).unwrap();
    let m = b.input("m", DType::F32, vec![sym("b"), 1.into(), 1.into(), sym("l")]).unwrap();
    let y = b.attention(&q, &k, &k, &Attention { heads, scale: None, bias: Some(&m) }).unwrap();
    b.output("y", &y, DType::F32, &shape("n")).unwrap();

    let (q, k) = (noise(1, 2 * queries * width), noise(2, 2 * keys * width));
    let lengths = [keys, 300];
    let mask: Vec<f32> = lengths
        .iter()
        .flat_map(|&length| (0..keys).map(move |key| if key < length { 0.0 } else { -1e9 }))
        .collect();
    let inputs = [
        floats(&[2, queries, width], &q),
        floats(&[2, keys, width], &k),
        floats(&[2, 1, 1, keys], &mask),
    ];
    let (_, y) = run(&b.finish(), &no_weights, &inputs);
    for (picture, length) in lengths.into_iter().enumerate() {
        let q = &q[picture * queries * width..][..queries * width];
        let k = &k[picture * keys * width..][..length * width];
        let y = &y[picture * queries * width..][..queries * width];
        close(y, &expected_attention(q, k, k, heads, width), 1e-5);
    }
}

#[test]
fn a_masked_key_has_no_weight() {
    let shape: &[Dim] = &[sym("b"), sym("n"), 2.into()];
    for profile in Profile::ALL {
        let mut b = GraphBuilder::new("test", profile);
        let x = b.input("x", DType::F32, shape.to_vec()).unwrap();
        let m = b.input("m", DType::F32, vec![sym("b"), 1.into(), 1.into(), sym("n")]).unwrap();
        let attention = Attention { heads: 1, scale: Some(1.0), bias: Some(&m) };
        let y = b.attention(&x, &x, &x, &attention).unwrap();
        b.output("y", &y, DType::F32, shape).unwrap();
        let inputs = [
            floats(&[1, 3, 2], &[1.0, 2.0, 1.0, 2.0, 50.0, 60.0]),
            floats(&[1, 1, 1, 3], &[0.0, 0.0, -1e9]),
        ];
        let (_, y) = run(&b.finish(), &no_weights, &inputs);
        assert_eq!(y, [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
    }
}
