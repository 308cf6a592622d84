//! Bad input through the binary: one clear error, the right exit code, no partial file.

use pixart_tests::binary::{Run, Sandbox};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::fs;
use std::path::{Path, PathBuf};

const FAILED: i32 = 1;
const WRONG_REQUEST: i32 = 2;

/// A sandbox with a copy of the tiny pipeline in `model`.
fn sandbox() -> Sandbox {
    Sandbox::with_tiny_model()
}

/// A short run on the model in `model`.
fn sample(sandbox: &Sandbox, more: &[&str]) -> Run {
    let mut args = vec!["sample", "--model", "model"];
    for default in [["--prompt", "a red circle"], ["--sampling_steps", "2"], ["--engine", "tract"]]
    {
        if !more.contains(&default[0]) {
            args.extend(default);
        }
    }
    args.extend(more);
    sandbox.pixart(&args)
}

/// The run failed with `code`, every text of `said` in its message, and wrote nothing: `before` are
/// the files that were there.
fn assert_refused(sandbox: &Sandbox, run: &Run, code: i32, said: &[&str], before: &[PathBuf]) {
    assert_eq!(run.code, code, "{run:?}");
    assert_eq!(run.stdout, "", "{run:?}");
    for text in said {
        assert!(run.stderr.contains(text), "no `{text}` in: {}", run.stderr);
    }
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    assert_eq!(sandbox.files(), before, "files were left behind");
    let cache = sandbox.path().join(".cache");
    let partial: Vec<_> = walk(&cache).into_iter().filter(|p| is_temporary(p)).collect();
    assert_eq!(partial, Vec::<PathBuf>::new(), "temporary files were left behind");
}

