//! `pixart dataset check` through the binary: every kind of source, and everything that can be wrong.

use image::{ImageFormat, RgbImage};
use pixart_tests::binary::{Run, Sandbox};
use pixart_tests::fixtures;
use serde_json::{Value, json};
use std::fs;

const DONE: i32 = 0;
const FAILED: i32 = 1;
const WRONG_REQUEST: i32 = 2;

/// A picture of noise that no other seed has.
fn picture(width: u32, height: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let value = (x + y * width + seed * 7919).wrapping_mul(2_654_435_761);
        image::Rgb([(value >> 24) as u8, (value >> 16) as u8, (value >> 8) as u8])
    })
}

/// A sandbox with `images/` of four sound pictures: a.png and b.jpg square, c.webp and sub/d.png wide.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    let images = sandbox.path().join("images");
    fs::create_dir_all(images.join("sub")).unwrap();
    for (seed, (name, width, height)) in
        [("a.png", 80, 80), ("b.jpg", 64, 66), ("c.webp", 192, 96), ("sub/d.png", 100, 50)]
            .into_iter()
            .enumerate()
    {
        let file = images.join(name);
        let format = ImageFormat::from_path(&file).unwrap();
        picture(width, height, seed as u32).save_with_format(file, format).unwrap();
    }
    sandbox
}

const NAMES: [&str; 4] = ["a.png", "b.jpg", "c.webp", "sub/d.png"];

/// A label for each sound picture, as the seed writes them: with commas at the ends.
fn labels() -> String {
    let records = NAMES.map(|name| {
        format!(
            "    {{\n        \"path\": \"{name}\",\n        \"prompt\": \"picture, {name}\",\n        \
             \"sharegpt4v\": \"long {name}\",\n    }},\n"
        )
    });
    format!("[\n{}]\n", records.concat())
}

/// Checks for a model of 64 pixels with aspect buckets.
fn check(sandbox: &Sandbox, more: &[&str]) -> Run {
    let mut args = vec!["dataset", "check", "--image_dir", "images"];
    args.extend(["--sample_size", "8", "--multi_scale", "true", "--batch_size", "2"]);
    args.extend(more);
    sandbox.pixart(&args)
}

/// Checks `text` as a label file of this name; gives the report and the run.
fn check_labels(sandbox: &Sandbox, name: &str, text: &str, more: &[&str]) -> (Value, Run) {
    fs::write(sandbox.path().join(name), text).unwrap();
    let run = check(sandbox, &[&["--json_path", name, "--json"], more].concat());
    (serde_json::from_str(&run.stdout).unwrap_or(Value::Null), run)
}

/// The run refused the request or failed, with `said` and nothing on stdout.
fn assert_refused(run: &Run, code: i32, said: &[&str]) {
    assert_eq!(run.code, code, "{run:?}");
    assert_eq!(run.stdout, "", "{run:?}");
    for text in said {
        assert!(run.stderr.contains(text), "no `{text}` in: {}", run.stderr);
    }
    assert!(run.stderr.starts_with("error: ") && !run.stderr.contains("panicked"), "{run:?}");
}

#[test]
fn the_seeds_labels_with_trailing_commas() {
    let sandbox = sandbox();
    let (report, run) = check_labels(&sandbox, "labels.json", &labels(), &[]);
    assert_eq!(run.code, DONE, "{run:?}");
    assert_eq!((&report["entries"], &report["usable"]), (&json!(4), &json!(4)));
    assert_eq!(report["captions"], json!([4, 0, 0]));
    assert_eq!(
        report["buckets"],
        json!([
            {"height": 48, "width": 96, "pictures": 2, "batches": 1},
            {"height": 64, "width": 64, "pictures": 2, "batches": 1},
        ])
    );
    assert_eq!((&report["left_out"], &report["long_captions"]), (&json!([]), &Value::Null));
    assert_eq!(sandbox.files().len(), 5, "nothing is written");

    let run = check(&sandbox, &["--json_path", "labels.json"]);
    assert_eq!(run.code, DONE, "{run:?}");
    for line in [
        "labels                4",
        "usable                4",
        "   48 × 96",
        "duplicates            0",
    ] {
        assert!(run.stdout.contains(line), "no `{line}` in:\n{}", run.stdout);
    }
}

