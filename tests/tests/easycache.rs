//! Steps that are left out: the published rule against numbers of its own, and the binary with the demo model.

use ndarray::ArrayD;
use pixart_runtime::sampler::{EasyCache, StepCache};
use pixart_tests::{
    binary::{Run, Sandbox, says},
    errors::{max_relative_error, psnr},
    fixtures,
};
use serde::Deserialize;
use serde_json::Value;
use std::{fs, path::Path};

const WRONG_REQUEST: i32 = 2;

#[derive(Deserialize)]
struct Fixture {
    /// Of each step.
    latents: Vec<Vec<f32>>,
    /// What a network would say of them, in two rows of a channel of noise and one of variance.
    outputs: Vec<Vec<f32>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    threshold: f64,
    start: f64,
    end: f64,
    first: usize,
    guided: usize,
    /// Whether each step from the first on is computed.
    computed: Vec<bool>,
    /// What is said in each.
    given: Vec<Vec<f32>>,
}

fn tensor(values: &[f32], rows: usize, channels: usize) -> ArrayD<f32> {
    let shape = vec![rows, channels, 1, values.len() / (rows * channels)];
    ArrayD::from_shape_vec(shape, values.to_vec()).expect("as many values as the fixture says")
}

#[test]
fn steps_are_left_out_by_the_published_rule() {
    let text = fs::read_to_string(fixtures::root().join("easycache.json")).expect("the fixture");
    let Fixture { latents, outputs, cases } = serde_json::from_str(&text).expect("the fixture");
    let mut left_out = 0;
    for Case { threshold, start, end, first, guided, computed, given } in cases {
        let mut cache = StepCache::new(EasyCache { threshold, start, end }, latents.len());
        for (i, (computed, given)) in (first..).zip(computed.iter().zip(given)) {
            let rows = if i < guided { 2 } else { 1 };
            let (x, case) = (tensor(&latents[i], 1, 1), format!("{threshold}, step {i}"));
            let reused = cache.reuse(i, &x, rows);
            assert_eq!(reused.is_none(), *computed, "{case}");
            let output = reused.unwrap_or_else(|| {
                // The prompt's row is the last.
                let prompt = outputs[i].len() * (2 - rows) / 2;
                let output = tensor(&outputs[i][prompt..], rows, 2);
                cache.keep(&x, &output);
                output
            });
            let error = max_relative_error(&case, &output, &tensor(&given, rows, 2));
            assert!(error < 1e-6, "{case}: {error:e}");
        }
        let expected = computed.iter().filter(|computed| !**computed).count();
        assert_eq!(cache.reused(), expected, "{threshold}");
        left_out += expected;
    }
    assert!(left_out > 20, "{left_out}");
}

fn sample(sandbox: &Sandbox, more: &[&str]) -> Run {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("models/demo");
    let demo = demo.to_str().unwrap();
    sandbox.pixart(&[&["sample", "--model", demo, "--engine", "ort"], more].concat())
}

