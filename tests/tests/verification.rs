//! `pixart export --verify`, and the comparison of an export with its twin in fp32.

use std::{fs, path::Path};

use pixart_exporter::{
    Component, ExportError, ExportOptions, Profile, Staged, Twins, Verdict,
    export_component_checked, export_pipeline_checked,
};
use pixart_runtime::verify::{Difference, compare_models};
use pixart_tests::{
    binary::{Run, Sandbox},
    engines, fixtures, random,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const FAILED: i32 = 1;
const WRONG_REQUEST: i32 = 2;

/// A sandbox with an export of the tiny pipeline in `model`.
fn exported(profile: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    let source = fixtures::tiny();
    let source = source.to_str().expect("a path");
    let args = ["export", "all", "--source", source, "--output", "model", "--profile", profile];
    let run = sandbox.pixart(&args);
    assert_eq!(run.code, 0, "{run:?}");
    sandbox
}

fn verify(sandbox: &Sandbox, more: &[&str]) -> Run {
    let before = sandbox.files();
    let run = sandbox.pixart(&[&["export", "--verify"], more].concat());
    assert_eq!(sandbox.files(), before, "verifying writes nothing");
    assert!(!run.stderr.contains("panicked"), "{run:?}");
    run
}

/// Changes a byte of a file in its middle.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("written");
}

#[test]
fn an_untouched_export_passes_on_two_engines() {
    for profile in Profile::ALL {
        let sandbox = exported(profile.as_str());
        let run = verify(&sandbox, &["model"]);
        assert_eq!((run.code, run.stdout.lines().count()), (0, 4), "{run:?}");
        assert_eq!(run.stdout.matches("2 files").count(), 4, "{run:?}");
        let run = verify(&sandbox, &["model", "--numeric"]);
        assert_eq!(run.code, 0, "{run:?}");
        let compared = run
            .stdout
            .lines()
            .filter(|line| line.contains("relative error") && line.contains("tract 0."));
        assert_eq!(compared.count(), 4, "{run:?}");
        let run = verify(&sandbox, &["model/vae_encoder"]);
        assert_eq!((run.code, run.stdout.lines().count()), (0, 1), "{run:?}");
    }
}

#[test]
fn every_difference_is_named_and_the_exit_code_tells() {
    let sandbox = exported("ort");
    let model = sandbox.path().join("model");
    flip(&model.join("transformer/model.onnx_data"));
    fs::write(model.join("vae_decoder/notes.txt"), "").expect("written");
    fs::remove_file(model.join("text_encoder/manifest.json")).expect("removed");
    fs::remove_file(model.join("vae_encoder/model.onnx")).expect("removed");
    for more in [&["model"][..], &["model", "--numeric"]] {
        let run = verify(&sandbox, more);
        assert_eq!(run.code, FAILED, "{run:?}");
        for said in [
            "transformer/model.onnx_data: has sha256",
            "vae_decoder/notes.txt: is not listed",
            "text_encoder/manifest.json: the file is missing",
            "vae_encoder/model.onnx: is missing",
        ] {
            assert!(run.stdout.contains(said), "{said}: {run:?}");
        }
        assert!(run.stderr.contains("4 of 4 components"), "{run:?}");
    }
}

#[test]
fn a_shorter_file_is_told_apart_from_a_changed_one() {
    let sandbox = exported("ort");
    let data = sandbox.path().join("model/vae_decoder/model.onnx_data");
    let bytes = fs::read(&data).expect("weights");
    fs::write(&data, &bytes[..bytes.len() - 1]).expect("written");
    let run = verify(&sandbox, &["model/vae_decoder"]);
    assert_eq!(run.code, FAILED, "{run:?}");
    let said = format!("has {} bytes, expected {}", bytes.len() - 1, bytes.len());
    assert!(run.stdout.contains(&said), "{run:?}");
}

