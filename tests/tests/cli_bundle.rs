//! `pixart bundle` through the binary: what it makes draws what the folder draws, with nothing around it.

use std::fs::{self, File};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use pixart_runtime::bundle::Bundle;
use pixart_tests::binary::{Run, Sandbox, copy_folder};
use pixart_tests::fixtures;
use prost::Message as _;
use serde_json::Value;
use tract_onnx::pb::ModelProto;

/// A short run. Captions that another engine encoded would be taken from the cache.
const SHORT: [&str; 5] = ["--prompt", "a red circle", "--steps", "2", "--no_text_cache=true"];

/// Nothing can be written there, and nothing is installed.
const NOWHERE: &str = "/proc/nowhere";

/// What a bundle does on a machine where nothing is installed and nothing but the working folder can be
/// written.
fn alone(sandbox: &Sandbox, bundle: &Path, arguments: &[&str]) -> Run {
    let mut command = sandbox.command_of(bundle, arguments);
    for name in ["PIXART_DATA_DIR", "PIXART_CACHE_DIR", "HOME", "TMPDIR"] {
        command.env(name, NOWHERE);
    }
    command.env_remove("PIXART_ORT_LIBRARY");
    // A child that another test is starting just now may still hold the file that was open for writing here.
    for _ in 0..100 {
        match command.output() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {
                sleep(Duration::from_millis(20));
            }
            output => return Run::new(&output.expect("the bundle starts")),
        }
    }
    panic!("{} stays busy", bundle.display())
}

fn succeeds(run: Run) -> Run {
    assert_eq!(run.code, 0, "{run:?}");
    run
}

fn refuses(run: &Run, code: i32, said: &[&str]) {
    assert_eq!((run.code, run.stdout.as_str()), (code, ""), "{run:?}");
    assert_eq!(run.stderr.lines().filter(|line| line.starts_with("error:")).count(), 1, "{run:?}");
    for text in said {
        assert!(run.stderr.contains(text), "no `{text}` in: {}", run.stderr);
    }
}

/// A line of `pixart inspect`.
fn row(label: &str, value: &str) -> String {
    format!("{label:<26}{value}\n")
}

/// A sandbox with the tiny pipeline in `model` and a bundle of it.
fn bundled(more: &[&str]) -> (Sandbox, PathBuf) {
    let sandbox = Sandbox::with_tiny_model();
    let make = ["bundle", "--model", "model", "--output", "tiny"];
    succeeds(sandbox.pixart(&[&make[..], more].concat()));
    let bundle = sandbox.path().join("tiny");
    (sandbox, bundle)
}

#[test]
fn a_bundle_alone_draws_what_its_folder_draws() {
    let (sandbox, bundle) = bundled(&[]);
    // Its graphs are ONNX Runtime's on both engines, so the folder's have to be, too.
    let export = ["export", "all", "--source", "model", "--output", "exported", "--profile", "ort"];
    succeeds(sandbox.pixart(&export));
    let lora = fixtures::root().join("lora/diffusers.safetensors");
    let lora = lora.to_str().expect("a path");
    let picture = fixtures::root().join("img2img/photo.png");
    let picture = picture.to_str().expect("a path");
    let tract: &[&str] = &["--engine", "tract"];
    for (name, more) in [
        ("plain", &[][..]),
        ("tract", tract),
        ("sized", &["--image_width", "96", "--image_height", "64", "--seed", "7"]),
        ("lora", &["--lora", lora]),
        ("from-a-picture", &["--init_image", picture]),
        ("tiled", &["--image_width", "256", "--vae_tiling", "true"]),
    ] {
        let [inside, outside] = ["inside", "outside"].map(|place| format!("{place}-{name}"));
        let folder = ["sample", "--model", "exported", "--output_path", &outside];
        succeeds(sandbox.pixart(&[&folder[..], &SHORT, more].concat()));
        let own = ["--output_path", &inside];
        let drawn = succeeds(alone(&sandbox, &bundle, &[&SHORT[..], &own, more].concat()));
        let engine = if name == "tract" { "tract" } else { "ONNX Runtime" };
        assert!(drawn.stderr.lines().last().expect("a line").contains(engine), "{drawn:?}");
        let [inside, outside] = [inside, outside].map(|folder| format!("{folder}/0.png"));
        // No picture in the message: it would be long.
        assert!(sandbox.pixels(&inside) == sandbox.pixels(&outside), "{name} differs");
    }
    // Its pictures tell how to make them again, and it does.
    let again = ["--from", "inside-sized/0.png", "--output_path", "again"];
    let run = succeeds(alone(&sandbox, &bundle, &again));
    assert!(!run.stderr.contains("differs"), "{run:?}");
    assert_eq!(sandbox.pixels("again/0.png"), sandbox.pixels("inside-sized/0.png"));
}

