//! New LoRAs against PEFT's start, their merged weights against the runtime's, and their files read
//! back by the runtime.

use std::{fs, path::Path, sync::Arc};

use ndarray::ArrayD;
use pixart_exporter::{
    Component, Profile,
    checkpoint::{Checkpoint, OpenOptions},
};
use pixart_runtime::{
    lora::{Exported, Lora, LoraSpec, match_loras},
    noise::TorchGenerator,
};
use pixart_tests::{exports::Export, fixtures};
use pixart_trainer::{
    Tensors,
    lora::{Adapter, AdapterSettings, LINEAR_TARGETS, Start},
};

/// The weights of the tiny transformer.
fn weights() -> Tensors {
    let checkpoint =
        Checkpoint::open(&fixtures::tiny().join("transformer"), &OpenOptions::default());
    let checkpoint = checkpoint.unwrap_or_else(|error| panic!("{error}"));
    let names = checkpoint.names().map(|name| {
        let view = checkpoint.tensor(name).expect("there");
        let values = view.bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let array = ArrayD::from_shape_vec(view.shape.to_vec(), values).expect("f32");
        (name.to_owned(), array)
    });
    names.collect()
}

fn adapter(settings: AdapterSettings, weights: &Tensors, seed: u64) -> Adapter {
    let shapes = weights.iter().map(|(name, weight)| (name.as_str(), weight.shape()));
    Adapter::new(settings, shapes, &mut TorchGenerator::new(seed))
        .unwrap_or_else(|error| panic!("{error}"))
}

/// A LoRA that changes something.
fn trained(settings: AdapterSettings, weights: &Tensors) -> Adapter {
    let mut adapter = adapter(settings, weights, 3);
    let mut generator = TorchGenerator::new(4);
    for factor in adapter.factors_mut().values_mut() {
        let values = generator.randn(factor.len());
        factor.iter_mut().zip(values).for_each(|(old, new)| *old += 0.2 * new);
    }
    adapter
}

#[test]
fn factors_begin_as_peft_s() {
    let cases = fixtures::cases("training/steps.safetensors");
    let mut generator = TorchGenerator::new(7500);
    for (start, case) in [(Start::KaimingUniform, "kaiming"), (Start::Gaussian, "gaussian")] {
        for expected in cases[case].values() {
            let expected = expected.as_f32().expect("floats");
            // One layer at a time, with as many inputs.
            let mut shape = expected.shape().to_vec();
            let rank = std::mem::replace(&mut shape[0], 7);
            let settings = AdapterSettings { rank, start, ..AdapterSettings::default() };
            let layer = [("block.to_q.weight", shape.as_slice())];
            let adapter = Adapter::new(settings, layer, &mut generator).expect("one layer");
            let factors = adapter.factors();
            assert_eq!(&factors["block.to_q.lora_A.weight"], expected, "{case} {shape:?}");
            let up = &factors["block.to_q.lora_B.weight"];
            assert_eq!(up.shape()[..2], [7, rank]);
            assert!(up.iter().all(|&x| x == 0.0));
        }
    }
}

