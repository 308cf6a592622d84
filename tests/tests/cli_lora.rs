//! `pixart sample --lora` through the binary.

use std::{fs, path::Path};

use pixart_tests::{
    binary::{Run, Sandbox, copy_folder},
    fixtures,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

const FAILED: i32 = 1;
const WRONG_REQUEST: i32 = 2;

/// A sandbox with the tiny pipeline in `model`, the LoRAs in `lora` and a config for a short run.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::with_tiny_model();
    copy_folder(&fixtures::root().join("lora"), &sandbox.path().join("lora"));
    let config = "model: model\nsampling_steps: 2\nengine: tract\nprompt: a red circle\n\
                  image_width: 64\nimage_height: 64\nuse_resolution_binning: False\n";
    fs::write(sandbox.path().join("short.yaml"), config).unwrap();
    sandbox
}

fn draw(sandbox: &Sandbox, more: &[&str]) -> Run {
    sandbox.pixart(&[&["sample", "-c", "short.yaml"][..], more].concat())
}

/// The pixels of a run with these arguments.
fn picture(sandbox: &Sandbox, more: &[&str]) -> (Vec<u8>, Run) {
    let run = draw(sandbox, more);
    assert_eq!(run.code, 0, "{run:?}");
    (sandbox.pixels(run.stdout.trim()).into_raw(), run)
}

fn refused(sandbox: &Sandbox, more: &[&str], code: i32, said: &[&str]) {
    let before = sandbox.files();
    let run = draw(sandbox, more);
    assert_eq!(run.code, code, "{run:?}");
    for text in said.iter().chain(&["lora: ", "expected"]) {
        assert!(run.stderr.contains(text), "no `{text}` in: {}", run.stderr);
    }
    assert!(!run.stderr.contains("panicked") && run.stdout.is_empty(), "{run:?}");
    assert_eq!(sandbox.files(), before, "files were left behind");
}

