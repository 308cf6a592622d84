//! The pipeline on an engine that computes next to nothing.

mod easycache;
mod init;
mod series;

use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use ndarray::{Array3, Array4, arr2};
use prost::Message;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::{
    engine::{EngineError, Override, Session},
    sampler::{EasyCache, GuidanceEnd, SamplingMethod, UncondMask},
    tensor::Tensor,
};

/// What a toy session is asked: which graph, with which inputs.
pub(super) type Call = (String, Vec<(String, Tensor)>);

pub(super) struct Toy {
    pub(super) calls: Mutex<Vec<Call>>,
    pub(super) alive: Arc<AtomicUsize>,
    pub(super) most_alive: AtomicUsize,
    /// The component whose results are not numbers.
    pub(super) broken: Option<&'static str>,
    /// How often it still gives numbers.
    pub(super) sound_calls: AtomicUsize,
    /// Whether the engine is one that compiles every size anew.
    pub(super) compiles_per_size: bool,
    /// Whether another size costs it more than rows computed in vain.
    pub(super) plans_per_size: bool,
    /// The transformer's variance channels; far outside their range where nothing reads them.
    pub(super) variance: Mutex<f32>,
}

impl Default for Toy {
    fn default() -> Self {
        Self {
            calls: Mutex::default(),
            alive: Arc::default(),
            most_alive: AtomicUsize::default(),
            broken: None,
            sound_calls: AtomicUsize::default(),
            compiles_per_size: false,
            plans_per_size: false,
            variance: Mutex::new(1e30),
        }
    }
}

struct ToySession {
    name: String,
    toy: Arc<Toy>,
    alive: Arc<AtomicUsize>,
}

pub(super) struct ToyEngine(pub(super) Arc<Toy>);

impl Engine for ToyEngine {
    fn name(&self) -> &'static str {
        "toy"
    }

    fn describe(&self) -> String {
        "toy".to_owned()
    }

    fn compiles_per_size(&self) -> bool {
        self.0.compiles_per_size
    }

    fn plans_per_size(&self) -> bool {
        self.0.plans_per_size || self.0.compiles_per_size
    }

    fn load_with(
        &self,
        model: &Path,
        overrides: Vec<Override>,
    ) -> Result<Box<dyn Session>, EngineError> {
        assert!(overrides.is_empty(), "the toy has no weights");
        let folder = model.parent().and_then(Path::file_name).expect("a component's folder");
        let alive = self.0.alive.clone();
        let now = alive.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most_alive.fetch_max(now, Ordering::SeqCst);
        let name = folder.to_string_lossy().into_owned();
        Ok(Box::new(ToySession { name, toy: self.0.clone(), alive }))
    }
}

impl Drop for ToySession {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Session for ToySession {
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, EngineError> {
        let kept = inputs.iter().map(|(name, value)| (name.to_string(), (*value).clone()));
        self.toy.calls.lock().expect("one thread").push((self.name.clone(), kept.collect()));
        let input = |name| {
            inputs.iter().find(|(n, _)| *n == name).map(|(_, value)| *value).expect("an input")
        };
        let (name, mut value) = match self.name.as_str() {
            "text_encoder" => {
                let ids = input("input_ids").as_i64().expect("ids");
                let (batch, length) = (ids.shape()[0], ids.shape()[1]);
                let value = Array3::from_shape_fn((batch, length, 4), |(b, i, c)| {
                    ids[[b, i]] as f32 * 0.01 + c as f32
                });
                ("last_hidden_state", value.into_dyn())
            }
            "transformer" => {
                // The first four channels are the noise, biased by the caption's first token.
                let x = input("hidden_states").as_f32().expect("latents");
                let caption = input("encoder_hidden_states").as_f32().expect("embeddings");
                let s = x.shape();
                let variance = *self.toy.variance.lock().expect("one thread");
                let value = Array4::from_shape_fn((s[0], 8, s[2], s[3]), |(b, c, y, w)| match c {
                    0..4 => 0.5 * x[[b, c, y, w]] + caption[[b, 0, 0]],
                    _ => variance,
                });
                ("out_hidden_states", value.into_dyn())
            }
            "vae_encoder" => {
                // The mean is the average of each cell; four channels of hardly any variance follow.
                let x = input("sample").as_f32().expect("a picture");
                let s = x.shape();
                let value = Array4::from_shape_fn((s[0], 8, s[2] / 8, s[3] / 8), |(b, c, y, w)| {
                    let cell = |i: usize| x[[b, c % 3, 8 * y + i / 8, 8 * w + i % 8]];
                    if c < 4 { (0..64).map(cell).sum::<f32>() / 64.0 } else { -99.0 }
                });
                ("latent_parameters", value.into_dyn())
            }
            _ => {
                let z = input("latent_sample").as_f32().expect("latents");
                let s = z.shape();
                let shape = (s[0], 3, 8 * s[2], 8 * s[3]);
                let value = Array4::from_shape_fn(shape, |(b, c, y, x)| z[[b, c, y / 8, x / 8]]);
                ("sample", value.into_dyn())
            }
        };
        if self.toy.broken == Some(self.name.as_str())
            && (self.toy.sound_calls)
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                .is_err()
        {
            *value.first_mut().expect("a value") = f32::NAN;
        }
        Ok(vec![(name.to_owned(), value.into())])
    }
}

/// A message with the pieces of a vocabulary, as SentencePiece writes it.
#[derive(Clone, PartialEq, Message)]
struct Spiece {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, tag = "1")]
    piece: String,
    #[prost(float, tag = "2")]
    score: f32,
    #[prost(int32, tag = "3")]
    kind: i32,
}

