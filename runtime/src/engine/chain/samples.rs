//! Graphs of the shape of the SDXL auto-encoder's decoder, for tests.

use tract_onnx::pb::{
    AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, tensor_proto::DataType,
};

use super::Chain;
use crate::engine::part::{number, simple};

/// A graph that grows by a layer at a time.
#[derive(Default)]
struct Builder {
    graph: GraphProto,
    made: usize,
}

impl Builder {
    fn node(&mut self, operator: &str, inputs: &[&str]) -> String {
        self.made += 1;
        let name = format!("{operator}.{}", self.made);
        self.graph.node.push(simple(operator, inputs, &name));
        name
    }

    fn last(&mut self) -> &mut NodeProto {
        self.graph.node.last_mut().expect("a node")
    }

    fn constant(&mut self, dims: &[i64], floats: Vec<f32>, integers: Vec<i64>) -> String {
        self.made += 1;
        let name = format!("constant.{}", self.made);
        let dtype = if integers.is_empty() { DataType::Float } else { DataType::Int64 };
        self.graph.initializer.push(TensorProto {
            name: name.clone(),
            dims: dims.to_vec(),
            data_type: dtype as i32,
            float_data: floats,
            int64_data: integers,
            ..Default::default()
        });
        name
    }

    /// Keeps the size.
    fn conv(&mut self, x: &str, [before, after, kernel]: [i64; 3]) -> String {
        self.padded_conv(x, [before, after, kernel], [kernel / 2; 4])
    }

    fn padded_conv(
        &mut self,
        x: &str,
        [before, after, kernel]: [i64; 3],
        pads: [i64; 4],
    ) -> String {
        // Only its sizes are looked at.
        let weight = self.constant(&[after, before, kernel, kernel], Vec::new(), Vec::new());
        let made = self.node("Conv", &[x, &weight]);
        let list = |name: &str, ints: Vec<i64>| AttributeProto {
            name: name.to_owned(),
            ints,
            ..Default::default()
        };
        self.last().attribute =
            vec![list("kernel_shape", vec![kernel; 2]), list("pads", pads.to_vec())];
        made
    }

    fn norm(&mut self, x: &str, channels: i64) -> String {
        let grouped = self.constant(&[4], Vec::new(), vec![0, 32, -1, 0]);
        let back = self.constant(&[4], Vec::new(), vec![0, channels, -1, 0]);
        let (ones, zeros) = (
            self.constant(&[32], vec![1.0; 32], vec![]),
            self.constant(&[32], vec![0.0; 32], vec![]),
        );
        let x = self.node("Reshape", &[x, &grouped]);
        let x = self.node("InstanceNormalization", &[&x, &ones, &zeros]);
        let x = self.node("Reshape", &[&x, &back]);
        let gate = self.node("Sigmoid", &[&x]);
        self.node("Mul", &[&x, &gate])
    }

    fn unit(&mut self, x: &str, before: i64, after: i64) -> String {
        let h = self.norm(x, before);
        let h = self.conv(&h, [before, after, 3]);
        let h = self.norm(&h, after);
        let h = self.conv(&h, [after, after, 3]);
        let skip = if before == after { x.to_owned() } else { self.conv(x, [before, after, 1]) };
        self.node("Add", &[&skip, &h])
    }

    fn enlarge(&mut self, x: &str, channels: i64, enlarging: Enlarging) -> String {
        match enlarging {
            Enlarging::Phases => self.put_together(x, channels),
            Enlarging::Repeated => self.repeat(x, channels),
        }
    }

    fn put_together(&mut self, x: &str, channels: i64) -> String {
        let pads = [[1, 1, 0, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 1, 1]];
        let phases = pads.map(|pads| self.padded_conv(x, [channels, channels, 2], pads));
        let joined = self.node("Concat", &phases.each_ref().map(String::as_str));
        self.last().attribute = vec![number("axis", 1)];
        let made = self.node("DepthToSpace", &[&joined]);
        self.last().attribute = vec![number("blocksize", 2)];
        made
    }

    fn repeat(&mut self, x: &str, channels: i64) -> String {
        let factors = self.constant(&[4], vec![1.0, 1.0, 2.0, 2.0], Vec::new());
        let x = self.node("Resize", &[x, "", &factors]);
        let text = |name: &str, value: &str| AttributeProto {
            name: name.to_owned(),
            s: value.as_bytes().to_vec(),
            ..Default::default()
        };
        self.last().attribute = vec![
            text("mode", "nearest"),
            text("coordinate_transformation_mode", "asymmetric"),
            text("nearest_mode", "floor"),
        ];
        self.conv(&x, [channels, channels, 3])
    }
}

/// How a decoder makes a picture larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Enlarging {
    /// By a convolution for each of the four pixels that one becomes, as exports have it.
    Phases,
    /// By repeated pixels and one convolution, as older exports and those of others have it.
    Repeated,
}

impl Enlarging {
    pub(crate) const ALL: [Self; 2] = [Self::Phases, Self::Repeated];

    /// How many convolutions that takes.
    pub(crate) fn convolutions(self) -> usize {
        if self == Self::Phases { 4 } else { 1 }
    }
}

/// The chain of a decoder like the SDXL auto-encoder's.
pub(crate) fn decoder(enlarging: Enlarging) -> Chain {
    let mut b = Builder::default();
    let value = |name: &str| ValueInfoProto { name: name.to_owned(), ..Default::default() };
    b.graph.input = vec![value("latents")];
    let mut x = b.conv("latents", [4, 512, 3]);
    x = b.unit(&x, 512, 512);
    let seen = b.node("Softmax", &[&x]);
    x = b.node("Add", &[&x, &seen]);
    x = b.unit(&x, 512, 512);
    for (level, (before, after)) in
        [(512, 512), (512, 512), (512, 256), (256, 128)].into_iter().enumerate()
    {
        x = b.unit(&x, before, after);
        x = b.unit(&x, after, after);
        x = b.unit(&x, after, after);
        if level < 3 {
            x = b.enlarge(&x, after, enlarging);
        }
    }
    x = b.norm(&x, 128);
    x = b.conv(&x, [128, 3, 3]);
    b.graph.output = vec![value(&x)];
    Chain::of(&b.graph).expect("a chain")
}
