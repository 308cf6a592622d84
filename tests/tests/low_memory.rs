//! Networks that are loaded a stretch of blocks at a time against the same ones loaded as a whole.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use ndarray::Array2;
use pixart_exporter::{Component, ExportOptions, Int8Mode, Precision, Profile};
use pixart_runtime::{
    engine::{self, Changes, Engine, EngineError, GraphPart, Override, Session},
    lora::{Exported, Lora, LoraSpec, match_loras},
    pipeline::{
        Event, ModelPaths, Pipeline, PipelineError, PipelineOptions, Request, RequestError,
    },
    tensor::Tensor,
    text::CaptionEncoder,
};
use pixart_tests::{
    component::run,
    engines,
    errors::max_relative_error,
    exports::Export,
    fixtures::{self, Case},
};

/// What a stretch may differ by from the same nodes within the whole graph. Both add up in the same order, so
/// most cases are equal to the bit.
const ROUNDING: f64 = 1e-6;

/// Sessions of an engine, counted.
#[derive(Default)]
struct Counts {
    wholes: AtomicUsize,
    parts: AtomicUsize,
    alive: AtomicUsize,
    most_alive: AtomicUsize,
}

struct Counting {
    inner: Arc<dyn Engine>,
    counts: Arc<Counts>,
}

impl Counting {
    fn around(inner: Arc<dyn Engine>) -> (Arc<dyn Engine>, Arc<Counts>) {
        let counts: Arc<Counts> = Arc::default();
        (Arc::new(Self { inner, counts: counts.clone() }), counts)
    }

    fn counted(&self, inner: Box<dyn Session>) -> Box<dyn Session> {
        let alive = self.counts.alive.fetch_add(1, Ordering::Relaxed) + 1;
        self.counts.most_alive.fetch_max(alive, Ordering::Relaxed);
        Box::new(Counted { inner, counts: self.counts.clone() })
    }
}

impl Engine for Counting {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn load_with(
        &self,
        model: &Path,
        overrides: Vec<Override>,
    ) -> Result<Box<dyn Session>, EngineError> {
        self.counts.wholes.fetch_add(1, Ordering::Relaxed);
        Ok(self.counted(self.inner.load_with(model, overrides)?))
    }

    fn load_part(
        &self,
        model: &Path,
        part: &GraphPart,
        overrides: Vec<Override>,
    ) -> Result<Box<dyn Session>, EngineError> {
        self.counts.parts.fetch_add(1, Ordering::Relaxed);
        Ok(self.counted(self.inner.load_part(model, part, overrides)?))
    }
}

struct Counted {
    inner: Box<dyn Session>,
    counts: Arc<Counts>,
}

impl Session for Counted {
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, EngineError> {
        self.inner.run(inputs)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.counts.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo")
}

fn file(component: Component) -> &'static str {
    match component {
        Component::TextEncoder => "text_encoder.safetensors",
        _ => "transformer_tiny.safetensors",
    }
}

/// Inputs of a size that has not been in a fixture, for the demo model.
fn demo_case(component: Component) -> Case {
    let wave = |shape: [usize; 3]| {
        let size = shape.iter().product::<usize>();
        let values = (0..size).map(|k| (k as f32 * 0.37).sin()).collect();
        ndarray::Array3::from_shape_vec(shape, values).expect("as many")
    };
    let inputs: Vec<(&str, Tensor)> = match component {
        Component::TextEncoder => vec![
            ("input_ids", Array2::from_shape_fn((2, 16), |(b, k)| (7 * k + b) as i64 % 320).into()),
            (
                "attention_mask",
                Array2::from_shape_fn((2, 16), |(b, k)| i64::from(b == 1 || k < 5)).into(),
            ),
        ],
        _ => vec![
            (
                "hidden_states",
                wave([2 * 4, 16, 24])
                    .into_shape_with_order([2, 4, 16, 24])
                    .expect("as many")
                    .into(),
            ),
            ("encoder_hidden_states", wave([2, 8, 128]).into()),
            (
                "encoder_attention_mask",
                Array2::from_shape_fn((2, 8), |(b, k)| i64::from(k < 4 * b + 4)).into(),
            ),
            ("timestep", ndarray::Array1::from_elem(2, 321.0f32).into()),
        ],
    };
    inputs.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()
}