pub(super) fn write_json(path: &Path, value: &serde_json::Value) {
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(path, value.to_string()).expect("written");
}

pub(super) fn manifest(component: &str, architecture: serde_json::Value) -> serde_json::Value {
    json!({
        "format": 1, "tool": "pixart", "component": component, "profile": "portable",
        "precision": "fp32", "architecture": architecture,
        "files": [{"name": "model.onnx", "bytes": 4, "sha256": ""}],
    })
}

/// A model folder without weights: pictures of 64 pixels.
pub(super) fn model() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    for (component, architecture) in [
        ("text_encoder", json!({"d_model": 4, "vocab_size": 16})),
        (
            "transformer",
            json!({"sample_size": 8, "in_channels": 4, "out_channels": 8, "caption_channels": 4}),
        ),
        ("vae_decoder", json!({"latent_channels": 4, "scale_factor": 8, "scaling_factor": 0.5})),
    ] {
        write_json(&at(component).join("manifest.json"), &manifest(component, architecture));
        std::fs::write(at(component).join("model.onnx"), "onnx").expect("written");
    }
    write_json(&at("tokenizer/tokenizer_config.json"), &json!({"extra_ids": 2}));
    let piece = |(piece, kind): (&str, i32)| Piece { piece: piece.to_owned(), score: -1.0, kind };
    let pieces =
        [("<pad>", 3), ("</s>", 3), ("<unk>", 2), ("▁", 1), ("a", 1), ("b", 1), ("▁red", 1)];
    let spiece = Spiece { pieces: pieces.map(piece).to_vec() };
    std::fs::write(at("tokenizer/spiece.model"), spiece.encode_to_vec()).expect("written");
    folder
}

fn pipeline(folder: &TempDir, toy: &Arc<Toy>, keep_resident: bool) -> Pipeline {
    let paths = ModelPaths::from_folder(folder.path());
    let options = PipelineOptions { keep_resident, ..PipelineOptions::default() };
    Pipeline::new(Arc::new(ToyEngine(toy.clone())), paths, options).expect("a pipeline")
}

pub(super) fn request(prompts: &[&str]) -> Request {
    Request {
        prompts: prompts.iter().map(|prompt| prompt.to_string()).collect(),
        sampling_steps: 3,
        ..Request::default()
    }
}

pub(super) fn sample(pipeline: &mut Pipeline, request: &Request) -> Vec<Picture> {
    pipeline.sample(request, &mut |_| ()).expect("pictures")
}

