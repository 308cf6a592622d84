//! Pictures that go through the VAE in tiles against the same pictures as a whole, on both engines.

use std::{fs, path::Path};

use ndarray::{Array4, ArrayD};
use pixart_exporter::{Component, Profile};
use pixart_runtime::{
    engine::Engine,
    pipeline::{Event, ModelPaths, Pipeline, PipelineOptions, Request},
    tensor::Tensor,
    vae::tiles::{TilingMode, TilingOptions, blend, exact},
};
use pixart_tests::{component, engines, exports::Export, fixtures};
use prost::Message as _;
use safetensors::{Dtype, SafeTensors};
use tract_onnx::pb::{
    AttributeProto, ModelProto, NodeProto, TensorProto, attribute_proto::AttributeType,
    tensor_proto::DataType,
};

/// Exact tiles differ from the whole by rounding: far better than the 45 dB that are asked for.
const EXACT_DB: f64 = 90.0;

/// A smooth picture or latent: waves along both sides, some longer than a tile.
fn smooth(channels: usize, height: usize, width: usize) -> ArrayD<f32> {
    Array4::from_shape_fn((1, channels, height, width), |(_, c, y, x)| {
        let (y, x) = (y as f32 / height as f32, x as f32 / width as f32);
        let phase = c as f32 * 1.7;
        (5.0 * x + phase).sin() + (9.0 * y - 3.0 * x + phase).cos() + 0.5 * (31.0 * x * y).sin()
    })
    .into_dyn()
}

/// Against the range of pixels, -1 to 1; for latents against their own.
fn psnr(a: &ArrayD<f32>, b: &ArrayD<f32>, range: f64) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    10.0 * (range * range * a.len() as f64 / squares.max(1e-300)).log10()
}

fn range(values: &ArrayD<f32>) -> f64 {
    let (least, most) =
        values.iter().fold((f32::MAX, f32::MIN), |(a, b), &value| (a.min(value), b.max(value)));
    f64::from(most - least)
}

struct Half {
    export: Export,
    component: Component,
    input: &'static str,
}

impl Half {
    fn whole(&self, engine: &dyn Engine, x: &ArrayD<f32>) -> ArrayD<f32> {
        let mut session = engine.load(&self.export.graph(self.component)).expect("loaded");
        let x = Tensor::from(x.clone());
        let mut outputs = session.run(&[(self.input, &x)]).expect("computed");
        outputs.remove(0).1.into_f32(component::output(self.component)).expect("floats")
    }

    fn exact(
        &self,
        engine: &dyn Engine,
        x: &ArrayD<f32>,
        options: &TilingOptions,
    ) -> Option<ArrayD<f32>> {
        exact::run(engine, &self.export.graph(self.component), x, options).expect("computed")
    }
}

fn decoder(source: &Path, profile: Profile) -> Half {
    let component = Component::VaeDecoder;
    let export = Export::component(source, component, profile);
    Half { export, component, input: "latent_sample" }
}

fn encoder(source: &Path, profile: Profile) -> Half {
    let component = Component::VaeEncoder;
    let export = Export::component(source, component, profile);
    Half { export, component, input: "sample" }
}

/// Exact tiles of a size that divides nothing, with memory for all that is kept and with next to none.
fn assert_exact(half: &Half, x: &ArrayD<f32>, engine: &dyn Engine) {
    let whole = half.whole(engine, x);
    for (tile_size, free) in [(72, u64::MAX), (72, 0), (200, 1 << 20)] {
        let options = TilingOptions {
            mode: TilingMode::Exact,
            tile_size: Some(tile_size),
            free_memory: Some(free),
            ..TilingOptions::default()
        };
        let tiled = half.exact(engine, x, &options).expect("a graph that can be cut");
        let db = psnr(&tiled, &whole, range(&whole));
        let name = engine.name();
        println!("{} on {name}, tiles of {tile_size}, {free} bytes: {db:.1} dB", half.component);
        assert!(db >= EXACT_DB, "{} on {name}, tiles of {tile_size}: {db:.1} dB", half.component);
    }
}

#[test]
fn exact_tiles_decode_what_the_whole_decodes() {
    for (profile, engine) in [(Profile::Ort, engines::ort()), (Profile::Portable, engines::tract())]
    {
        assert_exact(&decoder(&fixtures::tiny(), profile), &smooth(4, 26, 40), engine.as_ref());
        assert_exact(&decoder(&fixtures::wide(), profile), &smooth(4, 52, 38), engine.as_ref());
    }
}