#[test]
fn the_long_caption_may_have_another_name() {
    let sandbox = sandbox();
    let text = labels().replace("sharegpt4v", "long");
    let captions = |more: &[&str]| {
        let (report, run) = check_labels(&sandbox, "labels.json", &text, more);
        assert_eq!(run.code, DONE, "{run:?}");
        report["captions"].clone()
    };
    // With both, the original one only, the long one only.
    assert_eq!(captions(&[]), json!([0, 4, 0]));
    assert_eq!(captions(&["--sharegpt4v_column", "long"]), json!([4, 0, 0]));
}

#[test]
fn the_report_does_not_depend_on_the_number_of_threads() {
    let sandbox = sandbox();
    let report = |workers: &str| {
        let (more, name) = (["--num_parallel_workers", workers], "labels.json");
        let (report, run) = check_labels(&sandbox, name, &labels(), &more);
        assert_eq!(run.code, DONE, "{run:?}");
        report
    };
    assert_eq!(report("1"), report("3"));
}

#[test]
fn every_other_source() {
    let sandbox = sandbox();
    let expected = check_labels(&sandbox, "labels.json", &labels(), &[]).0;
    let lines = NAMES.map(|name| {
        json!({"file_name": name, "text": format!("picture, {name}"), "sharegpt4v": "long"})
            .to_string()
    });
    let columns = ["--path_column", "file_name", "--prompt_column", "text"];
    let (report, run) = check_labels(&sandbox, "labels.jsonl", &lines.join("\n"), &columns);
    assert_eq!((run.code, &report), (DONE, &expected), "{run:?}");

    let rows = NAMES.map(|name| format!("{name},\"picture, {name}\",long\n"));
    let table = format!("file_name,text,sharegpt4v\n{}", rows.concat());
    let (report, run) = check_labels(&sandbox, "labels.csv", &table, &columns);
    assert_eq!((run.code, &report), (DONE, &expected), "{run:?}");

    // Captions beside the pictures, one of which has none.
    for name in ["a.txt", "b.txt", "sub/d.txt"] {
        fs::write(sandbox.path().join("images").join(name), "a caption\n").unwrap();
    }
    let run = check(&sandbox, &["--json"]);
    assert_eq!(run.code, FAILED, "{run:?}");
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&report["usable"], &report["captions"]), (&json!(3), &json!([0, 3, 0])));
    assert_eq!(
        report["left_out"],
        json!([{"entry": 3, "line": null, "path": "c.webp", "kind": "no caption", "filtered": false,
                "reason": "no caption"}])
    );
    assert!(run.stderr.contains("1 of 4 labels cannot be trained on"), "{}", run.stderr);
}

#[test]
fn malformed_labels_are_refused_with_line_and_column() {
    let sandbox = sandbox();
    for (name, text, said) in [
        (
            "labels.json",
            "[\n  {\"path\": \"a.png\" \"prompt\": \"a\"}\n]",
            "labels.json, line 2, column 20: not valid JSON",
        ),
        (
            "labels.json",
            "[\n  {\"path\": \"a.png\"},,\n]",
            "labels.json, line 2, column 21: not valid JSON",
        ),
        (
            "labels.jsonl",
            "{\"path\": \"a.png\"}\n{",
            "labels.jsonl, line 2, column 1: not valid JSON: EOF",
        ),
        (
            "labels.csv",
            "path,prompt\na.png,one, two\n",
            "labels.csv, line 2, column 1: found 3 fields, expected 2",
        ),
        (
            "labels.json",
            "{\"a.png\": \"a\"}",
            "labels.json, line 1, column 1: not valid JSON: invalid type: map, expected a list of records",
        ),
    ] {
        let (_, run) = check_labels(&sandbox, name, text, &[]);
        assert_refused(&run, FAILED, &[said]);
    }
}