#[test]
fn a_picture_depends_on_its_prompt_and_seed_alone() {
    let (folder, toy) = (model(), Arc::new(Toy::default()));
    let mut pipeline = pipeline(&folder, &toy, false);
    let all = sample(&mut pipeline, &request(&["red", "a b", "red"]));
    assert_eq!(all.iter().map(|p| p.seed).collect::<Vec<_>>(), [42, 43, 44]);
    let alone = sample(&mut pipeline, &Request { seed: 43, ..request(&["a b"]) });
    assert_eq!(alone[0].latents, all[1].latents);
    assert_eq!(alone[0].image, all[1].image);
    assert_ne!(all[0].latents, all[2].latents);
    assert_eq!(all[1].image.dimensions(), (64, 64));
    assert_eq!(all[1].latents.shape(), [1, 4, 8, 8]);
}

#[test]
fn one_component_is_in_memory_at_a_time_unless_all_are_kept() {
    let folder = model();
    for (keep_resident, most, left) in [(false, 1, 0), (true, 3, 3)] {
        let toy = Arc::new(Toy::default());
        let mut pipeline = pipeline(&folder, &toy, keep_resident);
        sample(&mut pipeline, &request(&["red", "a"]));
        assert_eq!(toy.most_alive.load(Ordering::SeqCst), most);
        assert_eq!(toy.alive.load(Ordering::SeqCst), left);
    }
}

#[test]
fn each_reference_masks_the_unconditional_half_in_its_way() {
    let folder = model();
    let unconditional = |reference, negative: &str| {
        let toy = Arc::new(Toy::default());
        let negative_prompts = vec![negative.to_owned()];
        let request = Request { reference, negative_prompts, ..request(&["red"]) };
        sample(&mut pipeline(&folder, &toy, false), &request);
        let calls = toy.calls.lock().expect("one thread");
        let ones = |call: usize, name: &str| -> Vec<i64> {
            let (_, inputs) = &calls[call];
            let value = inputs.iter().find(|(n, _)| n == name).expect("an input").1.as_i64();
            value.expect("a mask").outer_iter().map(|row| row.sum()).collect()
        };
        assert_eq!(calls[0].1[0].1.shape()[1] % 8, 0);
        (ones(0, "attention_mask"), ones(1, "encoder_attention_mask"))
    };
    // "▁red" and the end of the sequence are 2 ids; "▁", "a", "b" and the end are 4.
    assert_eq!(unconditional(Reference::Mindone, ""), (vec![1, 2], vec![2, 2]));
    assert_eq!(unconditional(Reference::Diffusers, ""), (vec![1, 2], vec![1, 2]));
    assert_eq!(unconditional(Reference::Mindone, "ab"), (vec![4, 2], vec![2, 2]));
    assert_eq!(unconditional(Reference::Diffusers, "ab"), (vec![4, 2], vec![4, 2]));
}

#[test]
fn equal_prompts_are_encoded_once() {
    let (folder, toy) = (model(), Arc::new(Toy::default()));
    sample(&mut pipeline(&folder, &toy, false), &request(&["red", "a", "red", "a"]));
    let calls = toy.calls.lock().expect("one thread");
    assert_eq!(calls.iter().filter(|(name, _)| name == "text_encoder").count(), 2);
}

#[test]
fn without_guidance_the_batch_is_one() {
    let (folder, toy) = (model(), Arc::new(Toy::default()));
    let request = Request { guidance_scale: 1.0, ..request(&["red"]) };
    sample(&mut pipeline(&folder, &toy, false), &request);
    for (_, inputs) in toy.calls.lock().expect("one thread").iter() {
        assert!(inputs.iter().all(|(_, value)| value.shape()[0] == 1));
    }
}

/// Batch sizes of the transformer's calls.
pub(super) fn batches(toy: &Toy) -> Vec<usize> {
    let calls = toy.calls.lock().expect("one thread");
    let ours = calls.iter().filter(|(name, _)| name == "transformer");
    ours.map(|(_, inputs)| inputs[0].1.shape()[0]).collect()
}