/// The latents of a run.
fn latents(sandbox: &Sandbox, name: &str, more: &[&str]) -> (Vec<f32>, Run) {
    let file = format!("{name}.safetensors");
    let prompts = ["--prompt", "a large red circle on a white background", "a green triangle"];
    let more = [&prompts[..], &["--output_path", name, "--save_latents", &file], more].concat();
    let run = sample(sandbox, &more);
    assert_eq!(run.code, 0, "{run:?}");
    let bytes = fs::read(sandbox.path().join(file)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor("latents").unwrap().data().to_vec();
    (data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(), run)
}

/// What a picture says of itself.
fn record(sandbox: &Sandbox, picture: &str) -> Value {
    let run = sandbox.pixart(&["inspect", "--json", picture]);
    assert_eq!(run.code, 0, "{run:?}");
    serde_json::from_str::<Value>(&run.stdout).unwrap()["pixart"].clone()
}

/// max|a − b| / max|b|
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

#[test]
fn the_demo_model_draws_nearly_the_same_in_fewer_steps() {
    let sandbox = Sandbox::new();
    let (plain, run) = latents(&sandbox, "plain", &[]);
    assert!(!run.stderr.contains("easycache:"), "{}", run.stderr);
    assert_eq!(record(&sandbox, "plain/0.png")["facts"]["reused_steps"], Value::Null);

    let (none, run) = latents(&sandbox, "none", &["--easycache", "0"]);
    assert_eq!(none, plain);
    assert!(!run.stderr.contains("easycache:"), "{}", run.stderr);

    let (some, run) = latents(&sandbox, "some", &["--easycache"]);
    assert_ne!(some, plain);
    let mut computed = 40;
    for k in 0..2 {
        let found = record(&sandbox, &format!("some/{k}.png"));
        let reused = found["facts"]["reused_steps"].as_u64().expect("a number");
        assert!((2..17).contains(&reused), "{reused}");
        computed -= reused;
        let settings = &found["settings"];
        let bounds = [&settings["easycache_start"], &settings["easycache_end"]];
        assert_eq!(bounds, [&Value::from(0.15), &Value::from(0.95)]);
        assert_eq!(settings["easycache"].as_f64(), Some(EasyCache::default().threshold));
        let [a, b] = ["some", "plain"].map(|name| sandbox.pixels(&format!("{name}/{k}.png")));
        let ratio = psnr(&format!("picture {k}"), &a, &b);
        assert!(ratio > 25.0, "picture {k}: {ratio:.1} dB");
    }
    says(&run, 0, &[&format!("easycache: {computed} of 40 steps computed")]);

    // The picture says all that it takes to draw it again.
    let again = sample(&sandbox, &["--from", "some/1.png", "--output_path", "again"]);
    assert_eq!(again.code, 0, "{again:?}");
    assert_eq!(sandbox.pixels("again/0.png"), sandbox.pixels("some/1.png"));
    let off = ["--from", "some/1.png", "--easycache", "0", "--output_path", "off"];
    assert_eq!(sample(&sandbox, &off).code, 0);
    assert_eq!(sandbox.pixels("off/0.png"), sandbox.pixels("plain/1.png"));
    // Two at once are the same but for rounding.
    let (both, _) = latents(&sandbox, "both", &["--easycache", "--batch_size", "2"]);
    let error = apart(&both, &some);
    assert!(error < 1e-3, "{error:e}");
}

#[test]
fn not_all_steps_can_be_left_out() {
    let sandbox = Sandbox::new();
    let all = ["--easycache", "1e9", "--easycache_start", "0", "--easycache_end", "1"];
    let (_, run) = latents(&sandbox, "all", &all);
    says(&run, 0, &["easycache: 6 of 40 steps computed"]);
    let part = ["--easycache", "1e9", "--easycache_start", "0.5", "--easycache_end", "0.75"];
    let (_, run) = latents(&sandbox, "part", &part);
    says(&run, 0, &["easycache: 30 of 40 steps computed"]);
    // As a key of a config.
    let config = "easycache: 1e9\neasycache_start: 0.5\neasycache_end: 0.75\n";
    fs::write(sandbox.path().join("a.yaml"), config).unwrap();
    let (_, run) = latents(&sandbox, "config", &["-c", "a.yaml"]);
    says(&run, 0, &["easycache: 30 of 40 steps computed"]);
    let whether = |value: &str| {
        fs::write(sandbox.path().join("a.yaml"), format!("easycache: {value}\n")).unwrap();
        latents(&sandbox, value, &["-c", "a.yaml"])
    };
    let (given, _) = latents(&sandbox, "given", &["--easycache"]);
    assert_eq!(whether("true").0, given);
    let (_, run) = whether("false");
    assert!(!run.stderr.contains("easycache:"), "{}", run.stderr);
}

#[test]
fn settings_out_of_range_are_refused() {
    let sandbox = Sandbox::new();
    for (more, said) in [
        (&["--easycache", "-1"][..], "easycache: found -1, expected a finite number, 0 or more"),
        (&["--easycache", "nan"], "easycache: found NaN"),
        (&["--easycache", "--easycache_start", "2"], "easycache_start: found 2, expected 0 to 1"),
        (&["--easycache", "--easycache_end", "1.5"], "easycache_end: found 1.5, expected"),
        (&["--easycache", "--easycache_end", "0.1"], "expected easycache_start to 1"),
        (&["--easycache_start", "0.2"], "easycache_start: found it without easycache"),
        (&["--easycache_end", "0.9"], "easycache_end: found it without easycache"),
    ] {
        let run = sample(&sandbox, &[&["--prompt", "a"], more].concat());
        says(&run, WRONG_REQUEST, &[said]);
        assert!(sandbox.files().is_empty(), "files were left behind");
    }
}