#[test]
fn its_help_says_what_it_is_and_its_parts_can_be_replaced_and_got_back() {
    let (sandbox, bundle) = bundled(&[]);
    let help = succeeds(alone(&sandbox, &bundle, &["--help"])).stdout;
    for text in ["tiny is pixart", "transformer", "ONNX Runtime", "tiny --prompt", "Usage: tiny"] {
        assert!(help.contains(text), "no `{text}` in {help}");
    }
    assert!(!succeeds(sandbox.pixart(&["--help"])).stdout.contains("tiny is pixart"));
    let version = succeeds(alone(&sandbox, &bundle, &["--version"])).stdout;
    assert_eq!(version, succeeds(sandbox.pixart(&["--version"])).stdout);
    assert_eq!(alone(&sandbox, &bundle, &[]).code, 2);
    let listed = succeeds(alone(&sandbox, &bundle, &["engine", "list"])).stdout;
    assert!(listed.contains("* ONNX Runtime") && listed.contains("in this file"), "{listed}");

    let check = succeeds(alone(&sandbox, &bundle, &["bundle", "--check"]));
    assert!(check.stdout.ends_with("tiny: unaltered\n"), "{check:?}");
    succeeds(alone(&sandbox, &bundle, &["bundle", "--extract", "out"]));
    refuses(&alone(&sandbox, &bundle, &["bundle", "--extract", "out"]), 2, &["out exists already"]);
    succeeds(sandbox.pixart(&["export", "--verify", "out"]));
    let file = |path: &str| fs::read(sandbox.path().join(path)).expect("a file");
    assert_eq!(file("out/tokenizer/spiece.model"), file("model/tokenizer/spiece.model"));
    // A plain program does the same with it, and takes it as a model.
    succeeds(sandbox.pixart(&["bundle", "--check", "tiny"]));
    succeeds(sandbox.pixart(&["bundle", "--extract", "again", "tiny"]));
    assert_eq!(file("again/transformer/model.onnx"), file("out/transformer/model.onnx"));
    let inspected = succeeds(sandbox.pixart(&["inspect", "tiny"])).stdout;
    assert!(inspected.contains(&row("component", "vae_decoder")), "{inspected}");
    let draw = |model: &str, output: &str| {
        let model = ["sample", "--model", model, "--output_path", output];
        succeeds(sandbox.pixart(&[&model[..], &SHORT].concat()));
        sandbox.pixels(&format!("{output}/0.png"))
    };
    let expected = draw("out", "a");
    assert_eq!(draw("tiny", "b"), expected);
    // Under another name, by a link from elsewhere, and with a part from outside.
    let renamed = sandbox.path().join("renamed with spaces");
    fs::rename(&bundle, &renamed).expect("renamed");
    #[cfg(unix)]
    {
        let link = sandbox.path().join("out/link");
        std::os::unix::fs::symlink(&renamed, &link).expect("a link");
        let part = ["--checkpoint", "out/transformer", "--output_path", "c"];
        succeeds(alone(&sandbox, &link, &[&SHORT[..], &part].concat()));
        assert_eq!(sandbox.pixels("c/0.png"), expected);
    }
}

#[test]
fn a_bundle_without_a_library_runs_on_tract() {
    let (sandbox, bundle) = bundled(&["--engine", "tract"]);
    let run = succeeds(alone(&sandbox, &bundle, &SHORT));
    assert!(run.stderr.lines().last().expect("a line").contains("tract"), "{run:?}");
    let asked = alone(&sandbox, &bundle, &[&SHORT[..], &["--engine", "ort"]].concat());
    refuses(&asked, 1, &["no usable ONNX Runtime"]);
    let help = succeeds(alone(&sandbox, &bundle, &["--help"])).stdout;
    assert!(help.contains("Engine: tract"), "{help}");
}