/// The largest error of the stretches over all cases.
fn streamed_error(
    engine: &Arc<dyn Engine>,
    graph: &Path,
    component: Component,
    cases: &BTreeMap<String, Case>,
    least_parts: usize,
) -> f64 {
    let (counting, counts) = Counting::around(engine.clone());
    let mut streamed = engine::stream(&counting, graph, None).expect("it can be cut");
    let mut whole = engine.load(graph).expect("the graph loads");
    assert_eq!(counts.parts.load(Ordering::Relaxed), 0, "nothing is loaded before it is run");
    let mut worst = 0f64;
    for (name, case) in cases {
        let expected = run(name, whole.as_mut(), component, case);
        let found = run(name, streamed.as_mut(), component, case);
        worst = worst.max(max_relative_error(name, &found, &expected));
    }
    let parts = counts.parts.load(Ordering::Relaxed);
    assert!(parts >= least_parts * cases.len(), "{parts} parts in {} runs", cases.len());
    assert_eq!(parts % cases.len(), 0);
    assert_eq!(counts.wholes.load(Ordering::Relaxed), 0);
    assert_eq!(counts.most_alive.load(Ordering::Relaxed), 1, "one stretch at a time");
    worst
}

fn assert_streams(
    component: Component,
    precision: Precision,
    int8_mode: Option<Int8Mode>,
    allowed: f64,
) {
    let sources = [
        (fixtures::tiny(), fixtures::cases(file(component)), 4),
        (demo(), BTreeMap::from([("demo".to_owned(), demo_case(component))]), 5),
    ];
    for (source, cases, least_parts) in sources {
        let all = [
            (Profile::Ort, engines::ort()),
            (Profile::Portable, engines::ort()),
            (Profile::Portable, engines::tract()),
            (Profile::Cann, engines::ort()),
        ];
        let fitting = match (precision, int8_mode) {
            // An operator of ONNX Runtime.
            (Precision::Int4, _) => &all[..1],
            // One that CANN does not have.
            (_, Some(Int8Mode::Dynamic)) => &all[..3],
            _ => &all[..],
        };
        for (profile, engine) in fitting {
            let profile = *profile;
            let options = ExportOptions { profile, precision, int8_mode, ..Default::default() };
            let export = Export::component_with(&source, component, &options);
            let graph = export.graph(component);
            let error = streamed_error(engine, &graph, component, &cases, least_parts);
            let name = format!(
                "{component} of {}, {precision}, {profile} on {}",
                source.display(),
                engine.name()
            );
            println!("{name}: {error:.1e}");
            assert!(error <= allowed, "{name}: {error:.2e}");
        }
    }
}

#[test]
fn a_streamed_text_encoder_is_the_whole_one() {
    assert_streams(Component::TextEncoder, Precision::Fp32, None, ROUNDING);
    assert_streams(Component::TextEncoder, Precision::Int8, None, ROUNDING);
    assert_streams(Component::TextEncoder, Precision::Int4, None, ROUNDING);
}

#[test]
fn a_streamed_transformer_is_the_whole_one() {
    assert_streams(Component::Transformer, Precision::Fp32, None, ROUNDING);
    assert_streams(Component::Transformer, Precision::Int8, None, ROUNDING);
    // tract sums up some of it in another order, and what lies between two levels of the activations goes to
    // the other one.
    assert_streams(Component::Transformer, Precision::Int8, Some(Int8Mode::Dynamic), 5e-3);
}

#[test]
fn sixteen_bits_are_streamed_too() {
    // Within the whole graph, ONNX Runtime leaves out roundings between two operators that compute in 32 bits
    // on a processor.
    for component in [Component::TextEncoder, Component::Transformer] {
        assert_streams(component, Precision::Fp16, None, 2e-3);
        assert_streams(component, Precision::Bf16, None, ROUNDING);
    }
}