#[test]
fn the_runtime_matches_every_key_and_merges_the_same_weights() {
    let weights = weights();
    let export = Export::component(
        &fixtures::tiny().join("transformer"),
        Component::Transformer,
        Profile::Ort,
    );
    let graph = export.graph(Component::Transformer);
    let folder = tempfile::tempdir().expect("folder");
    for (index, settings) in [
        AdapterSettings { rank: 3, alpha: 5.0, ..AdapterSettings::default() },
        AdapterSettings {
            rank: 4,
            alpha: 1.5,
            rank_stabilised: true,
            ..AdapterSettings::default()
        },
        AdapterSettings {
            targets: vec![
                "attn2.to_q".to_owned(),
                "pos_embed.proj".to_owned(),
                "no_layer".to_owned(),
            ],
            rank: 2,
            start: Start::Gaussian,
            ..AdapterSettings::default()
        },
    ]
    .into_iter()
    .enumerate()
    {
        let adapter = trained(settings, &weights);
        let target = folder.path().join(index.to_string());
        adapter.save(&target, false).unwrap_or_else(|error| panic!("{error}"));
        let merged = adapter.merged(&weights).expect("the same model");
        assert_eq!(merged.len(), adapter.layers().count());
        for path in [target.clone(), target.join("pytorch_lora_weights.safetensors")] {
            let lora = Lora::open(&LoraSpec { path: path.clone(), strength: 1.0 });
            let lora = [Arc::new(lora.unwrap_or_else(|error| panic!("{error}")))];
            let exported = Exported { model: &graph, precision: "fp32" };
            let ([plan, _], found) = match_loras(&lora, Some(exported), None, false)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert_eq!((found[0].transformer, &found[0].unmatched), (merged.len(), &vec![]));
            assert_merged(&plan.merge().expect("merged"), &merged);
        }
        // The settings PEFT matches layers by.
        let text = fs::read_to_string(target.join("adapter_config.json")).expect("a file");
        let config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert!(!config["target_modules"].as_array().expect("a list").is_empty());
        assert!(!text.contains("no_layer"), "targets that no layer has are left out: {text}");
    }
}

/// Compares changed initializers with weights, whose matrices the graph holds transposed.
fn assert_merged(overrides: &[pixart_runtime::engine::Override], merged: &Tensors) {
    assert_eq!(overrides.len(), merged.len());
    for new in overrides {
        let weight = &merged[&new.name];
        let expected = match weight.ndim() {
            2 => weight.t().as_standard_layout().into_owned(),
            _ => weight.clone(),
        };
        assert_eq!(new.shape, expected.shape(), "{}", new.name);
        let (values, _) = new.data.as_chunks();
        for (&found, &expected) in values.iter().zip(&expected) {
            let found = f32::from_le_bytes(found);
            assert!((found - expected).abs() < 1e-5, "{}: {found}, {expected}", new.name);
        }
    }
}

#[test]
fn targets_are_all_matrices_with_the_convolution_or_without_it() {
    let weights = weights();
    let layers = |rank: fn(usize) -> bool| -> Vec<&str> {
        let fitting = weights.iter().filter(|(_, weight)| rank(weight.ndim()));
        fitting.filter_map(|(name, _)| name.strip_suffix(".weight")).collect()
    };
    let default = adapter(AdapterSettings::default(), &weights, 1);
    assert_eq!(default.layers().collect::<Vec<_>>(), layers(|rank| rank >= 2));
    let targets = LINEAR_TARGETS.map(str::to_owned).to_vec();
    let linear = adapter(AdapterSettings { targets, ..AdapterSettings::default() }, &weights, 1);
    assert_eq!(linear.layers().collect::<Vec<_>>(), layers(|rank| rank == 2));
    assert_eq!(default.layers().count(), linear.layers().count() + 1);
}

#[test]
fn gradients_of_factors_are_differences() {
    let weights = weights();
    let settings = AdapterSettings {
        targets: vec!["attn1.to_q".to_owned(), "pos_embed.proj".to_owned()],
        rank: 2,
        alpha: 3.0,
        ..AdapterSettings::default()
    };
    let adapter = trained(settings, &weights);
    // A loss with known gradients: Σ coefficient · merged weight + merged weight² / 2.
    let merged = adapter.merged(&weights).expect("the same model");
    let mut generator = TorchGenerator::new(5);
    let coefficients: Tensors = merged
        .iter()
        .map(|(name, weight)| {
            let values = generator.randn(weight.len());
            (name.clone(), ArrayD::from_shape_vec(weight.raw_dim(), values).expect("as many"))
        })
        .collect();
    let loss = |adapter: &Adapter| -> f64 {
        let merged = adapter.merged(&weights).expect("the same model");
        let term = |(name, weight): (&String, &ArrayD<f32>)| -> f64 {
            let pairs = weight.iter().zip(&coefficients[name]);
            pairs.map(|(&w, &c)| f64::from(w) * f64::from(c) + f64::from(w).powi(2) / 2.0).sum()
        };
        merged.iter().map(term).sum()
    };
    let of_weights =
        merged.iter().map(|(name, weight)| (name.clone(), weight + &coefficients[name])).collect();
    let gradients = adapter.gradients(&of_weights).expect("the same model");
    assert_eq!(gradients.len(), 2 * adapter.layers().count());
    for (name, gradient) in &gradients {
        assert_eq!(gradient.shape(), adapter.factors()[name].shape());
        for index in [0, gradient.len() / 2, gradient.len() - 1] {
            let moved = |by: f32| {
                let mut adapter = adapter.clone();
                let factor = adapter.factors_mut().get_mut(name).expect("there");
                *factor.as_slice_mut().expect("in order").get_mut(index).expect("there") += by;
                loss(&adapter)
            };
            let difference = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            let found = f64::from(gradient.as_slice().expect("in order")[index]);
            let error = (found - difference).abs() / difference.abs().max(1.0);
            assert!(error < 1e-3, "{name}[{index}]: {found}, {difference}");
        }
    }
    // Of some layers only: one block after the other.
    let one =
        of_weights.iter().take(1).map(|(n, g): (&String, &ArrayD<f32>)| (n.clone(), g.clone()));
    assert_eq!(adapter.gradients(&one.collect::<Tensors>()).expect("fits").len(), 2);
}