#[test]
fn parts_come_from_several_folders_or_a_config() {
    let sandbox = Sandbox::new();
    let tiny = fixtures::tiny();
    for (part, folder) in [
        ("transformer", "a"),
        ("scheduler", "a"),
        ("text_encoder", "b"),
        ("vae", "b"),
        ("tokenizer", "b"),
    ] {
        copy_folder(&tiny.join(part), &sandbox.path().join(folder).join(part));
    }
    let make =
        ["bundle", "--engine", "tract", "--dtype", "fp16", "--model", "a", "b", "--output", "two"];
    succeeds(sandbox.pixart(&make));
    let inspected = succeeds(sandbox.pixart(&["inspect", "two"])).stdout;
    assert!(inspected.contains(&row("precision", "fp16")), "{inspected}");
    let config = "checkpoint: a/transformer\ntext_encoder_root: b/text_encoder\nvae_root: b/vae\n\
                  tokenizer_root: b/tokenizer\ndtype: fp16\n";
    fs::write(sandbox.path().join("parts.yaml"), config).expect("a config");
    let make = ["bundle", "--engine", "tract", "--config", "parts.yaml", "--output", "by-config"];
    succeeds(sandbox.pixart(&make));
    let bytes = |name: &str| fs::read(sandbox.path().join(name)).expect("a bundle");
    assert!(bytes("two") == bytes("by-config"), "they differ");

    let missing = ["bundle", "--model", "a", "a/transformer", "--output", "none"];
    refuses(&sandbox.pixart(&missing), 2, &["no text_encoder in a, a/transformer"]);
    let missing = ["bundle", "--model", "a", "--output", "none"];
    refuses(&sandbox.pixart(&missing), 2, &["a/vae"]);
    assert!(!sandbox.path().join("none").exists());
}

#[test]
fn what_cannot_be_bundled_is_refused_and_nothing_is_left() {
    let (sandbox, bundle) = bundled(&["--engine", "tract"]);
    let before = fs::read(&bundle).expect("a bundle");
    let make = |more: &[&str]| {
        let make: &[&str] = match more.contains(&"--output") {
            true => &["bundle"],
            false => &["bundle", "--output", "new"],
        };
        sandbox.pixart(&[make, more].concat())
    };
    let files = sandbox.files();
    let tract = ["--engine", "tract"];
    let again = ["--model", "model", "--output", "tiny"];
    refuses(&make(&[&tract[..], &again].concat()), 2, &["tiny exists already", "--force"]);
    refuses(&make(&["--model", "model", "--engine", "cuda"]), 2, &["no \"cuda\" here", "tract"]);
    refuses(&make(&[&tract[..], &["--model", "tiny"]].concat()), 2, &["tiny is a bundle itself"]);
    let nested = alone(&sandbox, &bundle, &["bundle", "--model", "model", "--output", "new"]);
    refuses(&nested, 2, &["is a bundle itself", "--extract"]);
    refuses(&make(&["--model", "nowhere"]), 2, &["found nothing at nowhere"]);
    for look in [&["bundle", "--check"][..], &["bundle", "--extract", "new"]] {
        refuses(&sandbox.pixart(look), 2, &["is no bundle"]);
    }
    refuses(&sandbox.pixart(&["bundle", "--check", "nowhere"]), 1, &["cannot read nowhere"]);

    // A library for another system, and what is none.
    for (bytes, name) in [(&b"MZ\x90\0"[..], "a.dll"), (b"\x7fELF\x02\x01\x01", "cut.so")] {
        let library = sandbox.path().join(name);
        fs::write(&library, bytes).expect("a library");
        let mut command = sandbox.command(&["bundle", "--model", "model", "--output", "new"]);
        command.env("PIXART_ORT_LIBRARY", &library);
        let run = Run::new(&command.output().expect("it starts"));
        refuses(&run, 1, &[name, "cannot be loaded as a shared library", "too short"]);
        fs::remove_file(&library).expect("removed");
    }
    assert_eq!(sandbox.files(), files);
    assert!(fs::read(&bundle).expect("a bundle") == before, "it was changed");

    // Weights that are not those that were exported.
    let export = ["export", "all", "--source", "model", "--output", "exported"];
    succeeds(sandbox.pixart(&export));
    let weights = sandbox.path().join("exported/vae_decoder/model.onnx_data");
    flip(&weights, 4096);
    let altered = make(&[&tract[..], &["--model", "exported"]].concat());
    refuses(
        &altered,
        1,
        &["exported/vae_decoder/model.onnx_data differs from what its manifest says"],
    );
    flip(&weights, 4096);
    let replaced =
        make(&[&tract[..], &["--model", "exported", "--output", "tiny", "--force"]].concat());
    succeeds(replaced);
    succeeds(sandbox.pixart(&["bundle", "--check", "tiny"]));
    fs::remove_dir_all(sandbox.path().join("exported/text_encoder")).expect("removed");
    let part = make(&[&tract[..], &["--model", "exported"]].concat());
    refuses(&part, 1, &["exported/text_encoder does not exist"]);
    assert!(!sandbox.path().join("new").exists());
}

