//! `pixart train` through the binary: from pictures and captions to a model that draws.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use pixart_tests::{
    binary::{Run, Sandbox, copy_folder},
    fixtures,
    training::sandbox,
};

const DONE: i32 = 0;
const FAILED: i32 = 1;
const WRONG_REQUEST: i32 = 2;

fn train(sandbox: &Sandbox, more: &[&str]) -> Run {
    sandbox.pixart(&[&["train", "-c", "short.yaml"][..], more].concat())
}

/// Trains; gives the checkpoint that was printed, and the run.
fn trained(sandbox: &Sandbox, more: &[&str]) -> (PathBuf, Run) {
    let run = train(sandbox, more);
    assert_eq!(run.code, DONE, "{run:?}");
    (sandbox.path().join(run.stdout.trim()), run)
}

/// The files of a checkpoint but `training.json`.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for below in ["", "ema"] {
        let Ok(entries) = fs::read_dir(folder.join(below)) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_file() && !path.ends_with("training.json") {
                found.insert(
                    path.strip_prefix(folder).unwrap().to_owned(),
                    fs::read(&path).unwrap(),
                );
            }
        }
    }
    assert!(found.len() > 1, "{}", folder.display());
    found
}

/// The pixels of a short run of `pixart sample`.
fn drawn(sandbox: &Sandbox, more: &[&str]) -> Vec<u8> {
    let common = [
        "sample",
        "--model=model",
        "--prompt=picture 1",
        "--image_width=64",
        "--image_height=64",
        "--use_resolution_binning=False",
        "--sampling_steps=2",
        "--engine=tract",
    ];
    let run = sandbox.pixart(&[&common[..], more].concat());
    assert_eq!(run.code, DONE, "{run:?}");
    sandbox.pixels(run.stdout.trim()).into_raw()
}

fn refused(sandbox: &Sandbox, more: &[&str], code: i32, said: &[&str]) {
    let before = sandbox.files();
    let run = train(sandbox, more);
    assert_eq!(run.code, code, "{more:?}: {run:?}");
    for text in said {
        assert!(run.stderr.contains(text), "{more:?}: no `{text}` in: {}", run.stderr);
    }
    assert!(run.stdout.is_empty() && !run.stderr.contains("panicked"), "{run:?}");
    assert_eq!(sandbox.files(), before, "files were left behind");
}

#[test]
fn a_model_from_random_weights_draws() {
    let sandbox = sandbox();
    let scratch = ["--checkpoint", "", "--model_config", "model/transformer", "--use_ema", "True"];
    let (folder, run) = trained(&sandbox, &[&scratch[..], &["--ema_rate", "0.9"]].concat());
    assert!(folder.ends_with("output/ckpt/step_00000004"), "{}", folder.display());
    for told in [
        "4 steps in all, 2 batches an epoch",
        "epoch 2, step 4/4: loss ",
        "output/ckpt/step_00000002",
    ] {
        assert!(run.stderr.contains(told), "no `{told}` in: {}", run.stderr);
    }
    // Steps of both epochs, each with its average.
    let exported = sandbox.pixart(&[
        "export",
        "transformer",
        "--source",
        "output/ckpt/step_00000004/ema",
        "--output",
        "exported",
    ]);
    assert_eq!(exported.code, DONE, "{exported:?}");
    let sample = |checkpoint: &str, name: &str| {
        drawn(&sandbox, &["--checkpoint", checkpoint, "--output_path", name])
    };
    let weights = sample("output/ckpt/step_00000004", "a");
    assert_ne!(weights, sample("exported/transformer", "b"), "the average is another model");
    assert_ne!(weights, sample("output/ckpt/step_00000002", "c"));
}

