//! Bundles of small files, whole and damaged. What samples from one is tested through the binary.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{
    contents::Source,
    format::{BLOCK, HEADER, PAGE},
    *,
};

/// A folder with a program and a bundle of it and some files.
struct Sample {
    folder: TempDir,
    bundle: PathBuf,
    large: Vec<u8>,
}

impl Sample {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let program = folder.path().join("program");
        let mut code = b"\x7fELF".to_vec();
        // What the program itself says of headers is none.
        code.resize(BLOCK as usize, 7);
        code.extend(b"\x7fpixart bundle\r\n");
        code.resize(BLOCK as usize + 1000, 7);
        fs::write(&program, &code).expect("program");
        let large: Vec<u8> = (0..3 * BLOCK + 5).map(|i| (i * 7 % 251) as u8).collect();
        let mut contents = Contents::default();
        let files: [(&str, &[u8]); 4] =
            [("a/small", b"one"), ("a/large", &large), ("b/empty", b""), ("b/last", b"two")];
        for (index, (path, bytes)) in files.into_iter().enumerate() {
            let file = folder.path().join(format!("source-{index}"));
            fs::write(&file, bytes).expect("file");
            let bytes = bytes.len() as u64;
            contents.files.push(Source { path: path.to_owned(), file, bytes, sha256: None });
        }
        let bundle = folder.path().join("bundle");
        write(&bundle, &program, &contents, false, &mut |_, _| ()).expect("written");
        Self { folder, bundle, large }
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.bundle).expect("bundle")
    }

    /// A file with these bytes.
    fn with(&self, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join("changed");
        fs::write(&path, bytes).expect("file");
        path
    }
}

fn open(path: &Path) -> Bundle {
    Bundle::open(path).expect("readable").expect("a bundle")
}

fn refusal(path: &Path) -> String {
    Bundle::open(path).expect_err("must be refused").to_string()
}

#[test]
fn what_went_in_comes_out() {
    let sample = Sample::new();
    let bundle = open(&sample.bundle);
    let own = 2 * BLOCK;
    for entry in &bundle.index().entries {
        let step = if entry.path == "a/large" { BLOCK } else { PAGE };
        assert!(entry.offset > own && entry.offset.is_multiple_of(step), "{entry:?}");
    }
    bundle.check(&mut |done, total| assert!(done <= total)).expect("unaltered");
    let output = sample.folder.path().join("extracted");
    bundle.extract(&output, &mut |done, total| assert!(done <= total)).expect("extracted");
    assert_eq!(fs::read(output.join("a/large")).expect("file"), sample.large);
    assert_eq!(fs::read(output.join("b/empty")).expect("file"), b"");
    assert_eq!(fs::read(output.join("b/last")).expect("file"), b"two");
    let again = bundle.extract(&output, &mut |_, _| ()).expect_err("it is there");
    assert!(matches!(again, BundleError::Exists { .. }), "{again}");
}

#[test]
fn a_file_inside_is_read_by_its_path() {
    let sample = Sample::new();
    let inside = |path: &str| sample.bundle.join(path);
    assert!(store::is_dir(&sample.bundle) && store::is_dir(&inside("a")));
    assert!(!store::is_dir(&inside("a/small")) && !store::is_dir(&inside("c")));
    assert!(store::is_file(&inside("a/small")) && !store::is_file(&inside("a")));
    assert!(!store::is_file(&inside("a/sma")) && !store::is_file(&inside("a/../b/last")));
    assert_eq!(store::read(&inside("a/large")).expect("read"), sample.large);
    assert_eq!(store::read(&inside("b/empty")).expect("read"), b"");
    let place = store::place(&inside("b/last")).expect("there").expect("a file");
    assert!(place.bundled && place.bytes == 3 && place.file == sample.bundle);
    // Plain files are what they always are.
    let plain = sample.folder.path().join("source-0");
    assert!(store::is_file(&plain) && !store::is_dir(&plain) && !store::is_file(&plain.join("x")));
    assert_eq!(store::read(&plain).expect("read"), b"one");
}

#[test]
fn a_bundle_made_anew_is_read_anew() {
    let sample = Sample::new();
    let inside = sample.bundle.join("a/small");
    assert!(store::is_file(&inside));
    let mut contents = Contents::default();
    let file = sample.folder.path().join("source-1");
    let bytes = sample.large.len() as u64;
    contents.files.push(Source { path: "a/other".to_owned(), file, bytes, sha256: None });
    let program = sample.folder.path().join("program");
    let refused = write(&sample.bundle, &program, &contents, false, &mut |_, _| ());
    assert!(matches!(refused, Err(BundleError::Exists { .. })), "{refused:?}");
    assert!(store::is_file(&inside), "the old one stays");
    write(&sample.bundle, &program, &contents, true, &mut |_, _| ()).expect("written");
    assert!(!store::is_file(&inside) && store::is_file(&sample.bundle.join("a/other")));
}