#[test]
fn a_damaged_bundle_says_so_once() {
    let (sandbox, bundle) = bundled(&["--engine", "tract"]);
    let size = fs::metadata(&bundle).expect("a bundle").len();
    let changed = |name: &str| {
        let path = sandbox.path().join(name);
        fs::copy(&bundle, &path).expect("a copy");
        path
    };
    let cut = changed("cut");
    let file = File::options().write(true).open(&cut).expect("the copy");
    file.set_len(size - 4096).expect("shorter");
    drop(file);
    for arguments in [&SHORT[..], &["--help"], &["bundle", "--check"], &["sample"]] {
        refuses(&alone(&sandbox, &cut, arguments), 1, &["cut short", "copy it again"]);
    }
    let model = [&["sample", "--model", "cut"], &SHORT[..]].concat();
    refuses(&sandbox.pixart(&model), 1, &["cut is a bundle that was cut short"]);
    refuses(&sandbox.pixart(&["bundle", "--check", "cut"]), 1, &["cut short"]);

    // Without all that is behind the program, and without the end of the program, too.
    let program = Bundle::open(&bundle).expect("readable").expect("a bundle").index().program.bytes;
    for (name, bytes, said) in
        [("plain", program, "is no bundle"), ("part", program / 2, "was cut short")]
    {
        let file = File::options().write(true).open(changed(name)).expect("the copy");
        file.set_len(bytes).expect("shorter");
        let code = if name == "plain" { 2 } else { 1 };
        refuses(&sandbox.pixart(&["bundle", "--check", name]), code, &[said]);
    }
    let plain = alone(&sandbox, &sandbox.path().join("plain"), &SHORT);
    refuses(&plain, 2, &["--prompt without a command", "this file holds no model"]);

    // The end is the index.
    let index = changed("index");
    flip(&index, size - 20);
    refuses(&alone(&sandbox, &index, &SHORT), 1, &["its index was altered"]);

    let weights = changed("weights");
    let opened = Bundle::open(&weights).expect("readable").expect("a bundle");
    flip(&weights, opened.entry("tokenizer/spiece.model").expect("a tokenizer").offset + 99);
    let run = alone(&sandbox, &weights, &["bundle", "--check"]);
    refuses(&run, 1, &["altered since it was made: tokenizer/spiece.model;"]);
    let run = alone(&sandbox, &weights, &["bundle", "--extract", "out"]);
    refuses(&run, 1, &["tokenizer/spiece.model"]);
    assert!(!sandbox.path().join("out").exists());

    // A signing tool may append something.
    let signed = changed("signed");
    let mut file = File::options().append(true).open(&signed).expect("the copy");
    file.write_all(&[0x30; 9001]).expect("longer");
    drop(file);
    succeeds(alone(&sandbox, &signed, &["bundle", "--check"]));
    succeeds(alone(&sandbox, &signed, &SHORT));
}