#[test]
fn after_the_end_of_guidance_the_batch_is_the_prompt_alone() {
    let folder = model();
    for (guidance_end, expected) in [
        (GuidanceEnd::default(), [2, 2, 2, 2]),
        (GuidanceEnd::Step(1), [2, 1, 1, 1]),
        (GuidanceEnd::Fraction(0.5), [2, 2, 1, 1]),
        (GuidanceEnd::Fraction(0.0), [1, 1, 1, 1]),
    ] {
        let toy = Arc::new(Toy::default());
        let request = Request { guidance_end, sampling_steps: 4, ..request(&["red"]) };
        sample(&mut pipeline(&folder, &toy, false), &request);
        assert_eq!(batches(&toy), expected, "{guidance_end:?}");
    }
    // What is left after the end of guidance is the prompt's half, not the negative one's.
    let masks = |guidance_end| {
        let toy = Arc::new(Toy::default());
        let negative_prompts = vec!["ab".to_owned()];
        let uncond_mask = Some(UncondMask::Own);
        let request = Request { guidance_end, negative_prompts, uncond_mask, ..request(&["red"]) };
        sample(&mut pipeline(&folder, &toy, false), &request);
        let calls = toy.calls.lock().expect("one thread");
        let (_, inputs) = calls.last_chunk::<2>().expect("calls")[0].clone();
        let mask = inputs.into_iter().find(|(name, _)| name == "encoder_attention_mask");
        let mask = mask.expect("a mask").1;
        mask.as_i64().expect("a mask").outer_iter().map(|row| row.sum()).collect::<Vec<i64>>()
    };
    assert_eq!(masks(GuidanceEnd::Step(3)), [4, 2]);
    assert_eq!(masks(GuidanceEnd::Step(2)), [2]);
}

#[test]
fn the_mask_of_the_unconditional_half_can_be_chosen() {
    let folder = model();
    let latents = |reference, uncond_mask| {
        let toy = Arc::new(Toy::default());
        let request = Request { reference, uncond_mask, ..request(&["red"]) };
        sample(&mut pipeline(&folder, &toy, false), &request);
        let calls = toy.calls.lock().expect("one thread");
        let (_, inputs) = &calls[1];
        let mask = inputs.iter().find(|(n, _)| n == "encoder_attention_mask").expect("a mask");
        mask.1.as_i64().expect("a mask").outer_iter().map(|row| row.sum()).collect::<Vec<i64>>()
    };
    for reference in [Reference::Mindone, Reference::Diffusers] {
        assert_eq!(latents(reference, Some(UncondMask::Caption)), [2, 2]);
        assert_eq!(latents(reference, Some(UncondMask::Own)), [1, 2]);
    }
}

#[test]
fn every_solver_draws_a_picture_from_its_seed_and_prompt_alone() {
    let folder = model();
    let mut all = Vec::new();
    for method in SamplingMethod::ALL {
        for reference in [Reference::Mindone, Reference::Diffusers] {
            let toy = Arc::new(Toy::default());
            *toy.variance.lock().expect("one thread") = 0.0;
            let several = Request {
                sampling_method: method,
                sampling_steps: method.default_steps(),
                guidance_scale: method.default_guidance_scale(),
                reference,
                ..request(&["red", "a b", "red"])
            };
            let mut pipeline = pipeline(&folder, &toy, false);
            let pictures = sample(&mut pipeline, &several);
            let alone = Request { prompts: vec!["red".to_owned()], seed: 44, ..several.clone() };
            let alone = sample(&mut pipeline, &alone).remove(0);
            assert_eq!(alone.latents, pictures[2].latents, "{method}");
            assert_ne!(pictures[0].latents, pictures[2].latents);
            all.push(alone.latents);
        }
    }
    for (i, a) in all.iter().enumerate() {
        for (j, b) in all[..i].iter().enumerate() {
            // The references of IDDPM and DMD differ in the last bits at most.
            let close = (a - b).iter().all(|d| d.abs() < 1e-4);
            let same = i / 2 == j / 2 && [1, 5].contains(&(i / 2));
            assert_eq!(close, same, "{i} {j}");
        }
    }
}

#[test]
fn learned_variance_has_to_be_learned() {
    let (folder, toy) = (model(), Arc::new(Toy::default()));
    let architecture = json!({
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "caption_channels": 4,
    });
    let path = folder.path().join("transformer/manifest.json");
    write_json(&path, &manifest("transformer", architecture));
    let request = Request { sampling_method: SamplingMethod::Iddpm, ..request(&["red"]) };
    let error = pipeline(&folder, &toy, false).sample(&request, &mut |_| ()).expect_err("refused");
    assert!(
        error.to_string().contains("iddpm needs a transformer with learned variance"),
        "{error}"
    );
    assert!(toy.calls.lock().expect("one thread").is_empty());
}