#[test]
fn wherever_it_is_cut_behind_the_header_it_is_told() {
    let sample = Sample::new();
    let bytes = sample.bytes();
    let header = 2 * BLOCK as usize;
    for end in [header + HEADER, header + HEADER + 1, bytes.len() / 2, bytes.len() - 1] {
        let message = refusal(&sample.with(&bytes[..end]));
        let expected = format!("cut short: found {end} bytes, expected {}", bytes.len());
        assert!(message.contains(&expected), "{message}");
    }
    let within = refusal(&sample.with(&bytes[..header + HEADER - 1]));
    assert!(within.contains("was cut short") && within.contains("right behind it"), "{within}");
    // Without a header it is a program like any other.
    assert!(Bundle::open(&sample.with(&bytes[..header])).expect("readable").is_none());
}

#[test]
fn a_program_says_where_it_ends() {
    let sample = Sample::new();
    // Ten sections of 64 bytes at 4000.
    let mut program = b"\x7fELF\x02\x01".to_vec();
    program.resize(4000 + 640, 0);
    program[40..48].copy_from_slice(&4000u64.to_le_bytes());
    program[58..62].copy_from_slice(&[64, 0, 10, 0]);
    assert!(Bundle::open(&sample.with(&program)).expect("readable").is_none());
    let message = refusal(&sample.with(&program[..4639]));
    assert!(message.contains("cut short: found 4639 bytes"), "{message}");
}

#[test]
fn what_no_reader_would_open_is_not_written() {
    let sample = Sample::new();
    let at = |name: &str| sample.folder.path().join(name);
    let source =
        |path: &str| Source { path: path.to_owned(), file: at("source-0"), bytes: 3, sha256: None };
    let engine = BundledEngine {
        name: "cpu".to_owned(),
        version: "1.32.0".to_owned(),
        library: "engine/none".to_owned(),
    };
    for (program, paths, engine, said) in [
        ("program", &["a/../b"][..], None, "no path below"),
        ("program", &["a/b", "a/b"], None, "there twice"),
        ("program", &["a/b"], Some(engine), "\"engine/none\" is missing"),
        ("source-1", &["a/b"], None, "source-1 is no program"),
    ] {
        let files = paths.iter().map(|path| source(path)).collect();
        let contents = Contents { files, engine };
        let error = write(&at("new"), &at(program), &contents, false, &mut |_, _| ());
        let error = error.expect_err(said).to_string();
        assert!(error.contains(said) && error.contains("new is not written"), "{error}");
        assert!(!at("new").exists());
    }
}

#[test]
fn what_a_signing_tool_appends_does_no_harm() {
    let sample = Sample::new();
    let mut bytes = sample.bytes();
    bytes.extend([9; 5000]);
    let bundle = open(&sample.with(&bytes));
    bundle.check(&mut |_, _| ()).expect("unaltered");
}

#[test]
fn every_altered_byte_is_found() {
    let sample = Sample::new();
    let whole = sample.bytes();
    let bundle = open(&sample.bundle);
    let last = bundle.entry("b/last").expect("an entry").offset as usize;
    let large = bundle.entry("a/large").expect("an entry").offset as usize;
    for (at, expected) in [
        (10, "the program"),
        (large, "a/large"),
        (large + sample.large.len() - 1, "a/large"),
        (last, "b/last"),
    ] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        let message = open(&sample.with(&bytes)).check(&mut |_, _| ()).expect_err("altered");
        assert!(
            message.to_string().contains(&format!("since it was made: {expected};")),
            "{message}"
        );
        if at != 10 {
            let output = sample.folder.path().join("not");
            let error = open(&sample.with(&bytes)).extract(&output, &mut |_, _| ());
            assert!(matches!(error, Err(BundleError::Altered { .. })), "{error:?}");
            assert!(!output.exists());
        }
    }
    // Header and index are compared whenever the bundle is opened.
    let header = 2 * BLOCK as usize;
    for (at, expected) in [
        (header + 16, "format 0"),
        (header + 32, "contradicts itself"),
        (header + 40, "contradicts itself"),
        (header + 87, "index was altered"),
        (whole.len() - 10, "index was altered"),
    ] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        let message = refusal(&sample.with(&bytes));
        assert!(message.contains(expected), "byte {at}: {message}");
    }
}