/// What reads models takes a bundle in place of their folder.
#[test]
fn a_bundle_is_looked_at_and_trained_with_as_a_folder_is() {
    let (sandbox, bundle) = bundled(&[]);
    let run = succeeds(sandbox.pixart(&["engine", "doctor", "--device", "cpu", "--model", "tiny"]));
    assert_eq!(run.stdout.matches("100.0 % of the time on cpu").count(), 3, "{run:?}");
    let selftest = ["engine", "selftest", "cpu", "--dtype", "fp32", "--threads", "2"];
    for run in [
        sandbox.pixart(&[&selftest[..], &["--model", "tiny"]].concat()),
        // Its own model is what it tests.
        alone(&sandbox, &bundle, &selftest),
    ] {
        let run = succeeds(run);
        assert!(run.stdout.contains("fp32      transformer"), "{run:?}");
        assert!(run.stdout.contains("dB from tract's"), "{run:?}");
    }

    let images = sandbox.path().join("images");
    fs::create_dir(&images).expect("a folder");
    fs::copy(fixtures::root().join("img2img/photo.png"), images.join("a.png")).expect("a picture");
    let labels = r#"[{"path": "a.png", "prompt": "a photo"}]"#;
    fs::write(sandbox.path().join("labels.json"), labels).expect("labels");
    succeeds(sandbox.pixart(&["bundle", "--extract", "out", "tiny"]));
    let mut kept = Vec::new();
    for (from, folder) in [("out", "kept-folder"), ("tiny", "kept-bundle")] {
        let data = ["--json_path", "labels.json", "--image_dir", "images", "--sample_size", "8"];
        let parts = ["--text_encoder_root", from, "--tokenizer_root", from, "--vae_root", from];
        let cache = ["train", "cache", "--cache_dir", folder, "--threads", "2"];
        succeeds(sandbox.pixart(&[&cache[..], &data, &parts].concat()));
        let below = |name: PathBuf| name.strip_prefix(folder).ok().map(Path::to_owned);
        // The description says where the parts were.
        let mut names: Vec<_> = sandbox.files().into_iter().filter_map(below).collect();
        names.retain(|name| !name.ends_with("cache.json"));
        assert!(names.iter().any(|name| name.starts_with("moments")), "{names:?}");
        // Only the values: what is told of them stands in any order.
        let read = |name: &PathBuf| {
            let bytes = fs::read(sandbox.path().join(folder).join(name)).expect("a file");
            let Some((length, rest)) = bytes.split_first_chunk() else { return Vec::new() };
            rest[u64::from_le_bytes(*length) as usize..].to_vec()
        };
        kept.push(names.iter().map(|name| (name.clone(), read(name))).collect::<Vec<_>>());
    }
    assert!(kept[0] == kept[1], "what is kept differs");
}

/// A manifest that names a file twice, and weights that it does not name.
#[test]
fn all_files_of_a_graph_are_bundled_each_once() {
    let sandbox = Sandbox::with_tiny_model();
    succeeds(sandbox.pixart(&["export", "all", "--source", "model", "--output", "exported"]));
    let folder = sandbox.path().join("exported/vae_decoder");
    let path = folder.join("manifest.json");
    let mut manifest: Value =
        serde_json::from_slice(&fs::read(&path).expect("a manifest")).expect("JSON");
    let files = manifest["files"].as_array_mut().expect("files");
    files.retain(|file| file["name"] != "model.onnx_data");
    let graph = files[0].clone();
    assert_eq!(graph["name"], "model.onnx");
    files.push(graph);
    fs::write(&path, manifest.to_string()).expect("written");
    succeeds(sandbox.pixart(&["bundle", "--model", "exported", "--output", "whole"]));
    let bundle = Bundle::open(&sandbox.path().join("whole")).expect("readable").expect("a bundle");
    let names: Vec<&str> =
        bundle.index().files("vae_decoder").map(|entry| entry.path.as_str()).collect();
    let count = |name: &str| names.iter().filter(|known| **known == name).count();
    assert_eq!(count("vae_decoder/model.onnx"), 1, "{names:?}");
    assert_eq!(count("vae_decoder/model.onnx_data"), 1, "{names:?}");
    let whole = sandbox.path().join("whole");
    succeeds(alone(&sandbox, &whole, &SHORT));

    // Weights in a folder below are refused there as they are by every engine.
    let mut model = ModelProto::decode(&fs::read(folder.join("model.onnx")).expect("a graph")[..])
        .expect("ONNX");
    let tensors = &mut model.graph.as_mut().expect("a graph").initializer;
    for entry in tensors.iter_mut().flat_map(|tensor| &mut tensor.external_data) {
        if entry.key == "location" {
            entry.value = "below/model.onnx_data".to_owned();
        }
    }
    let bytes = model.encode_to_vec();
    manifest["files"] =
        serde_json::json!([{ "name": "model.onnx", "bytes": bytes.len(), "sha256": "" }]);
    fs::write(folder.join("model.onnx"), bytes).expect("written");
    fs::write(&path, manifest.to_string()).expect("written");
    let run = sandbox.pixart(&["bundle", "--model", "exported", "--output", "none"]);
    refuses(&run, 1, &["below/model.onnx_data", "not a plain file name"]);
    assert!(!sandbox.path().join("none").exists());
}