#[test]
fn wrong_types_are_refused_with_entry_and_field() {
    let sandbox = sandbox();
    for (entry, said) in [
        (
            "{\"path\": 3}",
            "entry 2: `path`: found the number 3, expected the picture's path as a text",
        ),
        (
            "{\"path\": \"a.png\", \"prompt\": {}}",
            "entry 2: `prompt`: found an object, expected a caption",
        ),
        ("{\"path\": \"a.png\", \"width\": \"512\"}", "entry 2: `width`: found the text \"512\""),
        ("\"a.png\"", "entry 2: found the text \"a.png\", expected an object"),
    ] {
        let text = format!("[{{\"path\": \"a.png\", \"prompt\": \"a\"}},\n {entry}]");
        let (_, run) = check_labels(&sandbox, "labels.json", &text, &[]);
        assert_refused(&run, FAILED, &["labels.json", said]);
    }
}

#[test]
fn paths_that_leave_the_folder_are_refused() {
    let sandbox = sandbox();
    picture(64, 64, 9).save(sandbox.path().join("outside.png")).unwrap();
    let outside = sandbox.path().join("outside.png");
    for (path, said) in
        [("../outside.png", "goes up with `..`"), (outside.to_str().unwrap(), "is absolute")]
    {
        let text = json!([{"path": path, "prompt": "a"}]).to_string();
        let (_, run) = check_labels(&sandbox, "labels.json", &text, &[]);
        assert_refused(&run, FAILED, &["entry 1", path, said, "inside of image_dir"]);
    }
}

/// The labels of `more` beside the four sound ones.
fn with_labels(more: &[Value]) -> String {
    let mut all: Vec<Value> =
        NAMES.iter().map(|name| json!({"path": name, "prompt": "a"})).collect();
    all.extend(more.iter().cloned());
    Value::Array(all).to_string()
}

#[test]
fn missing_and_broken_pictures_are_left_out_and_named() {
    let sandbox = sandbox();
    let images = sandbox.path().join("images");
    let cut = |from: &str, to: &str, part: usize| {
        let bytes = fs::read(images.join(from)).unwrap();
        fs::write(images.join(to), &bytes[..bytes.len() * part / 10]).unwrap();
    };
    cut("a.png", "cut.png", 6);
    cut("b.jpg", "cut.jpg", 9);
    cut("c.webp", "cut.webp", 9);
    fs::write(images.join("page.png"), "<html>not found</html>").unwrap();
    fs::write(images.join("empty.png"), "").unwrap();
    let names = ["cut.png", "cut.jpg", "cut.webp", "page.png", "empty.png", "gone.png", "sub"];
    let more = names.map(|name| json!({"path": name, "prompt": "a"}));
    let (report, run) = check_labels(&sandbox, "labels.json", &with_labels(&more), &[]);
    assert_eq!(run.code, FAILED, "{run:?}");
    assert!(run.stderr.contains("7 of 11 labels cannot be trained on"), "{}", run.stderr);
    assert_eq!(report["usable"], 4);
    let expected = [
        ("unreadable", "truncated"),
        ("unreadable", "truncated"),
        ("unreadable", "truncated"),
        ("unreadable", "no PNG, JPEG or WebP picture"),
        ("unreadable", "no PNG, JPEG or WebP picture"),
        ("missing", "there is no such file"),
        ("unreadable", "this is no file"),
    ];
    let left_out = report["left_out"].as_array().unwrap();
    assert_eq!(left_out.len(), names.len());
    for (k, (kind, reason)) in expected.into_iter().enumerate() {
        assert_eq!(left_out[k]["path"], names[k]);
        assert_eq!((&left_out[k]["entry"], &left_out[k]["kind"]), (&json!(k + 5), &json!(kind)));
        assert!(left_out[k]["reason"].as_str().unwrap().contains(reason), "{:?}", left_out[k]);
    }
    // The table has the same.
    let run = check(&sandbox, &["--json_path", "labels.json"]);
    assert_eq!(run.code, FAILED);
    assert!(run.stdout.contains("entry 10, gone.png: there is no such file"), "{}", run.stdout);

    // Without decompressing, a PNG that is cut off still has its size.
    let (report, _) = check_labels(&sandbox, "labels.json", &with_labels(&more), &["--quick"]);
    assert_eq!(report["usable"], 5);
}