/// Makes the graph what it was before enlarged pictures were put together from four convolutions: pixels are
/// repeated, and the checkpoint's kernel goes over them.
fn repeat_pixels(half: &Half, source: &Path) {
    let graph = half.export.graph(half.component);
    let mut model =
        ModelProto::decode(fs::read(&graph).expect("a graph").as_slice()).expect("ONNX");
    let old = model.graph.as_mut().expect("a graph");
    let file = fs::read(source.join("vae/diffusion_pytorch_model.safetensors")).expect("weights");
    let weights = SafeTensors::deserialize(&file).expect("safetensors");
    let floats = |name: &str, dims: &[usize], raw_data: Vec<u8>| TensorProto {
        name: name.to_owned(),
        dims: dims.iter().map(|&dim| dim as i64).collect(),
        data_type: DataType::Float as i32,
        raw_data,
        ..TensorProto::default()
    };
    let list = |name: &str, ints: &[i64]| AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Ints as i32,
        ints: ints.to_vec(),
        ..AttributeProto::default()
    };
    let text = |name: &str, s: &str| AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::String as i32,
        s: s.as_bytes().to_vec(),
        ..AttributeProto::default()
    };
    let factors = [1f32, 1.0, 2.0, 2.0].iter().flat_map(|factor| factor.to_le_bytes()).collect();
    old.initializer.push(floats("factors", &[4], factors));
    let layers: Vec<(String, String)> = old
        .node
        .iter()
        .filter_map(|node| {
            Some((node.name.strip_suffix("/DepthToSpace")?.to_owned(), node.output[0].clone()))
        })
        .collect();
    assert_eq!(layers.len(), 3);
    for (layer, output) in layers {
        let of_layer = |node: &NodeProto| node.name.starts_with(&format!("{layer}/"));
        let first = old.node.iter().position(of_layer).expect("a node");
        let (input, bias) = (old.node[first].input[0].clone(), old.node[first].input[2].clone());
        let (kernel, enlarged) = (format!("{layer}.weight"), format!("{layer}.enlarged"));
        let stored = weights.tensor(&kernel).expect("a kernel");
        assert_eq!(stored.dtype(), Dtype::F32);
        old.initializer.retain(|tensor| !tensor.name.starts_with(&kernel));
        old.initializer.push(floats(&kernel, stored.shape(), stored.data().to_vec()));
        old.node.retain(|node| !of_layer(node));
        let resize = NodeProto {
            name: format!("{layer}/Resize"),
            op_type: "Resize".to_owned(),
            input: vec![input, String::new(), "factors".to_owned()],
            output: vec![enlarged.clone()],
            attribute: vec![
                text("mode", "nearest"),
                text("coordinate_transformation_mode", "asymmetric"),
                text("nearest_mode", "floor"),
            ],
            ..NodeProto::default()
        };
        let convolution = NodeProto {
            name: format!("{layer}/Conv"),
            op_type: "Conv".to_owned(),
            input: vec![enlarged, kernel, bias],
            output: vec![output],
            attribute: vec![
                list("kernel_shape", &[3, 3]),
                list("strides", &[1, 1]),
                list("pads", &[1, 1, 1, 1]),
            ],
            ..NodeProto::default()
        };
        old.node.splice(first..first, [resize, convolution]);
    }
    fs::write(graph, model.encode_to_vec()).expect("written");
}

#[test]
fn exports_that_repeat_pixels_are_decoded_as_before() {
    for (profile, engine) in [(Profile::Ort, engines::ort()), (Profile::Portable, engines::tract())]
    {
        let source = fixtures::tiny();
        let (new, old) = (decoder(&source, profile), decoder(&source, profile));
        repeat_pixels(&old, &source);
        let x = smooth(4, 26, 40);
        assert_exact(&old, &x, engine.as_ref());
        let whole = old.whole(engine.as_ref(), &x);
        let db = psnr(&new.whole(engine.as_ref(), &x), &whole, range(&whole));
        println!("repeated pixels on {}: {db:.1} dB", engine.name());
        assert!(db >= EXACT_DB, "{}: {db:.1} dB", engine.name());
    }
}

#[test]
fn exact_tiles_encode_what_the_whole_encodes() {
    for (profile, engine) in [(Profile::Ort, engines::ort()), (Profile::Portable, engines::tract())]
    {
        assert_exact(&encoder(&fixtures::tiny(), profile), &smooth(3, 208, 320), engine.as_ref());
        assert_exact(&encoder(&fixtures::wide(), profile), &smooth(3, 208, 152), engine.as_ref());
    }
}