#[test]
fn a_transformer_with_size_conditions_gets_the_size_it_draws() {
    let (folder, toy) = (model(), Arc::new(Toy::default()));
    let architecture = json!({
        "sample_size": 8, "in_channels": 4, "out_channels": 8, "caption_channels": 4,
        "use_additional_conditions": true,
    });
    let path = folder.path().join("transformer/manifest.json");
    write_json(&path, &manifest("transformer", architecture));
    let exact = Request {
        width: Some(48),
        height: Some(80),
        use_resolution_binning: false,
        ..request(&["red"])
    };
    sample(&mut pipeline(&folder, &toy, false), &exact);
    let calls = toy.calls.lock().expect("one thread");
    let (_, inputs) = calls.iter().find(|(name, _)| name == "transformer").expect("a call");
    let input = |name: &str| {
        let (_, value) = inputs.iter().find(|(n, _)| n == name).expect("an input");
        value.as_f32().expect("floats").clone()
    };
    assert_eq!(input("resolution"), arr2(&[[80.0, 48.0], [80.0, 48.0]]).into_dyn());
    assert_eq!(input("aspect_ratio"), arr2(&[[80.0 / 48.0], [80.0 / 48.0]]).into_dyn());
}

#[test]
fn compression_must_leave_something() {
    let (folder, toy) = (model(), Arc::new(Toy::default()));
    let architecture = json!({
        "sample_size": 8, "in_channels": 4, "out_channels": 8, "caption_channels": 4,
        "kv_compress_sampling": "uniform", "kv_compress_scale_factor": 3, "kv_compress_layer": [1],
    });
    let path = folder.path().join("transformer/manifest.json");
    write_json(&path, &manifest("transformer", architecture));
    let mut pipeline = pipeline(&folder, &toy, false);
    let sized = |width, height| Request {
        width: Some(width),
        height: Some(height),
        use_resolution_binning: false,
        ..request(&["red"])
    };
    let error = pipeline.sample(&sized(32, 64), &mut |_| ()).expect_err("too small");
    assert!(error.to_string().contains("32x64 pixels, expected at least 48"), "{error}");
    sample(&mut pipeline, &sized(48, 48));
}

#[test]
fn the_size_asked_for_is_the_size_given() {
    let (folder, toy) = (model(), Arc::new(Toy::default()));
    let mut pipeline = pipeline(&folder, &toy, false);
    for (width, height) in [(1, 1), (65, 63), (100, 37), (31, 200)] {
        let request = Request { width: Some(width), height: Some(height), ..request(&["red"]) };
        let pictures = sample(&mut pipeline, &request);
        assert_eq!(pictures[0].image.dimensions(), (width, height));
    }
    let exact = Request {
        width: Some(48),
        height: Some(80),
        use_resolution_binning: false,
        ..request(&["red"])
    };
    assert_eq!(sample(&mut pipeline, &exact)[0].latents.shape(), [1, 4, 10, 6]);
}

#[test]
fn progress_counts_every_stage_to_its_end() {
    let (folder, toy) = (model(), Arc::new(Toy::default()));
    let mut log = Vec::new();
    let request = request(&["red", "a"]);
    pipeline(&folder, &toy, false)
        .sample(&request, &mut |event| {
            log.push(match event {
                Event::Info { text } => format!("info: {text}"),
                Event::StageStarted { stage, total } => format!("{stage} of {total}"),
                Event::Step { index, total } => format!("{index}/{total}"),
                Event::StageFinished { stage, .. } => format!("{stage} done"),
                Event::Picture { index, picture } => format!("#{index} {}", picture.prompt),
                Event::Latents { index, step, steps, .. } => format!("#{index} {step} of {steps}"),
                Event::Note { text } => text.to_owned(),
            });
        })
        .expect("pictures");
    let expected = "text of 2|1/2|2/2|text done|denoise of 6|#0 1 of 3|1/6|#0 2 of 3|2/6|#0 3 of 3|3/6|\
                    #1 1 of 3|4/6|#1 2 of 3|5/6|#1 3 of 3|6/6|denoise done|\
                    decode of 2|1/2|#0 red|2/2|#1 a|decode done";
    assert_eq!(log.join("|"), expected);
}