#[test]
fn factors_are_read_back_bit_for_bit_and_others_are_refused() {
    let weights = weights();
    let folder = tempfile::tempdir().expect("folder");
    let target = folder.path().join("lora");
    let small = AdapterSettings { rank: 2, ..AdapterSettings::default() };
    let saved = trained(small.clone(), &weights);
    saved.save(&target, false).expect("saved");
    let mut again = adapter(small.clone(), &weights, 9);
    again.restore(&target).expect("the same settings");
    assert_eq!(again.factors(), saved.factors());

    let mut other = adapter(AdapterSettings { rank: 3, ..small.clone() }, &weights, 9);
    let before = other.factors().clone();
    let error = other.restore(&target).expect_err("another rank").to_string();
    assert!(error.contains("lora_A") && error.contains("expected f32[3,"), "{error}");
    assert_eq!(other.factors(), &before);
    let fewer = AdapterSettings { targets: vec!["to_q".to_owned()], ..small };
    let mut fewer = adapter(fewer, &weights, 9);
    let error = fewer.restore(&target).expect_err("more layers").to_string();
    assert!(error.contains("expected nothing"), "{error}");
    let error = fewer.restore(Path::new("nowhere")).expect_err("missing").to_string();
    assert!(error.contains("adapter_model.safetensors"), "{error}");

    // What is there stays, unless it may be replaced.
    saved.save(&target, false).expect_err("there already");
    saved.save(&target, true).expect("replaced");
    fs::write(target.join("notes.txt"), "mine").expect("written");
    saved.save(&target, true).expect_err("somebody's notes");
}

#[test]
fn what_cannot_be_trained_is_named() {
    let weights = weights();
    let make = |target: &str, shape: &[usize]| {
        let name = "blocks.0.attn.sr.weight";
        let shapes = weights.iter().map(|(name, weight)| (name.as_str(), weight.shape()));
        let shapes = shapes.chain([(name, shape)]).collect::<Vec<_>>();
        let settings =
            AdapterSettings { targets: vec![target.to_owned()], ..AdapterSettings::default() };
        Adapter::new(settings, shapes, &mut TorchGenerator::new(1)).expect_err(target).to_string()
    };
    let error = make("to_quarry", &[4, 4]);
    assert!(error.contains("to_quarry") && error.contains("transformer_blocks.0"), "{error}");
    let error = make("attn.sr", &[72, 1, 2, 2]);
    assert!(
        error.contains("blocks.0.attn.sr.weight") && error.contains("[72, 1, 2, 2]"),
        "{error}"
    );
    make("attn.sr", &[72]);
    // Another model.
    let adapter = adapter(AdapterSettings::default(), &weights, 1);
    let mut other = weights.clone();
    other.insert("proj_out.weight".to_owned(), ArrayD::zeros(vec![2, 2]));
    let error = adapter.merged(&other).expect_err("another shape").to_string();
    assert!(error.contains("proj_out.weight: found f32[2, 2]"), "{error}");
}