#[test]
fn pictures_that_are_too_large_are_not_unpacked() {
    let sandbox = sandbox();
    let (report, run) = check_labels(&sandbox, "labels.json", &labels(), &["--max_pixels", "6400"]);
    assert_eq!((run.code, &report["usable"]), (FAILED, &json!(3)));
    assert_eq!(report["left_out"][0]["reason"], "18432 pixels, at most 6400 are read");
}

#[test]
fn nothing_usable_is_an_error() {
    let sandbox = sandbox();
    for (text, entries) in [
        ("[]".to_owned(), "none of 0 labels"),
        (json!([{"path": "gone.png", "prompt": "a"}]).to_string(), "none of 1 labels"),
        (json!([{"path": "a.png", "prompt": " "}]).to_string(), "none of 1 labels"),
    ] {
        let (report, run) = check_labels(&sandbox, "labels.json", &text, &[]);
        assert_eq!((run.code, &report["usable"]), (FAILED, &json!(0)), "{run:?}");
        assert!(run.stderr.contains(entries) && run.stderr.contains("images"), "{}", run.stderr);
    }
    fs::create_dir(sandbox.path().join("none")).unwrap();
    let run = sandbox.pixart(&["dataset", "check", "--image_dir", "none"]);
    assert_eq!(run.code, FAILED, "{run:?}");
    assert!(run.stderr.contains("none of 0 labels"), "{}", run.stderr);
}

#[test]
fn filters_are_no_problems() {
    let sandbox = sandbox();
    let images = sandbox.path().join("images");
    picture(500, 100, 20).save(images.join("panorama.png")).unwrap();
    picture(100, 500, 21).save(images.join("tower.png")).unwrap();
    picture(32, 32, 22).save(images.join("icon.png")).unwrap();
    let names = ["panorama.png", "tower.png", "icon.png"];
    let text = with_labels(&names.map(|name| json!({"path": name, "prompt": "a"})));
    let (report, run) = check_labels(&sandbox, "labels.json", &text, &["--max_enlargement", "1.5"]);
    assert_eq!((run.code, &report["usable"]), (DONE, &json!(4)), "{run:?}");
    let kinds: Vec<_> = (0..3).map(|k| report["left_out"][k]["kind"].clone()).collect();
    assert_eq!(kinds, ["extreme ratio", "extreme ratio", "too small"]);
    assert!((0..3).all(|k| report["left_out"][k]["filtered"] == true));
    let reason = report["left_out"][2]["reason"].as_str().unwrap();
    assert_eq!(reason, "32 × 32 pixels would be enlarged 2.00 times, at most 1.5 times is taken");

    let (report, run) = check_labels(&sandbox, "labels.json", &text, &["--max_ratio", "5"]);
    assert_eq!((run.code, &report["usable"]), (DONE, &json!(7)), "{run:?}");
    assert_eq!(report["enlarged"][0]["path"], "icon.png");
}

#[test]
fn copies_wrong_sizes_and_long_captions_are_told() {
    let sandbox = sandbox();
    let images = sandbox.path().join("images");
    fs::copy(images.join("a.png"), images.join("copy.png")).unwrap();
    let long = "a red circle and a blue square ".repeat(12);
    let more = [
        json!({"path": "copy.png", "prompt": "a", "height": 10, "width": 80}),
        json!({"path": "b.jpg", "sharegpt4v": long, "height": 66, "width": 64}),
    ];
    let tokenizer = fixtures::tiny().join("tokenizer");
    let tokenizer = ["--tokenizer_root", tokenizer.to_str().unwrap(), "--t5_max_length", "40"];
    let text = with_labels(&more);
    let (report, run) = check_labels(&sandbox, "labels.json", &text, &tokenizer);
    assert_eq!(run.code, DONE, "{run:?}");
    assert_eq!(report["duplicates"], json!([["a.png", "copy.png"], ["b.jpg", "b.jpg"]]));
    assert_eq!(
        report["mislabelled"],
        json!([{"path": "copy.png", "declared": [10, 80], "found": [80, 80]}])
    );
    let [caption] = &report["long_captions"].as_array().unwrap()[..] else {
        panic!("one long caption: {report}");
    };
    assert_eq!((&caption["path"], &caption["caption"]), (&json!("b.jpg"), &json!("sharegpt4v")));
    assert!(caption["tokens"].as_u64().unwrap() > 40);
    // By name alone.
    let (report, _) = check_labels(&sandbox, "labels.json", &text, &["--quick"]);
    assert_eq!(report["duplicates"], json!([["b.jpg", "b.jpg"]]));
}

