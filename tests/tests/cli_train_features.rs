//! `pixart train` on what the official tools have extracted, in the place of text encoder and VAE.

use std::fs;
use std::path::Path;

use pixart_tests::binary::{Run, Sandbox, copy_folder};
use pixart_tests::fixtures;
use serde_json::{Value, json};

const DONE: i32 = 0;
const FAILED: i32 = 1;
const WRONG_REQUEST: i32 = 2;

const BOTH: [&str; 2] = ["--load_vae_feat=True", "--load_t5_feat=True"];

/// The tiny model, and the official folders: pictures, and beside their labels what was extracted of them.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::with_tiny_model();
    let [images, data] = ["InternImgs", "InternData"].map(|name| sandbox.path().join(name));
    copy_folder(&fixtures::root().join("features"), &data);
    fs::create_dir(&images).expect("made");
    let mut labels = Vec::new();
    for (name, prompt) in [("wide", "a red circle"), ("small", "a square"), ("exact", "noise")] {
        let file = format!("{name}.png");
        let source = fixtures::root().join("training_pictures").join(&file);
        fs::copy(source, images.join(&file)).expect("copied");
        labels.push(json!({"path": file, "prompt": prompt, "sharegpt4v": "long"}));
    }
    write_labels(&sandbox, labels);
    let config = "checkpoint: model/transformer\nimage_dir: InternImgs\njson_path: InternData/data_info.json\n\
                  sample_size: 8\nchange_sample_size: True\nmulti_scale: True\nbatch_size: 2\n\
                  max_train_steps: 2\nreal_prompt_ratio: 1\nclass_dropout_prob: 0\nt5_max_length: 60\n\
                  warmup_steps: 1\nengine: tract\nthreads: 2\n";
    fs::write(sandbox.path().join("train.yaml"), config).expect("written");
    sandbox
}

fn write_labels(sandbox: &Sandbox, labels: Vec<Value>) {
    let file = sandbox.path().join("InternData/data_info.json");
    fs::write(file, Value::Array(labels).to_string()).expect("written");
}

fn train(sandbox: &Sandbox, more: &[&str]) -> Run {
    let config = fs::read_to_string(sandbox.path().join("train.yaml")).expect("a config");
    // A flag may be one of the config, which it wins over.
    assert!(config.contains("t5_max_length"));
    sandbox.pixart(&[&["train", "-c", "train.yaml"][..], more].concat())
}

fn losses(output: &Path) -> Vec<f64> {
    let text = fs::read_to_string(output.join("logs/training.jsonl")).expect("a log");
    let line = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["loss"].as_f64();
    text.lines().map(|text| line(text).expect("a loss")).collect()
}

const ENCODERS: [&str; 3] = [
    "--text_encoder_root=model/text_encoder",
    "--tokenizer_root=model/tokenizer",
    "--vae_root=model/vae",
];

#[test]
fn no_encoder_is_needed_and_what_is_learnt_is_about_the_same() {
    let sandbox = sandbox();
    let at = |path: &str| sandbox.path().join(path);
    // The caption of one of the pictures is another one in the features.
    let done = |more: &[&str]| {
        let run = train(&sandbox, more);
        assert_eq!(run.code, DONE, "{run:?}");
    };
    done(&[&ENCODERS[..2], &["--load_vae_feat", "--output_path=moments"]].concat());
    done(&[&ENCODERS[2..], &["--load_t5_feat", "--output_path=captions"]].concat());
    done(&[&ENCODERS[..], &["--output_path=live"]].concat());
    // Dropped captions become the empty one.
    let dropped = ["--class_dropout_prob=1", "--output_path=dropped"];
    done(&[&ENCODERS[..2], &BOTH, &dropped].concat());
    done(&[&ENCODERS[..], &["--class_dropout_prob=1", "--output_path=live_dropped"]].concat());
    for part in ["model/text_encoder", "model/vae", "model/tokenizer", ".cache"] {
        fs::remove_dir_all(at(part)).expect("removed");
    }
    done(&[&BOTH[..], &["--output_path=both"]].concat());
    done(&[&BOTH[..], &["--real_prompt_ratio=0", "--output_path=long"]].concat());
    let first = |output: &str| losses(&at(output))[0];
    let live = first("live");
    for output in ["both", "moments", "captions"] {
        let loss = first(output);
        assert!((loss - live).abs() < 0.01 * live, "{output}: {loss}, live {live}");
    }
    assert_ne!(first("long"), first("both"), "the other caption's features");
    // Only the number of tokens of a dropped caption is its own.
    let (dropped, live) = (first("dropped"), first("live_dropped"));
    assert!((dropped - live).abs() < 0.01 * live, "{dropped}, live {live}");
}

