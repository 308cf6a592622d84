//! LoRAs in every format against PEFT, or against weights merged in torch by the writer's formula.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use ndarray::ArrayD;
use pixart_exporter::{Component, ExportOptions, Precision, Profile};
use pixart_runtime::{
    engine::Engine,
    lora::{Exported, Lora, LoraError, LoraMatch, LoraPlan, LoraSpec, match_loras},
    pipeline::Request,
};
use pixart_tests::{
    component::{TOLERANCE, run},
    engines,
    errors::{max_relative_error, rms_relative_error},
    exports::Export,
    fixtures::{self, Case},
};
use serde::Deserialize;

#[derive(Deserialize)]
struct LoraCase {
    name: String,
    component: Option<String>,
    loras: Vec<File>,
}

#[derive(Clone, Deserialize)]
struct File {
    file: String,
    strength: f32,
}

fn open(file: &str, strength: f32) -> Arc<Lora> {
    let path = fixtures::root().join("lora").join(file);
    Arc::new(Lora::open(&LoraSpec { path, strength }).unwrap_or_else(|e| panic!("{e}")))
}

/// The exported tiny model.
struct Model {
    transformer: Export,
    text_encoder: Export,
}

impl Model {
    fn new(profile: Profile) -> Self {
        let part = |component| {
            Export::component(&fixtures::tiny().join(part(component)), component, profile)
        };
        Self {
            transformer: part(Component::Transformer),
            text_encoder: part(Component::TextEncoder),
        }
    }

    fn graph(&self, component: Component) -> std::path::PathBuf {
        match component {
            Component::TextEncoder => self.text_encoder.graph(component),
            _ => self.transformer.graph(component),
        }
    }

    fn plans(
        &self,
        loras: &[Arc<Lora>],
        allow: bool,
    ) -> Result<([LoraPlan; 2], Vec<LoraMatch>), LoraError> {
        let graphs = [Component::Transformer, Component::TextEncoder].map(|c| self.graph(c));
        let [transformer, text_encoder] =
            [0, 1].map(|k| Some(Exported { model: graphs[k].as_path(), precision: "fp32" }));
        match_loras(loras, transformer, text_encoder, allow)
    }

    /// What a component makes of `inputs` with the LoRAs.
    fn run(
        &self,
        engine: &dyn Engine,
        component: Component,
        loras: &[Arc<Lora>],
        inputs: &Case,
    ) -> ArrayD<f32> {
        let ([transformer, text_encoder], _) =
            self.plans(loras, false).unwrap_or_else(|error| panic!("{error}"));
        let plan = if component == Component::Transformer { transformer } else { text_encoder };
        let overrides = plan.merge().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(overrides.len(), plan.len());
        let session = engine.load_with(&self.graph(component), overrides);
        let mut session = session.unwrap_or_else(|error| panic!("{}: {error}", engine.name()));
        run(engine.name(), session.as_mut(), component, inputs)
    }
}

fn part(component: Component) -> &'static Path {
    Path::new(if component == Component::Transformer { "transformer" } else { "text_encoder" })
}

/// Inputs and expected outputs of one component.
fn reference(component: Component) -> (Case, Case) {
    let file = format!("lora/{}.safetensors", part(component).display());
    let mut cases: BTreeMap<String, Case> = fixtures::cases(&file);
    (cases.remove("input").expect("inputs"), cases.remove("output").expect("outputs"))
}

#[test]
fn every_format_equals_merged_weights() {
    let cases: Vec<LoraCase> = fixtures::json("lora/cases.json");
    assert!(cases.len() >= 16, "{} cases", cases.len());
    let mut failures = Vec::new();
    let mut worst = 0.0f64;
    for profile in [Profile::Portable, Profile::Ort] {
        let model = Model::new(profile);
        for case in &cases {
            let component = match &case.component {
                Some(_) => Component::TextEncoder,
                None => Component::Transformer,
            };
            let loras: Vec<_> =
                case.loras.iter().map(|lora| open(&lora.file, lora.strength)).collect();
            let (inputs, outputs) = reference(component);
            let expected = outputs[&case.name].as_f32().expect("floats");
            let plain = outputs["none"].as_f32().expect("floats");
            assert!(max_relative_error(&case.name, plain, expected) > 0.01, "{}", case.name);
            for engine in engines::both() {
                let name = format!("{}, {profile} on {}", case.name, engine.name());
                let found = model.run(&*engine, component, &loras, &inputs);
                let error = max_relative_error(&name, &found, expected);
                worst = worst.max(error);
                if error > TOLERANCE {
                    failures.push(format!("{name}: {error:.2e}"));
                }
            }
        }
    }
    println!("{} cases: largest relative error {worst:.2e}", cases.len());
    assert!(failures.is_empty(), "allowed {TOLERANCE:.0e}:\n{}", failures.join("\n"));
}

#[test]
fn a_strength_of_zero_changes_no_bit_and_others_scale() {
    let (inputs, _) = reference(Component::Transformer);
    let model = Model::new(Profile::Portable);
    for engine in engines::both() {
        let with =
            |loras: &[Arc<Lora>]| model.run(&*engine, Component::Transformer, loras, &inputs);
        let plain = with(&[]);
        let zero = ["peft", "peft_dora", "onetrainer_dora.safetensors"].map(|file| open(file, 0.0));
        assert_eq!(with(&zero), plain);
        // Twice half is once; there and back again is nothing but rounding.
        let once = with(&[open("peft", 1.0)]);
        let twice = with(&[open("peft", 0.5), open("peft", 0.5)]);
        assert!(max_relative_error("halves", &twice, &once) < 1e-5);
        let back = with(&[open("peft", 1.0), open("peft", -1.0)]);
        assert!(max_relative_error("back", &back, &plain) < 1e-5);
    }
}