#[test]
fn weights_that_give_no_numbers_fail_the_numeric_check_only() {
    let sandbox = exported("portable");
    let folder = sandbox.path().join("model/vae_decoder");
    let mut bytes = fs::read(folder.join("model.onnx_data")).expect("weights");
    bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(folder.join("model.onnx_data"), &bytes).expect("written");
    let path = folder.join("manifest.json");
    let mut manifest: Value =
        serde_json::from_slice(&fs::read(&path).expect("a manifest")).expect("JSON");
    let sha: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    for file in manifest["files"].as_array_mut().expect("files") {
        if file["name"] == "model.onnx_data" {
            file["sha256"] = json!(sha);
        }
    }
    fs::write(&path, manifest.to_string()).expect("written");
    assert_eq!(verify(&sandbox, &["model"]).code, 0);
    let run = verify(&sandbox, &["model", "--numeric"]);
    assert_eq!(run.code, FAILED, "{run:?}");
    assert!(run.stdout.contains("relative error inf"), "{run:?}");
    assert!(run.stderr.contains("1 of 4 components"), "{run:?}");
}

#[test]
fn a_graph_that_no_engine_runs_is_reported_and_the_rest_is_still_compared() {
    let sandbox = exported("ort");
    let path = sandbox.path().join("model/text_encoder/manifest.json");
    let text = fs::read_to_string(&path).expect("a manifest").replace("\"vocab_size\"", "\"v\"");
    fs::write(&path, text).expect("written");
    let run = verify(&sandbox, &["model", "--numeric"]);
    assert_eq!(run.code, FAILED, "{run:?}");
    assert!(run.stdout.contains("input_ids") && run.stdout.contains("vocab_size"), "{run:?}");
    assert_eq!(run.stdout.matches("relative error").count(), 3, "{run:?}");
}

#[test]
fn without_onnx_runtime_hashes_are_compared_and_numbers_cannot_be() {
    let sandbox = exported("ort").without_onnx_runtime();
    assert_eq!(verify(&sandbox, &["model"]).code, 0);
    let run = verify(&sandbox, &["model", "--numeric"]);
    assert_eq!(run.code, FAILED, "{run:?}");
    assert!(run.stderr.contains("pixart engine install cpu"), "{run:?}");
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path().join("empty")).expect("a folder");
    for (args, said) in [
        (&["export", "--verify", "empty"][..], "found no exported component"),
        (&["export", "--verify", "nowhere"], "nowhere"),
        (&["export", "--verify", "empty", "--force"], "--force"),
        (&["export", "all", "--verify", "empty"], "--verify"),
        (&["export", "--verify", "empty", "--output", "out"], "--output"),
        (&["export", "all", "--numeric", "--source", "a", "--output", "b"], "--numeric"),
        (&["export", "all"], "--source"),
    ] {
        let run = sandbox.pixart(args);
        assert_eq!(run.code, WRONG_REQUEST, "{run:?}");
        assert!(run.stderr.contains(said), "{said}: {run:?}");
    }
}

/// What the check of an export saw.
struct Seen {
    twins: Twins,
    difference: Difference,
}

/// Exports the text encoder in `source` with a check that lets `damage` change the staged folder, then
/// compares it with its twin.
fn export_checked(
    source: &Path,
    output: &Path,
    most_bytes: u64,
    damage: impl Fn(&Path),
) -> (Result<(), ExportError>, Option<Seen>) {
    let mut seen = None;
    let mut check = |staged: &Staged<'_>| -> Verdict {
        damage(staged.folder);
        let scratch = tempfile::tempdir_in(staged.folder)?;
        let twins = staged.write_twins(scratch.path(), most_bytes)?;
        let engine = engines::ort();
        let difference =
            compare_models(&engine, &twins.exported, &twins.reference, staged.architecture)?;
        let verdict = json!({ "max_relative_error": difference.max_relative });
        seen = Some(Seen { twins, difference });
        if difference.max_relative > 1e-6 { Err("too far off".into()) } else { Ok(Some(verdict)) }
    };
    let options = ExportOptions::default();
    let component = Component::TextEncoder;
    let result =
        export_component_checked(source, component, output, &options, &mut |_| (), &mut check);
    (result.map(drop), seen)
}