#[test]
fn squares_are_one_bucket() {
    let sandbox = sandbox();
    let more = ["--multi_scale", "false"];
    fs::write(sandbox.path().join("labels.json"), labels()).unwrap();
    let base = ["dataset", "check", "--image_dir", "images", "--labels", "labels.json"];
    let run = sandbox.pixart(&[&base[..], &more, &["--json", "--sample_size", "8"]].concat());
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(
        report["buckets"],
        json!([{"height": 64, "width": 64, "pictures": 4, "batches": 1}])
    );
}

#[test]
fn wrong_requests() {
    let sandbox = sandbox();
    fs::write(sandbox.path().join("labels.json"), labels()).unwrap();
    fs::write(sandbox.path().join("table.csv"), "file,text\na.png,a\n").unwrap();
    fs::write(sandbox.path().join("typo.yaml"), "multi_scal: True\n").unwrap();
    for (args, said) in [
        (&["--json_path", "none.json"][..], "json_path: there is no file none.json"),
        (&["--image_dir", "none"], "image_dir: none is no folder"),
        (&["--json_path", "table.csv"], "no column `path`, the columns are file, text"),
        (&["--path_column", "a"], "a folder of pictures has no columns"),
        (&["--sample_size", "7"], "sample_size: found 7, expected an even number"),
        (&["--batch_size", "0"], "batch_size: found 0, expected 1 or more"),
        (&["--num_parallel_workers", "0"], "num_parallel_workers: found 0, expected 1 or more"),
        (&["--max_ratio", "0.5"], "max_ratio: found 0.5"),
        (&["--max_enlargement", "0"], "max_enlargement: found 0"),
        (&["--tokenizer_root", "none"], "tokenizer_root: there is no folder none"),
        (&["-c", "typo.yaml"], "unknown key `multi_scal`; did you mean `multi_scale`?"),
        (&["--prompt_cleaning", "wash"], "prompt_cleaning"),
    ] {
        let mut all = vec!["dataset", "check"];
        if !args.contains(&"--image_dir") {
            all.extend(["--image_dir", "images"]);
        }
        all.extend(args);
        assert_refused(&sandbox.pixart(&all), WRONG_REQUEST, &[said]);
    }
    let run = sandbox.pixart(&["dataset", "check", "--json_path", "labels.json"]);
    assert_refused(&run, WRONG_REQUEST, &["image_dir: nothing given"]);
}

#[test]
fn the_configs_of_training_are_read() {
    let sandbox = sandbox();
    fs::write(sandbox.path().join("labels.json"), labels()).unwrap();
    let configs = fixtures::root().join("../../configs/train");
    for (name, side, buckets, batch) in [
        ("256x256", 256, 1, 64),
        ("512-MS", 512, 2, 32),
        ("1024-MS", 1024, 2, 12),
        ("2K-MS", 2048, 2, 4),
    ] {
        let file = configs.join(format!("pixart-sigma-{name}.yaml"));
        let file = file.to_str().unwrap();
        let args = ["--json_path", "labels.json", "--image_dir", "images"];
        let run =
            sandbox.pixart(&[&["dataset", "check", "-c", file, "--json"], &args[..]].concat());
        assert_eq!(run.code, DONE, "{run:?}");
        let report: Value = serde_json::from_str(&run.stdout).unwrap();
        let found = report["buckets"].as_array().unwrap();
        assert_eq!(found.len(), buckets, "{name}");
        let square = found.iter().find(|bucket| bucket["height"] == bucket["width"]).unwrap();
        assert_eq!(square["height"], side, "{name}");
        assert!(run.stderr.contains("tokens of captions are not counted"), "{run:?}");
        let run = sandbox.pixart(&[&["dataset", "check", "-c", file], &args[..]].concat());
        assert!(run.stdout.contains(&format!("batches of {batch}\n")), "{}", run.stdout);
    }
}