#[test]
fn changes_of_weights_are_linear_in_the_strength() {
    let model = Model::new(Profile::Portable);
    let merged = |strength| {
        let ([plan, _], _) =
            model.plans(&[open("kohya.safetensors", strength)], false).expect("fits");
        let overrides = plan.merge().expect("merged");
        let bytes = overrides.into_iter().flat_map(|new| new.data).collect::<Vec<u8>>();
        let (numbers, _) = bytes.as_chunks();
        ndarray::Array1::from_iter(numbers.iter().map(|&b| f32::from_le_bytes(b)))
    };
    let [tiny, one, three] = [1e-20, 1.0, 3.0].map(merged);
    let error = ((&three - &tiny) - 3.0 * (&one - &tiny)).mapv(f32::abs);
    let largest = |x: &ndarray::Array1<f32>| x.iter().fold(0f32, |a, b| a.max(b.abs()));
    assert!(largest(&error) < 1e-5 * largest(&(&three - &tiny)), "{}", largest(&error));
}

#[test]
fn what_a_lora_changes_is_told() {
    let model = Model::new(Profile::Portable);
    let loras = [open("kohya_fused.safetensors", 1.0), open("kohya_t5.safetensors", 1.0)];
    let ([transformer, encoder], found) = model.plans(&loras, false).expect("fits");
    assert_eq!((found[0].transformer, found[0].text_encoder), (12, 0));
    assert_eq!((found[1].transformer, found[1].text_encoder), (1, encoder.len()));
    assert!(!encoder.is_empty() && transformer.len() == 13);
    // A text encoder without changes is not even looked at.
    let missing = Some(Exported { model: Path::new("nowhere/model.onnx"), precision: "fp32" });
    let graph = model.graph(Component::Transformer);
    let there = Some(Exported { model: &graph, precision: "fp32" });
    match_loras(&loras[..1], there, missing, false).expect("fits");
    let error = match_loras(&loras, there, missing, false).expect_err("unreadable").to_string();
    assert!(error.contains("nowhere"), "{error}");
}

#[test]
fn a_pipeline_changes_its_loras_between_requests() {
    let export = Export::pipeline(&fixtures::tiny(), Profile::Portable);
    let mut pipeline = export.open(engines::tract());
    let request = Request {
        prompts: vec!["a red circle".to_owned()],
        width: Some(64),
        height: Some(64),
        use_resolution_binning: false,
        sampling_steps: 2,
        ..Request::default()
    };
    let mut draw = |loras: Option<&[Arc<Lora>]>| {
        if let Some(loras) = loras {
            pipeline.set_loras(loras, false).expect("fits");
        }
        pipeline.sample(&request, &mut |_| ()).expect("drawn").remove(0).latents
    };
    let plain = draw(None);
    let changed = draw(Some(&[open("peft", 1.0), open("peft_t5", 1.0)]));
    assert!(max_relative_error("changed", &changed, &plain) > 0.01);
    assert_eq!(draw(None), changed);
    assert_eq!(draw(Some(&[])), plain);
}

/// The tiny transformer in another precision.
fn transformer_in(precision: Precision, profile: Profile) -> Export {
    let options = ExportOptions { precision, profile, ..ExportOptions::default() };
    Export::component_with(&fixtures::tiny(), Component::Transformer, &options)
}

#[test]
fn exports_in_16_bits_take_loras_too() {
    let (inputs, outputs) = reference(Component::Transformer);
    let loras = [open("kohya_fused.safetensors", 1.0)];
    let [plain, expected] =
        ["none", "kohya_fused"].map(|name| outputs[name].as_f32().expect("floats"));
    // What the precisions cost without any LoRA; see `parity_precision`.
    for (precision, allowed) in [(Precision::Fp16, 3e-3), (Precision::Bf16, 1.6e-2)] {
        assert!(rms_relative_error("none", plain, expected) > 5.0 * allowed);
        for profile in [Profile::Portable, Profile::Ort] {
            let export = transformer_in(precision, profile);
            let graph = export.graph(Component::Transformer);
            let exported = Some(Exported { model: &graph, precision: precision.as_str() });
            let ([plan, _], _) = match_loras(&loras, exported, exported, false).expect("fits");
            for engine in engines::both() {
                let name = format!("{precision}, {profile} on {}", engine.name());
                let overrides = plan.merge().expect("merged");
                let session = engine.load_with(&graph, overrides);
                let mut session = session.unwrap_or_else(|error| panic!("{name}: {error}"));
                let found = run(&name, session.as_mut(), Component::Transformer, &inputs);
                let error = rms_relative_error(&name, &found, expected);
                println!("{name}: {error:.2e}");
                assert!(error < allowed, "{name}: {error:.2e}");
            }
        }
    }
}

#[test]
fn quantised_weights_are_refused_by_name() {
    for (precision, profile) in [
        (Precision::Int8, Profile::Portable),
        (Precision::Int8, Profile::Ort),
        (Precision::Int4, Profile::Ort),
    ] {
        let export = transformer_in(precision, profile);
        let graph = export.graph(Component::Transformer);
        let exported = Some(Exported { model: &graph, precision: precision.as_str() });
        let loras = [open("diffusers.safetensors", 1.0)];
        let error = match_loras(&loras, exported, exported, false).expect_err("refused");
        assert!(matches!(error, LoraError::Quantised { .. }), "{error}");
        let error = error.to_string();
        let precision = format!("precision {precision}");
        for part in ["attn1.to_", precision.as_str(), "int8 (", "codes", "fp32, fp16 or bf16"] {
            assert!(error.contains(part), "no {part} in: {error}");
        }
    }
}