#[test]
fn equal_commands_give_equal_models_and_going_on_is_not_having_stopped() {
    let sandbox = sandbox();
    let more = ["--optim", "came", "--gradient_accumulation_steps", "1", "--clip_grad", "True"];
    let run = |rest: &[&str]| trained(&sandbox, &[&more[..], rest].concat());
    let (first, _) = run(&["--output_path", "a"]);
    let expected = files(&first);
    let (again, _) = run(&["--output_path", "b", "--seed", "42"]);
    assert!(files(&again) == expected);
    let (other, _) = run(&["--output_path", "c", "--seed", "7"]);
    assert!(files(&other) != expected);
    // Three of four steps, in the middle of an epoch; then the rest.
    run(&["--output_path", "d", "--max_train_steps", "3"]);
    refused(
        &sandbox,
        &["--output_path", "d"],
        WRONG_REQUEST,
        &["d/ckpt/step_00000003", "--resume"],
    );
    let (resumed, told) = run(&["--output_path", "d", "--resume"]);
    assert!(told.stderr.contains("going on from d/ckpt/step_00000003"), "{}", told.stderr);
    assert!(resumed.ends_with("d/ckpt/step_00000004") && files(&resumed) == expected);
    // From a checkpoint by its name, into another folder.
    let (resumed, _) = run(&["--output_path", "e", "--resume", "d/ckpt/step_00000003"]);
    assert!(files(&resumed) == expected);
    // Not into that of another training.
    let mixed = ["--output_path", "c", "--resume", "d/ckpt/step_00000003"];
    refused(&sandbox, &mixed, WRONG_REQUEST, &["checkpoint of another training"]);
    let other = ["--output_path", "d", "--resume", "--seed", "7"];
    refused(&sandbox, &other, WRONG_REQUEST, &["its seed is 42, now it is 7"]);
}

#[test]
fn a_lora_changes_what_is_drawn() {
    let sandbox = sandbox();
    let lora = [
        "--lora_rank",
        "2",
        "--lora_alpha",
        "4",
        "--lora_targets",
        "to_q",
        "to_v",
        "proj_out",
        "--lora_init",
        "gaussian",
        "--lora_rslora",
        "true",
        "--start_learning_rate",
        "0.1",
    ];
    let lora_flags = lora;
    let (folder, run) = trained(&sandbox, &lora);
    assert!(run.stderr.contains("0.00 million numbers are trained"), "{}", run.stderr);
    assert!(folder.join("adapter_model.safetensors").is_file());
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["r"], &config["lora_alpha"]), (&2.into(), &4.into()));
    assert_eq!(
        (&config["use_rslora"], &config["init_lora_weights"]),
        (&true.into(), &"gaussian".into())
    );
    let sample = |more: &[&str]| drawn(&sandbox, more);
    let lora = run.stdout.trim();
    assert_ne!(sample(&["--output_path", "a"]), sample(&["--output_path", "b", "--lora", lora]));
    // Its factors belong to their strength.
    let mut stronger = lora_flags;
    stronger[3] = "8";
    let stronger = [&stronger[..], &["--resume", "--epochs", "3"]].concat();
    refused(&sandbox, &stronger, WRONG_REQUEST, &["lora_alpha: found 4, expected 8"]);
    // And to the model they were learnt on. A first step has no learning rate yet.
    let (other, _) = trained(&sandbox, &["--output_path", "other", "--max_train_steps", "2"]);
    let other = other.strip_prefix(sandbox.path()).unwrap().to_str().unwrap().to_owned();
    let of_other = ["--resume", "--epochs", "3", "--checkpoint", &other];
    let said = ["found a LoRA of the model ", "continue with the settings it was saved with"];
    refused(&sandbox, &[&lora_flags[..], &of_other].concat(), WRONG_REQUEST, &said);
    // What goes on with a LoRA is one.
    let resume = ["--resume", "--epochs", "3"];
    refused(
        &sandbox,
        &resume,
        WRONG_REQUEST,
        &["found a LoRA, expected the weights of a whole model"],
    );
}