/// Changes one byte.
fn flip(path: &Path, at: u64) {
    let mut bytes = [0];
    let mut file = File::options().read(true).write(true).open(path).expect("a file");
    file.seek(SeekFrom::Start(at)).expect("a place");
    std::io::Read::read_exact(&mut file, &mut bytes).expect("a byte");
    file.seek(SeekFrom::Start(at)).expect("a place");
    file.write_all(&[bytes[0] ^ 1]).expect("written");
}

/// Weights that lie behind a hole of 4 GiB: sizes and places need more than 32 bits.
#[test]
fn a_bundle_can_be_larger_than_4_gib() {
    const HOLE: u64 = 1 << 32;
    let sandbox = Sandbox::with_tiny_model();
    succeeds(sandbox.pixart(&["export", "all", "--source", "model", "--output", "exported"]));
    let draw = |program: Option<&Path>, output: &str, more: &[&str]| {
        let run = [&SHORT[..], &["--output_path", output], more].concat();
        succeeds(match program {
            Some(program) => alone(&sandbox, program, &run),
            None => sandbox.pixart(&[&["sample", "--model", "exported"], &run[..]].concat()),
        });
        sandbox.pixels(&format!("{output}/0.png"))
    };
    let expected = draw(None, "before", &[]);

    let folder = sandbox.path().join("exported/text_encoder");
    let weights = fs::read(folder.join("model.onnx_data")).expect("weights");
    let mut file = File::create(folder.join("model.onnx_data")).expect("weights");
    file.seek(SeekFrom::Start(HOLE)).expect("a place");
    file.write_all(&weights).expect("written");
    drop(file);
    let graph = fs::read(folder.join("model.onnx")).expect("a graph");
    let mut model = ModelProto::decode(&graph[..]).expect("a graph");
    for tensor in &mut model.graph.as_mut().expect("a graph").initializer {
        for entry in tensor.external_data.iter_mut().filter(|entry| entry.key == "offset") {
            entry.value = (entry.value.parse::<u64>().expect("an offset") + HOLE).to_string();
        }
    }
    fs::write(folder.join("model.onnx"), model.encode_to_vec()).expect("written");
    let path = folder.join("manifest.json");
    let mut manifest: Value =
        serde_json::from_slice(&fs::read(&path).expect("a manifest")).expect("JSON");
    for file in manifest["files"].as_array_mut().expect("files") {
        let name = file["name"].as_str().expect("a name").to_owned();
        file["bytes"] = fs::metadata(folder.join(name)).expect("a file").len().into();
        file["sha256"] = "".into();
    }
    fs::write(&path, manifest.to_string()).expect("written");

    succeeds(sandbox.pixart(&["bundle", "--model", "exported", "--output", "large"]));
    let large = sandbox.path().join("large");
    let metadata = fs::metadata(&large).expect("a bundle");
    assert!(metadata.len() > HOLE, "{metadata:?}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        assert!(metadata.blocks() * 512 < HOLE / 4, "the hole was filled");
    }
    assert_eq!(draw(Some(&large), "ort", &[]), expected);
    let tract = draw(None, "tract-before", &["--engine", "tract"]);
    assert_eq!(draw(Some(&large), "tract", &["--engine", "tract"]), tract);
}