#[test]
fn what_is_not_a_number_names_the_component_and_the_step() {
    let folder = model();
    for (broken, words) in [
        ("text_encoder", "the text_encoder (fp32)"),
        ("transformer", "in step 1 of 3"),
        ("vae_decoder", "the vae_decoder (fp32)"),
    ] {
        let toy = Arc::new(Toy { broken: Some(broken), ..Toy::default() });
        let result = pipeline(&folder, &toy, false).sample(&request(&["red"]), &mut |_| ());
        let message = result.expect_err(broken).to_string();
        assert!(message.contains(words) && message.contains("not finite"), "{message}");
    }
}

#[test]
fn a_wrong_request_is_refused_before_any_work() {
    let (folder, toy) = (model(), Arc::new(Toy::default()));
    let mut pipeline = pipeline(&folder, &toy, false);
    for (wrong, field) in [
        (Request { sampling_steps: 1, ..request(&["a"]) }, "sampling_steps"),
        (Request { width: Some(0), ..request(&["a"]) }, "image_width"),
        (Request { height: Some(99_999), ..request(&["a"]) }, "image_height"),
        (request(&[]), "prompts"),
    ] {
        let error = pipeline.sample(&wrong, &mut |_| ()).expect_err(field);
        assert!(matches!(error, PipelineError::Request(_)), "{error:?}");
        assert!(error.to_string().contains(field), "{error}");
    }
    assert!(toy.calls.lock().expect("one thread").is_empty());
}

#[test]
fn a_damaged_model_folder_says_what_is_wrong() {
    let open = |change: &dyn Fn(&Path)| {
        let folder = model();
        change(folder.path());
        let engine = Arc::new(ToyEngine(Arc::default()));
        let paths = ModelPaths::from_folder(folder.path());
        match Pipeline::new(engine, paths, PipelineOptions::default()) {
            Ok(_) => panic!("the damage was not noticed"),
            Err(error) => error.to_string(),
        }
    };
    let remove = |name: &'static str| {
        move |folder: &Path| {
            let path = folder.join(name);
            if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
                .expect("removed");
        }
    };
    let write = |name: &'static str, value: serde_json::Value| {
        move |folder: &Path| write_json(&folder.join(name), &value)
    };
    let text = json!({"d_model": 4, "vocab_size": 16});
    let mut old = manifest("text_encoder", text.clone());
    old["format"] = json!(2);
    let mut short = manifest("text_encoder", text.clone());
    short["files"][0]["bytes"] = json!(99);
    type Damage = Box<dyn Fn(&Path)>;
    let cases: [(Damage, &str); 11] = [
        (Box::new(remove("transformer")), "does not exist"),
        (Box::new(remove("transformer/manifest.json")), "manifest.json is missing"),
        (Box::new(remove("vae_decoder/model.onnx")), "model.onnx is missing"),
        (Box::new(remove("tokenizer/spiece.model")), "neither spiece.model nor tokenizer.json"),
        (Box::new(write("text_encoder/manifest.json", old)), "found format 2, expected 1"),
        (Box::new(write("text_encoder/manifest.json", short)), "4 bytes, its manifest says 99"),
        (
            Box::new(write("text_encoder/manifest.json", manifest("transformer", text))),
            "found component \"transformer\", expected \"text_encoder\"",
        ),
        (
            Box::new(write("transformer/manifest.json", manifest("transformer", json!({})))),
            "missing field",
        ),
        (
            Box::new(write(
                "text_encoder/manifest.json",
                manifest("text_encoder", json!({"d_model": 4, "vocab_size": 8})),
            )),
            "9 ids but the text encoder's table only 8 rows",
        ),
        (
            Box::new(write(
                "text_encoder/manifest.json",
                manifest("text_encoder", json!({"d_model": 5, "vocab_size": 16})),
            )),
            "gives 5 numbers a token but the transformer takes 4",
        ),
        (
            Box::new(write(
                "scheduler/scheduler_config.json",
                json!({"_class_name": "EulerDiscreteScheduler"}),
            )),
            "found _class_name \"EulerDiscreteScheduler\"",
        ),
    ];
    for (change, words) in cases {
        let message = open(&*change);
        assert!(message.contains(words), "{message}");
    }
}