#[test]
fn the_seeds_command_is_taken_as_it_is() {
    let sandbox = sandbox();
    // Every flag of train.py that short.yaml does not have, with values it takes there.
    let flags = "--num_parallel_workers 2 --t5_max_length 300 --sd_scale_factor 0.13025 --real_prompt_ratio 0.5 \
        --class_dropout_prob 0.1 --multi_scale True --visualize False --visualize_interval 5 \
        --validation_prompts cat dog --validation_negative_prompts bad worse --device_target CPU --mode 0 \
        --jit_level O1 --seed 42 --enable_flash_attention True --kv_compress False --kv_compress_sampling ave \
        --kv_compress_scale_factor 2 --kv_compress_layer 14 15 --dtype fp32 --scheduler constant --optim adamw \
        --adamw_eps 1e-10 --adamw_betas 0.9 0.99 --came_betas 0.9 0.999 0.9999 --came_eps 1e-30 1e-16 \
        --weight_decay 0.01 --auto_lr sqrt --loss_scaler_type dynamic --init_loss_scale 65536 --scale_window 1000 \
        --loss_scale_factor 2.0 --drop_overflow_update True --use_ema False --ema_rate 0.9999 \
        --gradient_accumulation_steps 2 --clip_grad True --max_grad_norm 0.01 --ckpt_max_keep 1 \
        --ckpt_save_interval 1 --log_loss_interval 2 --recompute True --use_parallel False --sampling_method dpm \
        --sampling_steps 20 --guidance_scale 4.5 --snr_gamma 5 --muon_momentum 0.95 --drop_last True --on_nan skip --ckpt_save_steps 1";
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let (folder, run) = trained(&sandbox, &flags);
    // Two steps of two batches, of which the second one is told; the oldest checkpoint is gone.
    assert!(folder.ends_with("step_00000002"));
    assert!(!run.stderr.contains("step 1/2") && run.stderr.contains("step 2/2"), "{}", run.stderr);
    assert_eq!(fs::read_dir(folder.parent().unwrap()).unwrap().count(), 1);
    let loss = run.stderr.lines().find(|line| line.contains("step 2/2")).unwrap();
    // 1e-3 · √(4 / 256).
    assert!(loss.contains("lr 1.250e-4") && loss.contains("loss scale 65536"), "{loss}");
    assert!(run.stderr.contains("mode: 0 has no effect"), "{}", run.stderr);
}

#[test]
fn sixteen_bits_are_another_model_of_the_same_kind() {
    let sandbox = sandbox();
    let run = |dtype, folder| {
        let (folder, run) = trained(&sandbox, &["--dtype", dtype, "--output_path", folder]);
        let line = run.stderr.lines().find(|line| line.contains("step 4/4")).unwrap().to_owned();
        let loss = line.split("loss ").nth(1).unwrap().split(',').next().unwrap().to_owned();
        (files(&folder), loss.parse::<f64>().unwrap())
    };
    let (weights, loss) = run("fp32", "a");
    for (dtype, folder, tolerance) in [("fp16", "b", 0.01), ("bf16", "c", 0.05)] {
        let (other, near) = run(dtype, folder);
        assert!(
            other != weights && (near / loss - 1.0).abs() < tolerance,
            "{dtype}: {near}, {loss}"
        );
    }
}