#[test]
fn an_export_equals_its_twin_and_its_manifest_says_so() {
    let root = tempfile::tempdir().expect("a folder");
    let source = root.path().join("text_encoder");
    let bytes = random::text_encoder(&source, 7, 32);
    // Everything, two blocks at each end, one block, and one block even where that is too much.
    let cases = [
        (bytes, "everything"),
        (bytes - 1, "blocks 0-1 and 5-6 of 7"),
        (bytes / 2, "blocks 0 and 6 of 7"),
        (0, "blocks 0 and 6 of 7"),
    ];
    for (most_bytes, compared) in cases {
        let output = root.path().join(format!("output-{most_bytes}"));
        let (result, seen) = export_checked(&source, &output, most_bytes, |_| ());
        result.expect("accepted");
        let Seen { twins, difference } = seen.expect("checked");
        assert_eq!(twins.compared, compared);
        assert_eq!(difference, Difference::default());
        let folder = output.join("text_encoder");
        let text = fs::read(folder.join("manifest.json")).expect("a manifest");
        let manifest: Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(manifest["verification"], json!({ "max_relative_error": 0.0 }));
        assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 4, "nothing else is left");
    }
}

#[test]
fn an_export_that_is_refused_is_not_kept() {
    let root = tempfile::tempdir().expect("a folder");
    let (source, output) = (root.path().join("text_encoder"), root.path().join("output"));
    let bytes = random::text_encoder(&source, 3, 32);
    let damage = |folder: &Path| {
        let path = folder.join("model.onnx_data");
        let mut data = fs::read(&path).expect("weights");
        let range = 3 * data.len() / 4..;
        for value in data[range].as_chunks_mut::<4>().0 {
            *value = (1.5 * f32::from_le_bytes(*value)).to_le_bytes();
        }
        fs::write(&path, data).expect("written");
    };
    let (result, seen) = export_checked(&source, &output, bytes, damage);
    let error = result.expect_err("refused");
    assert!(matches!(error, ExportError::Refused { .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains("text_encoder") && message.contains("too far off"), "{message}");
    assert!(seen.expect("checked").difference.max_relative > 1e-2);
    assert!(!output.exists());

    // An earlier export stays as it was.
    export_checked(&source, &output, bytes, |_| ()).0.expect("accepted");
    let before = fs::read(output.join("text_encoder/model.onnx_data")).expect("weights");
    let options = ExportOptions { force: true, ..Default::default() };
    let mut refuse = |_: &Staged<'_>| -> Verdict { Err("never".into()) };
    let component = Component::TextEncoder;
    export_component_checked(&source, component, &output, &options, &mut |_| (), &mut refuse)
        .expect_err("refused");
    let after = fs::read(output.join("text_encoder/model.onnx_data")).expect("weights");
    assert!(before == after);
    assert_eq!(fs::read_dir(&output).expect("a folder").count(), 1);
}

#[test]
fn a_pipeline_is_checked_part_by_part_and_kept_as_a_whole_or_not() {
    let root = tempfile::tempdir().expect("a folder");
    let output = root.path().join("model");
    let source = pixart_exporter::PipelineSource::from_folder(&fixtures::tiny()).expect("complete");
    let run = |refused: Option<Component>| {
        let mut seen = Vec::new();
        let mut check = |staged: &Staged<'_>| -> Verdict {
            seen.push(staged.component);
            assert!(staged.folder.join("model.onnx").is_file());
            match refused == Some(staged.component) {
                true => Err("no".into()),
                false => Ok(None),
            }
        };
        let options = ExportOptions::default();
        let result = export_pipeline_checked(&source, &output, &options, &mut |_| (), &mut check);
        (result.map(drop), seen)
    };
    let (result, seen) = run(Some(Component::VaeEncoder));
    assert!(matches!(result, Err(ExportError::Refused { .. })), "{result:?}");
    assert_eq!(seen, Component::ALL);
    assert!(!output.exists());
    run(None).0.expect("accepted");
    let text = fs::read_to_string(output.join("transformer/manifest.json")).expect("a manifest");
    assert!(!text.contains("verification"), "a check that found nothing to say says nothing");
}