#[test]
fn what_is_missing_or_of_another_shape_is_left_out_and_told() {
    let sandbox = sandbox();
    let at = |path: &str| sandbox.path().join("InternData").join(path);
    let moments = "img_sdxl_vae_features_64resolution_ms_new";
    fs::remove_file(at(moments).join("exact.npy")).expect("removed");
    let run = train(&sandbox, &BOTH);
    assert_eq!(run.code, DONE, "{run:?}");
    for said in [
        "1 of 3 pictures do not have the features",
        "ask for: 1 missing",
        "(exact.png: there is no InternData/img_sdxl_vae_features_64resolution_ms_new/exact.npy)",
        "they are not trained on",
    ] {
        assert!(run.stderr.contains(said), "no `{said}` in: {}", run.stderr);
    }
    // What was saved goes on with the same.
    let more = ["--resume", "--max_train_steps=3"];
    let run = train(&sandbox, &[&BOTH[..], &more].concat());
    assert_eq!(run.code, DONE, "{run:?}");

    let refused = |more: &[&str], code, said: &[&str]| {
        let before = sandbox.files();
        let run = train(&sandbox, &[&BOTH[..], &["--output_path=other"], more].concat());
        assert_eq!(run.code, code, "{more:?}: {run:?}");
        for said in said {
            assert!(run.stderr.contains(said), "{more:?}: no `{said}` in: {}", run.stderr);
        }
        assert_eq!(sandbox.files(), before, "files were left behind");
    };
    refused(
        &["--multi_scale=False"],
        FAILED,
        &["3 of 3 pictures do not", "img_sdxl_vae_features_64resolution_new/wide.npy", "extract"],
    );
    refused(
        &["--t5_max_length=1"],
        FAILED,
        &[
            "ask for: 1 missing, 2 of another type or shape",
            "caption_feature: found F16 of [1, ",
            "at most 1 tokens (t5_max_length), 48]",
        ],
    );
    fs::remove_dir_all(at("sharegpt4v_caption_features_new")).expect("removed");
    refused(
        &["--real_prompt_ratio=0.5"],
        FAILED,
        &["there is no InternData/sharegpt4v_caption_features_new/wide.npz", "real_prompt_ratio 1"],
    );
    for file in ["wide.npy", "small.npy"] {
        fs::write(at(moments).join(file), "no array").expect("written");
    }
    refused(&[], FAILED, &["wide.npy: it is no array of numpy"]);
}

#[test]
fn files_of_the_tool_end_at_the_first_dot_and_may_be_of_two_pictures() {
    let sandbox = sandbox();
    let images = sandbox.path().join("InternImgs");
    let data = |path: &str| sandbox.path().join("InternData").join(path);
    let label = |path: &str| json!({"path": path, "prompt": "a red circle"});
    let rename = |name: &str| {
        fs::rename(images.join("wide.png"), images.join(format!("{name}.png"))).expect("renamed");
        let captions = |name: &str| data(&format!("caption_features_new/{name}.npz"));
        fs::rename(captions("wide"), captions(name)).expect("renamed");
    };
    rename("wide.v2");
    write_labels(&sandbox, vec![label("wide.v2.png"), label("small.png")]);
    let run = train(&sandbox, &BOTH);
    assert_eq!(run.code, DONE, "{run:?}");
    assert!(!run.stderr.contains("not trained on"), "{}", run.stderr);
    fs::copy(images.join("wide.v2.png"), images.join("wide.v3.png")).expect("copied");
    let labels = ["wide.v2.png", "wide.v3.png", "small.png"].map(label);
    write_labels(&sandbox, labels.to_vec());
    let run =
        train(&sandbox, &["--load_vae_feat", "--output_path=other", ENCODERS[0], ENCODERS[1]]);
    assert_eq!(run.code, DONE, "{run:?}");
    for said in [
        "ask for: 2 ambiguous (wide.v2.png: ",
        "wide.npy can be of one picture only, and 2 have that name",
    ] {
        assert!(run.stderr.contains(said), "no `{said}` in: {}", run.stderr);
    }
}

