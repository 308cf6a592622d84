//! Prior pictures of `pixart train`, which keep a model from forgetting what it can draw.

use std::{fs, path::Path};

use pixart_tests::{
    binary::{Run, Sandbox},
    training::sandbox,
};
use serde_json::Value;

const DONE: i32 = 0;
const WRONG_REQUEST: i32 = 2;

fn train(sandbox: &Sandbox, more: &[&str]) -> Run {
    let usual = ["train", "-c", "short.yaml", "--lora_rank=2"];
    sandbox.pixart(&[&usual[..], more].concat())
}

fn trained(sandbox: &Sandbox, more: &[&str]) -> Run {
    let run = train(sandbox, more);
    assert_eq!(run.code, DONE, "{run:?}");
    run
}

fn losses(output: &Path) -> Vec<f64> {
    let text = fs::read_to_string(output.join("logs/training.jsonl")).expect("a log");
    let line = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["loss"].as_f64();
    text.lines().map(|text| line(text).expect("a loss")).collect()
}

fn adapter(checkpoint: &Path) -> Vec<u8> {
    fs::read(checkpoint.join("adapter_model.safetensors")).expect("a LoRA")
}

#[test]
fn missing_pictures_are_drawn_and_each_batch_learns_from_both() {
    let sandbox = sandbox();
    let at = |path: &str| sandbox.path().join(path);
    let prior = ["--prior_image_dir=prior", "--prior_prompt", "a picture", "--num_prior_images=3"];
    let sampling = ["--sampling_method=dpm", "--sampling_steps=2"];
    let run = trained(&sandbox, &[&prior[..], &sampling].concat());
    assert!(run.stderr.contains("drew 3 prior pictures, prior"), "{run:?}");
    let drawn = || {
        let entries = fs::read_dir(at("prior")).expect("a folder");
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        paths
    };
    let first: Vec<_> = drawn().into_iter().map(|path| fs::read(path).expect("read")).collect();
    assert_eq!(first.len(), 3);
    assert!(first[0] != first[1] && first[1] != first[2]);
    assert_eq!(image::open(&drawn()[0]).expect("a picture").width(), 64);

    // What is there is not drawn again, and what is learnt is the same.
    let again = trained(&sandbox, &[&prior[..], &sampling, &["--output_path=again"]].concat());
    assert!(!again.stderr.contains("drew"), "{again:?}");
    let last = "ckpt/step_00000004";
    assert!(adapter(&at("output").join(last)) == adapter(&at("again").join(last)), "another LoRA");
    // Going on is not having stopped.
    let resume = ["--output_path=again", "--resume=again/ckpt/step_00000002"];
    trained(&sandbox, &[&prior[..], &sampling, &resume].concat());
    assert!(adapter(&at("output").join(last)) == adapter(&at("again").join(last)), "another LoRA");

    // Without weight, what counts is the batch's own pictures; with it, their losses come on top.
    trained(&sandbox, &["--output_path=plain"]);
    let none = [&prior[..], &["--prior_loss_weight=0", "--output_path=none"]].concat();
    trained(&sandbox, &none);
    let [both, plain, none] = ["output", "plain", "none"].map(|output| losses(&at(output)));
    assert_eq!((both.len(), plain.len(), none.len()), (4, 4, 4));
    for (plain, none) in plain.iter().zip(&none) {
        assert!((plain - none).abs() < 1e-4 * plain, "{plain}, {none}");
    }
    assert!(both[0] > plain[0] * 1.1, "{} and {}", both[0], plain[0]);
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_done() {
    let sandbox = sandbox();
    fs::create_dir(sandbox.path().join("empty")).expect("made");
    let before = sandbox.files();
    let whole = ["--prior_image_dir=images", "--prior_prompt=a"];
    for (more, said) in [
        (&["--prior_prompt=a"][..], "prior_prompt: found it without prior_image_dir"),
        (&["--num_prior_images=2"], "num_prior_images: found it without prior_image_dir"),
        (&["--prior_image_dir=images"], "prior_prompt: nothing given"),
        (&["--prior_image_dir=nowhere", "--prior_prompt=a"], "prior_image_dir: found no folder"),
        (
            &[&whole[..], &["--multi_scale=True"]].concat(),
            "multi_scale: found true, expected false",
        ),
        (&[&whole[..], &["--cache_dir=x"]].concat(), "cache_dir: found it with prior_image_dir"),
        (&[&whole[..], &["--prior_loss_weight=-1"]].concat(), "prior_loss_weight: found -1"),
        (&["--prior_image_dir=empty", "--prior_prompt=a"], "no usable picture in empty"),
    ] {
        let run = train(&sandbox, more);
        assert_eq!(run.code, WRONG_REQUEST, "{more:?}: {run:?}");
        assert!(run.stderr.contains(said), "{more:?}: no `{said}` in {}", run.stderr);
        assert_eq!(sandbox.files(), before, "files were left behind");
    }
}

#[test]
fn a_training_goes_on_with_the_prior_pictures_it_began_with_and_draws_none() {
    let sandbox = sandbox();
    let at = |path: &str| sandbox.path().join(path);
    fs::create_dir(at("prior")).expect("made");
    fs::create_dir(at("empty")).expect("made");
    for name in ["0.png", "1.png", "2.png"] {
        fs::copy(at("images").join(name), at("prior").join(name)).expect("copied");
    }
    let prior = ["--prior_image_dir=prior", "--prior_prompt", "a picture"];
    trained(&sandbox, &[&prior[..], &["--num_prior_images=3"]].concat());
    // Wherever they lie.
    fs::rename(at("prior"), at("moved")).expect("moved");
    let moved = ["--prior_image_dir=moved", "--prior_prompt", "a picture"];
    let resume = ["--resume=output/ckpt/step_00000002"];
    let weights = at("output/ckpt/step_00000004/adapter_model.safetensors");
    let learnt = fs::read(&weights).expect("a LoRA");
    trained(&sandbox, &[&moved[..], &resume].concat());
    assert!(fs::read(&weights).expect("a LoRA") == learnt, "another LoRA");
    // Whatever has come to them.
    fs::copy(at("images/3.png"), at("moved/1_more.png")).expect("copied");
    let run = trained(&sandbox, &[&moved[..], &["--num_prior_images=3"], &resume].concat());
    assert!(run.stderr.contains("1 pictures of moved are passed over"), "{run:?}");
    assert!(fs::read(&weights).expect("a LoRA") == learnt, "another LoRA");
    fs::remove_file(at("moved/2.png")).expect("removed");
    fs::write(at("moved/1.png"), "no picture").expect("written");
    let before = sandbox.files();
    let other_prompt = ["--prior_image_dir=moved", "--prior_prompt", "a dog"];
    for (more, said) in [
        (
            &[&moved[..], &["--num_prior_images=4"]].concat(),
            "num_prior_images: found 4, expected at most the 3 that it began with, because a training that goes on \
             draws none",
        ),
        (
            &moved.to_vec(),
            "prior_image_dir: found 1 of the 3 pictures in moved that the training began with, expected all; put \
             back 1.png (",
        ),
        (&moved.to_vec(), "), and 1 more\n"),
        (&vec![], "expected no prior pictures"),
        (
            &other_prompt.to_vec(),
            "prior_prompt: found \"a dog\", expected \"a picture\", with which the training began",
        ),
        (
            &["--prior_image_dir=empty", "--prior_prompt", "a picture"].to_vec(),
            "found 0 of the 3 pictures in empty that the training began with, expected all; put back 0.png (it is \
             not there), and 2 more\n",
        ),
    ] {
        let run = train(&sandbox, &[more, &resume[..]].concat());
        assert_eq!(run.code, WRONG_REQUEST, "{more:?}: {run:?}");
        assert!(run.stderr.contains(said), "{more:?}: no `{said}` in {}", run.stderr);
        assert_eq!(sandbox.files(), before, "files were left behind");
    }
}

#[test]
fn prior_pictures_alone_are_nothing_to_learn_from() {
    let sandbox = sandbox();
    let prior = ["--prior_image_dir=prior", "--prior_prompt", "a picture"];
    fs::create_dir(sandbox.path().join("prior")).expect("made");
    for name in ["0.png", "1.png"] {
        let [from, to] = ["images", "prior"].map(|folder| sandbox.path().join(folder).join(name));
        fs::copy(from, to).expect("copied");
    }
    // Their headers are sound.
    for k in 0..4 {
        let file = sandbox.path().join(format!("images/{k}.png"));
        let bytes = fs::read(&file).expect("a picture");
        fs::write(&file, &bytes[..bytes.len() / 2]).expect("cut");
    }
    let run = train(&sandbox, &prior);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("none of the 4 pictures of 64 × 64 pixels can be read"), "{run:?}");
}