/// Writes a LoRA with tensors of these names and shapes.
fn write(path: &Path, tensors: &[(&str, &[usize])]) {
    let bytes = vec![0; 4 << 20];
    let views = tensors.iter().map(|(name, shape)| {
        let size = 4 * shape.iter().product::<usize>();
        (*name, TensorView::new(Dtype::F32, shape.to_vec(), &bytes[..size]).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn loras_change_the_picture_by_flag_and_by_config_and_export_nothing() {
    let sandbox = sandbox();
    let (plain, _) = picture(&sandbox, &[]);
    let (one, run) = picture(&sandbox, &["--lora", "lora/peft"]);
    assert_ne!(one, plain);
    assert!(!run.stderr.contains("exporting"), "{}", run.stderr);
    assert!(
        run.stderr.contains("adapter_model.safetensors, strength 1: 8 weights"),
        "{}",
        run.stderr
    );
    let (half, _) = picture(&sandbox, &["--lora", "lora/peft:0.5"]);
    assert!(half != one && half != plain);
    let (zero, _) = picture(&sandbox, &["--lora", "lora/peft:0", "lora/peft_dora:0"]);
    assert_eq!(zero, plain);

    // Two flags, one flag with two values, and a list in the config are the same.
    let files = ["lora/peft:0.5", "lora/kohya_t5.safetensors"];
    let (two, run) = picture(&sandbox, &["--lora", files[0], "--lora", files[1]]);
    assert!(two != half && two != plain);
    assert!(run.stderr.contains("weights of the text_encoder"), "{}", run.stderr);
    assert_eq!(picture(&sandbox, &["--lora", files[0], files[1]]).0, two);
    let config = fs::read_to_string(sandbox.path().join("short.yaml")).unwrap();
    let list = format!("lora:\n- {}\n- {}\n", files[0], files[1]);
    fs::write(sandbox.path().join("short.yaml"), config.clone() + &list).unwrap();
    assert_eq!(picture(&sandbox, &[]).0, two);
    assert_eq!(picture(&sandbox, &["--lora", "lora/peft"]).0, one, "flags win");
    fs::write(sandbox.path().join("short.yaml"), config + "lora: lora/peft\n").unwrap();
    assert_eq!(picture(&sandbox, &[]).0, one);
}

#[test]
fn the_engines_agree() {
    let sandbox = sandbox();
    let latents = |engine: &str| {
        let file = format!("{engine}.safetensors");
        let more =
            ["--lora", "lora/original.safetensors:0.5", "lora/peft_dora", "--engine", engine];
        picture(&sandbox, &[&more[..], &["--save_latents", &file]].concat());
        let bytes = fs::read(sandbox.path().join(file)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let (numbers, _) = tensors.tensor("latents").unwrap().data().as_chunks();
        numbers.iter().map(|&b| f32::from_le_bytes(b)).collect::<Vec<_>>()
    };
    let (tract, ort) = (latents("tract"), latents("ort"));
    let largest = tract.iter().fold(0f32, |m, x| m.max(x.abs()));
    let error = tract.iter().zip(&ort).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
    assert!(error < 1e-4, "the engines differ by {error:e}");
}

#[test]
fn paths_and_strengths_that_cannot_be() {
    let sandbox = sandbox();
    let file = "lora/kohya.safetensors";
    refused(&sandbox, &["--lora", "nowhere"], WRONG_REQUEST, &["found nothing at nowhere"]);
    refused(&sandbox, &["--lora", "nowhere:0.5"], WRONG_REQUEST, &["found nothing at nowhere,"]);
    for strength in ["strong", "", "nan", "1000", "0,5"] {
        let text = format!("{file}:{strength}");
        let said = format!("found the strength \"{strength}\"");
        refused(&sandbox, &["--lora", &text], WRONG_REQUEST, &[&said, file, "-100 to 100"]);
    }
    refused(&sandbox, &["--lora", "model"], WRONG_REQUEST, &["no .safetensors file"]);
}

#[test]
fn files_that_are_no_loras() {
    let sandbox = sandbox();
    let at = |name: &str| sandbox.path().join(name);
    fs::create_dir(at("old")).unwrap();
    fs::write(at("old/adapter_model.bin"), b"PK\x03\x04 and so on").unwrap();
    let said = ["PyTorch pickle", "adapter_model.bin", "save_file"];
    refused(&sandbox, &["--lora", "old"], WRONG_REQUEST, &said);
    refused(&sandbox, &["--lora", "old/adapter_model.bin"], WRONG_REQUEST, &said);

    let message = |bytes: &[u8], said: &str| {
        fs::write(at("a.safetensors"), bytes).unwrap();
        let run = draw(&sandbox, &["--lora", "a.safetensors"]);
        assert_eq!(run.code, FAILED, "{run:?}");
        assert!(run.stderr.contains(said) && run.stderr.contains("a.safetensors"), "{run:?}");
    };
    message(b"<html>sign in</html>", "not a usable safetensors file");
    let whole = fs::read(at("lora/kohya.safetensors")).unwrap();
    message(&whole[..whole.len() - 1], "not a usable safetensors file");

    for (key, method) in [("lokr_w1", "LoKr"), ("hada_w1_a", "LoHa"), ("diff", "full differences")]
    {
        write(&at("a.safetensors"), &[(&format!("lora_unet_x.{key}"), &[2, 2])]);
        refused(&sandbox, &["--lora", "a.safetensors"], WRONG_REQUEST, &[method, key]);
    }
}

#[test]
fn keys_that_belong_to_no_layer() {
    let sandbox = sandbox();
    let layer = "lora_unet_transformer_blocks_0_attn1_to_q";
    let stranger = "lora_unet_transformer_blocks_7_attn1_to_q";
    let names: Vec<String> = [layer, stranger]
        .iter()
        .flat_map(|layer| ["down", "up"].map(|part| format!("{layer}.lora_{part}.weight")))
        .collect();
    let shapes: [&[usize]; 4] = [&[2, 72], &[72, 2], &[2, 72], &[72, 2]];
    let tensors: Vec<_> = names.iter().map(String::as_str).zip(shapes).collect();
    let file = sandbox.path().join("a.safetensors");
    write(&file, &tensors);
    let lora = ["--lora", "a.safetensors"];
    let said = ["2 of its 4 keys", names[2].as_str(), names[3].as_str(), "--lora_allow_unmatched"];
    refused(&sandbox, &lora, WRONG_REQUEST, &said);
    let (_, run) = picture(&sandbox, &[&lora[..], &["--lora_allow_unmatched", "true"]].concat());
    assert!(run.stderr.contains(&format!("left out: {}", names[2])), "{}", run.stderr);
    // Nothing at all is never right.
    write(&file, &tensors[2..]);
    let allowed = [&lora[..], &["--lora-allow-unmatched"]].concat();
    refused(&sandbox, &allowed, WRONG_REQUEST, &["none of its 2 keys"]);
}

#[test]
fn loras_of_other_models_and_broken_ones() {
    let sandbox = sandbox();
    let file = sandbox.path().join("a.safetensors");
    let names = ["down", "up"]
        .map(|part| format!("transformer.transformer_blocks.0.attn1.to_q.lora_{part}.weight"));
    let both = |down: &[usize], up: &[usize]| write(&file, &[(&names[0], down), (&names[1], up)]);
    let lora = ["--lora", "a.safetensors"];
    both(&[4, 1152], &[1152, 4]);
    let said =
        ["found a change of [1152, 1152]", "attn1.to_q", "expected [72, 72]", "another model"];
    refused(&sandbox, &lora, WRONG_REQUEST, &said);
    both(&[4, 72], &[72, 3]);
    refused(&sandbox, &lora, WRONG_REQUEST, &["A [4, 72] and B [72, 3]", "the same r"]);
    write(&file, &[(&names[0], &[4, 72])]);
    refused(&sandbox, &lora, WRONG_REQUEST, &["found no B", "attn1.to_q"]);
    // The same layer under two names.
    let other = "blocks.0.attn.qkv.0";
    let other = ["down", "up"].map(|part| format!("{other}.lora_{part}.weight"));
    write(
        &file,
        &[
            (&names[0], &[4, 72]),
            (&names[1], &[72, 4]),
            (&other[0], &[4, 72]),
            (&other[1], &[72, 4]),
        ],
    );
    refused(&sandbox, &lora, WRONG_REQUEST, &["a second change", "attn1.to_q.weight"]);
}

#[test]
fn peft_files_need_their_configuration() {
    let sandbox = sandbox();
    let config = sandbox.path().join("lora/peft/adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    let lora = ["--lora", "lora/peft"];
    fs::remove_file(&config).unwrap();
    refused(&sandbox, &lora, WRONG_REQUEST, &["adapter_config.json beside it"]);
    for (from, to, said) in [
        ("\"r\": 4", "\"r\": 8", "found r = 8"),
        ("\"LORA\"", "\"LOKR\"", "LOKR"),
        ("\"use_dora\": false", "\"use_dora\": true", "found no magnitudes"),
        ("\"attn1.to_q\": 2", "\"attn1.to_[q]\": 2", "attn1.to_[q]"),
        ("\"fan_in_fan_out\": false", "\"fan_in_fan_out\": true", "fan_in_fan_out"),
    ] {
        assert!(text.contains(from), "{from}");
        fs::write(&config, text.replace(from, to)).unwrap();
        refused(&sandbox, &lora, WRONG_REQUEST, &[said]);
    }
}