#[test]
fn what_becomes_unreadable_later_is_skipped_and_named() {
    let sandbox = sandbox();
    // Its beginning is sound, which is all that is looked at before.
    let path = "InternData/caption_features_new/small.npz";
    let file = sandbox.path().join(path);
    let mut bytes = fs::read(&file).expect("features");
    bytes[3000] ^= 0xff;
    fs::write(&file, bytes).expect("written");
    let run = train(&sandbox, &BOTH);
    assert_eq!(run.code, DONE, "{run:?}");
    let told = run.stderr.lines().find(|line| line.contains(path)).expect("told");
    assert!(
        told.contains("small.png cannot be read any more, another one stands for it"),
        "{told}"
    );
}

#[test]
fn settings_they_do_not_go_with_are_refused() {
    let sandbox = sandbox();
    copy_folder(&fixtures::root().join("variants/alpha"), &sandbox.path().join("alpha"));
    let before = sandbox.files();
    for (more, said) in [
        (&["--load_vae_feat", "--cache_dir=x"][..], "load_vae_feat: found it with cache_dir"),
        (&["--load_t5_feat", "--cache_dir=x"], "load_t5_feat: found it with cache_dir"),
        (
            &[
                "--load_t5_feat",
                "--multi_scale=False",
                "--prior_image_dir=InternImgs",
                "--prior_prompt=a",
            ],
            "load_t5_feat: found it with prior_image_dir",
        ),
        (
            &["--load_vae_feat"],
            "text_encoder_root: nothing given; name its folder with --text_encoder_root, or read what the official \
             tools have made of captions with --load_t5_feat True\n",
        ),
        (
            &["--load_t5_feat"],
            "vae_root: nothing given; name its folder with --vae_root, or read what the official tools have made of \
             pictures with --load_vae_feat True\n",
        ),
        (
            &["--load_t5_feat", "--class_dropout_prob=0.1", ENCODERS[0], ENCODERS[1]],
            "vae_root: nothing given; name its folder with --vae_root, or read what the official tools have made of \
             pictures with --load_vae_feat True\n",
        ),
        (
            &["--load_t5_feat", "--load_vae_feat", "--class_dropout_prob=0.1"],
            "text_encoder_root: nothing given; name its folder with --text_encoder_root, which makes the empty \
             caption that dropped ones become, or drop none: --class_dropout_prob 0\n",
        ),
        (
            &["--multi_scale=False"],
            "text_encoder_root: nothing given; name its folder with --text_encoder_root, or with --cache_dir what \
             `pixart train cache` has made of pictures and captions\n",
        ),
        (
            &["--multi_scale=False", "--prior_image_dir=InternImgs", "--prior_prompt=a"],
            "text_encoder_root: nothing given; name its folder with --text_encoder_root\n",
        ),
        (
            &["--load_vae_feat", "--checkpoint=alpha/transformer"],
            "load_vae_feat: found it with a model that has conditions of size",
        ),
    ] {
        let run = train(&sandbox, more);
        assert_eq!(run.code, WRONG_REQUEST, "{more:?}: {run:?}");
        assert!(run.stderr.contains(said), "{more:?}: no `{said}` in: {}", run.stderr);
        assert_eq!(sandbox.files(), before, "files were left behind");
    }
}