#[test]
fn several_pictures_are_decoded_each_by_itself() {
    let half = decoder(&fixtures::tiny(), Profile::Ort);
    let engine = engines::ort();
    let (a, b) = (smooth(4, 16, 16), smooth(4, 16, 16).mapv(|value| 2.0 - value));
    let both = ndarray::concatenate(ndarray::Axis(0), &[a.view(), b.view()]).expect("two");
    let options = TilingOptions { tile_size: Some(64), ..TilingOptions::default() };
    let tiled = half.exact(engine.as_ref(), &both, &options).expect("a graph that can be cut");
    let whole = half.whole(engine.as_ref(), &both);
    assert!(psnr(&tiled, &whole, range(&whole)) >= EXACT_DB);
}

#[test]
fn graphs_that_cannot_be_cut_are_told_apart() {
    // This profile enlarges by reshapes that need the sides of the whole picture.
    let half = decoder(&fixtures::tiny(), Profile::Cann);
    let options = TilingOptions { tile_size: Some(64), ..TilingOptions::default() };
    assert!(half.exact(engines::ort().as_ref(), &smooth(4, 16, 16), &options).is_none());
}

/// Every tile normalises by its own statistics, so blended tiles are only near the whole, and how near
/// depends on the model; these random weights are a hard case. What must hold: no seams.
#[test]
fn blended_tiles_have_no_seams() {
    let half = decoder(&fixtures::tiny(), Profile::Ort);
    let engine = engines::ort();
    let x = smooth(4, 40, 40);
    let whole = half.whole(engine.as_ref(), &x);
    let options =
        TilingOptions { tile_size: Some(160), overlap: Some(80), ..TilingOptions::default() };
    let mut session = engine.load(&half.export.graph(half.component)).expect("loaded");
    let tiled = blend::run(x, (8, 1), &options, &mut |tile| {
        let tile = Tensor::from(tile);
        session.run(&[("latent_sample", &tile)]).map(|mut outputs| match outputs.remove(0).1 {
            Tensor::F32(array) => array,
            Tensor::I64(_) => panic!("floats"),
        })
    });
    let tiled = tiled.expect("computed");
    println!("blended: {:.1} dB", psnr(&tiled, &whole, range(&whole)));
    let steepest = |picture: &ArrayD<f32>| {
        let columns = picture.axis_windows(ndarray::Axis(3), 2);
        columns
            .into_iter()
            .map(|pair| {
                let (a, b) =
                    (pair.index_axis(ndarray::Axis(3), 0), pair.index_axis(ndarray::Axis(3), 1));
                let sum: f32 = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).sum();
                sum / a.len() as f32
            })
            .fold(0.0, f32::max)
    };
    let (with, without) = (steepest(&tiled), steepest(&whole));
    assert!(with < 1.5 * without, "the steepest column rises by {with}, as a whole by {without}");
}

#[test]
fn where_memory_is_short_the_pipeline_decodes_in_tiles_and_says_so_once() {
    let export = Export::pipeline(&fixtures::tiny(), Profile::Portable);
    let draw = |free: u64| {
        let paths = ModelPaths::from_folder(export.path());
        let vae_tiling = TilingOptions {
            tile_size: Some(64),
            overlap: Some(0),
            free_memory: Some(free),
            ..Default::default()
        };
        let options = PipelineOptions { vae_tiling, ..Default::default() };
        let mut pipeline = Pipeline::new(engines::tract(), paths, options).expect("a pipeline");
        let prompts = vec!["a red circle".to_owned(), "a blue star".to_owned()];
        let request = Request { prompts, sampling_steps: 2, ..Default::default() };
        let mut told = Vec::new();
        let pictures = pipeline.sample(&request, &mut |event| {
            if let Event::Info { text } = event {
                told.push(text.to_owned());
            }
        });
        (pictures.expect("pictures"), told)
    };
    let (whole, told) = draw(u64::MAX);
    assert_eq!(told, [""; 0]);
    let (tiled, told) = draw(0);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("in tiles of about 64 pixels") && told[0].contains("0.0 GB are free"),
        "{told:?}"
    );
    for (a, b) in whole.iter().zip(&tiled) {
        assert_eq!([a.vae_tiling, b.vae_tiling], [TilingMode::Off, TilingMode::Exact]);
        let most = a.image.iter().zip(b.image.iter()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(most <= Some(1), "a pixel differs by {most:?} levels");
    }
}