#[test]
fn a_text_encoder_is_spared_by_the_caption_encoder() {
    let export = Export::component(&fixtures::tiny(), Component::TextEncoder, Profile::Portable);
    let rows: [&[i64]; 2] = [&[1], &[5, 9, 33, 1]];
    for engine in engines::both() {
        let (engine, counts) = Counting::around(engine);
        let folder = export.path().join("text_encoder");
        let tokenizer = fixtures::tiny().join("tokenizer");
        let encoder = CaptionEncoder::new(&engine, &folder, &tokenizer, None);
        let mut encoder = encoder.expect("a text encoder");
        let whole = encoder.states(&rows, 8).expect("states");
        let before = counts.parts.load(Ordering::Relaxed);
        encoder.stream_above(0);
        let spared = encoder.states(&rows, 8).expect("states");
        let error = max_relative_error(engine.name(), &spared.into_dyn(), &whole.into_dyn());
        assert!(error <= ROUNDING, "{}: {error:.2e}", engine.name());
        assert!(before == 0 && counts.parts.load(Ordering::Relaxed) >= 4);
        assert_eq!(counts.alive.load(Ordering::Relaxed), 0, "no weights stay");
    }
}

#[test]
fn the_captions_of_a_request_share_one_pass() {
    let export = Export::component(&fixtures::tiny(), Component::TextEncoder, Profile::Portable);
    let folder = export.path().join("text_encoder");
    let tokenizer = fixtures::tiny().join("tokenizer");
    let prompts = ["a", "a house with a garden, seen from the street", "a", "a star"];
    let request = Request { prompts: prompts.map(str::to_owned).to_vec(), ..Request::default() };
    for engine in engines::both() {
        let (engine, counts) = Counting::around(engine);
        let mut encoder =
            CaptionEncoder::new(&engine, &folder, &tokenizer, None).expect("a text encoder");
        let width = encoder.width().expect("it is there");
        let whole = encoder.encode(&request, width, &mut |_| ()).expect("captions");
        assert_eq!(counts.wholes.swap(0, Ordering::Relaxed), 1);
        encoder.stream_above(0);
        let one = Request { prompts: vec!["a".to_owned()], ..Request::default() };
        encoder.encode(&one, width, &mut |_| ()).expect("a caption");
        let pass = counts.parts.swap(0, Ordering::Relaxed);
        let mut steps = 0;
        let streamed = encoder
            .encode(&request, width, &mut |event| {
                steps += usize::from(matches!(event, Event::Step { .. }))
            })
            .expect("captions");
        assert_eq!(counts.parts.load(Ordering::Relaxed), pass, "all weights are read once");
        assert_eq!((streamed.len(), steps), (prompts.len(), prompts.len()));
        for (k, (found, expected)) in streamed.iter().zip(&whole).enumerate() {
            let name = format!("{}, caption {k}", engine.name());
            let (found, expected) = (found.embeddings.as_f32(), expected.embeddings.as_f32());
            let error =
                max_relative_error(&name, found.expect("floats"), expected.expect("floats"));
            assert!(error <= ROUNDING, "{name}: {error:.2e}");
        }
    }
}

#[test]
fn loras_are_merged_stretch_by_stretch() {
    for component in [Component::Transformer, Component::TextEncoder] {
        let file = match component {
            Component::TextEncoder => "kohya_t5.safetensors",
            _ => "diffusers.safetensors",
        };
        let path = fixtures::root().join("lora").join(file);
        let lora = Arc::new(Lora::open(&LoraSpec { path, strength: 0.8 }).expect("a LoRA"));
        let case = fixtures::cases(self::file(component)).into_values().next().expect("a case");
        for (profile, engine) in
            [(Profile::Ort, engines::ort()), (Profile::Portable, engines::tract())]
        {
            let export = Export::component(&fixtures::tiny(), component, profile);
            let graph = export.graph(component);
            let exported = Exported { model: &graph, precision: "fp32" };
            let (transformer, encoder) = match component {
                Component::TextEncoder => (None, Some(exported)),
                _ => (Some(exported), None),
            };
            let (plans, _) = match_loras(std::slice::from_ref(&lora), transformer, encoder, true)
                .expect("a plan");
            let [transformer, encoder] = plans;
            let plan = match component {
                Component::TextEncoder => encoder,
                _ => transformer,
            };
            let overrides = plan.merge().expect("merged");
            assert!(overrides.len() > 1);
            let mut whole = engine.load_with(&graph, overrides).expect("loaded");
            let expected = run("whole", whole.as_mut(), component, &case);
            let mut plain = engine.load(&graph).expect("loaded");
            let plain = run("plain", plain.as_mut(), component, &case);
            let changes: Changes = Box::new(move |names| {
                let merged = plan.merge_some(&|name| names.contains(name));
                merged.map_err(|error| error.to_string())
            });
            let mut streamed = engine::stream(&engine, &graph, Some(changes)).expect("cut");
            let found = run("streamed", streamed.as_mut(), component, &case);
            assert!(max_relative_error("lora", &found, &expected) <= ROUNDING);
            assert!(max_relative_error("lora", &plain, &expected) > 0.01);
        }
    }
}