fn is_temporary(path: &Path) -> bool {
    path.components().any(|part| {
        let part = part.as_os_str().to_string_lossy();
        part.contains(".tmp") || part.contains("partial")
    })
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

fn refuses_sample(more: &[&str], code: i32, said: &[&str]) {
    let sandbox = sandbox();
    let before = sandbox.files();
    let run = sample(&sandbox, more);
    assert_refused(&sandbox, &run, code, said, &before);
}

/// Damages the model's file `name` with `damage`, then samples and exports.
fn refuses_model(name: &str, damage: impl FnOnce(&Path), said: &[&str]) {
    let sandbox = sandbox();
    damage(&sandbox.path().join("model").join(name));
    let before = sandbox.files();
    let run = sample(&sandbox, &[]);
    assert_refused(&sandbox, &run, FAILED, said, &before);
    let run = sandbox.pixart(&["export", "all", "--source", "model", "--output", "out"]);
    let before: Vec<_> = before.into_iter().filter(|file| !file.starts_with("samples")).collect();
    assert_refused(&sandbox, &run, FAILED, said, &before);
}

const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";

/// Rewrites a safetensors file, passing each tensor (dtype, shape, bytes) through `change`.
fn rewrite(
    file: &Path,
    change: impl Fn(&str, Dtype, Vec<usize>, Vec<u8>) -> Option<(Dtype, Vec<usize>, Vec<u8>)>,
) {
    let bytes = fs::read(file).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<_> = parsed
        .iter()
        .filter_map(|(name, view)| {
            let changed = change(name, view.dtype(), view.shape().to_vec(), view.data().to_vec());
            changed.map(|tensor| (name.to_owned(), tensor))
        })
        .collect();
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn a_missing_model_folder() {
    let sandbox = Sandbox::new();
    let run = sandbox.pixart(&["sample", "--model", "nowhere", "--prompt", "a"]);
    assert_refused(&sandbox, &run, WRONG_REQUEST, &["model", "nowhere", "expected a folder"], &[]);
    let run = sandbox.pixart(&["export", "all", "--source", "nowhere", "--output", "out"]);
    assert_refused(&sandbox, &run, WRONG_REQUEST, &["nowhere"], &[]);
}

#[test]
fn a_missing_part_of_the_model() {
    let sandbox = sandbox();
    fs::remove_dir_all(sandbox.path().join("model/vae")).unwrap();
    let before = sandbox.files();
    let run = sample(&sandbox, &[]);
    assert_refused(&sandbox, &run, WRONG_REQUEST, &["vae", "expected a folder"], &before);
}

#[test]
fn a_missing_tensor() {
    let damage = |file: &Path| {
        rewrite(file, |name, dtype, shape, bytes| {
            (name != "proj_out.weight").then_some((dtype, shape, bytes))
        });
    };
    refuses_model(TRANSFORMER, damage, &["proj_out.weight", "missing"]);
}

#[test]
fn a_tensor_of_a_wrong_shape() {
    let damage = |file: &Path| {
        rewrite(file, |name, dtype, mut shape, bytes| {
            if name == "transformer_blocks.1.ff.net.2.weight" {
                shape.reverse();
            }
            Some((dtype, shape, bytes))
        });
    };
    refuses_model(TRANSFORMER, damage, &["transformer_blocks.1.ff.net.2.weight", "expected"]);
}

#[test]
fn a_tensor_of_a_wrong_dtype() {
    let damage = |file: &Path| {
        rewrite(file, |name, dtype, shape, bytes| {
            Some(if name == "proj_out.bias" {
                (Dtype::I32, shape, bytes)
            } else {
                (dtype, shape, bytes)
            })
        });
    };
    refuses_model(TRANSFORMER, damage, &["proj_out.bias", "I32"]);
}

#[test]
fn a_truncated_weights_file() {
    let damage = |file: &Path| {
        let length = fs::metadata(file).unwrap().len();
        fs::OpenOptions::new().write(true).open(file).unwrap().set_len(length - 100).unwrap();
    };
    refuses_model(TRANSFORMER, damage, &["diffusion_pytorch_model.safetensors"]);
}

#[test]
fn an_index_that_names_a_file_outside_the_folder() {
    let damage = |file: &Path| {
        let text = fs::read_to_string(file).unwrap();
        let mut index: serde_json::Value = serde_json::from_str(&text).unwrap();
        for shard in index["weight_map"].as_object_mut().unwrap().values_mut() {
            *shard = "../vae/diffusion_pytorch_model.safetensors".into();
        }
        fs::write(file, index.to_string()).unwrap();
    };
    let index = "text_encoder/model.safetensors.index.json";
    refuses_model(index, damage, &["../vae/diffusion_pytorch_model.safetensors"]);
}

#[test]
fn sizes_that_no_picture_can_have() {
    for (flag, value) in [
        ("--image_width", "0"),
        ("--image_height", "0"),
        ("--image_width", "-64"),
        ("--image_height", "4294967295"),
        ("--image_width", "99999999999999"),
    ] {
        refuses_sample(&[flag, value], WRONG_REQUEST, &[value]);
    }
}

#[test]
fn a_size_off_the_lattice_without_binning() {
    let size = ["--image_width", "100", "--image_height", "96"];
    let more = [&size[..], &["--use_resolution_binning", "False"]].concat();
    refuses_sample(&more, WRONG_REQUEST, &["100", "16"]);
}

#[test]
fn too_few_steps() {
    for steps in ["-1", "0", "1"] {
        refuses_sample(&["--sampling_steps", steps], WRONG_REQUEST, &["sampling_steps", steps]);
    }
}

#[test]
fn no_prompt_at_all() {
    let sandbox = sandbox();
    let before = sandbox.files();
    let run = sandbox.pixart(&["sample", "--model", "model"]);
    assert_refused(&sandbox, &run, WRONG_REQUEST, &["--prompt"], &before);
}

#[test]
fn odd_prompts_make_pictures() {
    let long = "red ".repeat(2500);
    let sandbox = sandbox();
    let args = ["sample", "--model", "model", "--steps", "2", "--engine", "tract", "--prompt"];
    let run = sandbox.pixart(&[&args[..], &["", &long, "\u{1F534} 红 \u{7}"]].concat());
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(run.stdout, "samples/0.png\nsamples/1.png\nsamples/2.png\n");
}

#[test]
fn a_config_with_an_unknown_key() {
    let sandbox = sandbox();
    fs::write(sandbox.path().join("a.yaml"), "sampling_step: 4\n").unwrap();
    let before = sandbox.files();
    let run = sample(&sandbox, &["-c", "a.yaml"]);
    let said = ["a.yaml", "sampling_step", "did you mean `sampling_steps`"];
    assert_refused(&sandbox, &run, WRONG_REQUEST, &said, &before);
}

#[test]
fn a_config_with_a_wrong_value_or_no_config() {
    let sandbox = sandbox();
    fs::write(sandbox.path().join("a.yaml"), "seed: many\n").unwrap();
    let before = sandbox.files();
    let run = sample(&sandbox, &["-c", "a.yaml"]);
    assert_refused(&sandbox, &run, WRONG_REQUEST, &["a.yaml", "seed", "many"], &before);
    let run = sample(&sandbox, &["-c", "none.yaml"]);
    assert_refused(&sandbox, &run, WRONG_REQUEST, &["none.yaml"], &before);
}

#[test]
fn an_unwritable_output_folder() {
    let sandbox = sandbox();
    fs::write(sandbox.path().join("taken"), "a file").unwrap();
    let before = sandbox.files();
    for folder in ["taken", "taken/below"] {
        let run = sample(&sandbox, &["--output_path", folder]);
        assert_refused(&sandbox, &run, FAILED, &["output_path", "taken"], &before);
    }
    for (folder, code) in [("taken", WRONG_REQUEST), ("taken/below", FAILED)] {
        let args = ["export", "all", "--source", "model", "--output", folder];
        assert_refused(&sandbox, &sandbox.pixart(&args), code, &["taken"], &before);
    }
}

#[test]
fn a_broken_onnx_runtime_library() {
    let sandbox = sandbox();
    let library = sandbox.path().join("libonnxruntime.so");
    fs::write(&library, "no library").unwrap();
    let before = sandbox.files();
    let sandbox = sandbox.with("PIXART_ORT_LIBRARY", library);
    let args = ["sample", "--model", "model", "--prompt", "a", "--engine", "ort"];
    let run = sandbox.pixart(&args);
    assert_refused(&sandbox, &run, FAILED, &["libonnxruntime.so", "engine install"], &before);
}

#[test]
fn onnx_runtime_asked_for_but_not_there() {
    let sandbox = sandbox().without_onnx_runtime();
    let before = sandbox.files();
    let args = ["sample", "--model", "model", "--prompt", "a", "--engine", "ort"];
    let run = sandbox.pixart(&args);
    assert_refused(&sandbox, &run, FAILED, &["pixart engine install cpu"], &before);
}

#[test]
fn an_engine_or_flag_that_does_not_exist() {
    refuses_sample(&["--engine", "torch"], WRONG_REQUEST, &["torch", "ort", "tract"]);
    refuses_sample(&["--image_widht", "64"], WRONG_REQUEST, &["--image_widht", "--image_width"]);
    refuses_sample(&["--dtype", "fp8"], WRONG_REQUEST, &["dtype", "fp8", "fp16"]);
    refuses_sample(&["--guidance_scale", "nan"], WRONG_REQUEST, &["guidance_scale"]);
    refuses_sample(&["--seed", "-2"], WRONG_REQUEST, &["seed", "-2"]);
    let huge = "18446744073709551616";
    refuses_sample(&["--seed", huge], WRONG_REQUEST, &["seed", huge]);
    refuses_sample(&["--negative_prompt", "a", "b"], WRONG_REQUEST, &["negative_prompt"]);
}

#[test]
fn a_cache_folder_that_is_none() {
    let sandbox = sandbox();
    fs::write(sandbox.path().join("taken"), "a file").unwrap();
    let before = sandbox.files();
    let sandbox = sandbox.with("PIXART_CACHE_DIR", "taken");
    let run = sample(&sandbox, &[]);
    let before: Vec<_> = before.into_iter().filter(|file| !file.starts_with("samples")).collect();
    assert_refused(&sandbox, &run, FAILED, &["taken"], &before);
}

#[test]
fn a_damaged_export_in_the_cache_is_made_again() {
    let sandbox = sandbox();
    assert_eq!(sample(&sandbox, &[]).code, 0);
    let weights: Vec<_> = walk(&sandbox.path().join(".cache"))
        .into_iter()
        .filter(|path| path.ends_with("transformer/model.onnx_data"))
        .collect();
    let [file] = weights.as_slice() else { panic!("{weights:?}") };
    let whole = fs::metadata(file).unwrap().len();
    fs::OpenOptions::new().write(true).open(file).unwrap().set_len(whole / 2).unwrap();
    let run = sample(&sandbox, &[]);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(run.stderr.matches("exporting").count(), 1, "{}", run.stderr);
    assert_eq!(fs::metadata(file).unwrap().len(), whole);
    let pictures =
        ["samples/0.png", "samples/1.png"].map(|name| fs::read(sandbox.path().join(name)));
    let [first, second] = pictures.map(Result::unwrap);
    assert!(first == second);
    // Not even a manifest that can be read.
    fs::write(file.with_file_name("manifest.json"), "{").unwrap();
    let run = sample(&sandbox, &[]);
    assert_eq!((run.code, run.stderr.matches("exporting").count()), (0, 1), "{run:?}");
}

#[test]
fn a_precision_that_a_part_does_not_have() {
    let sandbox = sandbox();
    let before = sandbox.files();
    let cases: [(&str, &[&str], &[&str]); 5] = [
        (
            "all",
            &["--precision", "int4", "--profile", "portable"],
            &["found precision int4 with profile portable", "expected profile ort", "int8"],
        ),
        ("vae_decoder", &["--precision", "int8"], &["vae_decoder", "found precision int8", "fp32"]),
        ("transformer", &["--precision", "fp8"], &["unknown precision `fp8`", "int4"]),
        (
            "text_encoder",
            &["--precision", "int8", "--int8-mode", "dynamic"],
            &["found int8 mode dynamic", "weight_only"],
        ),
        ("transformer", &["--int8_mode", "dynamic"], &["expected precision int8"]),
    ];
    for (part, flags, said) in cases {
        let args = ["export", part, "--source", "model", "--output", "out"];
        let run = sandbox.pixart(&[&args[..], flags].concat());
        assert_refused(&sandbox, &run, WRONG_REQUEST, said, &before);
    }
}

#[test]
fn an_existing_export_is_kept() {
    let sandbox = sandbox();
    let args = ["export", "vae_decoder", "--source", "model", "--output", "out"];
    assert_eq!(sandbox.pixart(&args).code, 0);
    let before = sandbox.files();
    let run = sandbox.pixart(&args);
    assert_refused(&sandbox, &run, WRONG_REQUEST, &["out", "--force"], &before);
    assert_eq!(sandbox.pixart(&[&args[..], &["--force"]].concat()).code, 0);
}
