//! `pixart sample --dtype`, and values that are not finite, through the binary.

use pixart_tests::binary::{Run, Sandbox, copy_folder};
use pixart_tests::fixtures;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::fs;
use std::path::Path;

const FAILED: i32 = 1;
const WRONG_REQUEST: i32 = 2;

/// A sandbox with the tiny pipeline in `model` and a config for a short run.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::with_tiny_model();
    let config = "model: model\nsampling_steps: 2\nprompt: a red circle\nimage_width: 64\n\
                  image_height: 64\nuse_resolution_binning: False\nno_text_cache: True\n";
    fs::write(sandbox.path().join("short.yaml"), config).unwrap();
    sandbox
}

fn run(sandbox: &Sandbox, more: &[&str]) -> Run {
    sandbox.pixart(&[&["sample", "-c", "short.yaml"][..], more].concat())
}

/// The latents of a run, and the run.
fn drawn(sandbox: &Sandbox, more: &[&str]) -> (Vec<f32>, Run) {
    let run = run(sandbox, &[more, &["--save_latents", "l.safetensors"]].concat());
    assert_eq!(run.code, 0, "{run:?}");
    let bytes = fs::read(sandbox.path().join("l.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor("latents").unwrap().data().to_vec();
    (data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(), run)
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

#[test]
fn dtype_chooses_the_precision_of_the_export_on_first_use() {
    let sandbox = sandbox();
    for (engine, precisions) in
        [("ort", &["fp16", "bf16", "int8", "int4"][..]), ("tract", &["fp16", "bf16", "int8"])]
    {
        let engine = ["--engine", engine];
        let (exact, _) = drawn(&sandbox, &engine);
        // The default by its name: nothing is exported anew.
        let (same, again) = drawn(&sandbox, &[&engine[..], &["--dtype", "fp32"]].concat());
        assert!(same == exact && !again.stderr.contains("exporting"), "{}", again.stderr);
        let mut errors = Vec::new();
        for &precision in precisions {
            let more = [&engine[..], &["--dtype", precision]].concat();
            let (latents, first) = drawn(&sandbox, &more);
            let told = format!(" in {precision} (once)");
            // The VAE stays in fp32, and that is exported already.
            assert_eq!(first.stderr.matches(&told).count(), 2, "{}", first.stderr);
            assert_eq!(first.stderr.matches("exporting").count(), 2, "{}", first.stderr);
            let (again, second) = drawn(&sandbox, &more);
            assert!(again == latents && !second.stderr.contains("exporting"), "{}", second.stderr);
            errors.push(apart(&latents, &exact));
        }
        println!("{engine:?} {errors:?}");
        assert!(errors[0] > 1e-5 && errors[0] < 2e-2, "fp16: {errors:?}");
        // Each has fewer digits than the one before.
        assert!(errors.is_sorted(), "{errors:?}");
    }
}

#[test]
fn precisions_that_cannot_be() {
    let sandbox = sandbox();
    let before = sandbox.files();
    for (more, said) in [
        (["--dtype", "fp8"], "dtype: unknown precision `fp8`"),
        (["--dtype", "int4"], "dtype: found int4 with tract, expected fp32"),
    ] {
        let run = run(&sandbox, &[&["--engine", "tract"][..], &more].concat());
        assert_eq!(run.code, WRONG_REQUEST, "{run:?}");
        assert!(run.stderr.contains(said), "no `{said}` in {}", run.stderr);
        assert_eq!(sandbox.files(), before);
    }
}

#[test]
fn an_exported_model_has_its_own_precision() {
    let sandbox = sandbox();
    let export = ["export", "all", "--source", "model", "--output", "half", "--precision", "fp16"];
    let exported = sandbox.pixart(&[&export[..], &["--profile", "portable"]].concat());
    assert_eq!(exported.code, 0, "{exported:?}");
    let half = ["--engine", "tract", "--model", "half"];
    let (plain, quiet) = drawn(&sandbox, &half);
    assert!(!quiet.stderr.contains("note: dtype"), "{}", quiet.stderr);
    let (same, quiet) = drawn(&sandbox, &[&half[..], &["--dtype", "fp16"]].concat());
    assert!(same == plain && !quiet.stderr.contains("note: dtype"), "{}", quiet.stderr);
    let (same, noted) = drawn(&sandbox, &[&half[..], &["--dtype", "fp32"]].concat());
    assert!(same == plain);
    for part in ["transformer", "text_encoder"] {
        let said =
            format!("note: dtype asks for fp32, but the {part} in half/{part} is exported in fp16");
        assert!(noted.stderr.contains(&said), "no `{said}` in {}", noted.stderr);
    }
    assert!(!noted.stderr.contains("vae_decoder"), "{}", noted.stderr);
    // The same for what fills the text cache.
    let encode = ["encode", "--model", "half", "--prompt", "a", "--text_cache_dir", "cache"];
    let encoded =
        sandbox.pixart(&[&encode[..], &["--engine", "tract", "--dtype", "bf16"]].concat());
    assert_eq!(encoded.code, 0, "{encoded:?}");
    assert!(encoded.stderr.contains("note: dtype asks for bf16"), "{}", encoded.stderr);
}

/// The run failed with these words, and wrote no picture.
fn refused(sandbox: &Sandbox, run: &Run, said: &[&str]) {
    assert_eq!(run.code, FAILED, "{run:?}");
    for text in said {
        assert!(run.stderr.contains(text), "no `{text}` in: {}", run.stderr);
    }
    assert!(!run.stderr.contains("panicked") && run.stdout.is_empty(), "{run:?}");
    let pictures =
        sandbox.files().into_iter().filter(|file| file.extension().is_some_and(|e| e == "png"));
    assert_eq!(pictures.count(), 0);
}

#[test]
fn weights_that_are_no_numbers_are_told_by_component_and_step() {
    for engine in ["tract", "ort"] {
        for (part, said) in [
            ("text_encoder", &["the text_encoder (fp32)"][..]),
            ("transformer", &["the transformer (fp32)", "in step 1 of 2"]),
            ("vae_decoder", &["the vae_decoder (fp32)"]),
        ] {
            let sandbox = sandbox();
            let export =
                ["export", "all", "--source", "model", "--output", "out", "--profile", "portable"];
            assert_eq!(sandbox.pixart(&export).code, 0);
            // All bits set are NaN.
            let file = sandbox.path().join("out").join(part).join("model.onnx_data");
            let length = fs::metadata(&file).unwrap().len() as usize;
            fs::write(&file, vec![0xff; length]).unwrap();
            let run = run(&sandbox, &["--model", "out", "--engine", engine]);
            let advice = ["not finite", "the weights are probably damaged", "export it again"];
            refused(&sandbox, &run, &[&advice[..], said].concat());
        }
    }
}

/// Adds `value` to every number of some tensors of a safetensors file.
fn shift(file: &Path, names: &[&str], value: f32) {
    let changed = change(file, |name| names.contains(&name), |number| number + value);
    assert_eq!(changed, names.len(), "{}", file.display());
}

/// Changes every number of some tensors of a safetensors file; returns how many tensors.
fn change(file: &Path, which: impl Fn(&str) -> bool, to: impl Fn(f32) -> f32) -> usize {
    let bytes = fs::read(file).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let mut seen = 0;
    let tensors: Vec<_> = parsed
        .iter()
        .map(|(name, view)| {
            assert_eq!(view.dtype(), Dtype::F32);
            let mut data = view.data().to_vec();
            if which(name) {
                seen += 1;
                for number in data.as_chunks_mut::<4>().0 {
                    *number = to(f32::from_le_bytes(*number)).to_le_bytes();
                }
            }
            (name.to_owned(), view.shape().to_vec(), data)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, data)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
    });
    fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
    seen
}

#[test]
fn what_does_not_fit_into_fp16_is_told_as_such() {
    let sandbox = sandbox();
    let dit = sandbox.path().join("model/transformer/diffusion_pytorch_model.safetensors");
    // Each fits, their sum does not.
    shift(&dit, &["pos_embed.proj.bias", "transformer_blocks.0.attn2.to_out.0.bias"], 6e4);
    for engine in ["tract", "ort"] {
        let (latents, _) = drawn(&sandbox, &["--engine", engine]);
        assert!(latents.iter().all(|value| value.is_finite()));
        fs::remove_dir_all(sandbox.path().join("samples")).unwrap();
        let run = run(&sandbox, &["--engine", engine, "--dtype", "fp16"]);
        let said =
            ["the transformer (fp16)", "in step 1 of 2", "its range is probably exceeded", "fp32"];
        refused(&sandbox, &run, &said);
    }
}

#[test]
fn a_vae_that_does_not_fit_into_fp16_is_told_as_such() {
    let sandbox = sandbox();
    let vae = sandbox.path().join("model/vae/diffusion_pytorch_model.safetensors");
    shift(&vae, &["decoder.conv_in.bias", "decoder.mid_block.resnets.0.conv2.bias"], 6e4);
    let (latents, _) = drawn(&sandbox, &["--engine", "tract"]);
    assert!(latents.iter().all(|value| value.is_finite()));
    fs::remove_dir_all(sandbox.path().join("samples")).unwrap();
    let export = ["export", "vae_decoder", "--source", "model", "--output", "half", "--no_verify"];
    let half = ["--precision", "fp16", "--profile", "portable"];
    let exported = sandbox.pixart(&[&export[..], &half].concat());
    assert_eq!(exported.code, 0, "{exported:?}");
    for engine in ["tract", "ort"] {
        let run = run(&sandbox, &["--engine", engine, "--vae_root", "half"]);
        let said =
            ["the vae_decoder (fp16)", "its range is probably exceeded", "--vae_precision fp32"];
        refused(&sandbox, &run, &said);
        // The preview decodes, too.
        let more = ["--engine", engine, "--vae_root", "half", "--preview", "p.png"];
        let preview = sandbox.pixart(&[&["sample", "-c", "short.yaml"][..], &more].concat());
        refused(&sandbox, &preview, &said);
    }
}

#[test]
fn a_lora_that_is_too_strong_is_told_as_such() {
    let sandbox = sandbox();
    copy_folder(&fixtures::root().join("lora"), &sandbox.path().join("lora"));
    let file = sandbox.path().join("lora/peft/adapter_model.safetensors");
    change(&file, |name| name.contains("lora_B"), |number| number * 1e36);
    let run = run(&sandbox, &["--engine", "tract", "--lora", "lora/peft"]);
    let said =
        ["the transformer (fp32)", " of 2; ", "a LoRA probably drives it out of range", "strength"];
    refused(&sandbox, &run, &said);
}

#[test]
fn guidance_that_is_too_strong_is_told_as_such() {
    let sandbox = sandbox();
    let run = run(&sandbox, &["--engine", "tract", "--guidance_scale", "1e38"]);
    refused(
        &sandbox,
        &run,
        &["latents are not finite after step", "guidance_scale", "nearer to 4.5"],
    );
}