#[test]
fn a_wrong_input_is_told_as_of_the_whole_graph() {
    let export = Export::component(&fixtures::tiny(), Component::TextEncoder, Profile::Portable);
    let graph = export.graph(Component::TextEncoder);
    for engine in engines::both() {
        let mut streamed = engine::stream(&engine, &graph, None).expect("cut");
        let ids = Tensor::from(Array2::<i64>::zeros((1, 8)));
        let error = streamed.run(&[("input_ids", &ids)]).expect_err("a mask is missing");
        let text = error.to_string();
        assert!(text.contains("attention_mask") && text.contains("missing"), "{text}");
    }
}

#[test]
fn a_pipeline_keeps_all_or_spares_not_both() {
    let export = Export::pipeline(&fixtures::tiny(), Profile::Portable);
    let options =
        PipelineOptions { keep_resident: true, low_memory: true, ..PipelineOptions::default() };
    let paths = ModelPaths::from_folder(export.path());
    let refused = Pipeline::new(engines::tract(), paths, options).err().expect("refused");
    assert!(
        matches!(refused, PipelineError::Request(RequestError::LowMemoryResident)),
        "{refused}"
    );
}

#[test]
fn a_transformer_is_streamed_in_a_pipeline_and_with_loras() {
    let export = Export::pipeline(&fixtures::tiny(), Profile::Portable);
    let path = fixtures::root().join("lora").join("diffusers.safetensors");
    let lora = Arc::new(Lora::open(&LoraSpec { path, strength: 0.8 }).expect("a LoRA"));
    let request = Request {
        prompts: ["a red circle", "a blue square on top of a green one"]
            .map(str::to_owned)
            .to_vec(),
        sampling_steps: 3,
        ..Request::default()
    };
    for inner in [engines::ort(), engines::tract()] {
        let draw = |low_memory, loras: &[Arc<Lora>]| {
            let (engine, counts) = Counting::around(inner.clone());
            // All of it is large then.
            let (stream_above, batch_size) = (if low_memory { 0 } else { u64::MAX }, 2);
            let options =
                PipelineOptions { low_memory, stream_above, batch_size, ..Default::default() };
            let paths = ModelPaths::from_folder(export.path());
            let mut pipeline = Pipeline::new(engine, paths, options).expect("a pipeline");
            pipeline.set_loras(loras, true).expect("matches");
            let pictures = pipeline.sample(&request, &mut |_| {}).expect("pictures");
            let latents: Vec<_> = pictures.iter().map(|picture| picture.latents.clone()).collect();
            (latents, counts)
        };
        let [plain, changed] = [&[][..], std::slice::from_ref(&lora)].map(|loras| {
            let (whole, counts) = draw(false, loras);
            assert_eq!(counts.parts.load(Ordering::Relaxed), 0);
            let (streamed, counts) = draw(true, loras);
            // Of the text encoder once, of the transformer in each step.
            assert!(counts.parts.load(Ordering::Relaxed) > 4 * request.sampling_steps);
            assert_eq!(whole.len(), 2);
            for (found, expected) in streamed.iter().zip(&whole) {
                let error = max_relative_error("latents", found, expected);
                assert!(error <= 1e-5, "{}: {error:.1e}", inner.name());
            }
            streamed
        });
        assert!(max_relative_error("the LoRA", &changed[0], &plain[0]) > 0.01);
    }
}