#[test]
fn a_model_with_size_conditions_is_trained() {
    let sandbox = sandbox();
    copy_folder(&fixtures::root().join("variants/alpha"), &sandbox.path().join("alpha"));
    let alpha = ["--checkpoint", "alpha/transformer", "--multi_scale", "True"];
    let (folder, _) = trained(&sandbox, &alpha);
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["use_additional_conditions"], true);
    let embedder = |folder: &Path| {
        let bytes = fs::read(folder.join("diffusion_pytorch_model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let name = "adaln_single.emb.aspect_ratio_embedder.linear_1.weight";
        tensors.tensor(name).unwrap().data().to_vec()
    };
    assert_ne!(embedder(&folder), embedder(&sandbox.path().join("alpha/transformer")));
    // It goes on, and a LoRA of it is one more model.
    let (again, _) = trained(&sandbox, &[&alpha[..], &["--resume", "--epochs", "3"]].concat());
    assert!(again.ends_with("step_00000006"));
    trained(&sandbox, &[&alpha[..], &["--lora_rank", "2", "--output_path", "lora"]].concat());
}

#[test]
fn compressed_keys_are_trained() {
    let sandbox = sandbox();
    let kv =
        ["--kv_compress", "True", "--kv_compress_scale_factor", "2", "--kv_compress_layer", "1"];
    let (folder, _) = trained(&sandbox, &[&kv[..], &["--max_train_steps", "1"]].concat());
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    assert_eq!(
        (&config["kv_compress_sampling"], &config["sample_size"]),
        (&"conv".into(), &8.into())
    );
    // Such a model is none with others.
    let checkpoint = folder.strip_prefix(sandbox.path()).unwrap().to_str().unwrap();
    let other = [
        &["--checkpoint", checkpoint, "--output_path", "b"],
        &kv[..4],
        &["--kv_compress_layer", "0"],
    ];
    refused(
        &sandbox,
        &other.concat(),
        WRONG_REQUEST,
        &["conv by 2 in the blocks 0, but the model has conv by 2 in the blocks 1"],
    );
}

#[test]
fn a_device_that_is_not_there_is_told_and_the_processor_is_taken_if_that_is_allowed() {
    let sandbox = sandbox();
    let device = ["--engine", "ort", "--device", "cann", "--max_train_steps", "1"];
    refused(&sandbox, &device, FAILED, &["engine install cann", "--allow_cpu_fallback"]);
    let target = ["--engine", "ort", "--device_target", "Ascend"];
    refused(&sandbox, &target, FAILED, &["engine install cann"]);
    let allowed = [&device[..], &["--allow_cpu_fallback", "True"]].concat();
    let (_, run) = trained(&sandbox, &allowed);
    assert!(run.stderr.contains("cann"), "{}", run.stderr);
}

#[test]
fn wrong_settings_are_refused_before_anything_is_done() {
    let sandbox = sandbox();
    for (more, said) in [
        // Without MPI, and with it.
        (&["--use_parallel", "True"][..], "use_parallel: found "),
        (&["--shard_optimizer", "True"], "shard_optimizer: found true without use_parallel"),
        (&["--device_target", "TPU"], "device_target: found `TPU`, expected CPU, GPU or Ascend"),
        (&["--device", "toaster"], "device: "),
        (&["--device_plugin", "ep.so"], "device_plugin: found ep.so without a device"),
        (&["--device_option", "threads"], "device_option"),
        (&["--dtype", "fp64"], "dtype: found \"fp64\", expected fp32, fp16 or bf16"),
        (&["--optim", "sgd"], "optim: found \"sgd\", expected adamw, came or muon"),
        (&["--adamw_betas", "0.9", "1"], "adamw_betas: found 1"),
        (&["--scheduler", "step"], "scheduler: found \"step\", expected constant or cosine"),
        (&["--auto_lr", "root"], "auto_lr: found \"root\""),
        (&["--start_learning_rate=-1"], "start_learning_rate: found -1"),
        (&["--max_grad_norm", "0"], "max_grad_norm: found 0"),
        (&["--ema_rate", "1"], "ema_rate: found 1"),
        (&["--epochs", "0"], "epochs: found 0, expected 1 or more"),
        (&["--max_train_steps", "0"], "max_train_steps: found 0"),
        (
            &["--gradient_accumulation_steps", "5"],
            "gradient_accumulation_steps: found 5, expected at most 4",
        ),
        (&["--batch_size", "0"], "batch_size: found 0"),
        (&["--batch_size", "9", "--drop_last", "True"], "batch_size to 4 at most"),
        (&["--class_dropout_prob", "2"], "class_dropout_prob: found 2"),
        (
            &["--loss_scaler_type", "none"],
            "loss_scaler_type: found none, expected dynamic or static",
        ),
        (&["--init_loss_scale", "0"], "init_loss_scale: found 0"),
        (&["--on_nan", "warn"], "on_nan: found warn, expected stop or skip"),
        (&["--lora_alpha", "4"], "lora_alpha: found it without lora_rank"),
        (&["--lora_rank", "0"], "lora_rank: found 0"),
        (&["--lora_rank", "4", "--lora_targets", "nothing"], "lora_targets: none of"),
        (&["--lora_rank", "4", "--checkpoint", ""], "checkpoint: found nothing (random weights)"),
        (&["--model_config", "model/transformer"], "model_config: found it with a checkpoint"),
        (
            &["--checkpoint", "", "--model_config", "nowhere"],
            "model_config: found nothing at nowhere",
        ),
        (&["--change_sample_size", "false"], "sample_size: found 8, but the model is one of 32"),
        (
            &["--kv_compress", "True", "--kv_compress_scale_factor", "2"],
            "kv_compress_layer: found nothing",
        ),
        (&["--num_attention_heads", "7"], "num_attention_heads"),
        (&["--resume", "nowhere"], "resume: nowhere: found no complete checkpoint of training"),
        (&["--cache_dir", "nowhere"], "cache_dir: there is no cache in nowhere"),
        (&["--text_encoder_root", "nowhere"], "text_encoder_root: found nothing at nowhere"),
        (&["--ckpt_max_keep", "0"], "ckpt_max_keep: found 0"),
        (&["--log_loss_interval", "0"], "log_loss_interval: found 0"),
        (&["--sd_scale_factor", "0"], "sd_scale_factor: found 0"),
        (&["--threads", "0"], "threads: found 0"),
        (&["--engine", "magic"], "magic"),
    ] {
        refused(&sandbox, more, WRONG_REQUEST, &[said]);
    }
    fs::write(sandbox.path().join("short.yaml"), "start_learning_rat: 1\n").unwrap();
    refused(
        &sandbox,
        &[],
        WRONG_REQUEST,
        &["unknown key `start_learning_rat`; did you mean `start_learning_rate`?"],
    );
    fs::write(sandbox.path().join("short.yaml"), "epochs: many\n").unwrap();
    refused(&sandbox, &[], WRONG_REQUEST, &["short.yaml: wrong value: epochs: invalid type"]);
    fs::write(
        sandbox.path().join("short.yaml"),
        "json_path: labels.json\nimage_dir: images\nsample_size: 8\n",
    )
    .unwrap();
    refused(&sandbox, &[], WRONG_REQUEST, &["checkpoint: nothing given"]);
}

#[test]
fn what_cannot_be_trained_on_is_told() {
    let sandbox = sandbox();
    let write = |text: &str| fs::write(sandbox.path().join("labels.json"), text).unwrap();
    write("[\n  {\"path\": \"0.png\" \"prompt\": \"a\"}\n]");
    refused(&sandbox, &[], FAILED, &["labels.json, line 2, column 20: not valid JSON"]);
    write("[{\"path\": \"gone.png\", \"prompt\": \"a\"}, {\"path\": \"1.png\"}]");
    refused(
        &sandbox,
        &[],
        FAILED,
        &[
            "2 of 2 labels are not trained on (1 missing, 1 no caption)",
            "no picture can be trained on",
        ],
    );
    write(
        "[{\"path\": \"gone.png\", \"prompt\": \"a\"}, {\"path\": \"1.png\", \"prompt\": \"b\"}]",
    );
    let (_, run) = trained(&sandbox, &["--max_train_steps", "1"]);
    assert!(run.stderr.contains("1 of 2 labels are not trained on (1 missing)"), "{}", run.stderr);

    // A checkpoint of another depth than its config, and one that is no transformer.
    copy_folder(&fixtures::tiny().join("transformer"), &sandbox.path().join("deep"));
    let config = sandbox.path().join("deep/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"num_layers\": 2", "\"num_layers\": 28")).unwrap();
    let other = ["--checkpoint", "deep", "--output_path", "b"];
    refused(&sandbox, &other, FAILED, &["num_layers is 28, but the weights say 2"]);
    let other =
        ["--checkpoint", "model/vae/diffusion_pytorch_model.safetensors", "--output_path", "b"];
    refused(&sandbox, &other, FAILED, &["not a PixArt transformer"]);
    // Of another text encoder.
    let wide = fixtures::wide().join("transformer");
    let other = ["--checkpoint", wide.to_str().unwrap(), "--output_path", "b"];
    let run = train(&sandbox, &other);
    assert_ne!(run.code, DONE, "{run:?}");
}

#[test]
fn a_loss_that_is_no_number_ends_it_and_keeps_what_was_saved() {
    let sandbox = sandbox();
    let more = ["--start_learning_rate", "1e30", "--warmup_steps", "2", "--ckpt_save_steps", "1"];
    let run = train(&sandbox, &more);
    assert_eq!(run.code, FAILED, "{run:?}");
    assert!(run.stderr.contains("/output/ckpt/step_0000000"), "{}", run.stderr);
    assert!(run.stderr.contains("--on_nan skip"), "{}", run.stderr);
    assert!(sandbox.path().join("output/ckpt/step_00000001/training.json").is_file());
}