#[test]
fn an_index_that_lies_is_refused() {
    let sample = Sample::new();
    let whole = sample.bytes();
    let header = 2 * BLOCK as usize;
    let place = u64::from_le_bytes(whole[header + 32..header + 40].try_into().expect("8")) as usize;
    let text = String::from_utf8(whole[place..].to_vec()).expect("JSON");
    let large = open(&sample.bundle).entry("a/large").expect("an entry").offset;
    for (from, to, expected) in [
        ("\"a/small\"", "\"../mall\"", "no path below"),
        ("\"b/empty\"", "\"a/small\"", "there twice"),
        (&format!("\"offset\": {large}"), "\"offset\": 000000", "cannot be used"),
        (&format!("\"offset\": {large}"), "\"offset\": 900000", "does not lie"),
        (&format!("\"offset\": {large}"), "\"offset\": 131072", "does not lie"),
        ("\"bytes\": 3", "\"bytes\": 9", "does not lie"),
    ] {
        let changed = text.replace(from, to);
        assert_ne!(changed, text, "{from}");
        assert_eq!(changed.len(), text.len(), "{from}");
        let mut bytes = whole[..place].to_vec();
        bytes.extend(changed.as_bytes());
        let hash = <sha2::Sha256 as sha2::Digest>::digest(changed.as_bytes());
        bytes[header + 56..header + 88].copy_from_slice(&hash);
        let path = sample.with(&bytes);
        if from == "\"bytes\": 3" {
            // Nine bytes have room before the next page.
            open(&path).check(&mut |_, _| ()).expect_err("altered");
        } else {
            let message = refusal(&path);
            assert!(message.contains(expected), "{from}: {message}");
        }
    }
}

#[test]
fn no_bundle_holds_a_bundle() {
    let sample = Sample::new();
    let output = sample.folder.path().join("output");
    let error = write(&output, &sample.bundle, &Contents::default(), false, &mut |_, _| ());
    assert!(matches!(error, Err(BundleError::Nested { .. })), "{error:?}");
    assert!(!output.exists());
}

#[test]
fn a_file_that_differs_from_its_manifest_is_not_bundled() {
    let sample = Sample::new();
    let file = sample.folder.path().join("source-0");
    let mut contents = Contents::default();
    let sha256 = Some("0".repeat(64));
    contents.files.push(Source { path: "a/b".to_owned(), file, bytes: 3, sha256 });
    let output = sample.folder.path().join("output");
    let program = sample.folder.path().join("program");
    let error = write(&output, &program, &contents, false, &mut |_, _| ());
    assert!(matches!(error, Err(BundleError::Differs { .. })), "{error:?}");
    assert!(!output.exists());
    let left = fs::read_dir(sample.folder.path()).expect("folder").flatten();
    assert!(left.map(|f| f.file_name()).all(|n| !n.to_string_lossy().starts_with(".pixart")));
}

#[cfg(target_os = "linux")]
#[test]
fn a_library_becomes_a_file_in_memory() {
    let sample = Sample::new();
    let bundle = open(&sample.bundle);
    let entry = bundle.entry("a/large").expect("an entry");
    let path = library::in_memory(&bundle, entry).expect("a file");
    assert_eq!(fs::read(path).expect("readable"), sample.large);
}

#[test]
fn a_library_is_unpacked_once_and_again_if_it_was_changed() {
    let sample = Sample::new();
    let data = tempfile::tempdir().expect("folder");
    let bundle = open(&sample.bundle);
    let entry = bundle.entry("a/large").expect("an entry");
    let path = library::unpacked(data.path(), &bundle, entry).expect("written");
    assert_eq!(fs::read(&path).expect("readable"), sample.large);
    let written = || fs::metadata(&path).and_then(|m| m.modified()).expect("a time");
    let first = written();
    library::unpacked(data.path(), &bundle, entry).expect("there");
    assert_eq!(written(), first, "it was written again");
    fs::write(&path, "other").expect("changed");
    library::unpacked(data.path(), &bundle, entry).expect("written");
    assert_eq!(fs::read(&path).expect("readable"), sample.large);

    let mut bytes = sample.bytes();
    bytes[entry.offset as usize] ^= 1;
    let bundle = open(&sample.with(&bytes));
    let nowhere = tempfile::tempdir().expect("folder");
    let error = library::unpacked(nowhere.path(), &bundle, entry).expect_err("altered");
    assert!(error.to_string().contains("altered"), "{error}");
}
